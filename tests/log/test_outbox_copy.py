"""Copying a log to another: nothing lost, nothing twice, resumable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from weavegraph.errors import LogUnavailableError, RunNotFoundError
from weavegraph.events import Event
from weavegraph.log import CopyProgress, MemoryLog, SqliteLog, copy_log
from weavegraph.testing import logged
from weavegraph.testing._log_kit import ending


async def read(log: Any, run_id: str) -> list[Event]:
    return [event async for event in log.read(run_id)]


async def filled(log: Any, runs: int = 5, events: int = 700) -> Any:
    for n in range(runs):
        await log.append(f"run-{n}", [*logged(f"run-{n}", 1, events - 1), ending("completed", events, f"run-{n}")])
    return log


async def test_every_run_arrives_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    source, target = await filled(MemoryLog()), SqliteLog(tmp_path / "e.db")
    report = await copy_log(source, target)
    assert (report.runs, report.events, report.already, report.trimmed, report.refused) == (5, 3500, 0, 0, {})
    assert report.complete
    assert await target.runs() == await source.runs()
    for n in range(5):
        assert await read(target, f"run-{n}") == await read(source, f"run-{n}")
    await target.aclose()


async def test_again_copies_only_what_is_new() -> None:
    source, target = await filled(MemoryLog()), MemoryLog()
    await copy_log(source, target)
    await source.append("new", logged("new", 1, 10))
    report = await copy_log(source, target)
    assert (report.events, report.already) == (10, 3500)


async def test_a_copy_that_was_cut_goes_on() -> None:
    class Fragile(MemoryLog):
        calls = 0

        async def publish(self, run_id: str, events: Sequence[Event], /, *, after: int = 0) -> int:
            self.calls += 1
            if self.calls % 3 == 0:
                raise LogUnavailableError("fragile", "away")
            return await super().publish(run_id, events, after=after)

    source, target = await filled(MemoryLog(), runs=4, events=2500), Fragile()
    cuts = 0
    while True:
        try:
            await copy_log(source, target)
            break
        except LogUnavailableError:
            cuts += 1
    assert cuts > 5
    for n in range(4):
        assert await read(target, f"run-{n}") == await read(source, f"run-{n}")


async def test_cancelled_at_any_moment_it_goes_on() -> None:
    source, target = await filled(MemoryLog(), runs=3, events=1500), MemoryLog()
    for turns in range(1, 40, 3):
        task = asyncio.ensure_future(copy_log(source, target))
        for _ in range(turns):
            await asyncio.sleep(0)  # lets it come so far
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await copy_log(source, target)
    for n in range(3):
        assert await read(target, f"run-{n}") == await read(source, f"run-{n}")


async def test_only_the_runs_that_were_asked_for() -> None:
    source, target = await filled(MemoryLog()), MemoryLog()
    report = await copy_log(source, target, runs=["run-3", "run-1"])
    assert report.runs == 2
    assert {run.run_id for run in await target.runs()} == {"run-1", "run-3"}
    with pytest.raises(RunNotFoundError):
        await copy_log(source, target, runs=["nobody"])


async def test_progress_is_told() -> None:
    source, target = await filled(MemoryLog(), runs=2, events=1200), MemoryLog()
    told: list[CopyProgress] = []
    await copy_log(source, target, progress=told.append)
    assert [(one.run_id, one.run, one.runs, one.position, one.last_position, one.events) for one in told] == [
        ("run-0", 1, 2, 500, 1200, 500),
        ("run-0", 1, 2, 1000, 1200, 1000),
        ("run-0", 1, 2, 1200, 1200, 1200),
        ("run-1", 2, 2, 500, 1200, 1700),
        ("run-1", 2, 2, 1000, 1200, 2200),
        ("run-1", 2, 2, 1200, 1200, 2400),
    ]


@pytest.mark.parametrize("kind", [MemoryLog, SqliteLog])
async def test_a_trimmed_beginning_is_an_exact_gap_there_too(kind: Any, tmp_path: Path) -> None:
    source = await filled(MemoryLog(), runs=1)
    target = kind(tmp_path / "e.db") if kind is SqliteLog else kind()
    await source.trim("run-0", 200)
    report = await copy_log(source, target)
    assert (report.events, report.trimmed, report.refused) == (500, 200, {})
    (gap, *copied), (_, *held) = await read(target, "run-0"), await read(source, "run-0")
    assert (gap.metadata["first_seq"], gap.metadata["last_seq"], gap.metadata["count"]) == (1, 200, 200)
    assert copied == held
    assert (await copy_log(source, target)).events == 0
    await target.aclose()


async def test_another_run_of_the_same_id_is_refused_and_the_rest_is_copied() -> None:
    source, target = await filled(MemoryLog()), MemoryLog()
    await target.append("run-2", logged("run-2", 1, 10, text="another", epoch="another"))
    report = await copy_log(source, target)
    assert list(report.refused) == ["run-2"] and not report.complete
    assert report.events == 4 * 700
    assert await read(target, "run-2") == logged("run-2", 1, 10, text="another", epoch="another")


async def test_a_target_that_is_ahead_is_left_alone() -> None:
    source, target = MemoryLog(), MemoryLog()
    await source.append("a", logged("a", 1, 10))
    await target.append("a", logged("a", 1, 20))
    report = await copy_log(source, target)
    assert (report.events, report.already, report.refused) == (0, 10, {})


async def test_a_log_onto_itself_is_nothing_to_do() -> None:
    source = await filled(MemoryLog())
    assert (await copy_log(source, source)).runs == 0
