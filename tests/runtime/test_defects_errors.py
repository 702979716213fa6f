"""Whatever a node or router raises is the run's failure and reaches who asked; what was found wrong with that."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sys
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from tests.runtime.test_defects_steps import Context, State, chain, remembering, routed, says, side
from tests.support import clause, settle
from weavegraph import (
    END,
    INVOCATION_END_SCOPE,
    START,
    App,
    AppRunner,
    CancelToken,
    Event,
    EventBus,
    GraphBuilder,
    InvocationHandle,
    NodeEvent,
    RunCancelledError,
    RunClosedError,
    RuntimeConfig,
    failure_of,
    node_message,
)
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.errors import NodeCancelledError
from weavegraph.runtime._attempt import Attempt, code_of, describe
from weavegraph.runtime._scheduler import StepFailed
from weavegraph.state import Checkpoint


async def ended(run: InvocationHandle[Any]) -> tuple[BaseException | None, list[Event]]:
    """What a run raised, and its events."""
    error: BaseException | None = None
    try:
        await run
    except BaseException as exc:
        error = exc
    return error, [event async for event in run.events()]


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Rpc(Exception):
    """As ``grpc.aio.AioRpcError``: ``code`` is a method."""

    def code(self) -> int:
        return 14


class Trap(Exception):
    @property
    def code(self) -> str:
        raise RuntimeError("no code")


class Word(enum.StrEnum):
    BUSY = "busy"


def test_an_error_is_described_and_its_code_read_whatever_it_does() -> None:
    class Coded(Exception):
        def __init__(self, code: Any) -> None:
            self.code = code

    assert describe(Mute()) == "Mute: (its text cannot be had)"
    assert [code_of(error) for error in (Mute(), Rpc(), Trap(), ValueError())] == [None] * 4
    codes = ["word", 7, Word.BUSY, True, 2**64, None, ["x"], 1.5]
    assert [code_of(Coded(code)) for code in codes] == ["word", 7, "busy", None, None, None, None, None]
    assert type(code_of(Coded(Word.BUSY))) is str
    assert StepFailed(Mute()).args == ()


@clause("J1", "O3", "8.node_raises")
@pytest.mark.parametrize("kind", [Mute, Rpc, Trap])
@pytest.mark.parametrize("where", ["lone", "parallel", "router"])
async def test_no_error_of_a_node_or_router_loses_itself_or_the_terminal_event(kind: Any, where: str) -> None:
    async def fails(state: State) -> None:
        raise kind

    def router(state: State) -> str:
        raise kind

    if where == "router":
        app: App[Any] = routed(router, a=says("a", []))
    else:
        app = chain(fails) if where == "lone" else side(fails, says("a", []))
    async with app:
        error, events = await ended(app.start({}))
    assert type(error) is kind
    assert events[-1].scope == "weavegraph.stream.end"
    assert events[-1].metadata["outcome"] == "failed"
    for event in events:
        if event.scope in ("weavegraph.node.failed", "weavegraph.stream.end"):
            assert "code" not in event.metadata
            assert "left_out" not in event.metadata


async def test_an_event_of_the_runtime_whose_metadata_json_does_not_know_keeps_the_rest() -> None:
    async def node(state: State, ctx: Context) -> None:
        attempt: Attempt = ctx._attempt
        attempt.say("weavegraph.test", "hello", {"n": 1, "bad": object(), "f": float("nan")})

    async with chain(node) as app:
        _, events = await ended(app.start({}))
    found = next(event for event in events if event.scope == "weavegraph.test")
    assert (found.message, dict(found.metadata)) == (
        "hello", {"n": 1, "left_out": "event refused: metadata.bad: object is not JSON; convert it to text, numbers, "
                  "lists, mappings"},
    )  # fmt: skip


async def test_a_question_that_cannot_be_shown_is_asked_all_the_same() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    async def ask(state: State, ctx: Context) -> dict[str, Any]:
        return {"x": await ctx.interrupt(Odd())}

    async with chain(ask, config=remembering()) as app:
        run = app.start({}, session_id="s")
        await run
        events = [event async for event in run.events()]
        assert [e.metadata["question"] for e in events if e.scope == "weavegraph.node.paused"] == ["<Odd>"]
        assert await app.resume("s", "yes") == {"x": "yes"}


class Watching:
    """An observer whose every hook does something else that it should not."""

    @property
    def on_run_started(self) -> Any:
        raise ValueError("no hook")

    def on_node_finished(self, *facts: Any) -> None:
        raise asyncio.CancelledError

    def on_run_finished(self, *facts: Any) -> None:
        raise GeneratorExit


async def test_an_observer_harms_nobody_whatever_it_raises(caplog: pytest.LogCaptureFixture) -> None:
    async with chain(says("a", []), config=RuntimeConfig(observers=(Watching(),))) as app:
        assert await app.invoke({}) == {"parts": ["a"]}
    assert [record.args[1] for record in caplog.records if record.args] == [  # type: ignore[index]
        "on_run_started", "on_node_finished", "on_run_finished",
    ]  # fmt: skip


# ── cancellations of others ───────────────────────────────────────────────────────────────────────


def deadline_of_another() -> tuple[Any, App[Any]]:
    """Something to await that ends as another run's cancellation."""

    async def waits(state: State) -> None:
        await asyncio.Event().wait()

    app = chain(waits, config=RuntimeConfig(cancel_grace=0))

    async def other(state: State) -> str:
        run = app.start({})
        run.cancel("theirs")
        await run
        return END

    return other, app


@clause("J1")
@pytest.mark.parametrize("where", ["lone", "parallel", "sub", "router"])
async def test_the_cancellation_of_another_run_is_a_failure_of_this_one(where: str) -> None:
    other, inner = deadline_of_another()
    if where == "router":
        app = routed(other, a=says("a", []))
    elif where == "sub":
        builder = GraphBuilder(State)
        app = builder.add_node("sub", chain(other)).add_edge(START, "sub").add_edge("sub", END).compile()
    else:
        app = chain(other) if where == "lone" else side(other, says("a", []))
    async with app, inner:
        run = app.start({})
        error, events = await ended(run)
    assert isinstance(error, RunCancelledError)
    assert (error.reason, run.status) == ("theirs", "failed")
    assert error.run_id != run.run_id
    assert events[-1].metadata["outcome"] == "failed"
    place = failure_of(error)
    if where != "router":
        assert place is not None
        assert (place.run_id, place.node) == (run.run_id, "other")


@clause("J1")
async def test_a_router_that_raises_cancelled_error_by_itself_has_failed() -> None:
    async def made_up(state: State) -> str:
        raise asyncio.CancelledError

    async with routed(made_up, a=says("a", [])) as app:
        run = app.start({})
        error, events = await ended(run)
    assert isinstance(error, NodeCancelledError)
    assert str(error).startswith("the router after 'a' raised CancelledError by itself")
    assert (error.node, run.status, events[-1].metadata["code"]) == ("a", "failed", "node_cancelled")


@clause("8.cancel", "J1")
async def test_a_task_group_of_nothing_but_cancellations_is_one() -> None:
    entered = asyncio.Event()

    async def part(ctx: Context) -> None:
        entered.set()
        await ctx.cancel_token.wait()
        ctx.raise_if_cancelled()

    async def node(state: State, ctx: Context) -> None:
        async with asyncio.TaskGroup() as outer:

            async def inner() -> None:
                async with asyncio.TaskGroup() as group:
                    group.create_task(part(ctx))
                    group.create_task(part(ctx))

            outer.create_task(inner())

    async with chain(node, config=RuntimeConfig(cancel_grace=1000)) as app:
        run = app.start({})
        await entered.wait()
        run.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await run
        assert run.status == "cancelled"


@clause("D4")
async def test_questions_in_a_task_group_pause_the_run() -> None:
    async def node(state: State, ctx: Context) -> dict[str, Any]:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ctx.interrupt(question)) for question in ("one", "two")]
        return {"parts": [task.result() for task in asked]}

    async with chain(node, config=remembering()) as app:
        run = app.start({}, session_id="s")
        await run
        assert (run.status, [question.question for question in run.questions]) == ("paused", ["one", "two"])
        answers = {question.id: question.question.upper() for question in run.questions}
        assert await app.resume("s", answers) == {"parts": ["ONE", "TWO"]}


async def test_a_group_with_a_failure_in_it_is_the_nodes_failure_as_it_is() -> None:
    async def node(state: State) -> None:
        raise BaseExceptionGroup("mine", [asyncio.CancelledError(), ValueError("x")])

    async with chain(node) as app:
        error, _ = await ended(app.start({}))
    assert isinstance(error, BaseExceptionGroup)
    assert error.message == "mine"


@clause("8.abort")
async def test_no_step_follows_an_abort_that_a_node_took_for_its_own() -> None:
    entered, ran = asyncio.Event(), list[str]()

    async def swallows(state: State) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

    after = says("after", ran)
    after.__name__ = "after"
    async with chain(swallows, after, config=RuntimeConfig(cancel_grace=1000)) as app:
        run = app.start({})
        await entered.wait()
        run.abort()
        with pytest.raises(RunCancelledError, match="aborted"):
            await run
    await settle()
    assert ran == []


@clause("8.abort")
@pytest.mark.parametrize("how", ["start", "runner"])
async def test_an_abort_that_the_very_last_node_took_for_its_own_still_ends_the_run_as_cancelled(how: str) -> None:
    entered = asyncio.Event()

    async def swallows(state: State) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

    app = chain(swallows, config=RuntimeConfig(cancel_grace=0))
    async with app:
        if how == "start":
            run = app.start({})
            await entered.wait()
            run.abort()
            error, events = await ended(run)
        else:
            token = CancelToken()
            runner = AppRunner(app)
            session = await runner.create_session({}, cancel=token)
            stream = runner.event_stream(run_id=session.run_id)
            work = asyncio.create_task(runner.run_until_complete(session.session_id))
            await entered.wait()
            token.cancel("aborted")
            error = (await asyncio.gather(work, return_exceptions=True))[0]
            events = [event async for event in stream]
    assert type(error) is RunCancelledError
    assert (events[-1].scope, events[-1].metadata["outcome"]) == ("weavegraph.stream.end", "cancelled")


@clause("O3")
async def test_nothing_of_a_thread_lands_behind_the_terminal_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the moment between the terminal event and the books of the bus, where a thread may have its turn."""
    kept: list[Context] = []
    refused: list[RunClosedError] = []

    async def node(state: State, ctx: Context) -> None:
        kept.append(ctx)

    async with chain(node) as app:
        books = app.event_bus.end_attempt

        def in_between(lane: Any, outcome: str) -> None:
            with pytest.raises(RunClosedError) as caught:
                kept[0].emit("thread", "late")
            refused.append(caught.value)
            books(lane, outcome)

        monkeypatch.setattr(app.event_bus, "end_attempt", in_between)
        error, events = await ended(app.start({}))
        assert error is None
        assert app.event_bus.head == events[-1].seq
    assert len(refused) == 1
    assert events[-1].scope == "weavegraph.stream.end"
    assert [event.scope for event in events].count("thread") == 0


@clause("O3")
@pytest.mark.parametrize("how", ["emit", "emitter"])
def test_a_thread_of_the_last_attempt_cannot_slip_into_the_next(how: str) -> None:
    """It has looked whether its attempt is the run's, and has its next turn when the attempt is another."""
    with contextlib.closing(EventBus()) as bus:
        lane = bus.open_lane("r", "s")
        emitter = lane.run_emitter()
        refused: list[RunClosedError] = []

        def late() -> None:
            try:
                if how == "emit":
                    emitter.say(NodeEvent, "late", "", {}, "n", 1, ())
                else:
                    emitter.emit(node_message("late", "x"))
            except RunClosedError as error:
                refused.append(error)

        thread = threading.Thread(target=late)
        with lane._lock:
            thread.start()
            while not waits_in_weavegraph(thread):
                pass
            bus.end_attempt(lane, "failed")
            assert bus.open_lane("r", "s", attempt=2) is lane
        thread.join()
        assert (len(refused), lane.head) == (1, 0)


def waits_in_weavegraph(thread: threading.Thread) -> bool:
    """Whether only a lock keeps the thread: it stands at one place of ours over many looks."""
    places = set()
    for _ in range(50):
        thread.join(0.001)
        frame = sys._current_frames().get(thread.ident or 0)
        places.add(None if frame is None else (frame.f_code.co_filename, frame.f_lasti))
    return len(places) == 1 and "weavegraph" in str(places)


class Spiteful(Mute):
    @property
    def code(self) -> str:
        raise RuntimeError("no code")


@clause("J1", "O3")
async def test_a_second_error_that_cannot_be_described_hides_nothing() -> None:
    async def first(state: State) -> None:
        raise ValueError("mine")

    async def second(state: State) -> None:
        raise Spiteful

    async with side(first, second) as app:
        error, events = await ended(app.start({}))
    assert type(error) is ValueError
    assert "also in this step: Spiteful: (its text cannot be had)" in error.__notes__
    assert events[-1].metadata["error"] == "ValueError: mine"


@clause("J1", "O3")
async def test_a_checkpointer_whose_error_cannot_be_described_hides_nothing() -> None:
    class Refuses(MemoryCheckpointer):
        async def save(self, checkpoint: Checkpoint) -> None:
            if checkpoint.number > 1:  # its input it takes
                raise Spiteful

    async def fails(state: State) -> None:
        raise ValueError("mine")

    config = RuntimeConfig(checkpointer=Refuses(), durability="end")
    async with chain(fails, config=config) as app:
        error, events = await ended(app.start({}))
    assert type(error) is ValueError
    assert "and its checkpoint could not be saved: Spiteful: (its text cannot be had)" in error.__notes__
    assert events[-1].metadata == {"outcome": "failed", "step": 0, "error": "ValueError: mine"}


@clause("J1")
async def test_an_input_that_fails_with_an_error_that_cannot_be_described_still_ends() -> None:
    async def fails(state: State) -> None:
        raise Spiteful

    async with chain(fails) as app:
        runner = AppRunner(app)
        session = await runner.create_iterative_session({})
        stream = runner.event_stream(run_id=session.run_id)
        with pytest.raises(Spiteful):
            await runner.invoke_next(session.session_id, {})
        await runner.finish_iterative_session(session.session_id)
        ends = [event async for event in stream if event.scope == INVOCATION_END_SCOPE]
    assert [event.metadata["error"] for event in ends] == ["Spiteful: (its text cannot be had)"]


# ── marks ─────────────────────────────────────────────────────────────────────────────────────────


@clause("J1")
async def test_an_exception_that_is_raised_again_names_the_run_that_raised_it_last() -> None:
    error = ValueError("shared")
    error.add_note("mine")

    async def a(state: State) -> None:
        raise error

    async def b(state: State) -> None:
        raise error

    for node, run_id in ((a, "one"), (b, "two")):
        async with chain(node) as app:
            run = app.start({}, run_id=run_id)
            assert (await ended(run))[0] is error
            place = failure_of(error)
            assert place is not None
            assert (place.node, place.run_id, run.errors[0].node) == (node.__name__, run_id, node.__name__)
            assert error.__notes__ == ["mine", f"in node '{node.__name__}', step 1, attempt 1 of run '{run_id}'"]


@clause("J1")
async def test_an_exception_that_refuses_attributes_is_raised_and_marked() -> None:
    @dataclass(frozen=True)
    class Frozen(Exception):
        n: int

    async def node(state: State) -> None:
        raise Frozen(1)

    async with chain(node) as app:
        error, _ = await ended(app.start({}, run_id="r"))
    assert error == Frozen(1)
    place = failure_of(error)
    assert place is not None
    assert place.node == "node"
    assert error.__notes__ == ["in node 'node', step 1, attempt 1 of run 'r'"]
