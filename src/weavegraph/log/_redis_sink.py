"""A Redis log as a sink of a bus that may lose events before it: gaps are allowed, and absences waited for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from weavegraph.bus import RetryPolicy
from weavegraph.errors import (
    EventInvalidError,
    LogAccessError,
    LogClosedError,
    LogCorruptError,
    LogFencedError,
    LogHoleError,
    LogLateError,
    LogUnavailableError,
    LogVersionError,
    PermanentSinkError,
)
from weavegraph.events import Event
from weavegraph.protocols import Delivery

if TYPE_CHECKING:
    from weavegraph.log.redis_streams import RedisLog

__all__ = ["RedisStreamSink"]

_PATIENT = RetryPolicy(base=0.05, cap=2.0)
_log = logging.getLogger("weavegraph.log")


class RedisStreamSink:
    """Publishes every run's events to a ``RedisLog``: readers there see each once, in order, or an exact gap.

    *Delivery*: at least once, with the same id on each try, so the server passes over what it has. *Waiting*: while
    the server is away a batch is tried again, with growing pauses, until it is back; meanwhile the events wait in the
    bus, whose bound drops the oldest with exact counts. To lose none however long it takes, have a durable log beside
    it: see ``Outbox``. *Loss*: events without a run have no place in a stream; ``without_run`` counts them.
    *Errors*: what no retry mends (another writer, no rights) is a ``PermanentSinkError``: only those events become
    dead letters.

    Args:
        log: a ``RedisLog``, or the URL of one, which is then closed with the sink.
    """

    delivery: Delivery = "at_least_once"
    remote = True
    """Ships from the durable log, where there is one."""

    def __init__(self, log: RedisLog | str, *, owns_log: bool | None = None) -> None:
        self.name = "redis"
        self.log: RedisLog = _log_of(log) if isinstance(log, str) else log
        self.without_run = 0
        self._owns_log = isinstance(log, str) if owns_log is None else owns_log

    async def start(self) -> None:
        """Connect, if the server is there; if not, the first batch waits for it."""
        with contextlib.suppress(LogUnavailableError):
            await self.log.start()

    async def handle(self, batch: Sequence[Event]) -> None:
        runs: dict[str, list[Event]] = {}
        without = 0
        for event in batch:
            if event.run_id is None or event.run_seq is None:
                without += 1
            else:
                runs.setdefault(event.run_id, []).append(event)
        failures, lasting = 0, None
        while runs:
            results = await asyncio.gather(*(self.log.publish(*run) for run in runs.items()), return_exceptions=True)
            left = {}
            for (run_id, events), result in zip(runs.items(), results, strict=True):
                if isinstance(result, LogUnavailableError):
                    left[run_id] = events
                    if failures == 0:
                        _log.warning("events wait for %s: %s", self.log, result)
                        failures = 1
                elif isinstance(result, BaseException):
                    lasting = lasting or result
            if left:
                await asyncio.sleep(_PATIENT.delay(failures))
                failures += 1
            runs = left
        self.without_run += without
        if isinstance(lasting, _FOR_GOOD):
            raise PermanentSinkError(str(lasting)) from lasting
        if lasting is not None:
            raise lasting

    async def aclose(self) -> None:
        if self._owns_log:
            await self.log.aclose()

    def __repr__(self) -> str:
        return f"<RedisStreamSink {self.log!r}>"


_FOR_GOOD = (
    EventInvalidError,
    LogAccessError,
    LogClosedError,
    LogCorruptError,
    LogFencedError,
    LogHoleError,
    LogLateError,
    LogVersionError,
)


def _log_of(url: str) -> RedisLog:
    from weavegraph.log.redis_streams import RedisLog

    return RedisLog.from_url(url)
