"""A log as a sink of a bus: the events of every run, exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from weavegraph.errors import (
    EventInvalidError,
    LogCorruptError,
    LogFencedError,
    LogHoleError,
    LogVersionError,
    PermanentSinkError,
)
from weavegraph.events import Event
from weavegraph.protocols import Delivery, EventLog

__all__ = ["LogSink"]

_FOR_GOOD = (EventInvalidError, LogCorruptError, LogFencedError, LogHoleError, LogVersionError)


class LogSink:
    """Appends every batch to an ``EventLog``, run by run, all runs of a batch in one group commit.

    *Delivery*: exactly once: a batch that is given again, after an error or a crash, is passed over where it is held.
    *Loss*: events without a run have no position in a log and are passed over; ``without_run`` counts them.
    *Errors*: what passes (``LogUnavailableError``) is raised for a retry; what another try cannot mend (a hole after
    a drop, a fenced writer) as ``PermanentSinkError``, so that only the events concerned become dead letters.

    Args:
        owns_log: close the log with the sink.
    """

    delivery: Delivery = "exactly_once"

    def __init__(self, log: EventLog, *, owns_log: bool = False) -> None:
        self.name = "log"
        self.log = log
        self.without_run = 0
        self._owns_log = owns_log

    async def start(self) -> None:
        """Open the log, if it has something to open."""
        start: Any = getattr(self.log, "start", None)
        if start is not None:
            await start()

    async def handle(self, batch: Sequence[Event]) -> None:
        runs: dict[str, list[Event]] = {}
        without = 0
        for event in batch:
            if event.run_id is None or event.run_seq is None:
                without += 1
            else:
                runs.setdefault(event.run_id, []).append(event)
        appends = (self.log.append(run_id, events) for run_id, events in runs.items())
        results = await asyncio.gather(*appends, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, _FOR_GOOD)):  # first what a retry may mend
            if isinstance(error, _FOR_GOOD):
                raise PermanentSinkError(str(error)) from error
            raise error
        self.without_run += without

    async def aclose(self) -> None:
        if self._owns_log:
            await self.log.aclose()

    def __repr__(self) -> str:
        return f"<LogSink {self.log!r}>"
