"""The same in weavegraph: edges say what comes next, a reducer collects, and whoever wants to may watch."""

import asyncio
from typing import Annotated, TypedDict

from weavegraph import END, START, EventFilter, GraphBuilder, RuntimeConfig, Send
from weavegraph.state import append


class State(TypedDict, total=False):
    topic: str
    facts: Annotated[list[str], append]
    text: str


builder = GraphBuilder(State, name="article")


@builder.node(to=["research"])
async def plan(state: State):
    return [Send("research", {"topic": state["topic"], "part": part}) for part in ("history", "taste")]


@builder.node
async def research(ask, ctx):
    ctx.emit("progress", f"research {ask['part']}")
    return {"facts": [f"{ask['topic']} {ask['part']} is known"]}


@builder.node
async def write(state: State):  # runs once, after all copies of research
    return {"text": " ".join(f"{fact}." for fact in state["facts"])}


builder.add_edge(START, "plan")
builder.add_edge("research", "write").add_edge("write", END)


async def main():
    async with builder.compile(RuntimeConfig(timeout=10)) as app:
        run = app.start({"topic": "tea"})
        async for event in run.events(filter=EventFilter(scopes=("progress",))):
            print(event.message)
        print((await run)["text"])


asyncio.run(main())
