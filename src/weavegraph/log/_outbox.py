"""Ships from a durable log to somewhere else, and remembers how far it came (contract X1).

::

    ctx.emit ─▶ run ─▶ log (SQLite) ─▶ Outbox ─▶ Redis, or any sink
                              cursor ◀┘ of each run, in the log's own file

The log is the buffer: while the other side is away, events wait in it, the run notices nothing, and the process may be
restarted in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from weavegraph.bus import DeadLetter, RetryPolicy
from weavegraph.bus._retry import describe
from weavegraph.clock import SystemClock
from weavegraph.config import check_sink_name
from weavegraph.errors import (
    ConfigError,
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
from weavegraph.events import Event, Redact, Redactor
from weavegraph.log._outbox_letters import DeadLetters
from weavegraph.log._outbox_source import Pending, source_of
from weavegraph.log._outbox_store import Cursor, OutboxStore, store_beside
from weavegraph.log._outbox_turn import turn
from weavegraph.log._outbox_view import Views
from weavegraph.log._shipping import called, publish
from weavegraph.log._sink import LogSink
from weavegraph.protocols import Clock, Delivery, EventLog, EventSink

__all__ = ["Outbox", "OutboxState", "OutboxStats", "with_outboxes"]

OutboxState: TypeAlias = Literal["new", "standby", "idle", "shipping", "retrying", "closed"]
SHORTEST, LONGEST = 0.02, 0.2
"""Seconds between two looks at the log while there is nothing to ship."""
STANDBY = 0.5
UNRECORDED = 5.0
"""Seconds after which events that the bus has shown and the log has not are no longer waited for."""
CHECK = 5.0
"""Seconds between two questions to an idle other side whether it still has what it acknowledged last."""
SIDE_BY_SIDE = 8
"""Runs whose next batches are under way at a time; with their size, what bounds the events in flight."""
BATCHES = 8
"""Batches of one run before others get their turn."""
LOOK_AGAIN = 256
"""Runs, of those shipped last, that are compared with the other side after it was away: it may have lost an end."""
_AWAY = (LogUnavailableError, LogAccessError, ConnectionError, TimeoutError, OSError)
"""Costs delay, however long; everything else is tried so often, and then costs the event."""
_FOR_GOOD = (
    EventInvalidError,
    LogCorruptError,
    LogFencedError,
    LogHoleError,
    LogLateError,
    LogVersionError,
    PermanentSinkError,
)
_log = logging.getLogger("weavegraph.outbox")


class OutboxStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over all runs that the log still has, and over all lives of the outbox: each event is in exactly one of
    ``shipped``, ``dead_lettered``, ``trimmed`` (gone from the log before) and ``pending_events``."""

    name: str
    state: OutboxState
    shipped: int
    dead_lettered: int
    trimmed: int
    pending_events: int
    """As of the last look."""
    pending_runs: int
    reshipped: int
    """Given once more, since this start, because the other side had lost them."""
    errors: int
    last_error: str | None
    last_error_at: datetime | None
    last_success_at: datetime | None


class Outbox:
    """Ships every run of ``log`` to ``sink``, each event in its run's order, from a cursor that survives the process.

    It is a sink itself: on a bus (``EventBus.add_sink``, ``EventBusConfig.sinks``) the events that pass only say that
    there is something new, and the log says what. Without a bus: ``async with Outbox(log, sink): …``; it runs in that
    loop.

    *Delivery*: at least once; to a log (``RedisStreamSink``, ``LogSink``) every event once. Order holds within a run.
    *Waiting*: a sink that is away (no connection, no rights) is tried for ever, with growing pauses and jitter; neither
    runs nor other sinks notice. *Loss*: none; what retention takes from the log first is counted as ``trimmed``, and
    readers there see an exact gap. An event that the sink cannot take (tried ``retry.tries`` times, or a
    ``PermanentSinkError``) becomes a dead letter, beside the log, and the run goes on. *Restart*: goes on behind the
    cursor. When the other side lost an end of what it had acknowledged, that is shipped again from the log, also of the
    newest 256 runs of former lives. *Two processes* on one SQLite file with one name: one ships, the other waits for
    its death.

    Args:
        log: keeps the runs; with an ``SqliteLog`` cursors and letters stand in its file.
        sink: anything with ``handle(batch)``, or an ``EventLog``.
        name: of cursors and letters; default the sink's.
        store: where cursors and letters stand, when the log is no ``SqliteLog``.
        retry: pauses, and how often an error that is not an absence is tried.
        redact: ``redact(event, name)`` returns the event as the sink may see it, of what the log holds; dead letters
            are kept so, too. On the bus of an app without one: that of its ``RuntimeConfig``.
    """

    delivery: Delivery = "at_least_once"

    def __init__(
        self,
        log: EventLog,
        sink: EventSink | EventLog,
        *,
        name: str | None = None,
        store: OutboxStore | None = None,
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        redact: Redact | None = None,
    ) -> None:
        if not isinstance(log, EventLog):
            raise ConfigError(f"Outbox(log={log!r}): give an EventLog; it is what the outbox ships from")
        self.sink: Any = LogSink(sink) if isinstance(sink, EventLog) else sink
        if not callable(getattr(self.sink, "handle", None)):
            raise ConfigError(f"Outbox(sink={sink!r}): give a sink with handle(batch), or an EventLog")
        self.log = log
        self.name = check_sink_name(name or getattr(self.sink, "name", None) or type(self.sink).__name__)
        self._store: OutboxStore = store or store_beside(log)
        self._owns_store = store is None
        self._retry, self._clock = retry or RetryPolicy(), clock or SystemClock()
        self._target: Any = getattr(self.sink, "log", None)  # a log on the other side can be asked how far it is
        self._source = source_of(log, self._store, self.name)
        self._redact = redact
        self._views = Views(Redactor(redact, self.name))
        self._cursors: dict[str, Cursor] = {}
        self._reached: dict[str, int] = {}  # what the other side has, where that is not the cursor's position
        self._owed: dict[str, int] = {}  # up to where the other side has to be given again what it lost
        self._recent: dict[str, None] = {}  # runs, in the order of their last shipping
        self._heard: dict[str, int] = {}  # runs and positions that the bus has shown
        self._heard_at = 0.0
        self._handling = asyncio.Lock()  # a sink's handle is called once at a time
        self._wake = asyncio.Event()
        self._looked = 0  # looks that found nothing to ship
        self._look_done = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._state: OutboxState = "new"
        self._pending = Pending()
        self._reshipped = self._errors = 0
        self._was_away = False
        self._outages = self._checked_at = 0.0
        self._last_error: str | None = None
        self._last_error_at: datetime | None = None
        self._last_success_at: datetime | None = None

    # ── a sink of the bus ─────────────────────────────────────────────────────────────────────────

    def redact_with(self, redact: Redact | None) -> None:
        """The hook to ask unless the outbox was given one of its own. Before ``start``; the bus does that."""
        if self._redact is None:
            self._views = Views(Redactor(redact, self.name))

    async def start(self) -> None:
        """Begin to ship, in this loop; a second call changes nothing.

        Raises:
            LogError: the log or the cursors cannot be read.
        """
        if self._task is None:
            self._cursors = await self._store.cursors(self.name)
            self._task = asyncio.ensure_future(self._live())

    async def handle(self, batch: Sequence[Event]) -> None:
        """There is something new; the log says what."""
        if self._task is None:
            await self.start()
        for event in batch:
            run_id, position = event.run_id, event.run_seq
            if run_id is not None and position is not None:
                cursor = self._cursors.get(run_id)
                if cursor is None or cursor.position < position:
                    self._heard[run_id] = max(position, self._heard.get(run_id, 0))
        self._heard_at = time.monotonic()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything that the log has and the bus has shown is shipped.

        Raises:
            LogUnavailableError: the sink is away; the events wait in the log.
        """
        if not await self._drained(None, give_up=True):
            raise LogUnavailableError(repr(self.sink), f"away; {self._pending.event_count} events wait in the log")

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything in the log is shipped; ``False`` when that took longer than ``timeout`` seconds."""
        return await self._drained(timeout, give_up=False)

    async def aclose(self) -> None:
        """Stop where it is; the next life goes on from there. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._state != "closed":
            self._state = "closed"
            await self._tell()
            close: Any = getattr(self.sink, "aclose", None) or getattr(self.sink, "close", None)
            if close is not None:
                await called(close)
            if self._owns_store:
                await self._store.aclose()

    async def __aenter__(self) -> Outbox:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def stats(self) -> OutboxStats:
        cursors = tuple(self._cursors.values())
        return OutboxStats(
            name=self.name,
            state=self._state,
            shipped=sum(cursor.shipped for cursor in cursors),
            dead_lettered=sum(cursor.dead for cursor in cursors),
            trimmed=sum(cursor.trimmed for cursor in cursors),
            pending_events=self._pending.event_count,
            pending_runs=self._pending.run_count,
            reshipped=self._reshipped,
            errors=self._errors,
            last_error=self._last_error,
            last_error_at=self._last_error_at,
            last_success_at=self._last_success_at,
        )

    def letters(self) -> DeadLetters:
        """What could not be delivered."""
        return DeadLetters(self._store)

    # ── shipping ──────────────────────────────────────────────────────────────────────────────────

    async def _live(self) -> None:
        """Supervised: whatever happens costs a pause, and only closing ends it."""
        failures, begun = 0, False
        with turn(self._store, self.name) as mine:
            while True:
                try:
                    if not mine():
                        self._state = "standby"
                        await asyncio.sleep(STANDBY)
                        continue
                    if not begun:
                        self._cursors = await self._store.cursors(self.name)
                        await self._start_sink()
                        await self._recall()
                        begun = True
                    await self._ship_all()
                except LogClosedError as exc:
                    self._note(exc)
                    self._state = "closed"
                    await self._tell()
                    return
                except _AWAY as exc:
                    failures += 1
                    await self._absent(exc, failures)
                except Exception as exc:
                    failures += 1
                    self._note(exc)
                    _log.exception("the outbox %r goes on after a pause", self.name)
                    self._state = "retrying"
                    await self._tell()
                    await asyncio.sleep(self._retry.delay(failures))
                else:
                    failures = 0

    async def _start_sink(self) -> None:
        start = getattr(self.sink, "start", None)
        if start is not None:
            await called(start)
        self._state = "idle"

    async def _recall(self) -> None:
        """Which runs a former life has shipped: the other side may have lost an end of them since."""
        if self._target is not None:
            newest = [run.run_id for run in await self.log.runs(limit=LOOK_AGAIN)]
            shipped = {run_id for run_id, cursor in self._cursors.items() if cursor.shipped}
            self._recent = {run_id: None for run_id in reversed(newest) if run_id in shipped}
            self._outages = -1

    async def _ship_all(self) -> None:
        """Until there is nothing to ship; then a pause."""
        pause = SHORTEST
        while True:
            self._pending = pending = await self._source.pending(self._cursors)
            await self._look_again()
            if pending.runs:
                self._state, pause = "shipping", SHORTEST
                await self._ship(pending.runs)
                continue
            self._state = "idle"
            if pending.gone:
                await self._store.forget(self.name, pending.gone)
                for run_id in pending.gone:
                    self._cursors.pop(run_id, None)
                    self._reached.pop(run_id, None)
                    self._owed.pop(run_id, None)
                    self._recent.pop(run_id, None)
            if self._heard and time.monotonic() - self._heard_at > UNRECORDED:
                _log.warning("outbox %r: the log does not get the events of %d runs", self.name, len(self._heard))
                self._heard.clear()
            self._looked += 1
            await self._tell()
            await self._rest(max(pause, self._source.pause))
            pause = min(2 * pause, LONGEST)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(SHORTEST / 4)  # the log's own commit may follow the bus by a moment

    async def _ship(self, run_ids: Sequence[str]) -> None:
        """A few batches of each run, several runs side by side. What fails for good is raised after the others."""
        room = asyncio.Semaphore(SIDE_BY_SIDE)

        async def one(run_id: str) -> None:
            async with room:
                await self._ship_run(run_id)

        results = await asyncio.gather(*map(one, run_ids), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _ship_run(self, run_id: str) -> None:
        cursor = self._cursors.get(run_id, Cursor())
        reading: Any = self._views.batches(self.log, run_id, cursor.position)
        async with contextlib.aclosing(reading) as batches:
            count = 0
            async for batch in batches:
                if isinstance(batch, int):  # the log has forgotten so many
                    cursor = _moved(cursor, batch, trimmed=batch)
                    self._reached.setdefault(run_id, cursor.position - batch)
                    await self._keep(run_id, cursor, ())
                    continue
                dead = await self._deliver(run_id, cursor, batch)
                cursor = _moved(cursor, len(batch), shipped=len(batch) - len(dead), dead=len(dead))
                await self._keep(run_id, cursor, dead)
                self._recent.pop(run_id, None)
                if cursor.shipped:
                    self._recent[run_id] = None
                count += 1
                if count >= BATCHES:
                    return

    async def _keep(self, run_id: str, cursor: Cursor, dead: Sequence[DeadLetter]) -> None:
        await self._store.save(self.name, run_id, cursor, dead)
        self._cursors[run_id] = cursor
        if self._heard.get(run_id, 0) <= cursor.position:
            self._heard.pop(run_id, None)

    async def _deliver(self, run_id: str, cursor: Cursor, batch: Sequence[Event]) -> list[DeadLetter]:
        """Until every event of the batch was taken, or was found to be one that cannot be."""
        first_at, failures = self._clock.now(), 0
        while True:
            try:
                await self._give(run_id, cursor.position, batch)
            except _AWAY as exc:
                failures += 1
                await self._absent(exc, failures)
            except Exception as exc:
                failures += 1
                self._note(exc)
                if isinstance(exc, _FOR_GOOD) or failures >= self._retry.tries:
                    return await self._one_by_one(run_id, cursor.position, batch, exc, failures, first_at)
                await asyncio.sleep(self._retry.delay(failures))
            else:
                self._delivered(run_id, batch)
                return []

    async def _one_by_one(
        self, run_id: str, position: int, batch: Sequence[Event], error: Exception, tries: int, first_at: datetime
    ) -> list[DeadLetter]:
        dead: list[DeadLetter] = []
        if len(batch) == 1 or isinstance(error, LogFencedError):  # another writer's run: none of it will be taken
            return [self._buried(event, error, tries, first_at) for event in batch]
        for event in batch:
            failures = 0
            while True:
                try:
                    await self._give(run_id, position, (event,))
                    self._delivered(run_id, (event,))
                    break
                except _AWAY as exc:
                    failures += 1
                    await self._absent(exc, failures)
                except Exception as exc:
                    self._note(exc)
                    dead.append(self._buried(event, exc, tries + 1, first_at))
                    # What the other side has ends before this one, whatever the cursor says.
                    self._reached.setdefault(run_id, (event.run_seq or 1) - 1)
                    break
        return dead

    async def _give(self, run_id: str, position: int, batch: Sequence[Event]) -> None:
        target = self._target
        if target is None:
            async with self._handling:
                await called(self.sink.handle, batch)
            return
        if run_id in self._owed:
            await self._refill(run_id, self._reached[run_id], self._owed[run_id])
        since = self._reached.get(run_id, position)
        try:
            await publish(target, run_id, batch, since)
        except LogHoleError as exc:
            if exc.last >= since:
                raise
            await self._refill(run_id, exc.last, position)
            await publish(target, run_id, batch, self._reached.get(run_id, position))

    async def _refill(self, run_id: str, last: int, upto: int) -> None:
        """The other side has less than it had acknowledged: ship that part again, whatever more it loses meanwhile.

        Where this breaks off, it is owed, and nothing that comes later is given before it.
        """
        self._reached[run_id], self._owed[run_id] = last, upto
        if upto > last:
            _log.warning("%r has run %r only up to %d, not %d; shipping it again", self.sink, run_id, last, upto)
        while True:
            try:
                await self._ship_again(run_id, upto)
            except LogHoleError as exc:
                if exc.last >= self._reached[run_id]:
                    raise
                self._reached[run_id] = exc.last
            else:
                del self._owed[run_id]
                return

    async def _ship_again(self, run_id: str, upto: int) -> None:
        reading: Any = self._views.batches(self.log, run_id, self._reached[run_id], upto)
        async with contextlib.aclosing(reading) as batches:
            async for batch in batches:
                if isinstance(batch, int):
                    continue
                await publish(self._target, run_id, batch, self._reached[run_id])
                self._reached[run_id] = batch[-1].run_seq or 0
                self._reshipped += len(batch)

    async def _look_again(self) -> None:
        """After an absence, and now and then: has the other side still what it acknowledged last?"""
        if self._target is None or not self._recent:
            return
        outages, now = getattr(self._target, "outages", 0), time.monotonic()
        runs = list(self._recent)[-LOOK_AGAIN:]
        if not self._was_away and not self._owed and outages == self._outages:
            if now - self._checked_at < CHECK:
                return
            runs = runs[-1:]
        while runs:
            run_id = runs.pop()
            cursor = self._cursors[run_id]
            last = await self._target.last_position(run_id)
            if last < self._reached.get(run_id, cursor.position) or run_id in self._owed:
                try:
                    await self._refill(run_id, last, cursor.position)
                except _FOR_GOOD as exc:  # another has taken the run over there: its next events become letters
                    self._note(exc)
                    self._recent.pop(run_id)
                    self._owed.pop(run_id, None)
                    _log.warning("%r has lost a part of run %r and refuses it: %s", self.sink, run_id, exc)
                if not self._was_away:  # it has lost something although nobody noticed an absence
                    self._was_away = True
                    return await self._look_again()
        self._was_away, self._outages, self._checked_at = False, outages, now
        return None

    def _delivered(self, run_id: str, batch: Sequence[Event]) -> None:
        self._last_success_at = self._clock.now()
        if run_id in self._reached:
            self._reached[run_id] = batch[-1].run_seq or 0

    def _buried(self, event: Event, error: Exception, tries: int, first_at: datetime) -> DeadLetter:
        now, text = self._clock.now(), describe(error)
        return DeadLetter(event=event, sink=self.name, error=text, tries=tries, first_at=first_at, last_at=now)

    async def _absent(self, error: BaseException, failures: int) -> None:
        self._note(error)
        if failures == 1 and not self._was_away:
            _log.warning("events wait in the log for %r: %s", self.sink, error)
        self._was_away, self._state = True, "retrying"
        await self._tell()
        await asyncio.sleep(self._retry.delay(failures))

    def _note(self, error: BaseException) -> None:
        self._errors += 1
        self._last_error, self._last_error_at = describe(error), self._clock.now()

    # ── waiting for it ────────────────────────────────────────────────────────────────────────────

    async def _tell(self) -> None:
        async with self._look_done:
            self._look_done.notify_all()

    async def _drained(self, timeout: float | None, *, give_up: bool) -> bool:
        if self._task is None:
            await self.start()
        wanted = self._looked + 2  # one that begins after this call
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._look_done:
                while self._looked < wanted or self._heard:
                    if self._state == "closed" or (give_up and self._state in ("retrying", "standby")):
                        return False
                    await self._look_done.wait()
                    self._wake.set()
                return True
        return False


def with_outboxes(log: EventLog | None, sinks: Sequence[Any]) -> list[Any]:
    """The sinks, with those that say ``remote = True`` behind an outbox of their own when the log outlives the process.

    For whoever puts configured sinks on a bus whose runs are recorded in ``log``.
    """
    if log is None or not hasattr(log, "store"):
        return list(sinks)
    found: list[Any] = []
    names: set[str] = set()
    for sink in sinks:
        if getattr(sink, "remote", False) and not isinstance(sink, Outbox):
            name = str(getattr(sink, "name", type(sink).__name__))
            if name in names:
                raise ConfigError(f"two remote sinks are called {name!r}: give them names, their cursors go by them")
            names.add(name)
            sink = Outbox(log, sink)
        found.append(sink)
    return found


def _moved(cursor: Cursor, count: int, *, shipped: int = 0, dead: int = 0, trimmed: int = 0) -> Cursor:
    return Cursor(
        position=cursor.position + count,
        shipped=cursor.shipped + shipped,
        dead=cursor.dead + dead,
        trimmed=cursor.trimmed + trimmed,
    )
