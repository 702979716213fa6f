"""Keeps a run's events in the log: a reader of the run's lane, on the app's own loop, that misses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from weavegraph.bus import EventStream, Lane, RetryPolicy
from weavegraph.errors import (
    CheckpointConflictError,
    EndOfStream,
    LogCorruptError,
    LogError,
    LogFencedError,
    LogHoleError,
    LogUnavailableError,
    LogVersionError,
)
from weavegraph.events import Event, View
from weavegraph.protocols import EventLog

__all__ = ["Recorder"]

_FOR_GOOD = (LogFencedError, LogHoleError, LogCorruptError, LogVersionError)
_AGAIN = RetryPolicy(base=0.05, cap=2.0)
TRIES_OF_A_SAVE = 4
"""A checkpoint that cannot be committed so often fails its run; events are tried for ever."""
LINGER = 0.002
"""Seconds that events wait for the checkpoint of their step, so that one transaction takes both."""
_log = logging.getLogger("weavegraph.log")


class Save(NamedTuple):
    """An operation that is committed with the events before it, and who is told of it, in which loop."""

    operation: Any
    loop: asyncio.AbstractEventLoop
    done: Callable[[Any], None]

    def tell(self, outcome: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
            self.loop.call_soon_threadsafe(self.done, outcome)


class Recorder:
    """Appends what a lane accepts to a log, batch by batch, in order, from one position on.

    An unavailable log (disk full, locked) costs delay, not events: they stay in the lane, within its byte bound, and
    are tried again for ever. A log that another process took over, or that is damaged, ends the run (``on_fault``).
    """

    def __init__(
        self, log: EventLog, lane: Lane, on_fault: Callable[[BaseException], None], view: View | None = None
    ) -> None:
        self._log, self._lane, self._on_fault, self._view = log, lane, on_fault, view
        self._stream: EventStream = lane.subscribe(after=lane.head, on_lag="notice", name="log", follow=True)
        # Events are taken, and what is committed with them is handed on, under this lock: in order, whoever does it.
        self._lock = threading.Lock()
        self._saves: list[Save] = []
        self._waiters: list[tuple[int, Future[None]]] = []
        self.position = lane.head
        """Everything up to here is acknowledged by the log."""
        self._fault: BaseException | None = None
        self._last: int | None = None  # the attempt is over, and ended there
        self._held: Future[None] | None = None
        self._busy = False  # ``run`` has events in hand
        self._flying = 0  # batches that ``save_with`` gave to the store, and that it has not answered
        self._back: list[tuple[list[Event], Save]] = []  # such as it could not take, for ``run`` to try again
        self._loop: asyncio.AbstractEventLoop | None = None  # of ``run``
        self._bell: asyncio.Future[None] | None = None  # ``run`` waits for it
        self._awaits_landing = False  # of what is flying
        self._merges = False  # checkpoints are committed with events here

    # ── from the run's side, any thread ───────────────────────────────────────────────────────────

    def save_with(self, emit: Callable[[], None], operation: Any, done: Callable[[Any], None]) -> None:
        """Emit an event and commit ``operation`` (of the store that the log shares) in the same transaction as it and
        what comes before; ``done`` gets the outcome, in the running loop.

        Given to the store from here: by way of ``run`` it would take two threads more.
        """
        save = Save(operation, asyncio.get_running_loop(), done)
        with self._lock:
            if self._fault is not None:
                raise self._fault
            emit()
            self._merges = True
            straight = not (self._busy or self._back or self._saves)
            if straight:
                self._send(save)
            else:
                self._saves.append(save)
            ring = bool(self._saves or self._back)
        self.let_go()
        if ring:
            self._ring()

    def _send(self, save: Save) -> None:
        """Under the lock."""
        batch = self._take()
        events = self._seen(batch)
        store, appending = self._log.store, self._log.appending  # type: ignore[attr-defined]

        def told(outcome: Any) -> bool:
            """On the writer thread."""
            failed = isinstance(outcome, BaseException)
            with self._lock:
                self._flying -= 1
                if failed:
                    self._back.append((batch, save))
                elif events:
                    self.position = events[-1].run_seq or self.position
                ring = failed or self._awaits_landing
            self._settle(None)
            self._let_lane_go()
            if ring:
                self._ring()
            return not failed

        try:
            store.post((appending(self._lane.run_id, events), save.operation), save.done, told)
            self._flying += 1
        except LogError:  # `run` will be told the same
            self._back.append((batch, save))

    async def upto(self, position: int) -> None:
        """Wait until the log has acknowledged everything up to ``position``; raises what keeps it from that."""
        done: Future[None] = Future()
        with self._lock:
            if self._fault is not None:
                raise self._fault
            if self.position >= position:
                return
            self._waiters.append((position, done))
        self._ring()
        await asyncio.wrap_future(done)

    def hold(self) -> None:
        """Append nothing until ``let_go``; to be called before ``run`` is. What is accepted stays in the lane."""
        self._held = Future()

    def let_go(self) -> None:
        """There is a checkpoint now, or there will be none. Idempotent."""
        held = self._held
        if held is not None and not held.done():
            held.set_result(None)

    def give_up(self, error: BaseException) -> None:
        """The log could not be opened: append nothing at all. Before anything was saved or waited for."""
        self._fault = error
        self.let_go()

    # ── on the app's own loop ─────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until the lane closes or the recorder is closed."""
        self._loop = asyncio.get_running_loop()
        if self._held is not None:
            await asyncio.wrap_future(self._held)
        with contextlib.suppress(EndOfStream):
            while True:
                await self._something()
                with self._lock:
                    if self._flying:
                        continue  # should they come back, they are to go first
                    back, self._back = self._back, []
                    batch = [event for events, _ in back for event in events]
                    saves = [*(save for _, save in back), *self._saves]
                    self._saves = []
                    try:
                        batch += self._take()
                    except EndOfStream:
                        if not batch:
                            raise
                    self._busy = True
                try:
                    await self._keep(batch, saves)
                finally:
                    self._busy = False
        self._settle(EndOfStream())

    async def _something(self) -> None:
        """Return when there is something to commit. Events alone wait ``LINGER`` for a checkpoint that takes them."""
        stream = self._stream
        loop, mark, until = stream._here(), -1, 0.0
        while True:
            timer: asyncio.TimerHandle | None = None
            with self._lock:
                self._awaits_landing = False
                urgent = bool(self._saves or self._back or self._waiters) or self._last is not None
                if self._flying and urgent:
                    self._awaits_landing = True
                    bell = loop.create_future()
                elif self._saves or self._back:
                    return
                elif not stream._changed() and not self._flying:
                    arming = stream._arm()
                    stream._waiting = False  # `save_with` may take
                    if arming is None:
                        continue
                    bell = arming
                elif urgent or not self._merges:
                    return
                else:
                    if stream._position >= mark:  # others took what was there
                        mark, until = self._lane.head, loop.time() + LINGER
                    elif loop.time() >= until and not self._flying:
                        return
                    bell = loop.create_future()
                    timer = loop.call_at(max(until, loop.time() + LINGER / 4), self._rung)
                self._bell = bell
            try:
                await bell
            finally:
                self._bell = None
                if timer is not None:
                    timer.cancel()

    def _ring(self) -> None:
        """Let ``run`` look at once. Any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the app is closed
                self._loop.call_soon_threadsafe(self._rung)

    def _rung(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def _take(self) -> list[Event]:
        """Everything that the lane has, under the lock."""
        found: list[Event] = []
        try:
            while more := self._stream._take_many(1024):
                found += more
        except EndOfStream:
            if not found:
                raise
        return found

    def _seen(self, batch: Sequence[Event]) -> list[Event]:
        """The events of it, as the log is to see them."""
        events = [event for event in batch if event.run_seq is not None]
        return events if self._view is None else [self._view.see(event) for event in events]

    async def _keep(self, batch: Sequence[Event], saves: list[Save]) -> None:
        events = self._seen(batch)
        failures = 0
        while self._fault is None:
            try:
                await self._commit(events, [save.operation for save in saves])
            except CheckpointConflictError as exc:
                saves = self._give_up(saves, exc)
            except LogUnavailableError as exc:
                failures += 1
                if failures == 1:
                    _log.warning("the log cannot take events of run %r now: %s; trying again", self._lane.run_id, exc)
                if saves and failures >= TRIES_OF_A_SAVE:
                    saves = self._give_up(saves, exc)
                await asyncio.sleep(_AGAIN.delay(failures))
            except asyncio.CancelledError:
                raise
            except Exception as exc:
                self._fault = exc
                if not isinstance(exc, _FOR_GOOD):
                    _log.exception("the log failed for run %r", self._lane.run_id)
                saves = self._give_up(saves, exc)
                self._settle(exc)
                self._on_fault(exc)
            else:
                for save in saves:
                    save.tell(())
                if events:
                    self.position = events[-1].run_seq or self.position
                self._settle(None)
                self._let_lane_go()
                return
        self._give_up(saves, self._fault)

    async def _commit(self, events: Sequence[Event], operations: list[Any]) -> None:
        if not operations:
            if events:
                await self._log.append(self._lane.run_id, events)
            return
        store, appending = self._log.store, self._log.appending  # type: ignore[attr-defined]
        await store.submit(appending(self._lane.run_id, events), *operations)

    @staticmethod
    def _give_up(saves: list[Save], error: BaseException) -> list[Save]:
        for save in saves:
            save.tell(error)
        return []

    def _settle(self, error: BaseException | None) -> None:
        with self._lock:
            ready = [entry for entry in self._waiters if error is not None or entry[0] <= self.position]
            self._waiters = [entry for entry in self._waiters if entry not in ready]
            left, self._saves = (self._saves, []) if error is not None else ([], self._saves)
        for position, done in ready:
            if not done.cancelled():
                done.set_result(None) if position <= self.position else done.set_exception(error or EndOfStream())
        if error is not None:
            self._give_up(left, error)

    def finish(self, last: int) -> None:
        """The attempt is over: let go of the lane when the log has everything up to ``last``, now or later."""
        self._last = last
        self.let_go()
        self._let_lane_go()
        self._ring()

    def _let_lane_go(self) -> None:
        if self._last is not None and (self._fault is not None or self.position >= self._last):
            self._stream.close()
            self._ring()
