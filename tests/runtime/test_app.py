"""Contract P1 to P4: how an app starts, from where, and the invoke family, which is one path."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from tests.support import clause
from weavegraph import (
    END,
    START,
    STREAM_END_SCOPE,
    App,
    EventBusConfig,
    GraphBuilder,
    MemorySink,
    NodeContext,
    RuntimeConfig,
)
from weavegraph.errors import BlockingInLoopError, ConfigError, NoRunningLoopError, RunNotFoundError, SessionError

Context = NodeContext[dict[str, Any], Any]


def speaking(config: RuntimeConfig | None = None, node: Any = None) -> App[dict[str, Any]]:
    builder = GraphBuilder()

    async def speak(state: dict[str, Any], ctx: Context) -> dict[str, Any]:
        for n in range(3):
            ctx.emit("n", str(n))
        return {"extra": {"thread": threading.get_ident(), "deps": str(ctx.deps), "tags": list(ctx.tags)}}

    builder.add_node("speak", node or speak).add_edge(START, "speak").add_edge("speak", END)
    return builder.compile(config)


def said(events: Any) -> list[str]:
    return [event.message for event in events if event.scope == "n"]


@clause("P1")
def test_compiling_starts_nothing_and_needs_no_loop() -> None:
    before = threading.active_count()
    app = speaking(RuntimeConfig(event_bus=EventBusConfig(sinks=("memory:",))))
    assert (threading.active_count(), app._bus) == (before, None)
    assert asyncio.run(app.invoke())["extra"]["deps"] == "None"
    assert app.event_bus is app.event_bus
    app.close()


@clause("P1", "S7")
def test_without_closing_the_sinks_are_drained_at_exit_without_a_warning(tmp_path: Any) -> None:
    script = f"""
        import asyncio
        from weavegraph import *
        builder = GraphBuilder()
        builder.add_node("a", lambda state, ctx: [ctx.emit("n", str(n)) for n in range(500)] and None)
        builder.add_edge(START, "a").add_edge("a", END)
        app = builder.compile(RuntimeConfig(event_bus=EventBusConfig(sinks=(r"jsonl:{tmp_path}/events.jsonl",))))
        asyncio.run(app.invoke())
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 506


@clause("P2")
def test_sync_calls_work_from_any_number_of_threads() -> None:
    with speaking() as app:
        found: list[Any] = []

        def one(n: int) -> None:
            with app.stream_sync({}, run_id=f"r{n}") as run:
                words = said(run.blocking())
                found.append((words, run.result()["extra"]["thread"], run.status))

        threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [(words, status) for words, _, status in found] == [(["0", "1", "2"], "completed")] * 8
        assert len({thread for _, thread, _ in found}) == 1  # one background loop
        assert app.invoke_sync(deps="d", tags="t")["extra"]["deps"] == "d"


@clause("P2", "R3")
async def test_sync_calls_work_under_a_running_loop_and_their_view_may_block_there() -> None:
    async with speaking() as app:
        assert app.invoke_sync()["extra"]["thread"] != threading.get_ident()
        with app.stream_sync() as run:
            assert said(run.blocking()) == ["0", "1", "2"]
            run.result()
        own = app.start()
        for wrong in (lambda: list(own.blocking()), own.result):
            with pytest.raises(BlockingInLoopError):
                wrong()  # type: ignore[operator]
        await own


@clause("P2")
def test_starting_without_a_loop_points_to_what_works() -> None:
    app = speaking()
    for wrong in (app.start, app.stream, lambda: app.resume("s")):
        with pytest.raises(NoRunningLoopError, match=r"app\.invoke_sync"):
            wrong()  # type: ignore[operator]


@clause("P2")
def test_leaving_a_sync_stream_early_cancels_the_run_and_an_error_in_a_node_is_raised() -> None:
    entered = threading.Event()

    async def waits(state: Any, ctx: Context) -> None:
        entered.set()
        await asyncio.Event().wait()

    with speaking(RuntimeConfig(cancel_grace=0.01), waits) as app:
        with app.stream_sync() as run:
            entered.wait(20)
            with pytest.raises(TimeoutError, match="it goes on"):
                run.result(0.01)
        assert run.status == "cancelled"

    def fails(state: Any) -> None:
        raise ZeroDivisionError("by hand")

    with speaking(node=fails) as app, pytest.raises(ZeroDivisionError, match="by hand"):
        app.invoke_sync()


@clause("P3")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_an_unused_app_works_in_a_forked_child() -> None:
    script = """
        import asyncio, os
        from weavegraph import *
        builder = GraphBuilder()
        builder.add_node("a", lambda state: {"extra": {"pid": os.getpid()}}).add_edge(START, "a").add_edge("a", END)
        app = builder.compile()
        child = os.fork()
        if not child:
            assert asyncio.run(app.invoke())["extra"]["pid"] == os.getpid()
            assert app.invoke_sync()["extra"]["pid"] == os.getpid()
            app.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        asyncio.run(app.invoke())
        child = os.fork()
        if not child:
            try:
                asyncio.run(app.invoke())
            except HubClosedError as error:
                os._exit(0 if error.code == "hub_forked" else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print("both")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("both\n", 0), done.stderr


@clause("P4")
async def test_sinks_of_one_run_get_its_events_only_have_them_at_the_end_and_are_detached() -> None:
    mine, everything = MemorySink(), MemorySink()
    closed: list[int] = []

    class Slow:
        name = "slow"

        def __init__(self) -> None:
            self.seen: list[str] = []

        async def handle(self, batch: Any) -> None:
            await asyncio.sleep(0)
            self.seen += said(batch)

        async def aclose(self) -> None:
            closed.append(len(self.seen))

    slow = Slow()
    async with speaking() as app:
        app.event_bus.add_sink(everything)
        other = app.start({}, run_id="other")
        state = await app.invoke_with_sinks({}, [mine, slow], run_id="mine")
        assert state["extra"]["tags"] == []
        assert {event.run_id for event in mine.snapshot()} == {"mine"}
        assert [event.run_seq for event in mine.snapshot()] == [*range(1, len(mine.snapshot()) + 1)]
        assert mine.snapshot()[-1].scope == STREAM_END_SCOPE
        assert (slow.seen, closed) == (["0", "1", "2"], [3])
        await other
        count = len(mine.snapshot())
        await app.invoke({})
        await app.event_bus.flush()
        assert (len(mine.snapshot()), [*app.event_bus.sinks]) == (count, ["memory"])
    assert {event.run_id for event in everything.snapshot()} >= {"mine", "other"}


@clause("P4", "S1")
async def test_a_raising_sink_of_one_run_does_not_fail_it_and_a_wrong_one_is_refused_before_it_starts() -> None:
    class Raising:
        delivery = "at_most_once"

        def handle(self, batch: Any) -> None:
            raise RuntimeError("no")

    async with speaking() as app:
        assert (await app.invoke_with_sinks({}, [Raising()]))["extra"]["deps"] == "None"
        with pytest.raises(ConfigError, match="no sink"):
            app.start({}, sinks=[object()])
        assert app._live == {}


@clause("P4")
async def test_a_channel_replays_the_run_after_its_end_and_a_stream_shows_it_live() -> None:
    async with speaking() as app:
        state, events = await app.invoke_with_channel({})
        assert (said([event async for event in events]), state["extra"]["deps"]) == (["0", "1", "2"], "None")
        run, events = await app.invoke_streaming({}, tags=["a", "b"])
        assert said([event async for event in events]) == ["0", "1", "2"]
        assert (await run)["extra"]["tags"] == ["a", "b"]
        async with app.stream({}) as run:
            assert said([event async for event in run]) == ["0", "1", "2"]


async def test_what_a_node_needs_is_injected_and_typed() -> None:
    class Deps:
        name = "ada"

    async def greet(state: dict[str, Any], ctx: NodeContext[dict[str, Any], Deps]) -> dict[str, Any]:
        return {"extra": {"name": ctx.deps.name, "now": ctx.now().tzinfo is not None}}

    async with speaking(node=greet) as app:
        assert (await app.invoke(deps=Deps()))["extra"] == {"name": "ada", "now": True}


async def test_an_observer_is_told_and_its_failures_are_contained(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[Any, ...]] = []

    class Observer:
        def on_run_started(self, *facts: Any) -> None:
            told.append(("started", *facts))

        def on_node_finished(self, run_id: str, node: str, step: int, outcome: str, seconds: float) -> None:
            told.append((node, step, outcome))
            raise RuntimeError("the observer's own")

        def on_run_finished(self, run_id: str, outcome: str, seconds: float, error: BaseException | None) -> None:
            told.append((run_id, outcome, error))

    async with speaking(RuntimeConfig(observers=(Observer(),))) as app:
        for n in range(2):
            await app.invoke({}, run_id=f"r{n}", session_id="s")
    assert told == [
        item for n in range(2)
        for item in (("started", f"r{n}", "s", 1), ("speak", 1, "finished"), (f"r{n}", "completed", None))
    ]  # fmt: skip
    assert [record.levelname for record in caplog.records if record.name == "weavegraph.runtime"] == ["WARNING"] * 2


async def test_a_live_run_is_found_by_its_id_and_a_question_nobody_could_answer_is_an_error() -> None:
    go = asyncio.Event()

    async def asks(state: Any, ctx: Context) -> None:
        await go.wait()
        await ctx.interrupt("who?")

    async with speaking(node=asks) as app:
        run = app.start({}, run_id="r")
        assert [found.run_id for found in app.runs()] == ["r"] == [app.run("r").run_id]
        assert app.run("r").position == run.position
        with pytest.raises(RunNotFoundError, match="'other'"):
            app.run("other")
        go.set()
        with pytest.raises(SessionError, match=r"asks, and nothing remembers this run.*checkpointer="):
            await run
        assert app.runs() == ()


async def test_a_stream_of_everything_takes_the_options_of_any_stream() -> None:
    async with speaking() as app:
        small = app.event_stream(capacity=3, on_lag="skip", name="small")
        await app.invoke({})
        await app.aclose()
        assert [event.kind async for event in small] == ["diagnostic"] * 3
        assert (small.stats().name, small.stats().dropped > 0) == ("small", True)
