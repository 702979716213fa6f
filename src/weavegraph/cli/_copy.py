"""``weavegraph log copy``: runs from one log to another."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from weavegraph.cli._load import opened, run_of
from weavegraph.cli._screen import Screen, plain, say
from weavegraph.errors import CommandError
from weavegraph.log import CopyProgress, CopyReport, copy_log

__all__ = ["copy"]


async def copy(source_url: str, target_url: str, names: Sequence[str]) -> int:
    """Copy runs as far as they are now, and say what was done; 1 when the target refused a run."""
    if source_url == target_url:
        raise CommandError(f"{source_url} is both FROM and TO: name another log as TO")
    counter = Counter()
    async with opened(source_url) as source, opened(target_url, make=True) as target:
        runs = [await run_of(source, source_url, name) for name in names] or None
        try:
            report = await copy_log(source, target, runs=runs, progress=counter.show)
        except asyncio.CancelledError:
            counter.clear()
            say(f"stopped after {_events(counter.events)}, which stay; the same command copies the rest")
            raise
        except BaseException:
            counter.clear()
            raise
    counter.clear()
    Screen.out().line(told(report))
    for run_id, reason in report.refused.items():
        say(f"run {run_id} was not copied whole: {reason}")
    return 0 if report.complete else 1


def told(report: CopyReport) -> str:
    """The report as a sentence."""
    parts = [f"{report.runs} run{'s' * (report.runs != 1)}: {_events(report.events)} copied"]
    if report.already:
        parts.append(f"{report.already:,} were there")
    if report.trimmed:
        parts.append(f"{report.trimmed:,} had been trimmed and show as a gap")
    if report.refused:
        parts.append(f"{len(report.refused)} run{'s' * (len(report.refused) != 1)} refused")
    return ", ".join(parts)


def _events(count: int) -> str:
    return f"{count:,} event{'s' * (count != 1)}"


class Counter:
    """How far a copy is: one line on a terminal that is written over, nothing elsewhere."""

    def __init__(self) -> None:
        self._screen = Screen(sys.stderr)
        self._written = 0
        self.events = 0

    def show(self, progress: CopyProgress) -> None:
        self.events = progress.events
        if self._screen.width is not None:
            text = f"run {progress.run} of {progress.runs}, {_events(progress.events)}: {plain(progress.run_id)}"
            text = text[: self._screen.width - 1]
            self._screen.write(f"\r{text.ljust(self._written)}")
            self._written = len(text)

    def clear(self) -> None:
        if self._written:
            self._screen.write(f"\r{' ' * self._written}\r")
            self._written = 0
