"""Fan-out: the map step sends one piece of work to each of several copies of a node; the reduce step sees all results.

Expect: three lengths, merged in the order in which the work was sent, whatever finishes first.
"""

import asyncio
from typing import Annotated, TypedDict

from weavegraph import END, START, GraphBuilder, Send
from weavegraph.state import append


class State(TypedDict, total=False):
    words: list[str]
    lengths: Annotated[list[int], append]  # parallel writers of one key need a reducer: append keeps all of them
    total: int


builder = GraphBuilder(State)


@builder.node(to=["measure"])
def split(state: State):
    return [Send("measure", {"word": word, "turns": len(word) % 3}) for word in state["words"]]


@builder.node
async def measure(payload):  # it is given the payload of its Send, not the state
    for _ in range(payload["turns"]):  # some take longer than others
        await asyncio.sleep(0)
    return {"lengths": [len(payload["word"])]}


@builder.node
def add(state: State):
    return {"total": sum(state["lengths"])}


builder.add_edge(START, "split")
builder.add_edge("measure", "add").add_edge("add", END)
app = builder.compile()


async def main():
    async with app:
        state = await app.invoke({"words": ["green", "tea", "ceremony"]})
        print(state["lengths"], "sum", state["total"])


asyncio.run(main())
