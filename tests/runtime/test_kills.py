"""What others find of a run whose process was killed: at its very beginning, in a model's answer, at its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from msgspec.structs import replace

from tests.runtime.test_durable import held
from tests.support import clause
from weavegraph import END, START, STREAM_END_SCOPE, App, Event, GraphBuilder, NodeContext, RuntimeConfig
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.checkpoint.sqlite import SqliteCheckpointer
from weavegraph.errors import (
    LogCorruptError,
    LogUnavailableError,
    SessionBusyError,
    SessionError,
    SessionNotFoundError,
)
from weavegraph.events import LLMStreamingEvent
from weavegraph.log import MemoryLog, SqliteLog
from weavegraph.runtime import AppRunner
from weavegraph.state import append
from weavegraph.testing import logged


class State(TypedDict, total=False):
    parts: Annotated[list[str], append]


def durable(folder: Path, log: Any = None, checkpoints: str = "runs.db") -> RuntimeConfig:
    return RuntimeConfig(
        log=log or SqliteLog(folder / "runs.db"),
        checkpointer=SqliteCheckpointer(folder / checkpoints),
        cancel_grace=0.01,
    )


def killed(folder: Path, source: str, by: int = -9) -> None:
    """Run a program that ends itself as a kill would; with ``by`` a signal, by that."""
    header = "import asyncio, os\nfrom pathlib import Path\nfrom tests.runtime.test_kills import *\n"
    program = f"{header}folder = Path({str(folder)!r})\n{textwrap.dedent(source)}"
    assert subprocess.run([sys.executable, "-c", program], cwd=os.getcwd(), timeout=50, check=False).returncode == -by


def scopes(events: list[Event]) -> list[tuple[int | None, str]]:
    return [(event.attempt, event.scope.removeprefix("weavegraph.")) for event in events]


# ── at its beginning ────────────────────────────────────────────────────────────────────────────────


def simple(config: RuntimeConfig, router: Any = None, dies: bool = False) -> App[State]:
    builder = GraphBuilder(State)

    @builder.node
    async def a(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        if dies:
            await ctx.emit_async("ran", "a")
            os._exit(9)
        return {"parts": [f"a in attempt {ctx.attempt}"]}

    if router is None:
        builder.add_edge(START, "a")
    else:
        builder.add_conditional_edge(START, router, to=["a"])
    builder.add_edge("a", END)
    return builder.compile(config)


def dying_before_its_first_checkpoint(folder: Path) -> App[State]:
    """While it looks for its first node, after the log had every chance to take its first event."""
    config = durable(folder)

    async def router(state: State) -> str:
        assert config.log is not None
        for n in range(1, 31):
            await config.log.append("other", logged("other", n, n))
        os._exit(9)

    return simple(config, router)


@clause("8.kill", "D4", "D6")
async def test_a_run_that_was_killed_before_its_first_checkpoint_has_left_nothing(tmp_path: Path) -> None:
    """Else there would be events, no session to resume, and its id would belong to the process that died."""
    killed(
        tmp_path,
        """
        async def main():
            await dying_before_its_first_checkpoint(folder).invoke({"parts": ["given"]}, run_id="r", session_id="s")
        asyncio.run(main())
        """,
    )
    async with simple(durable(tmp_path)) as app:
        assert app.log is not None
        assert [run.run_id for run in await app.log.runs()] == ["other"]
        with pytest.raises(SessionNotFoundError):
            app.resume("s")
        assert await app.invoke({}, run_id="r", session_id="s") == {"parts": ["a in attempt 1"]}
    events = await held(tmp_path / "runs.db", "r")
    assert scopes(events)[:2] == [(1, "run.started"), (1, "checkpoint.saved")]


@clause("8.kill", "D4", "D3")
async def test_from_its_first_event_on_a_run_can_be_resumed_with_its_input(tmp_path: Path) -> None:
    killed(
        tmp_path,
        """
        async def main():
            app = simple(durable(folder), dies=True)
            await app.invoke({"parts": ["given"]}, run_id="r", session_id="s")
        asyncio.run(main())
        """,
    )
    async with simple(durable(tmp_path)) as app:
        assert await app.resume("s") == {"parts": ["given", "a in attempt 2"]}


def thrice(config: RuntimeConfig, dies: bool = False) -> App[State]:
    """Three steps; in the third it is killed, when the log has the events of those before."""
    builder = GraphBuilder(State)

    @builder.node
    async def last(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        if dies:
            await ctx.emit_async("ran", "last")
            os.kill(os.getpid(), signal.SIGKILL)
        return {"parts": [f"last in attempt {ctx.attempt}"]}

    builder.add_node("one", lambda state: {"parts": ["one"]})
    builder.add_node("two", lambda state: {"parts": ["two"]})
    builder.add_edge(START, "one").add_edge("one", "two").add_edge("two", "last").add_edge("last", END)
    return builder.compile(config)


def at_the_end(folder: Path, checkpoints: str = "runs.db") -> RuntimeConfig:
    return replace(durable(folder, checkpoints=checkpoints), durability="end")


@clause("8.kill", "D4", "O3", "O3.resume")
@pytest.mark.parametrize("checkpoints", ["runs.db", "sessions.db"])
@pytest.mark.parametrize("way", ["app", "runner"])
async def test_a_run_that_is_saved_at_its_end_only_is_resumed_from_its_input(
    tmp_path: Path, checkpoints: str, way: str
) -> None:
    killed(
        tmp_path,
        f"""
        async def main():
            app = thrice(at_the_end(folder, {checkpoints!r}), dies=True)
            await app.invoke({{"parts": ["given"]}}, run_id="r", session_id="s")
        asyncio.run(main())
        """,
        signal.SIGKILL,
    )
    before = await held(tmp_path / "runs.db", "r")
    assert before[-1].scope == "ran"
    async with thrice(at_the_end(tmp_path, checkpoints)) as app:
        assert app.log is not None
        found = await app.get_state("s")
        assert (found.values, found.checkpoint.status, found.next) == ({"parts": ["given"]}, "running", ("one",))
        with pytest.raises(SessionBusyError):  # it has a run that nobody ended: nothing begins beside it
            await app.invoke({}, run_id="other", session_id="s")
        everything = ["given", "one", "two", "last in attempt 2"]
        if way == "app":
            assert await app.resume("s") == {"parts": everything}
        else:
            runner = AppRunner(app)
            assert (await runner.create_session(session_id="s")).resumed
            assert await runner.run_until_complete("s") == {"parts": everything}
        assert [each.status for each in (await app.history("s")).checkpoints] == ["completed", "running"]
        logged_run = next(run for run in await app.log.runs() if run.run_id == "r")
        assert (logged_run.attempt, logged_run.outcome) == (2, "completed")
    events = await held(tmp_path / "runs.db", "r")
    assert events[: len(before)] == before
    assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
    assert scopes(events)[len(before) : len(before) + 2] == [(1, "stream.end"), (2, "run.started")]
    ends = [(event.attempt, event.metadata["outcome"]) for event in events if event.scope == STREAM_END_SCOPE]
    assert ends == [(1, "interrupted"), (2, "completed")]


class Dying(SqliteLog):
    """Its process is killed when it is given the first events."""

    async def append(self, run_id: str, events: Any, /) -> int:
        os._exit(9)


@clause("8.kill", "D4", "O3.resume")
@pytest.mark.parametrize("way", ["app", "runner"])
async def test_with_two_files_the_session_is_there_before_the_log_has_anything(tmp_path: Path, way: str) -> None:
    killed(
        tmp_path,
        """
        async def main():
            app = simple(durable(folder, Dying(folder / "runs.db"), "sessions.db"), dies=True)
            await app.invoke({"parts": ["given"]}, run_id="r", session_id="s")
        asyncio.run(main())
        """,
    )
    async with simple(durable(tmp_path, checkpoints="sessions.db")) as app:
        if way == "app":
            assert await app.resume("s") == {"parts": ["given", "a in attempt 2"]}
        else:
            runner = AppRunner(app)
            assert (await runner.create_session(session_id="s")).resumed
            assert await runner.run_until_complete("s") == {"parts": ["given", "a in attempt 2"]}
    events = await held(tmp_path / "runs.db", "r")
    assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
    assert {event.attempt for event in events} == {2}
    assert [events[0].scope, events[-1].scope] == ["weavegraph.run.started", STREAM_END_SCOPE]


async def test_a_run_that_ends_before_its_first_checkpoint_is_in_the_log_all_the_same(tmp_path: Path) -> None:
    async def router(state: State) -> str:
        raise LookupError("no way")

    async with simple(durable(tmp_path), router) as app:
        with pytest.raises(LookupError, match="no way"):
            await app.invoke({}, run_id="r", session_id="s")
        events = await held(tmp_path / "runs.db", "r")
        assert scopes(events)[0] == (1, "run.started")
        assert events[-1].metadata["outcome"] == "failed"


# ── in a model's answer ─────────────────────────────────────────────────────────────────────────────


def talking(config: RuntimeConfig, *, dies: bool) -> App[State]:
    """Two answers at once; one of them, and one of the step before, are whole."""
    builder = GraphBuilder(State)

    async def cut(ctx: NodeContext[State, None]) -> Any:
        for text in ("one", "two", "three"):
            yield text
        while dies:  # the log has them
            await ctx.emit_async("said", "three")
            os._exit(9)

    @builder.node
    async def first(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        await ctx.stream_llm(["whole"], stream_id="first")
        return {}

    @builder.node
    async def second(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        await ctx.stream_llm(["whole", "too"], stream_id="whole")
        reply = await ctx.stream_llm(cut(ctx), stream_id="cut")
        return {"parts": [reply.text]}

    builder.add_edge(START, "first").add_edge("first", "second").add_edge("second", END)
    return builder.compile(config)


@clause("O5", "O3.resume", "8.kill")
@pytest.mark.parametrize("way", ["app", "runner"])
async def test_an_answer_that_a_kill_cut_off_is_ended_by_the_resume(tmp_path: Path, way: str) -> None:
    killed(
        tmp_path,
        """
        async def main():
            await talking(durable(folder), dies=True).invoke({}, run_id="r", session_id="s")
        asyncio.run(main())
        """,
    )
    before = await held(tmp_path / "runs.db", "r")
    async with talking(durable(tmp_path), dies=False) as app:
        if way == "app":
            assert await app.resume("s") == {"parts": ["onetwothree"]}
        else:
            runner = AppRunner(app)
            await runner.create_session(session_id="s")
            assert await runner.run_until_complete("s") == {"parts": ["onetwothree"]}
    events = await held(tmp_path / "runs.db", "r")
    assert events[: len(before)] == before
    end, over, start = events[len(before) : len(before) + 3]
    last = [event for event in before if isinstance(event, LLMStreamingEvent)][-1]
    assert isinstance(end, LLMStreamingEvent)
    assert (end.stream_id, end.phase, end.is_final, end.index, end.chunk) == ("cut", "cancelled", True, 3, "")
    assert (end.attempt, end.node_id, end.step, end.path) == (1, "second", last.step, last.path)
    assert (over.attempt, over.scope, over.metadata["outcome"]) == (1, STREAM_END_SCOPE, "interrupted")
    assert (start.attempt, start.scope) == (2, "weavegraph.run.started")
    ends = [(e.stream_id, e.phase) for e in events if isinstance(e, LLMStreamingEvent) and e.is_final]
    assert ends == [
        ("first", "final"),
        ("whole", "final"),
        ("cut", "cancelled"),
        ("whole..2", "final"),
        ("cut..2", "final"),
    ]


# ── at its end ──────────────────────────────────────────────────────────────────────────────────────


class Killer:
    """Kills its process when a checkpoint is saved that says so."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_checkpoint_saved(self, session_id: str, number: int, seconds: float) -> None:
        if number == self.number:
            os._exit(9)


def observed(folder: Path, number: int) -> App[State]:
    path = folder / "runs.db"
    observers = (Killer(number),)
    return simple(RuntimeConfig(log=SqliteLog(path), checkpointer=SqliteCheckpointer(path), observers=observers))


@clause("O3.resume", "8.kill", "D4")
async def test_a_run_that_was_killed_behind_its_last_checkpoint_is_given_its_end(tmp_path: Path) -> None:
    killed(
        tmp_path,
        """
        async def main():
            await observed(folder, 2).invoke({}, run_id="r", session_id="s")
        asyncio.run(main())
        """,
    )
    before = await held(tmp_path / "runs.db", "r")
    assert before[-1].scope == "weavegraph.checkpoint.saved"
    async with simple(durable(tmp_path)) as app:
        run = app.resume("s")
        assert await run == {"parts": ["a in attempt 1"]}
        assert run.status == "completed"
        with pytest.raises(SessionError, match="no run to resume"):
            app.resume("s")
    events = await held(tmp_path / "runs.db", "r")
    ends = [(event.attempt, event.metadata["outcome"]) for event in events if event.scope == STREAM_END_SCOPE]
    assert ends == [(1, "interrupted"), (2, "completed")]
    assert not [event for event in events[len(before) :] if event.scope == "weavegraph.node.started"]


@clause("8.kill", "O3")
@pytest.mark.parametrize("way", ["app", "runner"])
async def test_it_is_given_its_end_also_by_the_next_run_of_its_session(tmp_path: Path, way: str) -> None:
    killed(
        tmp_path,
        """
        async def main():
            await observed(folder, 2).invoke({}, run_id="r", session_id="s")
        asyncio.run(main())
        """,
    )
    async with simple(durable(tmp_path)) as app:
        if way == "app":
            state = await app.invoke({}, run_id="next", session_id="s")
        else:
            runner = AppRunner(app)
            await runner.create_session({}, run_id="next", session_id="s")
            state = await runner.run_until_complete("s")
        assert state == {"parts": ["a in attempt 1", "a in attempt 1"]}
        assert app.runs() == ()
    events = await held(tmp_path / "runs.db", "r")
    assert scopes(events)[-3:] == [(1, "stream.end"), (2, "run.started"), (2, "stream.end")]
    assert [event.metadata["outcome"] for event in events if event.scope == STREAM_END_SCOPE] == [
        "interrupted", "completed",
    ]  # fmt: skip
    assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
    after = await held(tmp_path / "runs.db", "next")
    assert [event.metadata["outcome"] for event in after if event.scope == STREAM_END_SCOPE] == ["completed"]


# ── what cannot be opened ───────────────────────────────────────────────────────────────────────────


def counting(config: RuntimeConfig, ran: list[str]) -> App[State]:
    builder = GraphBuilder(State)

    @builder.node
    async def a(state: State) -> dict[str, Any]:
        ran.append("a")
        return {"parts": ["a"]}

    builder.add_edge(START, "a").add_edge("a", END)
    return builder.compile(config)


WHAT = [("garbage.db", LogCorruptError, "not a database"), ("none/runs.db", LogUnavailableError, "cannot be created")]


@clause("D7")
@pytest.mark.parametrize(("place", "kind", "sentence"), WHAT)
@pytest.mark.parametrize("which", ["log", "checkpointer"])
@pytest.mark.parametrize("durability", ["step", "end"])
async def test_nothing_runs_before_log_and_checkpointer_are_open(
    tmp_path: Path, place: str, kind: type[Exception], sentence: str, which: str, durability: Any
) -> None:
    (tmp_path / "garbage.db").write_text("no database")
    ran: list[str] = []
    config: dict[str, Any] = {which: f"sqlite:{tmp_path / place}", "durability": durability}
    async with counting(RuntimeConfig(**config), ran) as app:
        for _ in range(2):  # also the second time
            began = asyncio.get_running_loop().time()
            with pytest.raises(kind, match=sentence):
                await app.invoke({}, session_id="s")
            assert asyncio.get_running_loop().time() - began < 4  # nobody waits for what will not come
        with pytest.raises(kind, match=sentence):
            await asyncio.to_thread(app.invoke_sync, {})
        runner = AppRunner(app)
        with pytest.raises(kind, match=sentence):
            await runner.create_session({}, session_id="t")
    assert ran == []
    assert (tmp_path / "garbage.db").read_text() == "no database"


@clause("D7", "D5")
async def test_a_log_that_can_be_opened_later_is_then_used(tmp_path: Path) -> None:
    ran: list[str] = []
    async with counting(RuntimeConfig(log=f"sqlite:{tmp_path}/later/runs.db"), ran) as app:
        with pytest.raises(LogUnavailableError, match="cannot be created"):
            await app.invoke({}, run_id="r1")
        (tmp_path / "later").mkdir()
        assert await app.invoke({}, run_id="r2") == {"parts": ["a"]}
        assert app.log is not None
        assert [run.run_id for run in await app.log.runs()] == ["r2"]
    assert ran == ["a"]


class Opened(MemoryLog):
    """Counts how often it is opened, and can be closed to everybody."""

    def __init__(self) -> None:
        super().__init__()
        self.opened, self.shut = 0, False

    async def start(self) -> None:
        self.opened += 1
        if self.shut:
            raise LogUnavailableError("here", "shut")


@clause("D7")
async def test_it_is_opened_once(tmp_path: Path) -> None:
    log, ran = Opened(), []
    async with counting(RuntimeConfig(log=log), ran) as app:
        for _ in range(3):
            await app.invoke({})
    assert (log.opened, ran) == (1, ["a", "a", "a"])


@clause("D7", "D4")
@pytest.mark.parametrize("way", ["app", "runner"])
async def test_a_session_whose_log_cannot_be_opened_stays_as_it_is(way: str) -> None:
    keeper, log, fails = MemoryCheckpointer(), Opened(), [True]
    builder = GraphBuilder(State)

    @builder.node
    async def a(state: State) -> dict[str, Any]:
        if fails:
            raise ConnectionError("a")
        return {"parts": ["a"]}

    builder.add_edge(START, "a").add_edge("a", END)
    async with builder.compile(RuntimeConfig(log=log, checkpointer=keeper)) as app:
        with pytest.raises(ConnectionError):
            await app.invoke({}, session_id="s")
    saved = await keeper.latest("s")
    fails.clear()
    async with builder.compile(RuntimeConfig(log=log, checkpointer=keeper)) as app:
        log.shut = True
        with pytest.raises(LogUnavailableError, match="shut"):
            if way == "app":
                await app.resume("s")
            else:
                await AppRunner(app).create_session(session_id="s")
        assert await keeper.latest("s") == saved
        log.shut = False
        assert await app.resume("s") == {"parts": ["a"]}
