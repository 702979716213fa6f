"""A log as a sink of a bus: exactly once (S4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support import clause
from weavegraph import EventBus, node_message
from weavegraph.bus import Lane, RetryPolicy
from weavegraph.errors import LogUnavailableError, PermanentSinkError
from weavegraph.events import Event
from weavegraph.log import LogSink, MemoryLog, SqliteLog
from weavegraph.protocols import EventSink
from weavegraph.testing import logged

RETRY = RetryPolicy(tries=4, base=0.0, cap=0.0)


class Flaky(MemoryLog):
    """Keeps a batch and loses the answer, every other time."""

    calls = 0

    async def append(self, run_id: str, events: Sequence[Event], /) -> int:
        self.calls += 1
        last = await super().append(run_id, events)
        if self.calls % 2:
            raise LogUnavailableError("the log", "the answer was lost")
        return last


async def read(log: Any, run_id: str) -> list[Event]:
    return [event async for event in log.read(run_id)]


@clause("S4.sqlite", "D2")
async def test_every_event_of_every_run_once(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "e.db")
    async with EventBus([LogSink(log)], sink_retry=RETRY) as bus:
        lanes = [Lane(bus._hub, f"run-{n}", "session") for n in range(5)]
        sent: dict[str, list[Event]] = {lane.run_id: [] for lane in lanes}
        for n in range(200):
            for lane in lanes:
                event = lane.emitter().emit(node_message("a", str(n)))
                assert event is not None
                sent[lane.run_id].append(event)
        assert (await bus.flush(timeout=30)).complete
        for run_id, events in sent.items():
            assert await read(log, run_id) == events
        (stats,) = bus.metrics().sinks
        assert (stats.delivered, stats.dead_lettered) == (1000, 0)
    await log.aclose()


@clause("S4.sqlite")
async def test_a_lost_answer_makes_no_duplicate() -> None:
    log = Flaky()
    async with EventBus([LogSink(log)], sink_retry=RETRY) as bus:
        lane = Lane(bus._hub, "run-1", "session")
        sent = [lane.emitter().emit(node_message("a", str(n))) for n in range(50)]
        assert (await bus.flush(timeout=30)).complete
        (stats,) = bus.metrics().sinks
        assert (stats.delivered, stats.dead_lettered) == (50, 0)
    assert await read(log, "run-1") == sent


async def test_events_without_a_run_are_passed_over_and_counted() -> None:
    sink = LogSink(MemoryLog())
    await sink.handle([node_message("a", "x"), *logged("run-1", 1, 2), node_message("a", "y")])
    assert sink.without_run == 2
    assert len(await read(sink.log, "run-1")) == 2


async def test_what_no_retry_can_mend_is_permanent_and_the_rest_is_kept() -> None:
    sink = LogSink(MemoryLog())
    with pytest.raises(PermanentSinkError, match="position 5"):
        await sink.handle([*logged("a", 1, 2), *logged("b", 5, 6), *logged("c", 1, 2)])
    assert [await sink.log.last_position(run_id) for run_id in "abc"] == [2, 0, 2]


async def test_what_passes_is_raised_for_a_retry() -> None:
    sink = LogSink(Flaky())
    with pytest.raises(LogUnavailableError):
        await sink.handle(logged("a", 1, 2))
    await sink.handle(logged("a", 1, 2))


async def test_a_hole_dead_letters_only_its_run() -> None:
    log = MemoryLog()
    async with EventBus([LogSink(log)], sink_retry=RETRY) as bus:
        for event in [*logged("a", 1, 3), *logged("b", 4, 5), *logged("a", 4, 6)]:
            bus._hub.publish(replace(event, seq=0))
        await bus.flush(timeout=30)
        (stats,) = bus.metrics().sinks
        assert (stats.delivered, stats.dead_lettered, stats.unaccounted) == (6, 2, 0)
    assert len(await read(log, "a")) == 6


async def test_it_closes_only_a_log_of_its_own() -> None:
    mine, theirs = MemoryLog(), MemoryLog()
    await LogSink(mine, owns_log=True).aclose()
    await LogSink(theirs).aclose()
    assert mine._closed and not theirs._closed


def test_it_is_a_sink() -> None:
    assert isinstance(LogSink(MemoryLog()), EventSink)
