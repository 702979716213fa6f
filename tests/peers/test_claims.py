"""What the migration guides say about the other libraries is so, in the versions of requirements-peers.lock; and what
they say of ours beside it."""

from __future__ import annotations

import threading
from typing import Any, TypedDict

import pytest

from weavegraph import END, START, Command, GraphBuilder


class State(TypedDict, total=False):
    items: list[int]


def test_emitting_from_a_thread_that_a_node_started() -> None:
    pytest.importorskip("langgraph")
    from langgraph.config import get_stream_writer
    from langgraph.graph import StateGraph

    errors: list[type[Exception]] = []

    def in_thread(work: Any) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception as exc:
                errors.append(type(exc))

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()

    def theirs(state: State) -> None:
        writer = get_stream_writer()
        in_thread(lambda: writer({"progress": 1}))

    graph = StateGraph(State)
    graph.add_node("work", theirs)
    graph.add_edge("__start__", "work")
    assert list(graph.compile().stream({"items": []}, stream_mode="custom")) == []
    assert errors == [RuntimeError]

    errors.clear()
    builder = GraphBuilder(State)
    builder.add_node("work", lambda state, ctx: in_thread(lambda: ctx.emit("progress", "1")))
    builder.add_edge(START, "work").add_edge("work", END)
    with builder.compile() as app, app.stream_sync({"items": []}) as run:
        assert [event.message for event in run.blocking() if event.scope == "progress"] == ["1"]
    assert not errors


def test_changing_the_state_in_place() -> None:
    pytest.importorskip("langgraph")
    from langgraph.graph import StateGraph

    def change(state: State) -> None:
        state["items"].append(1)

    graph = StateGraph(State)
    graph.add_node("change", change)
    graph.add_edge("__start__", "change")
    assert graph.compile().invoke({"items": [0]}) == {"items": [0, 1]}

    builder = GraphBuilder(State)
    builder.add_node("change", change).add_edge(START, "change").add_edge("change", END)
    with builder.compile() as app:
        assert app.invoke_sync({"items": [0]}) == {"items": [0]}


async def test_a_second_reader() -> None:
    pytest.importorskip("workflows")
    from workflows import Workflow, step
    from workflows.errors import WorkflowRuntimeError
    from workflows.events import StartEvent, StopEvent

    class Work(Workflow):  # type: ignore[misc]
        @step  # type: ignore[untyped-decorator]
        async def work(self, start: StartEvent) -> StopEvent:
            return StopEvent(result=1)

    handler = Work().run()
    assert len([event async for event in handler.stream_events()]) == 1
    with pytest.raises(WorkflowRuntimeError):
        assert [event async for event in handler.stream_events()]
    await handler

    builder = GraphBuilder(State)
    builder.add_node("work", lambda state: None).add_edge(START, "work").add_edge("work", END)
    async with builder.compile() as app:
        run = app.start({"items": []})
        assert [event async for event in run] == [event async for event in run]
        await run


def test_a_command_beside_a_static_edge() -> None:
    pytest.importorskip("langgraph")
    from langgraph.graph import StateGraph
    from langgraph.types import Command as TheirCommand

    theirs: list[str] = []
    graph = StateGraph(State)
    graph.add_node("a", lambda state: TheirCommand(goto="b"), destinations=("b",))
    graph.add_node("b", lambda state: theirs.append("b"))
    graph.add_node("c", lambda state: theirs.append("c"))
    graph.add_edge("__start__", "a")
    graph.add_edge("a", "c")
    graph.compile().invoke({"items": []})
    assert sorted(theirs) == ["b", "c"]

    ours: list[str] = []
    builder = GraphBuilder(State)
    builder.add_node("a", lambda state: Command(goto="b"), to=["b"])
    builder.add_node("b", lambda state: ours.append("b"))
    builder.add_node("c", lambda state: ours.append("c"))
    builder.add_edge(START, "a").add_edge("a", "c").add_edge("b", END).add_edge("c", END)
    with builder.compile() as app:
        app.invoke_sync({"items": []})
    assert ours == ["b"]
