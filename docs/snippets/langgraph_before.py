"""LangGraph: a draft, a check that may send it back, custom events, tokens, an approval, and the state at the end."""

import operator
from typing import Annotated, Literal, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt


class State(TypedDict, total=False):
    topic: str
    facts: Annotated[list[str], operator.add]
    text: str
    approved: bool


def plan(state: State) -> Command[Literal["research"]]:
    return Command(goto=[Send("research", {"topic": f"{state['topic']} {part}"}) for part in ("history", "taste")])


def research(state: State):
    get_stream_writer()({"research": state["topic"]})
    return {"facts": [f"{state['topic']} is known"]}


def write(state: State):
    writer = get_stream_writer()
    text = ""
    for token in (fact + ". " for fact in state["facts"]):
        writer({"token": token})
        text += token
    return {"text": text.strip()}


def good(state: State) -> Literal["approve", "write"]:
    return "approve" if len(state["text"]) > 10 else "write"


def approve(state: State):
    return {"approved": interrupt("Publish?") == "yes"}


builder = StateGraph(State)
for node in (plan, research, write, approve):
    builder.add_node(node.__name__, node)
builder.add_edge(START, "plan")
builder.add_edge("research", "write")
builder.add_conditional_edges("write", good)
builder.add_edge("approve", END)
graph = builder.compile(checkpointer=InMemorySaver())
config = {"configurable": {"thread_id": "1"}}

for chunk in graph.stream({"topic": "tea"}, config, stream_mode="custom"):
    print(chunk)
print("asks:", graph.get_state(config).tasks[0].interrupts[0].value)
state = graph.invoke(Command(resume="yes"), config)
print(state["text"], state["approved"])
