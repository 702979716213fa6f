"""The outbox: what is away costs delay, what is refused costs that event, and a restart costs nothing (X1)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support import clause
from tests.support import eventually as until
from weavegraph import EventBus, node_message
from weavegraph.bus import Lane, RetryPolicy
from weavegraph.errors import ConfigError, LogUnavailableError, PermanentSinkError
from weavegraph.events import Event
from weavegraph.log import (
    DeadLetters,
    LogSink,
    MemoryLog,
    MemoryOutboxStore,
    Outbox,
    SqliteLog,
    with_outboxes,
)
from weavegraph.sinks import MemorySink
from weavegraph.testing import logged
from weavegraph.testing._log_kit import ending

QUICK = RetryPolicy(tries=3, base=0.001, cap=0.002)


class Elsewhere:
    """A sink that can be away, and cannot take some messages."""

    name = "elsewhere"

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.away = False
        self.refuses: set[str] = set()
        self.breaks: set[str] = set()
        self.calls = 0
        self.closed = False

    async def handle(self, batch: Sequence[Event]) -> None:
        self.calls += 1
        if self.away:
            raise ConnectionError("nobody there")
        for event in batch:
            if event.message in self.refuses:
                raise PermanentSinkError(f"no {event.message}")
            if event.message in self.breaks:
                raise ValueError(f"broken by {event.message}")
        self.events += batch

    async def aclose(self) -> None:
        self.closed = True

    def positions(self, run_id: str) -> list[int | None]:
        return [event.run_seq for event in self.events if event.run_id == run_id]


@pytest.fixture(params=["sqlite", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return SqliteLog(tmp_path / "e.db") if request.param == "sqlite" else MemoryLog()


async def read(log: Any, run_id: str) -> list[Event]:
    return [event async for event in log.read(run_id)]


@clause("X1", "O6")
async def test_everything_in_the_log_is_shipped_in_order(log: Any) -> None:
    sink = Elsewhere()
    for run_id in ("a", "b", "c"):
        await log.append(run_id, logged(run_id, 1, 1200))
    async with Outbox(log, sink, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        assert all(sink.positions(run_id) == list(range(1, 1201)) for run_id in ("a", "b", "c"))
        stats = outbox.stats()
        assert (stats.shipped, stats.dead_lettered, stats.trimmed, stats.pending_events) == (3600, 0, 0, 0)
        assert (stats.state, stats.errors) == ("idle", 0)
    await log.aclose()


@clause("X1")
async def test_what_comes_later_is_shipped_too(log: Any) -> None:
    sink = Elsewhere()
    async with Outbox(log, sink, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        for n in range(1, 50):
            await log.append("a", logged("a", n, n))
        assert await outbox.drain(20)
        assert sink.positions("a") == list(range(1, 50))
    await log.aclose()


@clause("X1", "S1")
async def test_an_absence_costs_delay_and_nothing_else(log: Any) -> None:
    sink = Elsewhere()
    sink.away = True
    async with Outbox(log, sink, retry=QUICK) as outbox:
        for n in range(1, 301):
            await log.append("a", logged("a", n, n))
        await until(lambda: sink.calls > 10)
        stats = outbox.stats()
        assert (stats.state, stats.shipped, stats.dead_lettered) == ("retrying", 0, 0)
        assert stats.last_error == "ConnectionError: nobody there"
        assert not await outbox.drain(0.05)
        with pytest.raises(LogUnavailableError, match="wait in the log"):
            await outbox.flush()
        sink.away = False
        assert await outbox.drain(20)
        assert sink.positions("a") == list(range(1, 301))
        assert outbox.stats().last_success_at is not None
    await log.aclose()


@clause("X1")
async def test_a_sink_that_cannot_start_yet_is_started_later(log: Any) -> None:
    class Late(Elsewhere):
        starts = 0

        async def start(self) -> None:
            self.starts += 1
            if self.starts < 4:
                raise ConnectionError("not there yet")

        async def handle(self, batch: Sequence[Event]) -> None:
            if self.starts < 4:
                raise ValueError("used before its start")
            await super().handle(batch)

    sink = Late()
    await log.append("a", logged("a", 1, 10))
    async with Outbox(log, sink, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        assert (outbox.stats().shipped, outbox.stats().dead_lettered, sink.starts) == (10, 0, 4)
    await log.aclose()


@clause("X1")
async def test_a_restart_goes_on_behind_the_cursor(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "e.db")
    await log.append("a", logged("a", 1, 100))
    first, second = Elsewhere(), Elsewhere()
    async with Outbox(log, first, name="x", retry=QUICK) as outbox:
        assert await outbox.drain(20)
    assert first.closed
    await log.append("a", logged("a", 101, 150))
    async with Outbox(log, second, name="x", retry=QUICK) as outbox:
        assert await outbox.drain(20)
        assert outbox.stats().shipped == 150
    assert second.positions("a") == list(range(101, 151))
    await log.aclose()


async def test_outboxes_of_different_names_have_cursors_of_their_own(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "e.db")
    await log.append("a", logged("a", 1, 10))
    sinks = [Elsewhere(), Elsewhere()]
    async with Outbox(log, sinks[0], name="one") as one, Outbox(log, sinks[1], name="two") as two:
        assert await one.drain(20) and await two.drain(20)
    assert [sink.positions("a") for sink in sinks] == [list(range(1, 11))] * 2
    await log.aclose()


async def test_two_of_one_name_on_one_file_take_turns(tmp_path: Path) -> None:
    log, other = SqliteLog(tmp_path / "e.db"), SqliteLog(tmp_path / "e.db")
    sinks = [Elsewhere(), Elsewhere()]
    async with Outbox(log, sinks[0], name="x") as first:
        await log.append("a", logged("a", 1, 10))
        assert await first.drain(20)
        async with Outbox(other, sinks[1], name="x") as second:
            await until(lambda: second.stats().state == "standby")
            await log.append("a", logged("a", 11, 20))
            assert await first.drain(20)
            await first.aclose()
            await log.append("a", logged("a", 21, 30))
            assert await second.drain(20)
    assert [sink.positions("a") for sink in sinks] == [list(range(1, 21)), list(range(21, 31))]
    await log.aclose()
    await other.aclose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs flock")
async def test_a_killed_process_gives_its_turn_back(tmp_path: Path) -> None:
    program = """
        import asyncio, sys
        from weavegraph.log import Outbox, SqliteLog
        class Sink:
            async def handle(self, batch): pass
        async def main():
            async with Outbox(SqliteLog(sys.argv[1]), Sink(), name="x") as outbox:
                await outbox.drain(20)
                print("ready", flush=True)
                await asyncio.Event().wait()
        asyncio.run(main())
    """
    log, sink = SqliteLog(tmp_path / "e.db"), Elsewhere()
    await log.append("a", logged("a", 1, 10))
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "e.db")], stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == b"ready\n"
        async with Outbox(log, sink, name="x") as outbox:
            await until(lambda: outbox.stats().state == "standby")
            child.kill()
            child.wait(10)
            await log.append("a", logged("a", 11, 20))
            assert await outbox.drain(20)
        assert sink.positions("a") == list(range(11, 21))
    finally:
        child.kill()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()
        await log.aclose()


# ── dead letters ────────────────────────────────────────────────────────────────────────────────────


@clause("S2")
@pytest.mark.parametrize("how", ["refuses", "breaks"])
async def test_what_cannot_be_taken_becomes_a_letter_and_the_rest_goes_on(log: Any, how: str) -> None:
    sink = Elsewhere()
    getattr(sink, how).update({"3", "7"})
    await log.append("a", logged("a", 1, 10))
    async with Outbox(log, sink, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        assert sink.positions("a") == [1, 2, 4, 5, 6, 8, 9, 10]
        assert (outbox.stats().shipped, outbox.stats().dead_lettered) == (8, 2)
        letters = await outbox.letters().list()
        assert [letter.event for letter in letters] == [logged("a", n, n)[0] for n in (3, 7)]
        assert all(letter.outbox == "elsewhere" and letter.tries >= 2 and letter.error for letter in letters)
        assert all(letter.first_at <= letter.last_at for letter in letters)
    await log.aclose()


async def test_letters_are_resent_and_dropped(tmp_path: Path) -> None:
    log, sink = SqliteLog(tmp_path / "e.db"), Elsewhere()
    sink.refuses = {"3", "7", "9"}
    await log.append("a", logged("a", 1, 10))
    async with Outbox(log, sink, retry=QUICK) as outbox:
        assert await outbox.drain(20)
    letters = DeadLetters(tmp_path / "e.db")
    ids = [letter.id for letter in await letters.list("elsewhere")]
    assert await letters.list("nobody") == ()
    assert [letter.id for letter in await letters.list(limit=1, after=ids[0])] == [ids[1]]
    sink.refuses = {"7"}
    report = await letters.resend(sink, [*ids, 999])
    assert report.sent == (ids[0], ids[2])
    assert report.failed == {ids[1]: "PermanentSinkError: no 7", 999: "no such letter"}
    assert sink.positions("a")[-2:] == [3, 9]
    (left,) = await letters.list()
    assert (left.id, left.tries) == (ids[1], 3)
    assert await letters.drop([left.id, 999]) == 1
    assert await letters.list() == ()
    await letters.aclose()
    await log.aclose()


async def test_letters_survive_the_process_and_are_not_counted_twice(tmp_path: Path) -> None:
    log, sink = SqliteLog(tmp_path / "e.db"), Elsewhere()
    sink.refuses = {"3"}
    await log.append("a", logged("a", 1, 5))
    for _ in range(2):
        async with Outbox(log, sink, name="x", retry=QUICK) as outbox:
            assert await outbox.drain(20)
            assert (outbox.stats().shipped, outbox.stats().dead_lettered) == (4, 1)
            assert len(await outbox.letters().list()) == 1
    await log.aclose()


# ── to a log ────────────────────────────────────────────────────────────────────────────────────────


class Lossy(MemoryLog):
    """Forgets an end that it had acknowledged, and can be away."""

    away = False

    def lose(self, run_id: str, keep: int) -> None:
        run = self._runs[run_id]
        del run.events[keep:], run.sizes[keep:]
        run.record = msgspec.structs.replace(run.record, last=keep, events=keep, outcome=None)

    async def append(self, run_id: str, events: Sequence[Event], /) -> int:
        if self.away:
            raise LogUnavailableError("lossy", "away")
        return await super().append(run_id, events)

    async def publish(self, run_id: str, events: Sequence[Event], /, *, after: int = 0) -> int:
        if self.away:
            raise LogUnavailableError("lossy", "away")
        return await super().publish(run_id, events, after=after)


@clause("X1", "X2")
async def test_to_a_log_every_event_comes_once(log: Any) -> None:
    target = MemoryLog()
    await log.append("a", logged("a", 1, 700))
    store = MemoryOutboxStore()
    for _ in range(2):  # the second has the cursor of the first taken away
        async with Outbox(log, target, name="x", store=store) as outbox:
            assert await outbox.drain(20)
        store = MemoryOutboxStore()
    assert await read(target, "a") == logged("a", 1, 700)
    await log.aclose()


@clause("X4")
async def test_what_the_other_side_lost_is_shipped_again(log: Any) -> None:
    target = Lossy()
    await log.append("a", logged("a", 1, 100))
    async with Outbox(log, target, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        target.lose("a", 60)
        await log.append("a", logged("a", 101, 120))
        assert await outbox.drain(20)
        assert await read(target, "a") == logged("a", 1, 120)
        assert (outbox.stats().shipped, outbox.stats().reshipped) == (120, 40)
    await log.aclose()


@clause("X4")
async def test_after_an_absence_runs_that_had_been_shipped_are_looked_at_again(log: Any) -> None:
    target = Lossy()
    for run_id in ("a", "b", "c"):
        await log.append(run_id, logged(run_id, 1, 100))
    async with Outbox(log, target, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        target.away = True
        await log.append("c", logged("c", 101, 101))
        await until(lambda: outbox.stats().state == "retrying")
        target.lose("a", 10)
        target.lose("b", 99)
        target.away = False
        assert await outbox.drain(20)
        for run_id in ("a", "b"):
            assert await read(target, run_id) == logged(run_id, 1, 100)
        assert outbox.stats().reshipped == 91
    await log.aclose()


class Faltering(Lossy):
    """Goes away after so many publishes."""

    left = 1_000_000

    async def publish(self, run_id: str, events: Sequence[Event], /, *, after: int = 0) -> int:
        self.left -= 1
        self.away = self.left < 0
        return await super().publish(run_id, events, after=after)


@clause("X4")
@pytest.mark.parametrize("more", [0, 20])
async def test_shipping_again_that_breaks_off_is_taken_up_before_anything_that_comes_later(log: Any, more: int) -> None:
    target = Faltering()
    await log.append("a", logged("a", 1, 2000))
    async with Outbox(log, target, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        target.lose("a", 10)
        target.left = 1  # of the four that it takes to bring the rest again
        outbox._was_away = True
        if more:
            await log.append("a", logged("a", 2001, 2000 + more))
        await until(lambda: target.away and outbox.stats().state == "retrying")
        target.left, target.away = 1_000_000, False
        assert await outbox.drain(20)
        assert await read(target, "a") == logged("a", 1, 2000 + more)
        assert (outbox.stats().shipped, outbox.stats().reshipped) == (2000 + more, 1990)
    await log.aclose()


@clause("X4")
async def test_more_may_be_lost_while_it_is_shipped_again(log: Any) -> None:
    class Forgetful(Lossy):
        publishes = 0

        async def publish(self, run_id: str, events: Sequence[Event], /, *, after: int = 0) -> int:
            self.publishes += 1
            if self.publishes == 8:  # the second of those that bring the rest again
                self.lose(run_id, 5)
            return await super().publish(run_id, events, after=after)

    target = Forgetful()
    await log.append("a", logged("a", 1, 3000))
    async with Outbox(log, target, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        assert target.publishes == 6
        target.lose("a", 1000)
        await log.append("a", logged("a", 3001, 3001))
        assert await outbox.drain(20)
        assert await read(target, "a") == logged("a", 1, 3001)
        assert (outbox.stats().shipped, outbox.stats().dead_lettered) == (3001, 0)
    await log.aclose()


@clause("X1", "X4")
async def test_what_the_other_side_lost_between_two_lives_is_shipped_again(tmp_path: Path) -> None:
    log, target = SqliteLog(tmp_path / "e.db"), Lossy()
    for run_id in ("a", "b"):
        await log.append(run_id, [*logged(run_id, 1, 99), ending("completed", 100, run_id)])
    for life in range(2):
        async with Outbox(log, target, name="x", retry=QUICK) as outbox:
            assert await outbox.drain(20)
            assert (outbox.stats().shipped, outbox.stats().reshipped) == (200, 40 * life)
        target.lose("a", 60)
    await log.aclose()


async def test_a_run_that_was_taken_over_there_holds_up_no_other(log: Any) -> None:
    target = Lossy()
    await target.append("a", logged("a", 1, 5, epoch="another"))
    for run_id in ("a", "b", "c"):
        await log.append(run_id, logged(run_id, 1, 10))
    async with Outbox(log, target, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        assert (outbox.stats().shipped, outbox.stats().dead_lettered) == (20, 10)
        target.lose("c", 1)
        await target.append("c", logged("c", 2, 3, epoch="another", attempt=2))
        target.away = True
        await log.append("b", logged("b", 11, 11))
        await until(lambda: outbox.stats().state == "retrying")
        target.away = False
        assert await outbox.drain(20)
        assert await read(target, "b") == logged("b", 1, 11)
    await log.aclose()


@clause("X3")
async def test_what_the_log_forgot_before_is_a_gap_with_exact_counts(log: Any) -> None:
    target, sink = MemoryLog(), Elsewhere()
    await log.append("a", logged("a", 1, 100))
    await log.trim("a", 30)
    async with Outbox(log, target, name="one") as one, Outbox(log, sink, name="two") as two:
        assert await one.drain(20) and await two.drain(20)
        for outbox in (one, two):
            assert (outbox.stats().shipped, outbox.stats().trimmed) == (70, 30)
    (run,) = await target.runs()
    assert (run.first_position, run.last_position) == (31, 100)
    assert sink.positions("a") == list(range(31, 101))
    await log.aclose()


async def test_a_run_that_another_writer_owns_there_becomes_letters(log: Any) -> None:
    target = MemoryLog()
    await target.append("a", logged("a", 1, 5, epoch="another"))
    await log.append("a", logged("a", 1, 10))
    await log.append("b", logged("b", 1, 10))
    async with Outbox(log, target, retry=QUICK) as outbox:
        assert await outbox.drain(20)
        assert (outbox.stats().shipped, outbox.stats().dead_lettered) == (10, 10)
    assert len(await read(target, "b")) == 10
    await log.aclose()


async def test_runs_that_the_log_forgets_leave_no_cursor(log: Any) -> None:
    sink = Elsewhere()
    await log.append("a", [*logged("a", 1, 5), ending("completed", 6, "a")])
    async with Outbox(log, sink, name="x") as outbox:
        assert await outbox.drain(20)
        assert "a" in outbox._cursors
        await log.trim("a")
        await until(lambda: "a" not in outbox._cursors)
        assert await outbox._store.cursors("x") == {}
    await log.aclose()


# ── on a bus ────────────────────────────────────────────────────────────────────────────────────────


@clause("X1", "S1", "C2")
async def test_on_a_bus_it_ships_from_the_log_and_flushes(tmp_path: Path) -> None:
    log, sink = SqliteLog(tmp_path / "e.db"), Elsewhere()
    async with EventBus([LogSink(log), Outbox(log, sink, retry=QUICK)], sink_retry=QUICK) as bus:
        lanes = [Lane(bus._hub, f"run-{n}", "session") for n in range(3)]
        for n in range(100):
            for lane in lanes:
                lane.emitter().emit(node_message("a", str(n)))
        assert (await bus.flush(timeout=20)).complete
        for lane in lanes:
            assert sink.positions(lane.run_id) == list(range(1, 101))
        report = await bus.shutdown(20)
        assert report.complete and not report.errors
    await log.aclose()


@clause("X1", "S1", "X4")
async def test_on_a_bus_an_absent_sink_holds_up_nobody(tmp_path: Path) -> None:
    log, sink, memory = SqliteLog(tmp_path / "e.db"), Elsewhere(), MemorySink()
    sink.away = True
    bus = EventBus([LogSink(log), memory, Outbox(log, sink, retry=QUICK)], sink_retry=QUICK)
    lane = Lane(bus._hub, "run-1", "session")
    for n in range(500):
        lane.emitter().emit(node_message("a", str(n)))
    report = await bus.flush(timeout=20)
    assert set(report.flushed) == {"log", "memory"} and report.pending == ("elsewhere",)
    assert len(memory.snapshot()) == 500
    await bus.shutdown(5)
    sink.away = False
    async with Outbox(log, sink, retry=QUICK) as later:  # the next process
        assert await later.drain(20)
    assert sink.positions("run-1") == list(range(1, 501))
    await log.aclose()


def test_remote_sinks_get_an_outbox_where_the_log_lasts(tmp_path: Path) -> None:
    class Remote(Elsewhere):
        remote = True

    here, there = MemorySink(), Remote()
    assert with_outboxes(None, [here, there]) == [here, there]
    assert with_outboxes(MemoryLog(), [here, there]) == [here, there]
    one, two = with_outboxes(SqliteLog(tmp_path / "e.db"), [here, there])
    assert one is here and isinstance(two, Outbox) and two.sink is there
    with pytest.raises(ConfigError, match="give them names"):
        with_outboxes(SqliteLog(tmp_path / "e.db"), [there, Remote()])


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EventLog"):
        Outbox(object(), Elsewhere())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="handle"):
        Outbox(MemoryLog(), object())  # type: ignore[arg-type]
