"""A graph runs, and each run is watched alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, TypedDict

import pytest

from tests.support import clause, settle
from weavegraph import (
    END,
    START,
    STREAM_END_SCOPE,
    App,
    CompileError,
    Event,
    EventBusConfig,
    EventFilter,
    GraphBuilder,
    LLMStreamingEvent,
    NodeContext,
    NodeContextError,
    RunCancelledError,
    RunClosedError,
    RuntimeConfig,
    node_message,
)
from weavegraph.errors import (
    GraphError,
    NodeOutputError,
    NoRunningLoopError,
    RunExistsError,
    RunNotFoundError,
    StateError,
    StepLimitError,
)
from weavegraph.state import append


class State(TypedDict, total=False):
    topic: str
    rounds: int
    parts: Annotated[list[str], append]
    draft: str


def loop_graph() -> GraphBuilder:
    builder = GraphBuilder(State, name="loop")

    @builder.node
    async def plan(state: State, ctx: NodeContext) -> dict[str, Any]:
        ctx.emit("plan", "go", rounds=state.get("rounds", 0))
        return {"rounds": state.get("rounds", 0) + 1}

    @builder.node
    def left(state: State) -> dict[str, Any]:
        return {"parts": [f"left {threading.current_thread() is not threading.main_thread()}"]}

    @builder.node
    async def right(state: State) -> dict[str, Any]:
        return {"parts": ["right"]}

    @builder.node
    async def write(state: State, ctx: NodeContext) -> dict[str, Any]:
        reply = await ctx.stream_llm(["once ", "", "more"], stream_id="draft")
        return {"draft": reply.text}

    builder.add_edge(START, "plan")
    for node in ("left", "right"):
        builder.add_edge("plan", node)
        builder.add_edge(node, "write")
    builder.add_conditional_edge("write", lambda state: "plan" if state["rounds"] < 2 else END, to=["plan", END])
    return builder


def single(node: Any, config: RuntimeConfig | None = None) -> App:
    builder = GraphBuilder(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile(config)


async def test_fan_out_join_and_loop_give_the_merged_state() -> None:
    async with loop_graph().compile() as app:
        state = await app.invoke({"topic": "tea"})
    assert state == {"topic": "tea", "rounds": 2, "parts": ["left True", "right"] * 2, "draft": "once more"}


@clause("O3")
async def test_a_runs_positions_are_contiguous_and_its_last_event_is_the_terminal_one() -> None:
    async with loop_graph().compile() as app:
        run = app.start({"topic": "tea"})
        seen = [event async for event in run]
        await run
    assert [event.run_seq for event in seen] == list(range(1, len(seen) + 1))
    assert seen[0].scope == "weavegraph.run.started"
    assert [event.scope for event in seen].count(STREAM_END_SCOPE) == 1
    assert seen[-1].scope == STREAM_END_SCOPE
    assert seen[-1].metadata["outcome"] == "completed"
    with pytest.raises(RunClosedError):
        run._execution.lane.emitter().emit(node_message("too", "late"))


async def test_many_runs_at_once_are_watched_alone_and_together() -> None:
    async with loop_graph().compile() as app:
        everything = app.event_stream()
        runs = [app.start({"topic": str(n)}, run_id=f"run-{n}", session_id=f"s{n % 20}") for n in range(20)]
        alone = [[event async for event in run.events()] for run in runs]
        for run in runs:
            await run
        together = await everything.recv_many(10_000)
        everything.close()
    for run, events in zip(runs, alone, strict=True):
        assert {event.run_id for event in events} == {run.run_id}
        assert [event for event in together if event.run_id == run.run_id] == events


async def test_a_stream_of_one_run_before_during_and_after() -> None:
    async with loop_graph().compile() as app:
        run = app.start({"topic": "tea"}, run_id="r")
        during = app.event_stream(run_id="r", after=0)
        only_llm = app.event_stream(run_id="r", after=0, filter=EventFilter(kinds=("llm",)))
        by_session = app.event_stream(session_id=run.session_id, after=0)
        await run
        late = app.event_stream(run_id="r", after=0)
        events = [event async for event in during]
        assert [event async for event in late] == events
        assert [event.message async for event in only_llm] == ["once ", "more", ""] * 2
        assert list(await by_session.recv_many()) == events
        by_session.close()


@clause("O4", "R8")
async def test_a_stream_of_a_run_that_has_not_started_waits_for_it() -> None:
    async with loop_graph().compile() as app:
        early = app.event_stream(run_id="r")
        assert early.try_recv() is None
        waiting = asyncio.create_task(early.recv())
        await settle()
        run = app.start({"topic": "tea"}, run_id="r")
        assert (await waiting).scope == "weavegraph.run.started"
        rest = [event.run_seq async for event in early]
        assert rest == [*range(2, run.events().stats().head + 1)]
        await run


@clause("K3")
async def test_a_forgotten_run_is_unknown_and_its_id_stays_taken() -> None:
    config = RuntimeConfig(event_bus=EventBusConfig(keep_runs=1))
    async with single(lambda state: None, config) as app:
        for run_id in ("one", "two"):
            await app.invoke({}, run_id=run_id)
        assert len([event async for event in app.event_stream(run_id="two")]) > 0
        with pytest.raises(RunNotFoundError, match="'one'"):
            app.event_stream(run_id="one")
        for run_id in ("one", "two"):
            with pytest.raises(RunExistsError, match="give each run another"):
                app.start({}, run_id=run_id)


async def llm_events(node: Any) -> list[tuple[int, str, str]]:
    """Index, phase and text of what a one-node run said as a model."""
    async with single(node) as app:
        run = app.start({})
        seen: list[Event] = [event async for event in run]
        with pytest.raises(Exception) if seen[-1].metadata["outcome"] == "failed" else nothing():
            await run
    return [(e.index, e.phase, e.chunk) for e in seen if isinstance(e, LLMStreamingEvent)]


class nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


@clause("O5", "9.llm")
async def test_every_llm_stream_ends_exactly_once_however_its_node_ends() -> None:
    async def breaks() -> AsyncIterator[str]:
        yield "a"
        raise ConnectionError("gone")

    def openai() -> Iterator[dict[str, Any]]:
        yield {"choices": [{"delta": {"content": "a"}}]}
        yield {"choices": [{"delta": {"role": "assistant"}}]}
        yield {"choices": []}

    async def whole(state: State, ctx: NodeContext) -> None:
        assert (await ctx.stream_llm(openai())).text == "a"

    async def fails(state: State, ctx: NodeContext) -> None:
        await ctx.stream_llm(breaks())

    async def leaves(state: State, ctx: NodeContext) -> None:
        async for _ in ctx.stream_llm(["a", "b"]):
            break

    async def raises_while_open(state: State, ctx: NodeContext) -> None:
        async for _ in ctx.stream_llm(["a", "b"]):
            raise ValueError("node")

    assert await llm_events(whole) == [(0, "chunk", "a"), (1, "final", "")]
    assert await llm_events(fails) == [(0, "chunk", "a"), (1, "error", "ConnectionError: gone")]
    assert await llm_events(leaves) == [(0, "chunk", "a"), (1, "cancelled", "")]
    assert [event[:2] for event in await llm_events(raises_while_open)] == [(0, "chunk"), (1, "error")]


async def test_a_failing_node_fails_the_run_with_its_own_exception() -> None:
    async def node(state: State, ctx: NodeContext) -> None:
        ctx.emit("about", "to fail")
        raise ZeroDivisionError("by hand")

    async with single(node) as app:
        run = app.start({}, run_id="r")
        with pytest.raises(ZeroDivisionError, match="by hand") as caught:
            await run
        assert caught.value.__notes__ == ["in node 'node', step 1, attempt 1 of run 'r'"]
        last = [event async for event in run.events()][-1]
    assert (last.metadata["outcome"], last.metadata["error"]) == ("failed", "ZeroDivisionError: by hand")
    assert run.status == "failed"


async def test_cancelling_a_run_ends_its_stream_with_its_terminal_event() -> None:
    started = asyncio.Event()

    async def node(state: State, ctx: NodeContext) -> None:
        started.set()
        await asyncio.Event().wait()

    async with single(node, RuntimeConfig(cancel_grace=0.01)) as app:
        run = app.start({})
        await started.wait()
        run.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await run
        seen = [event async for event in run]
    assert seen[-1].metadata["outcome"] == "cancelled"
    assert run.is_finished()


async def test_a_graph_that_never_ends_reaches_the_step_limit() -> None:
    """Trap: the original has no step limit."""
    builder = GraphBuilder(State)
    builder.add_node("a", lambda state: None)
    builder.add_edge(START, "a")
    builder.add_conditional_edge("a", lambda state: "a")
    async with builder.compile(RuntimeConfig(step_limit=5)) as app:
        with pytest.raises(StepLimitError, match="5 steps"):
            await app.invoke({})


async def test_emitting_with_nobody_watching_never_fails_a_node() -> None:
    """Trap: in the original, emitting with no receiver is an error that fails the run."""

    async def node(state: State, ctx: NodeContext) -> dict[str, Any]:
        for n in range(10_000):
            ctx.emit("n", str(n))
        return {"rounds": 1}

    async with single(node) as app:
        assert await app.invoke({}) == {"rounds": 1}


async def test_an_invalid_event_is_the_nodes_error() -> None:
    async def node(state: State, ctx: NodeContext) -> None:
        ctx.emit("weavegraph.stream.end", "forged")

    async with single(node) as app:
        with pytest.raises(NodeContextError, match="runtime's own"):
            await app.invoke({})


async def test_emitting_from_a_thread_of_a_node_works_and_names_the_node() -> None:
    """Peers' trap: emitting from a thread that the node started raises."""

    async def node(state: State, ctx: NodeContext) -> None:
        thread = threading.Thread(target=ctx.emit, args=("from", "a thread"))
        thread.start()
        await asyncio.to_thread(thread.join)

    async with single(node) as app:
        run = app.start({})
        said = [str(event) async for event in run.events(filter=EventFilter(kinds=("node",)))]
        await run
    assert said == ["[node@1] a thread"]


@pytest.mark.parametrize(
    ("node", "error", "words"),
    [
        (lambda state: 7, NodeOutputError, "returned a int"),
        (lambda state: {"nope": 1}, StateError, "node 'node' wrote 'nope'; the state has: topic, rounds, parts, draft"),
    ],
)
async def test_a_wrong_output_is_a_named_error(node: Any, error: type[Exception], words: str) -> None:
    async with single(node) as app:
        with pytest.raises(error, match=words):
            await app.invoke({})


async def test_two_writers_of_a_key_without_a_reducer_are_a_conflict() -> None:
    builder = GraphBuilder(State)
    for name in ("a", "b"):
        builder.add_node(name, lambda state: {"topic": "x"})
        builder.add_edge(START, name)
        builder.add_edge(name, END)
    async with builder.compile() as app:
        with pytest.raises(StateError, match=r"node 'a' and node 'b' both wrote 'topic'"):
            await app.invoke({})


async def test_a_router_that_answers_nonsense_is_a_named_error() -> None:
    builder = GraphBuilder(State)
    builder.add_node("a", lambda state: None)
    builder.add_edge(START, "a")
    builder.add_conditional_edge("a", lambda state: "nowhere", to=[END])
    async with builder.compile() as app:
        with pytest.raises(GraphError, match=r"'nowhere'; it may answer: __end__"):
            await app.invoke({})


def test_compile_names_every_fault_at_once() -> None:
    builder = GraphBuilder(State)
    builder.add_node("alone", lambda state: None)
    builder.add_edge(START, "ghost")
    builder.add_edge(START, "ghost")
    builder.add_edge(END, "alone")
    builder.add_node("x", lambda state: None).add_node("y", lambda state: None)
    builder.add_edge("x", "y").add_edge("y", "x")
    with pytest.raises(CompileError) as caught:
        builder.compile()
    text = str(caught.value)
    for words in ("'ghost', which is no node", "is added twice", "'alone' leads nowhere", "never reached", "x → y → x"):
        assert words in text
    assert len(caught.value.faults) == text.count("\n  - ")


def test_start_without_a_loop_points_to_the_way() -> None:
    with pytest.raises(NoRunningLoopError, match=r"asyncio\.run"):
        single(lambda state: None).start({})
