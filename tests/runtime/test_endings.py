"""Contract section 8, row by row, and J1, J2: how a run ends, and what is left."""

from __future__ import annotations

import asyncio
import gc
import itertools
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import clause, settle
from weavegraph import (
    END,
    START,
    STREAM_END_SCOPE,
    App,
    CancelToken,
    Event,
    GraphBuilder,
    InvocationHandle,
    MemorySink,
    NodeContext,
    RunCancelledError,
    RunClosedError,
    RuntimeConfig,
    failure_of,
)
from weavegraph.errors import AppClosedError, NodeCancelledError, NodeTimeoutError, SessionBusyError, TooManyRunsError

Context = NodeContext[dict[str, Any], Any]
QUICK = RuntimeConfig(cancel_grace=0.02)


def graph(*nodes: Callable[..., Any], config: RuntimeConfig = QUICK, **options: Any) -> App[dict[str, Any]]:
    """Nodes one after the other, by their names."""
    builder = GraphBuilder()
    names = [START, *(node.__name__ for node in nodes), END]
    for node in nodes:
        builder.add_node(node.__name__, node, **options)
    for source, target in itertools.pairwise(names):
        builder.add_edge(source, target)
    return builder.compile(config)


def side_by_side(*nodes: Callable[..., Any], config: RuntimeConfig = QUICK) -> App[dict[str, Any]]:
    builder = GraphBuilder()
    for node in nodes:
        builder.add_node(node.__name__, node).add_edge(START, node.__name__).add_edge(node.__name__, END)
    return builder.compile(config)


async def events_of(run: InvocationHandle[Any]) -> list[Event]:
    return [event async for event in run.events()]


async def ending(run: InvocationHandle[Any]) -> dict[str, Any]:
    """The metadata of the run's one terminal event, which is its last."""
    seen = await events_of(run)
    assert [event.run_seq for event in seen] == [*range(1, len(seen) + 1)]
    assert [event.scope for event in seen].count(STREAM_END_SCOPE) == 1
    assert seen[-1].scope == STREAM_END_SCOPE
    return dict(seen[-1].metadata)


class Gate:
    """A node that says that it runs, and waits; cut off only from outside."""

    def __init__(self) -> None:
        self.entered, self.cut = asyncio.Event(), False

    def node(self, *, stubborn: bool = False) -> Callable[..., Any]:
        async def waits(state: Any, ctx: Context) -> None:
            ctx.emit("waits", "here")
            self.entered.set()
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cut = True
                    if not stubborn:
                        raise

        return waits


@clause("8.cancel", "O3")
async def test_cancel_is_seen_by_nodes_which_may_finish_their_step() -> None:
    entered = asyncio.Event()

    async def polite(state: Any, ctx: Context) -> dict[str, Any]:
        entered.set()
        reason = await ctx.cancel_token.wait()
        return {"extra": {"heard": reason, "flag": ctx.cancelled}}

    async def never(state: Any) -> None:
        raise AssertionError("the step after the cancellation")

    async with graph(polite, never, config=RuntimeConfig(cancel_grace=30)) as app:
        run = app.start({})
        await entered.wait()
        run.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough") as caught:
            await run
        assert (caught.value.reason, run.status) == ("enough", "cancelled")
        assert run.state is not None
        assert run.state["extra"] == {"heard": "enough", "flag": True}
        end = await ending(run)
        assert (end["outcome"], end["code"], end["step"]) == ("cancelled", "enough", 1)


@clause("8.cancel")
async def test_a_node_that_does_not_look_is_cut_off_after_the_grace() -> None:
    gate = Gate()
    async with graph(gate.node()) as app:
        run = app.start({})
        await gate.entered.wait()
        run.cancel("enough")
        with pytest.raises(RunCancelledError):
            await run
        assert gate.cut
        seen = await events_of(run)
        assert [event.scope for event in seen[-2:]] == ["weavegraph.node.failed", STREAM_END_SCOPE]
        assert seen[-2].metadata["code"] == "cancelled"
        assert "here" in [event.message for event in seen]  # accepted ones remain


@clause("8.cancel", "8.abort")
async def test_a_node_that_swallows_its_cancellation_is_left_behind_and_cannot_emit_any_more() -> None:
    late: list[BaseException] = []
    entered, free = asyncio.Event(), asyncio.Event()

    async def stubborn(state: Any, ctx: Context) -> None:
        entered.set()
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                pass
        try:
            ctx.emit("too", "late")
        except RunClosedError as error:
            late.append(error)

    async with graph(stubborn) as app:
        run = app.start({})
        await entered.wait()
        run.abort()
        with pytest.raises(RunCancelledError, match="aborted"):
            await run
        assert (await ending(run))["outcome"] == "cancelled"
        free.set()
        await settle()
        assert len(late) == 1
        assert (await ending(run))["outcome"] == "cancelled"


@clause("8.abort")
async def test_abort_does_not_wait_for_the_grace() -> None:
    gate = Gate()
    async with graph(gate.node(), config=RuntimeConfig(cancel_grace=1000)) as app:
        run = app.start({})
        await gate.entered.wait()
        run.abort()
        with pytest.raises(RunCancelledError):
            await run
        assert (await ending(run))["code"] == "aborted"


@clause("8.with")
async def test_leaving_the_block_unfinished_cancels_and_waits() -> None:
    gate = Gate()
    async with graph(gate.node()) as app:
        async with app.stream({}) as run:
            await gate.entered.wait()
        assert gate.cut and run.status == "cancelled"
        assert (await ending(run))["code"] == "left"
        async with app.start({}) as run:
            with pytest.raises(ValueError, match="mine"):
                async with run:
                    raise ValueError("mine")
        assert run.is_finished()


@clause("8.handle_dropped")
async def test_a_dropped_handle_leaves_the_run_alone_and_warns_if_nobody_asked() -> None:
    go = asyncio.Event()

    async def waits(state: Any) -> dict[str, Any]:
        await go.wait()
        return {"extra": {"done": True}}

    async with graph(waits) as app:
        run = app.start({}, run_id="r")
        with pytest.warns(ResourceWarning, match="'r' was never asked for"):
            del run
            gc.collect()
        stream = app.event_stream(run_id="r")
        go.set()
        assert [event async for event in stream][-1].metadata["outcome"] == "completed"
        asked = app.start({}, run_id="s")
        await asked
        del asked
        gc.collect()


@clause("8.stream_dropped")
async def test_a_dropped_or_closed_stream_leaves_the_run_alone() -> None:
    async def speaks(state: Any, ctx: Context) -> None:
        for n in range(10):
            ctx.emit("n", str(n))
            await asyncio.sleep(0)

    async with graph(speaks) as app:
        run = app.start({})
        async for event in run:
            if event.scope == "n":
                break
        stream = run.events()
        await stream.recv()
        stream.close()
        await run
        assert (await ending(run))["outcome"] == "completed"


@clause("8.deadline")
@pytest.mark.parametrize("where", ["start", "config"])
async def test_a_deadline_cancels_with_that_reason(where: str) -> None:
    gate = Gate()
    config = RuntimeConfig(cancel_grace=0.01, timeout=0.01 if where == "config" else None)
    async with graph(gate.node(), config=config) as app:
        run = app.start({}, timeout=0.01 if where == "start" else None)
        with pytest.raises(RunCancelledError, match="deadline"):
            await run
        assert (await ending(run))["code"] == "deadline"


@clause("8.node_raises", "J1")
@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_when_a_node_raises_its_siblings_are_cancelled_or_finish_by_policy(policy: Any) -> None:
    sibling = asyncio.Event()

    async def fails(state: Any, ctx: Context) -> None:
        ctx.emit("about", "to fail")
        raise ZeroDivisionError("by hand")

    async def slow(state: Any) -> dict[str, Any]:
        try:
            await settle()
        except asyncio.CancelledError:
            sibling.set()
            raise
        return {"extra": {"slow": True}}

    async with side_by_side(fails, slow, config=RuntimeConfig(on_node_error=policy)) as app:
        run = app.start({}, run_id="r")
        with pytest.raises(ZeroDivisionError, match="by hand") as caught:
            await run
        assert sibling.is_set() == (policy == "cancel")
        place = failure_of(caught.value)
        assert place is not None
        assert (place.node, place.step, place.attempt, place.try_no, place.run_id) == ("fails", 1, 1, 1, "r")
        assert caught.value.__notes__ == ["in node 'fails', step 1, attempt 1 of run 'r'"]
        assert run.state is not None
        assert [str(record) for record in run.state["errors"]] == ["ZeroDivisionError: by hand"]
        assert run.errors == tuple(run.state["errors"])
        end = await ending(run)
        assert (end["outcome"], end["error"]) == ("failed", "ZeroDivisionError: by hand")
        scopes = [event.scope for event in await events_of(run)]
        assert scopes.index("about") < scopes.index("weavegraph.node.failed")
        assert ("weavegraph.node.finished" in scopes) == (policy == "finish")


@clause("J1")
async def test_other_failures_of_the_step_are_in_the_notes_and_the_errors() -> None:
    def one(state: Any) -> None:
        raise ValueError("first")

    def two(state: Any) -> None:
        raise KeyError("second")

    async with side_by_side(one, two, config=RuntimeConfig(on_node_error="finish")) as app:
        run = app.start({}, run_id="r")
        with pytest.raises((ValueError, KeyError)) as caught:
            await run
        assert sorted(record.kind for record in run.errors) == ["KeyError", "ValueError"]
        assert len([note for note in caught.value.__notes__ if note.startswith("also in this step:")]) == 1
        with pytest.raises(type(caught.value)):
            await run.join()  # as often as one likes


@clause("J1")
async def test_the_callers_own_cancellation_is_the_callers_and_leaves_the_run_alone() -> None:
    go = asyncio.Event()

    async def waits(state: Any) -> None:
        await go.wait()

    async with graph(waits) as app:
        run = app.start({})
        waiting = asyncio.create_task(run.join())
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert run.status == "running"
        go.set()
        await run
        invoking = asyncio.create_task(app.invoke({}, run_id="invoked"))
        await settle()
        go.clear()
    assert invoking.done()


@clause("J1")
async def test_cancelling_an_invoke_cancels_the_run_and_waits_for_it() -> None:
    gate = Gate()
    async with graph(gate.node()) as app:
        invoking = asyncio.create_task(app.invoke({}, run_id="r"))
        await gate.entered.wait()
        invoking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await invoking
        assert gate.cut
        assert [e async for e in app.event_stream(run_id="r")][-1].metadata["outcome"] == "cancelled"


@clause("J1")
async def test_a_node_that_raises_cancelled_error_by_itself_has_failed() -> None:
    async def made_up(state: Any) -> None:
        raise asyncio.CancelledError

    for app in (graph(made_up), side_by_side(made_up, lambda_node)):
        async with app:
            run = app.start({})
            with pytest.raises(NodeCancelledError, match="by itself"):
                await run
            assert (await ending(run))["outcome"] == "failed"


async def lambda_node(state: Any) -> None:
    return None


@clause("J2")
async def test_a_token_given_at_start_reaches_every_node_and_may_be_cancelled_from_a_thread() -> None:
    token, seen = CancelToken(), asyncio.Event()

    async def waits(state: Any, ctx: Context) -> None:
        child = ctx.cancel_token.child()
        seen.set()
        await child.wait()
        ctx.raise_if_cancelled()

    async with graph(waits, config=RuntimeConfig(cancel_grace=30)) as app:
        run = app.start({}, cancel=token)
        other = app.start({})
        await seen.wait()
        await asyncio.to_thread(token.cancel, "from a thread")
        with pytest.raises(RunCancelledError, match="from a thread"):
            await run
        assert other.status == "running"
        other.abort()
        with pytest.raises(RunCancelledError):
            await other


@clause("J2")
async def test_a_token_that_was_cancelled_before_the_start_ends_the_run_before_any_node() -> None:
    token = CancelToken()
    token.cancel("too late")

    async def never(state: Any) -> None:
        raise AssertionError

    async with graph(never) as app:
        run = app.start({}, cancel=token)
        with pytest.raises(RunCancelledError, match="too late"):
            await run
        assert [event.scope for event in await events_of(run)] == ["weavegraph.run.started", STREAM_END_SCOPE]


@clause("J2")
def test_tokens_pass_a_request_on_to_children_and_never_to_parents() -> None:
    parent = CancelToken()
    child, told = parent.child(), list[str]()
    grandchild = child.child()
    forget = parent.on_cancel(told.append)
    child.on_cancel(told.append)
    forget()
    assert child.cancel("c") and not child.cancel("again")
    assert (parent.cancelled, child.reason, grandchild.reason, told) == (False, "c", "c", ["c"])
    parent.cancel("p")
    assert (parent.child().reason, told) == ("p", ["c"])
    parent.on_cancel(told.append)
    assert told == ["c", "p"]


async def test_a_timeout_of_a_node_is_its_failure_and_tells_what_to_do() -> None:
    async def slow(state: Any) -> None:
        await asyncio.Event().wait()

    async with graph(slow, timeout=0.01) as app:
        with pytest.raises(NodeTimeoutError, match=r"'slow' did not end within 0.01 s; give it more"):
            await app.invoke({})

    async def raises_its_own(state: Any) -> None:
        raise TimeoutError("mine")

    async with graph(raises_its_own, timeout=60) as app:
        with pytest.raises(TimeoutError, match="mine") as caught:
            await app.invoke({})
        assert not isinstance(caught.value, NodeTimeoutError)


@clause("P5", "O4")
async def test_closing_the_app_cancels_live_runs_with_that_reason_and_ends_all_streams() -> None:
    gate, sink = Gate(), MemorySink()
    app = graph(gate.node())
    app.event_bus.add_sink(sink)
    everything = app.event_stream()
    early = app.event_stream(run_id="never-started")
    run = app.start({}, session_id="s")
    await gate.entered.wait()
    await app.aclose()
    with pytest.raises(RunCancelledError, match="app_closed"):
        await run
    assert (await ending(run))["code"] == "app_closed"
    seen = [event async for event in everything]
    assert [event async for event in early] == []
    assert [event.scope for event in seen][-1] == STREAM_END_SCOPE
    assert sink.snapshot() == tuple(seen)  # drained
    with pytest.raises(AppClosedError, match="compile"):
        app.start({})
    await app.aclose()


async def test_a_session_has_one_run_at_a_time_and_an_app_as_many_as_it_allows() -> None:
    gate = Gate()
    async with graph(gate.node(), config=RuntimeConfig(cancel_grace=0.01, max_runs=2)) as app:
        one = app.start({}, session_id="s", run_id="one")
        with pytest.raises(SessionBusyError, match="'s' is busy with run 'one'"):
            app.start({}, session_id="s")
        two = app.start({})
        with pytest.raises(TooManyRunsError, match="2 runs are live"):
            app.start({})
        for run in (one, two):
            run.abort()
            with pytest.raises(RunCancelledError):
                await run
        third = app.start({}, session_id="s")
        third.abort()
        with pytest.raises(RunCancelledError):
            await third


@clause("O3", "O5")
@pytest.mark.parametrize("how", ["asyncio.run", "loop.close"])
def test_a_loop_that_is_shut_down_under_a_run_still_gives_one_terminal_event(how: str) -> None:
    entered = []

    async def waits(state: Any, ctx: Context) -> None:
        async def tokens() -> Any:
            yield "a"
            entered.append(True)
            await asyncio.Event().wait()

        await ctx.stream_llm(tokens(), stream_id="s")

    app = graph(waits)

    async def begin() -> InvocationHandle[Any]:
        run = app.start({}, run_id="r")
        while not entered:
            await asyncio.sleep(0)
        return run

    if how == "asyncio.run":
        run = asyncio.run(begin())
    else:
        loop = asyncio.new_event_loop()
        run = loop.run_until_complete(begin())
        task = run._execution.task
        assert task is not None
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        run._execution.task = None
        del task
        gc.collect()
    events = list(run.blocking())
    assert [e.scope for e in events].count(STREAM_END_SCOPE) == 1
    assert (events[-1].scope, events[-1].metadata["outcome"]) == (STREAM_END_SCOPE, "interrupted")
    phases = [(e.index, e.phase) for e in events if e.scope == "llm_stream"]  # type: ignore[union-attr]
    assert phases == [(0, "chunk"), (1, "cancelled")]
    run._asked = True
    app.close()


def test_a_hung_sync_node_keeps_nobody_at_exit() -> None:
    script = """
        import asyncio, threading
        from weavegraph import *
        builder = GraphBuilder()
        entered = threading.Event()
        def hangs(state, ctx):
            entered.set()
            threading.Event().wait()
        builder.add_node("hangs", hangs).add_edge(START, "hangs").add_edge("hangs", END)
        app = builder.compile(RuntimeConfig(cancel_grace=0.01))
        async def main():
            async with app:
                run = app.start({})
                await asyncio.to_thread(entered.wait)
                run.cancel("enough")
                try:
                    await run
                except RunCancelledError as error:
                    print(error.reason)
        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("enough\n", "", 0)


@clause("E3")
async def test_runs_may_be_cancelled_and_joined_from_other_threads_and_loops() -> None:
    gate = Gate()
    async with graph(gate.node()) as app:
        run = app.start({})
        await gate.entered.wait()
        errors: list[BaseException] = []

        def elsewhere() -> None:
            async def join() -> None:
                await run

            try:
                asyncio.run(join())
            except RunCancelledError as error:
                errors.append(error)
            try:
                run.result(10)
            except RunCancelledError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(run.cancel, "far away")
        await asyncio.to_thread(thread.join, 20)
        assert [str(error) for error in errors] == [f"run {run.run_id!r} was cancelled: far away"] * 2
