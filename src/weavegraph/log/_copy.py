"""Moves runs from one log to another: nothing lost, nothing twice, resumable by doing it again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from weavegraph.errors import InvalidPositionError, LogError, RunNotFoundError
from weavegraph.log._shipping import batches_of, publish
from weavegraph.protocols import EventLog, LoggedRun

__all__ = ["CopyProgress", "CopyReport", "copy_log"]

LISTED = 500


class CopyProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Told after every batch. ``run``: which of how many ``runs``."""

    run_id: str
    run: int
    runs: int
    position: int
    last_position: int
    events: int
    """Copied so far, in all runs."""


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """``events``: copied now. ``already``: were there. ``trimmed``: the source has forgotten them; the target shows an
    exact gap there. ``refused``: runs of which the target took only a part, or nothing, with the reason."""

    runs: int
    events: int
    already: int
    trimmed: int
    refused: dict[str, str]

    @property
    def complete(self) -> bool:
        return not self.refused


async def copy_log(
    source: EventLog,
    target: EventLog,
    *,
    runs: Sequence[str] | None = None,
    progress: Callable[[CopyProgress], Any] | None = None,
) -> CopyReport:
    """Copy ``runs`` (default: all, the one that began first before others) as far as they are now.

    *Order*: of each run, and of the beginnings of runs. *Again*: a second call copies what is missing; a run goes on
    behind the target's last position, after checking that both hold the same event there. *Cancellation*, or a log
    that goes away (``LogUnavailableError``): what was copied stays; do it again. A run of the same id with other
    events, or one that is being written in the target, is refused and reported; the others are copied. Of a run whose
    beginning the source has forgotten, the target believes that it started with its oldest event.

    Raises:
        RunNotFoundError: one of ``runs`` is not in the source. LogUnavailableError and other errors of reading.
    """
    if source is target:
        return CopyReport(runs=0, events=0, already=0, trimmed=0, refused={})
    chosen = [run async for run in _oldest_first(source, runs)]
    events = already = trimmed = 0
    refused: dict[str, str] = {}
    for number, run in enumerate(chosen, 1):
        there = await target.last_position(run.run_id)
        position = min(there, run.last_position)
        already += max(position - run.first_position + 1, 0)
        try:
            if there:
                await _same_there(source, target, run, position)
            since = there
            async for batch in batches_of(source, run.run_id, position):
                if isinstance(batch, int):
                    trimmed += batch
                    position += batch
                    continue
                await publish(target, run.run_id, batch, since)
                since = position = batch[-1].run_seq or 0
                events += len(batch)
                if progress is not None:
                    progress(
                        CopyProgress(
                            run_id=run.run_id,
                            run=number,
                            runs=len(chosen),
                            position=position,
                            last_position=max(run.last_position, position),
                            events=events,
                        )
                    )
        except InvalidPositionError:
            continue  # forgotten in the source meanwhile
        except LogError as exc:
            if exc.code in ("log_fenced", "log_hole", "log_late"):
                refused[run.run_id] = str(exc)
                continue
            raise
    return CopyReport(runs=len(chosen), events=events, already=already, trimmed=trimmed, refused=refused)


async def _same_there(source: EventLog, target: EventLog, run: LoggedRun, position: int) -> None:
    """Give the last event that both should have once more: another one is refused (``LogFencedError``)."""
    if position < run.first_position:
        return
    async for batch in batches_of(source, run.run_id, position - 1, position):
        if not isinstance(batch, int):
            await target.append(run.run_id, batch)


async def _oldest_first(source: EventLog, runs: Sequence[str] | None) -> AsyncIterator[LoggedRun]:
    found: list[LoggedRun] = []
    before: str | None = None
    while page := await source.runs(limit=LISTED, before=before):
        found += page
        before = page[-1].run_id
    if runs is None:
        for run in reversed(found):
            yield run
        return
    by_id = {run.run_id: run for run in found}
    for run_id in runs:
        if run_id not in by_id:
            raise RunNotFoundError(run_id)
        yield by_id[run_id]
