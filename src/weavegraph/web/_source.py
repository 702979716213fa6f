"""Where a stream's events come from: a run's lane, a run's log, or the bus. One way to read each: from a position on.

With a durable log nothing is sent before the log holds it (contract D9): a run is then read from the log, and events
of the bus wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from weavegraph.bus import EventStream, ReplayHub, gap_event
from weavegraph.errors import RunNotFoundError
from weavegraph.events import GAP_SCOPE, STREAM_END_SCOPE, DiagnosticEvent, Event, check_id, freeze_metadata
from weavegraph.log import MemoryLog
from weavegraph.protocols import EventLog
from weavegraph.runtime import App
from weavegraph.web._ids import EVERYTHING, WireIds

__all__ = ["FINAL", "BusSource", "LaneSource", "LogSource", "Reader", "Source", "durable_log", "epoch_gap"]

BATCH = 256
"""Events that are encoded in one turn of the loop."""
FINAL = frozenset({"completed", "failed", "cancelled"})
BEGINNING = 1.0
"""Seconds that the first event of a run of this process is given to reach the log."""
PATIENCE = 10.0
"""Seconds after which an event that its log does not get counts as lost: its writer was fenced off."""


class Reader(Protocol):
    """Events after a position, batch by batch; ``EndOfStream`` at the end. Gaps are notices among them."""

    async def batch(self) -> Sequence[Event]: ...

    async def aclose(self) -> None: ...


class Source(Protocol):
    """A stream that any number of readers can read from any position."""

    ids: WireIds

    def position(self, event: Event) -> int: ...

    def open(self, after: int) -> Reader: ...

    async def head(self) -> int:
        """The position of the last event that may be sent."""
        ...

    async def over(self, position: int) -> bool:
        """Whether nothing follows ``position``. What comes after it was asked for its head is no part of the answer."""
        ...

    def owned(self) -> bool:
        """Whether a position beyond the head cannot exist anywhere."""
        ...


def durable_log(app: App[Any]) -> EventLog | None:
    """The app's log, if what it holds outlives this process."""
    return None if app.log is None or isinstance(app.log, MemoryLog) else app.log


def epoch_gap() -> DiagnosticEvent:
    """The notice that a position is of an earlier process: what came after it cannot be counted."""
    return DiagnosticEvent(
        GAP_SCOPE, "events of an earlier process are lost", freeze_metadata({"count": None, "reason": "epoch"})
    )


def _ends(event: Event | None, position: int) -> bool:
    """Whether the event of that position is a run's last."""
    if event is None or event.run_seq != position or event.scope != STREAM_END_SCOPE:
        return False
    return event.metadata.get("outcome") in FINAL


class StreamReader:
    """An ``EventStream`` as a reader."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    async def batch(self) -> Sequence[Event]:
        return await self._stream.recv_many(BATCH)

    async def aclose(self) -> None:
        self._stream.close()


class LaneSource:
    """A run of this process whose events end with it."""

    def __init__(self, app: App[Any], run_id: str) -> None:
        self._app, self._run_id = app, run_id
        self.ids = WireIds(run_id, app.event_bus.epoch)

    def position(self, event: Event) -> int:
        return event.run_seq or 0

    def open(self, after: int) -> Reader:
        return StreamReader(self._app.event_stream(run_id=self._run_id, after=after, follow=True))

    async def head(self) -> int:
        lane = self._app.event_bus.lane(self._run_id)
        if lane is not None and lane.head:
            return lane.head
        last = 0 if self._app.log is None else await self._app.log.last_position(self._run_id)
        if not last:
            raise RunNotFoundError(self._run_id)
        return last

    async def over(self, position: int) -> bool:
        lane = self._app.event_bus.lane(self._run_id)
        if lane is not None and not lane.over:
            return False
        with self._app.event_stream(run_id=self._run_id, after=position - 1) as stream:
            return _ends(await stream.next_timeout(1.0), position) and await self.head() == position

    def owned(self) -> bool:
        return True


class LogSource:
    """A run in a durable log, whatever process writes it."""

    def __init__(self, app: App[Any], log: EventLog, run_id: str) -> None:
        self._app, self._log, self._run_id = app, log, check_id("run_id", run_id)
        self.ids = WireIds(run_id, None)

    def position(self, event: Event) -> int:
        return event.run_seq or 0

    def open(self, after: int) -> Reader:
        return LogReader(self._log, self._run_id, after)

    async def head(self) -> int:
        until = time.monotonic() + BEGINNING
        while not (last := await self._log.last_position(self._run_id)):
            lane = self._app.event_bus.lane(self._run_id)  # a run that began here is on its way to the log
            if lane is None or not lane.head or time.monotonic() > until:
                raise RunNotFoundError(self._run_id)
            await asyncio.sleep(0.002)
        return last

    async def over(self, position: int) -> bool:
        last = None
        async with contextlib.aclosing(_generator(self._log.read(self._run_id, position - 1))) as events:
            async for event in events:
                last = event
        return _ends(last, position)

    def owned(self) -> bool:
        lane = self._app.event_bus.lane(self._run_id)
        return lane is not None and lane.head > 0 and not lane.over


class LogReader:
    """A log's ``follow``, read ahead a little, so that what is ready comes as one batch."""

    def __init__(self, log: EventLog, run_id: str, after: int) -> None:
        async def last() -> int:
            return await log.last_position(run_id)

        hub = ReplayHub(run_id, after)
        self._stream = hub.stream(None, "notice", "web")
        feeding = hub.feed(log.follow(run_id, after), follow=True, last=last)
        self._feeder = asyncio.get_running_loop().create_task(feeding, name=f"log of {run_id}")

    async def batch(self) -> Sequence[Event]:
        return await self._stream.recv_many(BATCH)

    async def aclose(self) -> None:
        self._stream.close()
        self._feeder.cancel()
        await asyncio.wait([self._feeder])


class BusSource:
    """Everything that this process emits. Its positions are the bus's, and end with the process."""

    def __init__(self, app: App[Any]) -> None:
        self._app = app
        self.ids = WireIds(EVERYTHING, app.event_bus.epoch)
        self.logged = Logged(log) if (log := durable_log(app)) is not None else None

    def position(self, event: Event) -> int:
        return event.seq

    def open(self, after: int) -> Reader:
        stream = self._app.event_stream(after=after)
        return StreamReader(stream) if self.logged is None else LoggedReader(stream, self.logged)

    async def head(self) -> int:
        return self._app.event_bus.head

    async def over(self, position: int) -> bool:
        return self._app.event_bus.closed and self._app.event_bus.head == position

    def owned(self) -> bool:
        return True


class Logged:
    """How far the log holds each run."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._known: dict[str, int] = {}

    async def wait(self, run_id: str, position: int) -> bool:
        """Wait until the log holds the run up to ``position``; ``False`` if it does not come to that."""
        until, pause = time.monotonic() + PATIENCE, 0.002
        while self._known.get(run_id, 0) < position:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[run_id] = await self._log.last_position(run_id)
            if self._known[run_id] >= position:
                break
            if time.monotonic() > until:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        return True


class LoggedReader(StreamReader):
    """The bus, each event when the log holds it; one that it never gets is a gap."""

    def __init__(self, stream: EventStream, logged: Logged) -> None:
        super().__init__(stream)
        self._logged = logged
        self._taken: Sequence[Event] = ()  # from the bus, and not yet given: a cancelled call loses nothing

    async def batch(self) -> Sequence[Event]:
        self._taken = self._taken or await super().batch()
        events = await self._held(self._taken)
        self._taken = ()
        return events

    async def _held(self, events: Sequence[Event]) -> Sequence[Event]:
        last: dict[str, int] = {}
        for event in events:
            if event.run_id is not None and event.run_seq is not None:
                last[event.run_id] = event.run_seq
        missing = {run_id for run_id, position in last.items() if not await self._logged.wait(run_id, position)}
        if not missing:
            return events
        return [gap_event(1, event.seq, event.seq) if event.run_id in missing else event for event in events]


async def _generator(events: AsyncIterator[Event]) -> Any:
    """``events`` as something that can be closed, whatever a log returns."""
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
