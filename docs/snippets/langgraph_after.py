"""The same in weavegraph. Any number of watchers; each event has its position, node and step."""

from typing import Annotated, Literal, TypedDict

from weavegraph import END, START, Command, EventFilter, GraphBuilder, RuntimeConfig, Send
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.state import append


class State(TypedDict, total=False):
    topic: str
    facts: Annotated[list[str], append]
    text: str
    approved: bool


def plan(state: State) -> Command[Literal["research"]]:
    return Command(goto=[Send("research", {"topic": f"{state['topic']} {part}"}) for part in ("history", "taste")])


def research(state: State, ctx):
    ctx.emit("research", state["topic"])
    return {"facts": [f"{state['topic']} is known"]}


def write(state: State, ctx):
    reply = ctx.stream_llm(fact + ". " for fact in state["facts"]).read()
    return {"text": reply.text.strip()}


def good(state: State) -> Literal["approve", "write"]:
    return "approve" if len(state["text"]) > 10 else "write"


def approve(state: State, ctx):
    return {"approved": ctx.interrupt_sync("Publish?") == "yes"}


builder = GraphBuilder(State)
for node in (plan, research, write, approve):
    builder.add_node(node.__name__, node)
builder.add_edge(START, "plan")
builder.add_edge("research", "write")
builder.add_conditional_edge("write", good)
builder.add_edge("approve", END)

# One node at a time, so that what they print is in order.
with builder.compile(RuntimeConfig(checkpointer=MemoryCheckpointer(), concurrency_limit=1)) as app:
    with app.stream_sync({"topic": "tea"}, session_id="1") as run:
        for event in run.blocking(filter=EventFilter(kinds=("node", "llm"))):
            print(event)
    print("asks:", run.questions[0].question)
    with app.resume_sync("1", "yes") as run:
        state = run.result()
    print(state["text"], state["approved"])
