"""Step 3: two sources asked side by side, merged by a reducer, and a model that streams its answer."""

import asyncio
from typing import Annotated, TypedDict

from weavegraph import END, START, EventFilter, GraphBuilder
from weavegraph.state import append


class State(TypedDict, total=False):
    question: str
    facts: Annotated[list[str], append]
    answer: str


builder = GraphBuilder(State, name="helpdesk")


async def model(*words):
    """Stands for a provider's stream."""
    for word in words:
        await asyncio.sleep(0)
        yield word


@builder.node
async def parcels(state: State, ctx):
    ctx.emit("parcels", "asking the carrier")
    return {"facts": ["The parcel is at the post office."]}


@builder.node
async def orders(state: State, ctx):
    ctx.emit("orders", "reading the order")
    return {"facts": ["The order has one parcel."]}


@builder.node
async def answer(state: State, ctx):
    reply = await ctx.stream_llm(model("At ", "the ", "post ", "office."), stream_id="answer")
    return {"answer": reply.text}


for source in ("parcels", "orders"):
    builder.add_edge(START, source).add_edge(source, "answer")
builder.add_edge("answer", END)


async def main():
    async with builder.compile() as app, app.stream({"question": "Where is my parcel?"}) as run:
        async for event in run.events(filter=EventFilter(kinds=("node", "llm"))):
            print(event)
        state = await run
        print(state["facts"], state["answer"])


if __name__ == "__main__":
    asyncio.run(main())
