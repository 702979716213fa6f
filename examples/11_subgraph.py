"""Sub-graph: a compiled app is a node of another. Its events are in the parent's stream, each with its path.

Expect: who said what and where; then the same run seen through a filter that only lets the sub-graph pass.
"""

import asyncio
from typing import TypedDict

from weavegraph import END, START, EventFilter, GraphBuilder


class State(TypedDict, total=False):
    topic: str
    facts: str
    text: str


research = GraphBuilder(State, name="research")


@research.node
def search(state: State, ctx):
    ctx.emit("search", f"three hits for {state['topic']}")
    return {"facts": f"{state['topic']} is old"}


@research.node
def check(state: State, ctx):
    ctx.emit("check", "sources agree")


research.add_edge(START, "search").add_edge("search", "check").add_edge("check", END)

writing = GraphBuilder(State, name="writing")
writing.add_node("research", research.compile())  # keys that both states have are shared


@writing.node
def write(state: State, ctx):
    ctx.emit("write", "one sentence")
    return {"text": state["facts"] + "."}


writing.add_edge(START, "research").add_edge("research", "write").add_edge("write", END)
app = writing.compile()


async def main():
    async with app, app.stream({"topic": "tea"}) as run:
        inside = run.events(filter=EventFilter(path=("research",), kinds=("node",)))
        async for event in run:
            if event.scope in ("search", "check", "write"):
                print("/".join((*event.path, event.node_id)), "-", event.message)
        print((await run)["text"])
        print("inside:", [event.node_id async for event in inside])


asyncio.run(main())
