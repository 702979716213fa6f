"""Runs with a log and a checkpointer: what survives, what is resumed, and one position that is good everywhere."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

from tests.support import clause, settle
from weavegraph import (
    END,
    START,
    STREAM_END_SCOPE,
    App,
    Event,
    EventBusConfig,
    GraphBuilder,
    Message,
    NodeContext,
    RunCancelledError,
    RuntimeConfig,
    Send,
)
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.checkpoint.sqlite import SqliteCheckpointer
from weavegraph.errors import (
    CheckpointConflictError,
    InvalidPositionError,
    LogFencedError,
    LogUnavailableError,
    SessionBusyError,
    SessionError,
    StateError,
)
from weavegraph.events import from_json
from weavegraph.log import MemoryLog, SqliteLog
from weavegraph.state import append
from weavegraph.storage._writer import Writer


@dataclass
class Note:
    text: str


class State(TypedDict, total=False):
    parts: Annotated[list[str], append]
    notes: Annotated[list[Note], append]
    pair: tuple[int, int]
    n: int


def build(config: RuntimeConfig, *, fail: set[str] | None = None, gate: asyncio.Event | None = None) -> App[State]:
    builder = GraphBuilder(State)

    @builder.node
    async def a(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        await ctx.stream_llm(["to", "kens"], stream_id="s")
        return {"parts": ["a"], "notes": [Note("x")], "pair": (1, 2)}

    @builder.node
    async def b(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        assert state["notes"] == [Note("x")] and state["pair"] == (1, 2)
        ctx.emit("ran", "b")
        if fail and "b" in fail:
            raise ConnectionError("b")
        if gate is not None:
            await gate.wait()
        return {"parts": ["b"]}

    builder.add_edge(START, "a").add_edge("a", "b").add_edge("b", END)
    return builder.compile(config)


def durable(folder: Path, **options: Any) -> RuntimeConfig:
    return RuntimeConfig(
        log=f"sqlite:{folder}/runs.db", checkpointer=f"sqlite:{folder}/runs.db", cancel_grace=0.01, **options
    )


async def held(path: Path, run_id: str, **options: Any) -> list[Event]:
    log = SqliteLog(path)
    try:
        return [event async for event in log.read(run_id, **options)]
    finally:
        await log.aclose()


async def test_what_a_run_emits_is_in_the_log_when_the_run_is_over(tmp_path: Path) -> None:
    async with build(durable(tmp_path)) as app:
        run = app.start({}, run_id="r", session_id="s")
        live = [event async for event in run]
        assert await run == {"parts": ["a", "b"], "notes": [Note("x")], "pair": (1, 2)}
        assert await held(tmp_path / "runs.db", "r") == live
        snapshot = await app.get_state("s")
        assert snapshot.values == {"parts": ["a", "b"], "notes": [Note("x")], "pair": (1, 2)}
        assert snapshot.checkpoint.run_seq == [e.run_seq for e in live if e.scope == "weavegraph.checkpoint.saved"][-1]


@clause("10.valid", "10.none")
async def test_a_stream_reads_the_past_from_the_log_and_then_the_present_without_a_seam(tmp_path: Path) -> None:
    gate = asyncio.Event()
    config = durable(tmp_path, event_bus=EventBusConfig(keep_runs=0))
    async with build(config, gate=gate) as app, build(durable(tmp_path)) as other:
        run = app.start({}, run_id="r")
        early = other.event_stream(run_id="r")  # another app, as another process would: it knows the run from the log
        first = [await early.recv() for _ in range(3)]
        await settle()
        gate.set()
        rest = [event async for event in early]
        await run
        everything = [*first, *rest]
        assert [event.run_seq for event in everything] == [*range(1, len(everything) + 1)]
        assert everything[-1].scope == STREAM_END_SCOPE
        del run
        for after in range(len(everything) + 1):
            late = [event async for event in app.event_stream(run_id="r", after=after)]  # forgotten here
            assert late == everything[after:]
        events = await asyncio.to_thread(lambda: list(other.event_stream(run_id="r", after=2).blocking()))
        assert events == everything[2:]


@clause("10.trimmed", "A3")
async def test_what_was_trimmed_is_one_exact_gap(tmp_path: Path) -> None:
    async with build(durable(tmp_path)) as app:
        await app.invoke({}, run_id="r")
    async with build(durable(tmp_path)) as app:
        assert app.log is not None
        last = await app.log.last_position("r")
        await app.log.trim("r", 7)
        gap, *rest = [event async for event in app.event_stream(run_id="r", after=2)]
        assert (gap.metadata["first_seq"], gap.metadata["last_seq"], gap.metadata["count"]) == (3, 7, 5)
        assert [event.run_seq for event in rest] == [*range(8, last + 1)]


async def test_a_position_beyond_the_end_is_refused_by_the_stream(tmp_path: Path) -> None:
    async with build(durable(tmp_path)) as app:
        await app.invoke({}, run_id="r")
    async with build(durable(tmp_path)) as app:
        with pytest.raises(InvalidPositionError, match="99999"):
            await app.event_stream(run_id="r", after=99999).recv()


@clause("8.kill", "D4", "O3.resume", "O4.resume")
@pytest.mark.parametrize("where", ["before b", "in b"])
async def test_a_run_whose_process_was_killed_is_resumed_by_another_where_it_stood(tmp_path: Path, where: str) -> None:
    script = f"""
        import asyncio, os
        from tests.runtime.test_durable import build, durable
        from pathlib import Path
        async def main():
            gate = asyncio.Event()
            app = build(durable(Path({str(tmp_path)!r})), gate=gate)
            run = app.start({{}}, run_id="r", session_id="s")
            async for event in run:
                if event.scope == "ran":
                    await app._live["r"].recorder.upto(event.run_seq)
                    os._exit(9)
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=os.getcwd(), timeout=50, check=False)
    assert done.returncode == 9
    async with build(durable(tmp_path)) as app:
        with pytest.raises(SessionBusyError, match="run 'r'"):
            await app.invoke({}, session_id="s")
        watching = app.event_stream(run_id="r", follow=True)
        run = app.resume("s")
        assert (run.attempt, await run) == (2, {"parts": ["a", "b"], "notes": [Note("x")], "pair": (1, 2)})
        events = [event async for event in watching]
        assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
        ends = [(event.attempt, event.metadata["outcome"]) for event in events if event.scope == STREAM_END_SCOPE]
        assert ends == [(1, "interrupted"), (2, "completed")]
        starts = [event.attempt for event in events if event.scope == "weavegraph.run.started"]
        assert starts == [1, 2]
        finished = [event.node_id for event in events if event.scope == "weavegraph.node.finished"]
        assert finished == ["a", "b"]  # a was not run again
        assert await held(tmp_path / "runs.db", "r") == events


@clause("D3")
async def test_a_checkpoint_and_the_event_that_announces_it_are_committed_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = seen_commits(monkeypatch)
    async with build(durable(tmp_path)) as app:
        await app.invoke({}, run_id="r", session_id="s")
    assert len(commits) >= 3
    assert all(announced == saved for announced, saved in commits)
    assert commits[-1] == (3, 3)


def seen_commits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """After each transaction of the file: the last checkpoint that an event announces, and the last that is there."""
    commits: list[tuple[int, int]] = []
    transact = Writer._transact

    def spying(self: Writer, connection: Any, jobs: Any) -> None:
        transact(self, connection, jobs)
        events = [from_json(body) for (body,) in connection.execute("SELECT body FROM log_events ORDER BY id")]
        announced = [e.metadata["number"] for e in events if e.scope == "weavegraph.checkpoint.saved"]
        (saved,) = connection.execute("SELECT coalesce(max(number), 0) FROM checkpoints").fetchone()
        commits.append((max(announced, default=0), saved))

    monkeypatch.setattr(Writer, "_transact", spying)
    return commits


def chain(config: RuntimeConfig, *names: str) -> App[State]:
    builder = GraphBuilder(State)
    for before, name in zip((START, *names), names, strict=False):
        builder.add_node(name, async_part(name)).add_edge(before, name)
    return builder.add_edge(names[-1], END).compile(config)


def async_part(name: str) -> Any:
    async def part(state: State) -> dict[str, Any]:
        return {"parts": [name]}

    return part


@clause("D3")
async def test_a_step_is_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events wait for its checkpoint; that of the last step has the run's end behind it."""
    monkeypatch.setattr("weavegraph.runtime._recorder.LINGER", 20.0)
    commits = seen_commits(monkeypatch)
    async with chain(durable(tmp_path), "a", "b", "c") as app:
        await app.invoke({}, run_id="r", session_id="s")
        assert commits == [(1, 1), (2, 2), (3, 3), (4, 4), (4, 4)]


@clause("D3")
async def test_events_of_a_step_that_takes_its_time_do_not_wait_for_its_end(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with build(durable(tmp_path), gate=gate) as app:
        assert app.log is not None
        run = app.start({}, run_id="r", session_id="s")
        scopes: list[str] = []
        async with asyncio.timeout(20):
            async for event in app.log.follow("r"):
                scopes.append(event.scope)
                if event.scope == "weavegraph.node.started" and event.node_id == "b":
                    break
        gate.set()
        await run


@clause("D5", "D3", "D2")
async def test_a_transaction_that_fails_is_done_again_with_all_that_belongs_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = seen_commits(monkeypatch)
    transact, fails = Writer._transact, iter([False, True, True, False, True])

    def failing(self: Writer, connection: Any, jobs: Any) -> None:
        if next(fails, False):
            raise LogUnavailableError("here", "full")
        transact(self, connection, jobs)

    monkeypatch.setattr(Writer, "_transact", failing)
    async with chain(durable(tmp_path), "a", "b", "c") as app:
        assert await app.invoke({}, run_id="r", session_id="s") == {"parts": ["a", "b", "c"]}
    assert all(announced == saved for announced, saved in commits)
    events = await held(tmp_path / "runs.db", "r")
    assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
    announced = [event.metadata["number"] for event in events if event.scope == "weavegraph.checkpoint.saved"]
    assert announced == [1, 2, 3, 4]
    assert next(fails, None) is None


@clause("D3", "D6")
async def test_a_checkpoint_that_is_refused_takes_no_event_with_it(tmp_path: Path) -> None:
    other = SqliteCheckpointer(tmp_path / "runs.db")

    async def interferes(state: State) -> None:
        latest = await other.latest("s")
        assert latest is not None
        await other.save(msgspec.structs.replace(latest, number=latest.number + 1, encoded=False))

    builder = GraphBuilder(State)
    builder.add_node("a", interferes).add_edge(START, "a").add_edge("a", END)
    async with builder.compile(durable(tmp_path)) as app:
        with pytest.raises(CheckpointConflictError, match="is at checkpoint 2, not 1"):
            await app.invoke({}, run_id="r", session_id="s")
    await other.aclose()
    events = await held(tmp_path / "runs.db", "r")
    assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
    assert (events[-1].scope, events[-1].metadata["outcome"]) == (STREAM_END_SCOPE, "failed")


class Careful(SqliteCheckpointer):
    """Somebody's own way to save."""

    saved = 0

    async def save(self, checkpoint: Any, /) -> None:
        self.saved += 1
        await super().save(checkpoint)


async def test_a_checkpointer_with_its_own_way_to_save_is_asked(tmp_path: Path) -> None:
    checkpointer = Careful(tmp_path / "runs.db")
    async with chain(RuntimeConfig(checkpointer=checkpointer), "a", "b") as app:
        await app.invoke({}, session_id="s")
        assert checkpointer.saved == 3


async def test_a_failed_run_goes_on_as_the_next_attempt_also_when_memory_forgot_it(tmp_path: Path) -> None:
    fail = {"b"}
    async with build(durable(tmp_path, event_bus=EventBusConfig(keep_runs=0)), fail=fail) as app:
        run = app.start({}, run_id="r", session_id="s")
        with pytest.raises(ConnectionError):
            await run
        del run
        fail.clear()
        assert (await app.resume("s"))["parts"] == ["a", "b"]
        events = await held(tmp_path / "runs.db", "r")
        assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
        assert [event.metadata["outcome"] for event in events if event.scope == STREAM_END_SCOPE] == [
            "failed", "completed",
        ]  # fmt: skip


async def test_finished_siblings_of_a_step_are_not_run_again(tmp_path: Path) -> None:
    ran: list[str] = []
    fail = {"two"}
    builder = GraphBuilder(State)

    def node(name: str) -> Any:
        async def run(state: State) -> dict[str, Any]:
            ran.append(name)
            if name in fail:
                await settle()
                raise ConnectionError(name)
            return {"parts": [name], "notes": [Note(name)]}

        return run

    builder.add_node("split", lambda state: [Send("sent", {"n": n}) for n in (1, 2)], to=["sent"])
    builder.add_node("sent", lambda state: {"parts": [f"sent {state['n']}"]})
    builder.add_edge("sent", END)
    for name in ("one", "two"):
        builder.add_node(name, node(name)).add_edge(START, name).add_edge(name, END)
    builder.add_edge(START, "split")
    async with builder.compile(durable(tmp_path, on_node_error="finish")) as app:
        run = app.start({}, session_id="s")
        with pytest.raises(ConnectionError):
            await run
    fail.clear()
    async with builder.compile(durable(tmp_path)) as app:
        state = await app.resume("s")
    assert state["parts"] == ["one", "two", "sent 1", "sent 2"]
    assert state["notes"] == [Note("one"), Note("two")]
    assert ran == ["one", "two", "two"]


async def test_questions_and_answers_cross_processes(tmp_path: Path) -> None:
    def asking() -> App[dict[str, Any]]:
        builder = GraphBuilder()

        @builder.node
        async def ask(state: dict[str, Any], ctx: NodeContext[dict[str, Any], None]) -> dict[str, Any]:
            who = await ctx.interrupt({"what": "name"})
            old = await ctx.interrupt("age")
            return {"messages": [Message.user(f"{who} {old}")]}

        builder.add_edge(START, "ask").add_edge("ask", END)
        return builder.compile(durable(tmp_path))

    async with asking() as app:
        run = app.start({"messages": [("system", "hi")]}, session_id="s", run_id="r")
        await run
        assert (run.status, run.questions[0].question) == ("paused", {"what": "name"})
    async with asking() as app:
        second = app.resume("s", {"first": "Ada"})
        await second
        assert second.status == "paused"
    async with asking() as app:
        state = await app.resume("s", 36)
        assert state["messages"] == [Message.system("hi"), Message.user("{'first': 'Ada'} 36")]
    async with asking() as app:
        events = [event async for event in app.event_stream(run_id="r")]
        ends = [event.metadata["outcome"] for event in events if event.scope == STREAM_END_SCOPE]
        assert ends == ["paused", "paused", "completed"]


@clause("D6")
async def test_a_run_that_another_process_took_over_fails_and_says_so(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with build(durable(tmp_path), gate=gate) as app, build(durable(tmp_path)) as other:
        run = app.start({}, run_id="r", session_id="s")
        async for event in run:
            if event.scope == "ran":
                break
        await app._live["r"].recorder.upto(event.run_seq or 0)  # type: ignore[union-attr]
        resumed = other.resume("s")  # as if this process were dead
        assert (await resumed)["parts"] == ["a", "b"]
        gate.set()
        with pytest.raises(LogFencedError, match="another process"):
            await run
        assert run.status == "failed"
        events = await held(tmp_path / "runs.db", "r")
        assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
        assert {event.attempt for event in events[-5:]} == {2}


@clause("D5")
async def test_a_log_that_cannot_be_written_for_a_while_costs_delay_and_nothing_else() -> None:
    class Sick(MemoryLog):
        failures = 3

        async def append(self, run_id: str, events: Any, /) -> int:
            if self.failures:
                self.failures -= 1
                raise LogUnavailableError("here", "disk full")
            return await super().append(run_id, events)

    log = Sick()
    async with build(RuntimeConfig(log=log)) as app:
        run = app.start({}, run_id="r")
        live = [event async for event in run]
        await run
        assert [event async for event in log.read("r")] == live


async def test_emit_async_returns_when_the_log_has_the_event(tmp_path: Path) -> None:
    seen: list[bool] = []

    async def node(state: Any, ctx: NodeContext[Any, None]) -> None:
        stamped = await ctx.emit_async("kept", "now")
        seen.append(stamped in await held(tmp_path / "runs.db", ctx.run_id))

    builder = GraphBuilder()
    builder.add_node("n", node).add_edge(START, "n").add_edge("n", END)
    async with builder.compile(durable(tmp_path)) as app:
        await app.invoke()
    assert seen == [True]


async def test_what_is_no_data_cannot_be_saved_and_the_error_says_where(tmp_path: Path) -> None:
    builder = GraphBuilder()
    builder.add_node("n", lambda state: {"extra": {"client": object()}}).add_edge(START, "n").add_edge("n", END)
    async with builder.compile(durable(tmp_path)) as app:
        with pytest.raises(StateError, match=r"the state's 'extra' cannot be saved.*deps"):
            await app.invoke({}, session_id="s")


async def test_a_session_of_another_graph_is_refused_by_name(tmp_path: Path) -> None:
    async with build(durable(tmp_path), fail={"b"}) as app:
        with pytest.raises(ConnectionError):
            await app.invoke({}, session_id="s")
    builder = GraphBuilder(State)
    builder.add_node("other", lambda state: None).add_edge(START, "other").add_edge("other", END)
    async with builder.compile(durable(tmp_path)) as app:
        with pytest.raises(SessionError, match=r"stands before 'b', which this graph lacks.*fingerprint"):
            app.resume("s")


async def test_a_cancelled_run_is_resumed_after_its_last_step_too(tmp_path: Path) -> None:
    entered = asyncio.Event()
    builder = GraphBuilder(State)

    async def polite(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        entered.set()
        await ctx.cancel_token.wait()
        return {"parts": ["p"]}

    builder.add_node("p", polite).add_edge(START, "p").add_edge("p", END)
    async with builder.compile(durable(tmp_path)) as app:
        run = app.start({}, session_id="s")
        await entered.wait()
        run.cancel("enough")
        with pytest.raises(RunCancelledError):
            await run
        resumed = app.resume("s")
        assert (await resumed, resumed.status) == ({"parts": ["p"]}, "completed")
        with pytest.raises(SessionError, match="no run to resume"):
            app.resume("s")


@pytest.mark.parametrize("crashes", range(1, 4))
async def test_the_final_state_after_crashes_is_that_of_an_undisturbed_run(tmp_path: Path, crashes: int) -> None:
    """Every step is cut once, in memory: the same machinery that a killed process leaves behind."""
    count = itertools.count(1)

    def make() -> App[State]:
        builder = GraphBuilder(State)

        async def work(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
            if ctx.attempt <= crashes and next(count) % 2 == 0:
                raise ConnectionError
            return {"parts": [str(state.get("n", 0))], "n": state.get("n", 0) + 1}

        builder.add_node("work", work).add_edge(START, "work")
        builder.add_conditional_edge("work", lambda state: END if state["n"] > 5 else "work", to=["work", END])
        return builder.compile(durable(tmp_path))

    async with make() as app:
        run = app.start({}, session_id="s", run_id="r")
        for _ in range(20):
            try:
                state = await run
                break
            except ConnectionError:
                run = app.resume("s")
        assert state == {"parts": list("012345"), "n": 6}
        events = await held(tmp_path / "runs.db", "r")
        assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]


@clause("D4", "8.kill")
async def test_what_a_sibling_had_finished_when_the_process_died_is_not_run_again(tmp_path: Path) -> None:
    script = f"""
        import asyncio, os
        from tests.runtime.test_durable import racing, durable
        from pathlib import Path
        async def main():
            app = racing(Path({str(tmp_path)!r}), dies=True)
            await app.invoke({{}}, run_id="r", session_id="s")
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=os.getcwd(), timeout=50, check=False)
    assert done.returncode == 9
    async with racing(tmp_path, dies=False) as app:
        assert (await app.get_state("s")).checkpoint.finished[0].index == 0
        assert (await app.resume("s"))["parts"] == ["quick in attempt 1", "slow in attempt 2"]


def racing(folder: Path, *, dies: bool) -> App[State]:
    builder = GraphBuilder(State)

    @builder.node
    async def quick(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        return {"parts": [f"quick in attempt {ctx.attempt}"]}

    @builder.node
    async def slow(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        while dies:
            latest = await SqliteCheckpointer(folder / "runs.db").latest("s")
            if latest is not None and latest.finished:
                os._exit(9)
        return {"parts": [f"slow in attempt {ctx.attempt}"]}

    for name in ("quick", "slow"):
        builder.add_edge(START, name).add_edge(name, END)
    return builder.compile(durable(folder))


class Halves:
    """Two nodes; the first waits for ``gate``. ``ran`` names each that ran to its end."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.entered, self.gate, self.ran = asyncio.Event(), asyncio.Event(), list[str]()
        builder = GraphBuilder(State)

        @builder.node
        async def one(state: State) -> State:
            self.entered.set()
            await self.gate.wait()
            self.ran.append("one")
            return {"parts": ["one"]}

        @builder.node
        async def two(state: State) -> State:
            self.ran.append("two")
            return {"parts": ["two"]}

        builder.add_edge(START, "one").add_edge("one", "two").add_edge("two", END)
        self.app = builder.compile(config)


@clause("8.sigterm", "O3.resume")
@pytest.mark.parametrize("durability", ["step", "end"])
async def test_a_run_is_given_time_to_reach_the_end_of_its_step_when_its_app_closes(
    tmp_path: Path, durability: Any
) -> None:
    config = msgspec.structs.replace(durable(tmp_path), durability=durability)
    halves = Halves(config)
    run = halves.app.start({}, run_id="r", session_id="s")
    await halves.entered.wait()
    closing = asyncio.create_task(halves.app.aclose(grace=30))
    await settle()
    halves.gate.set()
    await closing
    assert (await run, run.status, halves.ran) == ({"parts": ["one"]}, "interrupted", ["one"])
    rest = Halves(config)
    async with rest.app as app:
        again = app.resume("s")
        assert ((await again)["parts"], rest.ran) == (["one", "two"], ["two"])  # nothing ran twice
        events = [event async for event in app.event_stream(run_id="r")]
        ends = [(event.metadata["outcome"], event.metadata.get("code")) for event in events if is_end(event)]
        assert ends == [("interrupted", "app_closed"), ("completed", None)]


def is_end(event: Event) -> bool:
    return event.scope == STREAM_END_SCOPE


@clause("8.sigterm", "P5")
@pytest.mark.parametrize("kept", [True, False])
async def test_a_run_that_does_not_reach_the_end_of_its_step_is_cancelled(tmp_path: Path, kept: bool) -> None:
    halves = Halves(durable(tmp_path) if kept else RuntimeConfig(cancel_grace=0.01))
    run = halves.app.start({}, run_id="r", session_id="s")
    await halves.entered.wait()
    async with asyncio.timeout(20):  # what no checkpointer keeps is not waited for
        await halves.app.aclose(grace=0.05 if kept else 60)
    with pytest.raises(RunCancelledError, match="app_closed"):
        await run
    assert halves.ran == []


class Patient(MemoryCheckpointer):
    """Reads only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.gate = 0, asyncio.Event()
        self.gate.set()

    async def latest(self, session_id: str) -> Any:
        self.asked += 1
        await self.gate.wait()
        return await super().latest(session_id)


async def test_resume_async_lets_the_loop_turn_and_one_of_two_goes_on() -> None:
    saver = Patient()
    builder = GraphBuilder()

    @builder.node
    async def ask(state: Any, ctx: NodeContext[Any, Any]) -> Any:
        return {"extra": {"answer": await ctx.interrupt("?")}}

    async with builder.add_edge(START, "ask").add_edge("ask", END).compile(RuntimeConfig(checkpointer=saver)) as app:
        await app.start({}, session_id="s")
        saver.gate.clear()
        asked = saver.asked
        both = [asyncio.create_task(app.resume_async("s", word)) for word in ("yes", "no")]
        await settle()  # would hang here if the loop were kept waiting
        assert saver.asked == asked + 1  # the second waits for the first
        saver.gate.set()
        one, two = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(two, SessionBusyError) and not isinstance(one, BaseException)
        assert (await one)["extra"] == {"answer": "yes"}
        with pytest.raises(SessionError, match="no run to resume"):
            await app.resume_async("s")
