"""What a log forgets by itself: whole finished runs first, then the oldest events; told as an exact gap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import StillClock, clause
from weavegraph.errors import ConfigError
from weavegraph.events import Event, to_json
from weavegraph.log import MemoryLog, Retention, SqliteLog
from weavegraph.testing import logged
from weavegraph.testing._log_kit import collected, ending, positions

START = datetime(2026, 1, 1, tzinfo=UTC)
pytestmark = clause("10.trimmed")


@pytest.fixture(params=[MemoryLog, SqliteLog])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def made(clock: StillClock | None = None, **bounds: Any) -> Any:
        arguments = [tmp_path / "e.db"] if request.param is SqliteLog else []
        return request.param(*arguments, retention=Retention(**bounds), clock=clock or StillClock())

    return made


def finished(run_id: str, events: int, outcome: str = "completed") -> list[Event]:
    return [*logged(run_id, 1, events - 1), ending(outcome, events, run_id)]


async def held(log: Any) -> dict[str, Any]:
    return {run.run_id: positions(await collected(log.read(run.run_id))) for run in await log.runs()}


async def test_the_run_that_ended_first_goes_first_and_whole(make: Any) -> None:
    log = make(max_events=10)
    await log.append("open", logged("open", 1, 3))
    await log.append("long", finished("long", 5))  # ends later by its own time stamps
    await log.append("short", finished("short", 4))
    assert await log.retain() == 0 if isinstance(log, SqliteLog) else True
    assert await held(log) == {"open": [1, 2, 3], "long": [1, 2, 3, 4, 5], "short": [(1, 4)]}
    await log.aclose()


async def test_the_outcome_of_a_forgotten_run_stays(make: Any) -> None:
    log = make(max_events=3)
    await log.append("a", finished("a", 5, "failed"))
    await log.retain()
    (run,) = await log.runs()
    assert (run.outcome, run.first_position, run.last_position) == ("failed", 6, 5)
    assert positions(await collected(log.follow("a"))) == [(1, 5)]
    await log.aclose()


async def test_open_runs_lose_their_oldest_events_only_then(make: Any) -> None:
    log = make(max_events=10)
    await log.append("done", finished("done", 6))
    await log.append("open", logged("open", 1, 15))
    await log.retain()
    assert await held(log) == {"open": [(1, 5), *range(6, 16)], "done": [(1, 6)]}
    assert await log.append("open", logged("open", 16, 17)) == 17
    await log.retain()
    assert await held(log) == {"open": [(1, 7), *range(8, 18)], "done": [(1, 6)]}
    await log.aclose()


async def test_a_paused_run_is_not_finished(make: Any) -> None:
    log = make(max_events=8)
    await log.append("paused", [*logged("paused", 1, 5), ending("paused", 6, "paused")])
    await log.append("done", finished("done", 6))
    await log.retain()
    assert await held(log) == {"done": [(1, 6)], "paused": [1, 2, 3, 4, 5, 6]}
    await log.aclose()


async def test_bytes_are_bounded(make: Any) -> None:
    size = len(to_json(logged("open", 11, 11)[0]))
    log = make(max_bytes=5 * size)
    await log.append("open", logged("open", 11, 99)[:0])
    await log.append("open", logged("open", 1, 30))
    await log.retain()
    assert await held(log) == {"open": [(1, 25), 26, 27, 28, 29, 30]}
    await log.aclose()


async def test_age_takes_runs_and_events(make: Any) -> None:
    clock = StillClock()  # event n of a run is stamped n milliseconds after the start
    clock.at = START + timedelta(seconds=1, milliseconds=10)
    log = make(clock, max_age=1.0)
    await log.append("old", finished("old", 9))
    await log.append("spans", logged("spans", 1, 20))
    await log.append("paused", [*logged("paused", 1, 3), ending("paused", 4, "paused")])
    await log.retain()
    assert await held(log) == {"old": [(1, 9)], "spans": [(1, 9), *range(10, 21)], "paused": [(1, 4)]}
    await log.aclose()


async def test_retention_needs_no_call(make: Any) -> None:
    log = make(max_events=100)
    for n in range(12):
        await log.append(f"run-{n}", finished(f"run-{n}", 50))
    await log.append("open", logged("open", 1, 5000))
    total = sum(run.last_position - run.first_position + 1 for run in await log.runs())
    assert total == 100
    await log.aclose()


async def test_an_appends_batch_may_be_larger_than_the_bound(make: Any) -> None:
    log = make(max_events=10)
    assert await log.append("open", logged("open", 1, 2000)) == 2000
    await log.retain()
    assert (await held(log))["open"] == [(1, 1990), *range(1991, 2001)]
    await log.aclose()


@pytest.mark.parametrize("bounds", [{"max_events": 0}, {"max_bytes": 1.5}, {"max_age": 0}, {"max_age": True}])
def test_bounds_are_checked(bounds: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Retention(**bounds)


def test_no_bound_is_the_default() -> None:
    assert not Retention()
    assert Retention(max_events=1)
