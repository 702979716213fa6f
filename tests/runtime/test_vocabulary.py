"""Contract section 9: the runtime's own events, and the same ones every time."""

from __future__ import annotations

import asyncio
import itertools
from typing import Annotated, Any, TypedDict

import pytest

from tests.support import StillClock, clause, settle
from weavegraph import (
    END,
    INVOCATION_END_SCOPE,
    START,
    App,
    AppRunner,
    DiagnosticEvent,
    Event,
    EventInvalidError,
    GraphBuilder,
    NodeContext,
    RuntimeConfig,
    Send,
    llm_chunk,
)
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.state import append


class State(TypedDict, total=False):
    topic: str
    parts: Annotated[list[str], append]
    rounds: int


def ids() -> Any:
    count = itertools.count()
    return lambda kind: f"{kind}-{next(count)}"


def still(**options: Any) -> RuntimeConfig:
    return RuntimeConfig(clock=StillClock(), ids=ids(), **options)


def looped(config: RuntimeConfig) -> App[State]:
    builder = GraphBuilder(State, name="looped")

    @builder.node
    async def plan(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        ctx.emit("planning", "round", number=state.get("rounds", 0))
        return {"rounds": state.get("rounds", 0) + 1}

    @builder.node(retry=2)
    async def work(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        if ctx.try_no == 1 and state["rounds"] == 1:
            raise ConnectionError("once")
        return {"parts": [state["topic"]]}

    @builder.node
    async def write(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        reply = await ctx.stream_llm(["a", "b"], stream_id="draft")
        return {"parts": [reply.text]}

    builder.add_edge(START, "plan").add_edge("plan", "work").add_edge("plan", "write")
    builder.add_conditional_edge("write", lambda state: "plan" if state["rounds"] < 2 else END, to=["plan", END])
    builder.add_edge("work", END)
    return builder.compile(config)


async def record(app: App[Any], given: Any = None, **options: Any) -> list[Event]:
    async with app:
        run = app.start({"topic": "tea"} if given is None else given, **options)
        events = [event async for event in run]
        try:
            await run
        except Exception:
            pass
        return events


def told(events: list[Event], scope: str) -> list[dict[str, Any]]:
    return [dict(event.metadata) for event in events if event.scope == scope]


@clause("9.run_started", "9.step", "9.node", "9.stream_end", "9.llm", "9.checkpoint")
async def test_each_event_has_the_metadata_that_the_contract_lists() -> None:
    app = looped(still(checkpointer=MemoryCheckpointer()))
    events = await record(app, session_id="s", tags=["blue"])
    about = {"graph": "looped", "fingerprint": app.graph.fingerprint, "session": "s"}
    assert told(events, "weavegraph.run.started") == [{**about, "input_keys": ["topic"], "tags": ["blue"]}]
    steps = [{"step": 1, "nodes": ["plan"]}, {"step": 2, "nodes": ["work", "write"]}]
    steps += [{"step": 3, "nodes": ["plan"]}, {"step": 4, "nodes": ["work", "write"]}]
    assert told(events, "weavegraph.step.started") == steps
    assert told(events, "weavegraph.step.finished") == steps
    node = {"node": "work", "step": 2, "attempt": 1, "try": 1}
    assert [m for m in told(events, "weavegraph.node.started") if m["node"] == "work"] == [
        node, {**node, "try": 2}, {**node, "step": 4},
    ]  # fmt: skip
    assert told(events, "weavegraph.node.retried") == [{**node, "duration": 0.0, "error": "ConnectionError: once"}]
    assert {**node, "try": 2, "duration": 0.0} in told(events, "weavegraph.node.finished")
    assert told(events, "weavegraph.checkpoint.saved") == [
        {"session": "s", "number": number, "step": number - 1} for number in range(1, 6)
    ]
    assert told(events, "weavegraph.stream.end") == [{"outcome": "completed", "step": 4}]
    llm = [(e.stream_id, e.index, e.phase, e.node_id, e.step) for e in events if e.scope == "llm_stream"]  # type: ignore[union-attr]
    assert llm[:3] == [("draft", n, phase, "write", 2) for n, phase in enumerate(["chunk", "chunk", "final"])]
    assert llm[3:] == [("draft:2", n, phase, "write", 4) for n, phase in enumerate(["chunk", "chunk", "final"])]
    assert all(isinstance(event, DiagnosticEvent) for event in events if event.scope.startswith("weavegraph."))


@clause("9.node")
async def test_a_failure_names_its_node_try_duration_error_and_code() -> None:
    builder = GraphBuilder(State)
    builder.add_node("n", lambda state: {"nope": 1}).add_node("m", lambda state: 1 / 0)
    builder.add_edge(START, "m").add_edge("m", "n").add_edge("n", END)
    events = await record(builder.compile(still()))
    error = "ZeroDivisionError: division by zero"
    assert told(events, "weavegraph.node.failed") == [
        {"node": "m", "step": 1, "attempt": 1, "try": 1, "duration": 0.0, "error": error}
    ]
    assert told(events, "weavegraph.stream.end") == [{"outcome": "failed", "step": 0, "error": error}]


@clause("9.step")
@pytest.mark.parametrize("what", ["updates", "values"])
async def test_state_events_add_the_merged_writes_or_values_or_a_reference(what: Any) -> None:
    events = await record(looped(still(state_events=what)))
    second = told(events, "weavegraph.step.finished")[1]
    if what == "values":
        assert second["values"] == {"topic": "tea", "rounds": 1, "parts": ["tea", "ab"]}
    else:
        assert second["updates"] == [
            {"by": "node 'work'", "writes": {"parts": ["tea"]}}, {"by": "node 'write'", "writes": {"parts": ["ab"]}},
        ]  # fmt: skip
    builder = GraphBuilder(State)
    builder.add_node("big", lambda state: {"topic": "x" * 2_000_000, "parts": [object()]})
    builder.add_edge(START, "big").add_edge("big", END)
    events = await record(builder.compile(still(state_events=what)), session_id="s")
    assert told(events, "weavegraph.step.finished") == [
        {"step": 1, "nodes": ["big"], "checkpoint": {"session": "s", "step": 1}}
    ]


@clause("9.node")
async def test_version_gating_skips_a_node_whose_state_has_not_changed() -> None:
    builder = GraphBuilder(State)
    ran: list[str] = []

    def node(name: str, update: dict[str, Any] | None) -> Any:
        def run(state: State) -> dict[str, Any] | None:
            ran.append(name)
            return update

        return run

    builder.add_node("a", node("a", None)).add_node("b", node("b", None))
    builder.add_edge(START, "a").add_edge("a", "b")
    builder.add_conditional_edge("b", lambda state: "a", to=["a", END])
    events = await record(builder.compile(still(version_gating=True)))
    assert ran == ["a", "b"]
    assert [m["node"] for m in told(events, "weavegraph.node.skipped")] == ["a"]
    assert told(events, "weavegraph.stream.end") == [{"outcome": "completed", "step": 3}]


@clause("9.invocation_end", "O4")
async def test_an_input_of_an_iterative_session_ends_and_its_stream_goes_on() -> None:
    async with looped(still()) as app:
        runner = AppRunner(app)
        stream = runner.event_stream()
        session = await runner.create_iterative_session({"topic": "tea"}, session_id="s")
        for rounds in (0, 0):
            await runner.invoke_next("s", {"rounds": rounds})
        with pytest.raises(Exception, match="nope"):
            await runner.invoke_next("s", {"nope": 1})
        await runner.finish_iterative_session("s")
        await app.aclose()
        events = [event async for event in stream]
    ends = told(events, INVOCATION_END_SCOPE)
    assert [(end["outcome"], end["step"]) for end in ends] == [("completed", 4), ("completed", 8), ("failed", 8)]
    assert told(events, "weavegraph.stream.end") == [{"outcome": "completed", "step": 8}]
    assert {event.run_id for event in events} == {session.run_id}


@clause("9.gap")
async def test_a_gap_of_another_kind_than_loss_is_told_by_its_reason() -> None:
    from weavegraph.bus import gap_event

    assert dict(gap_event(3, 1, 3).metadata) == {"count": 3, "first_seq": 1, "last_seq": 3}
    with pytest.raises(EventInvalidError):
        async with looped(still()) as app:
            app.event_bus.emitter().emit(DiagnosticEvent("weavegraph.gap", "forged", {}))


def fan(config: RuntimeConfig) -> App[State]:
    builder = GraphBuilder(State)
    builder.add_node("split", lambda state: [Send("each", {"topic": name}) for name in "cab"])

    @builder.node
    async def each(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        ctx.emit("each", state["topic"])
        ctx.emitter.emit(llm_chunk(state["topic"], stream_id=state["topic"]))
        return {"parts": [state["topic"]]}

    builder.add_edge(START, "split").add_edge("each", END)
    return builder.compile(config)


def cut(config: RuntimeConfig) -> App[State]:
    """One node fails, and its siblings are cancelled."""
    builder = GraphBuilder(State)

    async def fails(state: State) -> None:
        await settle(3)
        raise ValueError("here")

    async def waits(state: State, ctx: NodeContext[State, None]) -> None:
        ctx.emit_llm_chunk("half")
        await asyncio.Event().wait()

    for name in ("fails", *(f"waits-{number}" for number in range(8))):
        builder.add_node(name, fails if name == "fails" else waits).add_edge(START, name).add_edge(name, END)
    return builder.compile(config)


@pytest.mark.parametrize(("make", "times"), [(fan, 1000), (looped, 50), (cut, 200)])
async def test_under_a_still_clock_and_counted_ids_the_events_are_the_same_byte_for_byte(make: Any, times: int) -> None:
    first = [event.to_json() for event in await record(make(still()))]
    assert len(first) > 10
    for _ in range(times):
        assert [event.to_json() for event in await record(make(still()))] == first
