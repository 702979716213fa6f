"""AppRunner: sessions by hand, pauses, inputs one after the other, history and forks; and questions."""

from __future__ import annotations

import asyncio
import itertools
from typing import Annotated, Any, TypedDict

import pytest

from tests.support import clause, settle
from weavegraph import (
    END,
    START,
    STREAM_END_SCOPE,
    App,
    AppRunner,
    EventStream,
    GraphBuilder,
    MemorySink,
    NodeContext,
    NodePartial,
    RunClosedError,
    RuntimeConfig,
    StepOptions,
)
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.errors import (
    CheckpointConflictError,
    GraphError,
    SessionBusyError,
    SessionError,
    SessionNotFoundError,
    StateError,
)
from weavegraph.runtime import PausedReport, StepReport
from weavegraph.state import append


class State(TypedDict, total=False):
    parts: Annotated[list[str], append]
    topic: str


def three(config: RuntimeConfig | None = None, fail: set[str] | None = None) -> App[State]:
    builder = GraphBuilder(State)
    fail = fail if fail is not None else set()

    def node(name: str) -> Any:
        async def run(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
            ctx.emit("ran", name)
            if name in fail:
                raise ConnectionError(name)
            return {"parts": [name]}

        return run

    for name in "abc":
        builder.add_node(name, node(name))
    builder.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c").add_edge("c", END)
    return builder.compile(config)


def ended(events: list[Any]) -> list[str]:
    return [event.metadata["outcome"] for event in events if event.scope == STREAM_END_SCOPE]


async def test_a_session_is_stepped_to_its_end_and_reports_each_step() -> None:
    async with three() as app:
        runner = AppRunner(app)
        session = await runner.create_session({"topic": "tea"}, session_id="s", run_id="r")
        assert (session.resumed, session.step, session.run_id) == (False, 0, "r")
        with pytest.raises(SessionBusyError, match="'s' is busy with run 'r'"):
            await runner.create_session({}, session_id="s")
        for step, name in enumerate("abc", start=1):
            report = await runner.run_step("s")
            assert isinstance(report, StepReport)
            assert (report.step, report.ran_nodes, report.updated_keys) == (step, (name,), ("parts",))
            assert (report.completed, report.versions["parts"]) == (name == "c", step)
            assert (await runner.state("s"))["parts"] == list("abc"[:step])
        report = await runner.run_step("s")
        assert isinstance(report, StepReport) and (report.completed, report.ran_nodes) == (True, ())
        events = [event async for event in runner.event_stream(run_id="r")]
        assert ended(events) == ["completed"]
        with pytest.raises(SessionNotFoundError, match="'nobody'"):
            await runner.run_step("nobody")
        assert await runner.sessions() == ("s",)


async def test_stop_before_a_node_and_go_on_with_the_same_option() -> None:
    """Trap: the original pauses for ever before the same node until the caller drops the option."""
    async with three() as app:
        runner = AppRunner(app)
        await runner.create_session({}, session_id="s", run_id="r")
        before = StepOptions(interrupt_before=("b",))
        assert isinstance(await runner.run_step("s", before), StepReport)
        paused = await runner.run_step("s", before)
        assert isinstance(paused, PausedReport)
        assert (paused.reason, paused.nodes, paused.next_nodes) == ("before_node", ("b",), ("b",))
        assert paused.state == {"parts": ["a"]}
        report = await runner.run_step("s", before)
        assert isinstance(report, StepReport) and report.ran_nodes == ("b",)
        assert await runner.run_until_complete("s") == {"parts": ["a", "b", "c"]}
        events = [event async for event in app.event_stream(run_id="r", follow=True)]
        assert ended(events) == ["interrupted", "completed"]
        assert [event.attempt for event in events if event.scope == "ran"] == [1, 2, 2]
        assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]


@clause("O4")
@pytest.mark.parametrize("options", [StepOptions(interrupt_after=("a",)), StepOptions(interrupt_each_step=True)])
async def test_stop_after_a_node_or_each_step_saves_first_and_ends_streams_that_do_not_follow(options: Any) -> None:
    async with three() as app:
        runner = AppRunner(app)
        early = app.event_stream(run_id="r")
        follows = app.event_stream(run_id="r", follow=True)
        await runner.create_session({}, session_id="s", run_id="r")
        paused = await runner.run_step("s", options)
        assert isinstance(paused, PausedReport) and paused.report is not None
        assert (paused.reason, paused.report.ran_nodes) == (
            ("after_node", ("a",)) if options.interrupt_after else ("after_step", ("a",))
        )
        assert (await runner.history("s")).checkpoints[0].values["parts"] == ["a"]
        assert ended([event async for event in early]) == ["interrupted"]
        late = app.event_stream(run_id="r", after=0)
        await runner.run_until_complete("s")
        assert ended([event async for event in late]) == ["interrupted"]
        assert ended([event async for event in follows]) == ["interrupted", "completed"]
        assert ended([event async for event in app.event_stream(run_id="r")]) == ["interrupted", "completed"]


async def test_cancelling_a_step_loses_nothing_and_the_next_call_does_it_again() -> None:
    """Trap: in the original a cancelled step loses the session."""
    entered, go, runs = asyncio.Event(), asyncio.Event(), []

    async def waits(state: State) -> dict[str, Any]:
        runs.append(1)
        entered.set()
        await go.wait()
        return {"parts": ["w"]}

    builder = GraphBuilder(State)
    builder.add_node("w", waits).add_edge(START, "w").add_edge("w", END)
    async with builder.compile() as app:
        runner = AppRunner(app)
        await runner.create_session({}, session_id="s")
        stepping = asyncio.create_task(runner.run_step("s"))
        await entered.wait()
        with pytest.raises(SessionBusyError):
            await runner.run_step("s")
        stepping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stepping
        go.set()
        report = await runner.run_step("s")
        assert isinstance(report, StepReport) and (report.step, report.completed, len(runs)) == (1, True, 2)


async def test_a_failed_session_is_resumed_where_it_failed() -> None:
    fail = {"b"}
    async with three(fail=fail) as app:
        runner = AppRunner(app)
        await runner.create_session({}, session_id="s", run_id="r")
        with pytest.raises(ConnectionError):
            await runner.run_until_complete("s")
        assert (await runner.history("s")).checkpoints[0].errors[0].node == "b"
        fail.clear()
        session = await runner.create_session({"topic": "not used"}, session_id="s")
        assert (session.resumed, session.step, session.run_id) == (True, 1, "r")
        assert await runner.run_until_complete("s") == {"parts": ["a", "b", "c"]}
        events = [event async for event in app.event_stream(run_id="r")]
        assert ended(events) == ["failed", "completed"]
        assert [(event.message, event.attempt) for event in events if event.scope == "ran"] == [
            ("a", 1), ("b", 1), ("b", 2), ("c", 2),
        ]  # fmt: skip


async def test_inputs_one_after_the_other_go_through_the_reducers_and_count_on() -> None:
    async with three() as app:
        runner = AppRunner(app)
        await runner.create_iterative_session({"parts": ["0"]}, session_id="s")
        assert (await runner.invoke_next("s", {"parts": ["in"]}))["parts"] == ["0", "in", "a", "b", "c"]
        assert (await runner.invoke_next("s", NodePartial({"topic": "x"}), entry="c"))["parts"][-2:] == ["c", "c"]
        assert (await runner.state("s"))["topic"] == "x"
        for entry in (END, "nowhere"):
            with pytest.raises(GraphError, match="no place to start at; there are: __start__, a, b, c"):
                await runner.invoke_next("s", entry=entry)
        final = await runner.finish_iterative_session("s")
        assert final["parts"] == ["0", "in", "a", "b", "c", "c"]
        with pytest.raises(SessionNotFoundError):
            await runner.invoke_next("s")
        await runner.create_session({}, session_id="plain")
        with pytest.raises(SessionError, match="takes no further inputs"):
            await runner.invoke_next("plain")


@clause("R8")
async def test_a_stream_from_before_the_session_still_begins_with_its_first_event_long_after() -> None:
    async with three() as app:
        runner = AppRunner(app)
        streams = [runner.event_stream("s"), runner.event_stream("s"), runner.event_stream()]
        await runner.create_session({}, session_id="s")
        await runner.run_until_complete("s")
        await app.aclose()
        for stream in streams:
            events = [event async for event in stream]
            assert events[0].scope == "weavegraph.run.started"
            assert ended(events) == ["completed"]


@clause("R8", "S7")
@pytest.mark.parametrize("order", [*itertools.permutations(("subscribe", "create_session", "listen_for_events"))])
async def test_whichever_comes_first_of_stream_session_and_sinks_nothing_is_missed(order: tuple[str, ...]) -> None:
    sink, streams = MemorySink(), list[EventStream]()
    async with three() as app:
        app.event_bus.add_sink(sink)
        runner = AppRunner(app)
        for what in order:
            if what == "subscribe":
                streams.append(runner.event_stream(run_id="r"))
            elif what == "create_session":
                await runner.create_session({}, session_id="s", run_id="r")
            else:
                app.event_bus.listen_for_events()
        await runner.run_until_complete("s")
        events = [event async for event in streams[0]]
    assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
    assert events[0].scope == "weavegraph.run.started"
    assert ended(events) == ["completed"]
    assert list(sink.snapshot()) == events


async def test_history_is_paged_and_can_be_asked_by_step_and_node() -> None:
    """Trap: the original's autosave never says which nodes ran, so that query finds nothing."""
    async with three() as app:
        runner = AppRunner(app)
        await runner.create_session({"topic": "tea"}, session_id="s")
        await runner.run_until_complete("s")
        page = await runner.history("s", limit=3)
        assert [each.number for each in page.checkpoints] == [4, 3, 2]
        assert [each.number for each in (await runner.history("s", before=page.next_before)).checkpoints] == [1]
        assert [each.step for each in (await runner.history("s", ran_node="b")).checkpoints] == [2]
        assert [each.step for each in (await runner.history("s", min_step=1, max_step=2)).checkpoints] == [2, 1]
        assert [each.updated_keys for each in page.checkpoints] == [("parts",)] * 3
        assert (await runner.history("nobody")).checkpoints == ()


async def test_a_fork_goes_its_own_way_from_any_step() -> None:
    async with three() as app:
        runner = AppRunner(app)
        await runner.create_session({"topic": "tea"}, session_id="s")
        await runner.run_until_complete("s")
        fork = await runner.fork("s", number=2)
        session = await runner.create_session(session_id=fork)
        assert (session.resumed, session.step) == (True, 1)
        assert await runner.run_until_complete(fork) == {"topic": "tea", "parts": ["a", "b", "c"]}
        origin = (await runner.history(fork)).checkpoints[-1]
        assert (origin.forked_from, origin.parent, origin.values["parts"]) == ("s", 2, ["a"])
        assert (await runner.state("s"))["parts"] == ["a", "b", "c"]
        with pytest.raises(SessionNotFoundError):
            await runner.fork("s", number=99)


def test_metadata_says_what_made_a_run() -> None:
    metadata = AppRunner(three(RuntimeConfig(checkpointer=MemoryCheckpointer()))).run_metadata()
    assert (metadata.checkpointer, metadata.clock) == ("MemoryCheckpointer", "SystemClock")
    other = AppRunner(three(RuntimeConfig(step_limit=7))).run_metadata()
    assert metadata.config_fingerprint != other.config_fingerprint
    assert len(metadata.graph_fingerprint) == 32


# ── sessions of plain runs, and questions ─────────────────────────────────────────────────────────


def remembering(**options: Any) -> RuntimeConfig:
    return RuntimeConfig(checkpointer=MemoryCheckpointer(), cancel_grace=0.01, **options)


async def test_a_sessions_next_run_goes_on_with_its_state() -> None:
    async with three(remembering()) as app:
        assert (await app.invoke({"parts": ["0"]}, session_id="s"))["parts"] == ["0", "a", "b", "c"]
        assert (await app.invoke({"parts": ["1"]}, session_id="s"))["parts"] == list("0abc1abc")
        snapshot = await app.get_state("s")
        assert (snapshot.values["parts"], snapshot.next, snapshot.checkpoint.number) == (list("0abc1abc"), (), 8)
        snapshot.values["parts"].append("mine")
        assert (await app.get_state("s", 4)).values["parts"] == list("0abc")
        with pytest.raises(StateError, match="wrote 'nope'"):
            app.start({"nope": 1}, session_id="s")
        assert await app.delete_session("s") == 8
        with pytest.raises(SessionNotFoundError):
            await app.get_state("s")


async def test_a_state_is_updated_by_hand_if_nobody_was_faster() -> None:
    async with three(remembering()) as app:
        await app.invoke({}, session_id="s")
        number = (await app.get_state("s")).checkpoint.number
        updated = await app.update_state("s", {"parts": ["hand"]}, expected=number)
        assert (updated.values["parts"], updated.checkpoint.updated_keys) == (["a", "b", "c", "hand"], ("parts",))
        with pytest.raises(CheckpointConflictError, match=f"is at checkpoint {number + 1}, not {number}"):
            await app.update_state("s", {"parts": ["late"]}, expected=number)
        with pytest.raises(SessionNotFoundError):
            await app.update_state("nobody", {})
    async with three() as app:
        with pytest.raises(SessionError, match="checkpointer="):
            await app.get_state("s")


@pytest.mark.parametrize("durability", ["step", "end", "off"])
async def test_durability_says_when_a_run_is_saved(durability: Any) -> None:
    async with three(remembering(durability=durability)) as app:
        await app.invoke({}, session_id="s")
        found = await app.history("s")
        assert [each.status for each in found.checkpoints] == {
            "step": ["completed", "running", "running", "running"], "end": ["completed", "running"], "off": [],
        }[durability]  # fmt: skip


def asking(config: RuntimeConfig) -> App[State]:
    builder = GraphBuilder(State)

    @builder.node
    async def ask(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        ctx.emit("asking", "from the top")
        name = await ctx.interrupt({"what": "name?"})
        try:
            age = await ctx.interrupt("age?")
        except Exception:  # what asks is no Exception
            age = "swallowed"
        return {"parts": [f"{name} {age}"]}

    @builder.node
    def other(state: State) -> dict[str, Any]:
        return {"parts": ["other"]}

    for name in ("ask", "other"):
        builder.add_edge(START, name).add_edge(name, END)
    return builder.compile(config)


@clause("O3", "O4")
async def test_a_question_pauses_the_run_and_the_answers_come_in_call_order() -> None:
    async with asking(remembering()) as app:
        run = app.start({}, session_id="s", run_id="r")
        assert await run == {}
        assert (run.status, [question.question for question in run.questions]) == ("paused", [{"what": "name?"}])
        with pytest.raises(SessionBusyError):
            app.start({}, session_id="s")
        second = app.resume("s", "Ada")
        await second
        assert (second.status, second.attempt, second.questions[0].question) == ("paused", 2, "age?")
        third = app.resume("s", 36)
        state = await third
        assert sorted(state["parts"]) == ["Ada 36", "other"]
        events = [event async for event in app.event_stream(run_id="r")]
        assert ended(events) == ["paused", "paused", "completed"]
        assert [event.metadata["question"] for event in events if event.scope == "weavegraph.node.paused"] == [
            {"what": "name?"}, "age?",
        ]  # fmt: skip
        ran = [event.node_id for event in events if event.scope == "weavegraph.node.finished"]
        assert ran == ["other", "ask"]  # the sibling that had finished was not run again
        with pytest.raises(SessionError, match="no run to resume"):
            app.resume("s")
        with pytest.raises(RunClosedError):
            run._execution.attempt.emitter.emit(events[0])


async def test_several_open_questions_are_answered_by_their_ids() -> None:
    builder = GraphBuilder(State)

    def asks(name: str) -> Any:
        def run(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
            return {"parts": [f"{name} {ctx.interrupt_sync(name)}"]}

        return run

    for name in "ab":
        builder.add_node(name, asks(name)).add_edge(START, name).add_edge(name, END)
    async with builder.compile(remembering()) as app:
        run = app.start({}, session_id="s")
        await run
        ids = {question.node: question.id for question in run.questions}
        assert sorted(ids) == ["a", "b"]
        with pytest.raises(SessionError, match="give a mapping from their ids"):
            app.resume("s", "just one")
        half = app.resume("s", {ids["b"]: "B"})
        await half
        assert [question.node for question in half.questions] == ["a"]
        assert (await app.resume("s", "A"))["parts"] == ["a A", "b B"]


async def test_a_question_inside_a_subgraph_is_answered_there() -> None:
    outer = GraphBuilder(State)
    outer.add_node("sub", asking(RuntimeConfig())).add_edge(START, "sub").add_edge("sub", END)
    async with outer.compile(remembering()) as app:
        run = app.start({}, session_id="s")
        await run
        assert [(question.node, question.path) for question in run.questions] == [("ask", ("sub",))]
        await app.resume("s", "Ada")
        state = await app.resume("s", 36)
        assert sorted(state["parts"]) == ["Ada 36", "other"]


async def test_a_cancelled_run_keeps_what_it_had_and_can_be_resumed() -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    async def waits(state: State) -> dict[str, Any]:
        entered.set()
        await go.wait()
        return {"parts": ["w"]}

    builder = GraphBuilder(State)
    builder.add_node("first", lambda state: {"parts": ["first"]}).add_node("w", waits)
    builder.add_edge(START, "first").add_edge("first", "w").add_edge("w", END)
    async with builder.compile(remembering()) as app:
        run = app.start({}, session_id="s", run_id="r")
        await entered.wait()
        run.cancel("enough")
        await run._execution.ended.wait()
        assert (await app.get_state("s")).values == {"parts": ["first"]}
        go.set()
        resumed = app.resume("s")
        assert (await resumed, resumed.attempt) == ({"parts": ["first", "w"]}, 2)
        await settle()
        assert ended([event async for event in app.event_stream(run_id="r")]) == ["cancelled", "completed"]
        run._asked = True
