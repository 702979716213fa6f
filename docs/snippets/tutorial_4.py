"""Step 4: a loop that asks again until a check is content, and an edge that decides."""

import asyncio
from typing import Annotated, TypedDict

from weavegraph import END, START, EventFilter, GraphBuilder
from weavegraph.state import append


class State(TypedDict, total=False):
    question: str
    facts: Annotated[list[str], append]
    answer: str
    tries: int


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
    tries = state.get("tries", 0) + 1
    words = ("I ", "guess.") if tries == 1 else ("At ", "the ", "post ", "office.")
    reply = await ctx.stream_llm(model(*words), stream_id="answer")
    return {"answer": reply.text, "tries": tries}


def grounded(state: State):
    """Whether a fact stands behind the answer."""
    place = state["answer"].removeprefix("At ").rstrip(".")
    return any(place in fact for fact in state["facts"])


for source in ("parcels", "orders"):
    builder.add_edge(START, source).add_edge(source, "answer")
builder.add_conditional_edge("answer", grounded, to={True: END, False: "answer"})


async def main():
    async with builder.compile() as app, app.stream({"question": "Where is my parcel?"}) as run:
        async for event in run.events(filter=EventFilter(scopes=("weavegraph.step.started",))):
            print(event.message)
        state = await run
        print(state["answer"], state["tries"])


if __name__ == "__main__":
    asyncio.run(main())
