"""Routing and commands: an edge that decides by the state, and a node that decides by itself where to go.

Expect: the path of each question, and the graph as a drawing (dashed: decided at run time).
"""

import asyncio
from typing import Literal, TypedDict

from weavegraph import END, START, Command, EventFilter, GraphBuilder


class State(TypedDict, total=False):
    question: str
    answer: str


builder = GraphBuilder(State)


@builder.node
def triage(state: State) -> Command[Literal["refund", "human"]]:  # compile() reads here where it may go
    if "money" in state["question"]:
        return Command(goto="refund", update={"answer": "Let me look. "})  # update and route in one
    return Command(goto="human")


@builder.node
def refund(state: State):
    return {"answer": state.get("answer", "") + "You get it back."}


@builder.node
def human(state: State):
    return {"answer": "A person will call you."}


def polite(state: State):
    return "thanks" if "please" in state["question"] else "end"


@builder.node
def thanks(state: State):
    return {"answer": state["answer"] + " Thank you for asking nicely."}


builder.add_edge(START, "triage")
builder.add_conditional_edge("refund", polite, to={"thanks": "thanks", "end": END})  # answers mapped to nodes
builder.add_edge("thanks", END).add_edge("human", END)
app = builder.compile()


async def main():
    async with app:
        for question in ("my money please", "my money", "help"):
            async with app.stream({"question": question}) as run:
                started = run.events(filter=EventFilter(scopes=("weavegraph.node.started",)))
                path = [event.node_id async for event in started]
                print(" → ".join(path), "|", (await run)["answer"])
    print(app.to_mermaid())


asyncio.run(main())
