"""LangGraph: ``StateGraph``, reducers in the state's annotations, ``stream_mode="custom"``. No checkpointer."""

import operator
from typing import Annotated, Any, TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph

NAME = "LangGraph"
PACKAGE = "langgraph"


class Counter(TypedDict):
    count: int


class Log(TypedDict):
    done: Annotated[list[Any], operator.add]


async def step(state: Counter) -> dict[str, Any]:
    return {"count": state["count"] + 1}


async def work(state: Log) -> dict[str, Any]:
    return {"done": [1]}


def chain(size):
    builder = StateGraph(Counter)
    builder.add_sequence([(f"n{number}", step) for number in range(size)])
    builder.add_edge(START, "n0")
    builder.add_edge(f"n{size - 1}", END)
    graph = builder.compile()

    async def call():
        state = await graph.ainvoke({"count": 0}, {"recursion_limit": size + 1})
        assert state["count"] == size

    return call


def loop(turns):
    async def router(state: Log):  # async: a plain function would be sent to a thread each time
        return END if len(state["done"]) >= turns else "again"

    builder = StateGraph(Log)
    builder.add_node("again", work)
    builder.add_edge(START, "again")
    builder.add_conditional_edges("again", router, ["again", END])
    graph = builder.compile()

    async def call():
        state = await graph.ainvoke({"done": []}, {"recursion_limit": turns + 1})
        assert len(state["done"]) == turns

    return call


def fan_out(width):
    names = [f"w{number}" for number in range(width)]
    builder = StateGraph(Log)
    builder.add_node("split", work)
    builder.add_node("join", work)
    builder.add_edge(START, "split")
    for name in names:
        builder.add_node(name, work)
        builder.add_edge("split", name)
    builder.add_edge(names, "join")
    builder.add_edge("join", END)
    graph = builder.compile()

    async def call():
        state = await graph.ainvoke({"done": []})
        assert len(state["done"]) == width + 2

    return call


def burst(events):
    async def speaks(state: Counter) -> dict[str, Any]:
        write = get_stream_writer()
        for number in range(events):
            write({"scope": "progress", "message": "item", "number": number})
        return {"count": 1}

    builder = StateGraph(Counter)
    builder.add_node("speaks", speaks)
    builder.add_edge(START, "speaks")
    builder.add_edge("speaks", END)
    graph = builder.compile()

    async def call():
        count = 0
        async for _ in graph.astream({"count": 0}, stream_mode="custom"):
            count += 1
        assert count == events

    return call
