"""Step 5: a person is asked before the answer leaves, and the clients come from outside."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, TypedDict

from weavegraph import END, START, GraphBuilder, NodeContext, RuntimeConfig
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.state import append


class State(TypedDict, total=False):
    question: str
    facts: Annotated[list[str], append]
    answer: str
    tries: int
    approved: bool


@dataclass
class Deps:
    """What nodes need that is no state."""

    outbox: list[str] = field(default_factory=list)


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


@builder.node
async def approve(state: State, ctx):
    ctx.emit("approve", "asking a person")  # runs again from its top when the answer is there
    verdict = await ctx.interrupt(f"Send {state['answer']!r}?")
    return {"approved": verdict == "yes"}


@builder.node
async def send(state: State, ctx: NodeContext[State, Deps]):
    if state["approved"]:
        ctx.deps.outbox.append(state["answer"])


def grounded(state: State):
    """Whether a fact stands behind the answer."""
    place = state["answer"].removeprefix("At ").rstrip(".")
    return any(place in fact for fact in state["facts"])


for source in ("parcels", "orders"):
    builder.add_edge(START, source).add_edge(source, "answer")
builder.add_conditional_edge("answer", grounded, to={True: "approve", False: "answer"})
builder.add_edge("approve", "send").add_edge("send", END)


async def main():
    deps = Deps()
    async with builder.compile(RuntimeConfig(checkpointer=MemoryCheckpointer())) as app:
        run = app.start({"question": "Where is my parcel?"}, session_id="customer-7", deps=deps)
        await run
        print(run.status, run.questions[0].question)
        run = app.resume("customer-7", "yes", deps=deps)
        await run
        print(run.status, deps.outbox)


if __name__ == "__main__":
    asyncio.run(main())
