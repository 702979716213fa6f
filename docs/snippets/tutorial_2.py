"""Step 2: the node speaks while it works, and somebody watches."""

import asyncio
from typing import TypedDict

from weavegraph import END, START, GraphBuilder


class State(TypedDict, total=False):
    question: str
    answer: str


builder = GraphBuilder(State, name="helpdesk")


@builder.node
async def answer(state: State, ctx):
    ctx.emit("answer", "looking for the parcel", carrier="mail")
    await asyncio.sleep(0)
    ctx.emit("answer", "found it")
    return {"answer": "It is at the post office."}


builder.add_edge(START, "answer").add_edge("answer", END)


async def main():
    async with builder.compile() as app, app.stream({"question": "Where is my parcel?"}) as run:
        async for event in run:
            print(event.run_seq, event)
        print((await run)["answer"])


if __name__ == "__main__":
    asyncio.run(main())
