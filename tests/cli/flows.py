"""Apps that the tests of the command line run."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TypedDict

from weavegraph import END, START, GraphBuilder, NodeContext
from weavegraph.state import append


class State(TypedDict, total=False):
    topic: str
    outline: list[str]
    parts: Annotated[list[str], append]
    answer: str
    pace: float
    gate: str


def writing() -> GraphBuilder[State]:
    """Two steps, a model's answer in several lines, and an event of a node's own."""
    builder = GraphBuilder(State, name="writing")

    @builder.node
    async def outline(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        ctx.emit("thinking", "about it", topic=state["topic"], words=120)
        return {"outline": [state["topic"], "more"]}

    @builder.node
    async def write(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        tokens = [state["topic"], " is\ngreen", ".\n", "And \x1b[31mhot."]
        reply = await ctx.stream_llm(tokens, stream_id="draft")
        return {"parts": [reply.text]}

    builder.add_edge(START, "outline").add_edge("outline", "write").add_edge("write", END)
    return builder


app = writing().compile()
builder = writing()
answer = 42


def failing() -> GraphBuilder[State]:
    builder = GraphBuilder(State, name="failing")

    def work(state: State) -> dict[str, Any]:
        try:
            raise ConnectionError("the model is \x1b[31mdown")
        except ConnectionError as exc:
            raise ValueError("no answer") from exc

    builder.add_node("work", work).add_edge(START, "work").add_edge("work", END)
    return builder


def asking() -> GraphBuilder[State]:
    builder = GraphBuilder(State, name="asking")

    async def ask(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        return {"answer": await ctx.interrupt("Which tea?")}

    builder.add_node("ask", ask).add_edge(START, "ask").add_edge("ask", END)
    return builder


def endless() -> GraphBuilder[State]:
    """Emits until it is told to stop."""
    builder = GraphBuilder(State, name="endless")

    async def tick(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        n = 0
        while not ctx.cancelled:
            n += 1
            ctx.emit("tick", str(n))
            await asyncio.sleep(state.get("pace", 0.01))  # sleeps: its pace
        return {"answer": "stopped"}

    builder.add_node("tick", tick).add_edge(START, "tick").add_edge("tick", END)
    return builder


def stubborn() -> GraphBuilder[State]:
    """Keeps the loop from turning: not even a cancellation reaches it."""
    import time

    builder = GraphBuilder(State, name="stubborn")

    async def block(state: State, ctx: NodeContext[State, None]) -> None:
        ctx.emit("blocking", "now")
        while not Path("printed").exists():
            await asyncio.sleep(0.01)  # sleeps: between two looks
        Path("blocked").touch()
        time.sleep(60)  # sleeps: this is what it is for

    builder.add_node("block", block).add_edge(START, "block").add_edge("block", END)
    return builder


def stepping() -> GraphBuilder[State]:
    """Ten steps; step 5 waits for the file ``gate``. Counts its work in ``$WORKED``, one line each."""
    builder = GraphBuilder(State, name="stepping")

    async def work(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        done = len(state.get("parts", []))
        while done == 5 and not Path(state["gate"]).exists():
            await asyncio.sleep(0.01)  # sleeps: between two looks
        await ctx.stream_llm([f"{done}", "!"], stream_id="count")
        with open(os.environ["WORKED"], "a") as file:
            file.write(f"{done}\n")
        return {"parts": [str(done)]}

    builder.add_node("work", work).add_edge(START, "work")
    builder.add_conditional_edge("work", lambda state: END if len(state["parts"]) == 10 else "work", to=["work", END])
    return builder


def fanning() -> GraphBuilder[State]:
    """Parallel nodes that take turns in an order of their own; ``pace`` changes it."""
    builder = GraphBuilder(State, name="fanning")

    def node(name: str, turns: int) -> Any:
        async def run(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
            for n in range(3):
                ctx.emit("turn", f"{name} {n}")
                for _ in range(turns if state.get("pace") else 4 - turns):
                    await asyncio.sleep(0)
            return {"parts": [name]}

        return run

    for name, turns in (("a", 1), ("b", 2), ("c", 3)):
        builder.add_node(name, node(name, turns)).add_edge(START, name).add_edge(name, END)
    return builder


def broken() -> Any:
    raise RuntimeError("no graph today")


if os.environ.get("FLOWS_EXIT"):
    sys.exit(3)
