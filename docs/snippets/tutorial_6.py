"""Step 6: ready to be operated: a deadline, a file of events, a watcher of everything, and books that add up."""

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypedDict

from weavegraph import END, START, EventBusConfig, EventFilter, GraphBuilder, NodeContext, RuntimeConfig
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.sinks import read_jsonlines
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
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.jsonl"
        config = RuntimeConfig(
            checkpointer=MemoryCheckpointer(),
            timeout=30,  # seconds for each run
            step_limit=20,
            event_bus=EventBusConfig(sinks=(f"jsonl:{file}",)),
        )
        async with builder.compile(config) as app:
            ends = app.event_stream(filter=EventFilter(scopes=("weavegraph.stream.end",)))
            for customer in ("customer-7", "customer-8"):
                await app.start({"question": "Where is my parcel?"}, session_id=customer, deps=deps)
                await app.resume(customer, "yes", deps=deps)
            for _ in range(4):
                event = await ends.recv()
                print(event.session_id, "attempt", event.attempt, event.metadata["outcome"])
            books = ends.stats()
            print(
                f"{books.head} seen = {books.delivered} delivered + {books.filtered} passed over, {books.dropped} lost"
            )
            ends.close()
        found = read_jsonlines(file)  # leaving the app drained its sinks
        print(len(found.events), "events in the file;", found.torn + found.invalid, "broken lines")


if __name__ == "__main__":
    asyncio.run(main())
