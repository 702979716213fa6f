"""Keeps a run's events in the log: a reader of the run's lane, on the app's own loop, that misses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from weavegraph.bus import EventStream, Lane, RetryPolicy
from weavegraph.errors import (
    CheckpointConflictError,
    EndOfStream,
    LogCorruptError,
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
_log = logging.getLogger("weavegraph.log")


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
        self._lock = threading.Lock()  # held while an event is emitted together with what must be committed with it
        self._saves: list[tuple[Any, Future[None]]] = []
        self._waiters: list[tuple[int, Future[None]]] = []
        self.position = lane.head
        """Everything up to here is acknowledged by the log."""
        self._fault: BaseException | None = None
        self._last: int | None = None  # the attempt is over, and ended there
        self._held: Future[None] | None = None

    # ── from the run's side, any thread ───────────────────────────────────────────────────────────

    def save_with(self, emit: Callable[[], None], operation: Any) -> Future[None]:
        """Emit an event and commit ``operation`` (of the store that the log shares) in the same transaction as it."""
        done: Future[None] = Future()
        with self._lock:
            if self._fault is not None:
                raise self._fault
            emit()
            self._saves.append((operation, done))
        self.let_go()
        return done

    async def upto(self, position: int) -> None:
        """Wait until the log has acknowledged everything up to ``position``; raises what keeps it from that."""
        done: Future[None] = Future()
        with self._lock:
            if self._fault is not None:
                raise self._fault
            if self.position >= position:
                return
            self._waiters.append((position, done))
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
        if self._held is not None:
            await asyncio.wrap_future(self._held)
        with contextlib.suppress(EndOfStream):
            while True:
                batch = [*await self._stream.recv_many()]
                with self._lock:
                    with contextlib.suppress(EndOfStream):
                        while more := self._stream._take_many(1024):
                            batch += more
                    saves, self._saves = self._saves, []
                await self._keep(batch, saves)
        self._settle(EndOfStream())

    async def _keep(self, batch: Sequence[Event], saves: list[tuple[Any, Future[None]]]) -> None:
        events = [event for event in batch if event.run_seq is not None]
        if self._view is not None:
            events = [self._view.see(event) for event in events]
        failures = 0
        while self._fault is None:
            try:
                await self._commit(events, [operation for operation, _ in saves])
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
                self._give_up(saves, exc)
                self._settle(exc)
                self._on_fault(exc)
            else:
                for _, done in saves:
                    done.set_result(None)
                if events:
                    self.position = events[-1].run_seq or self.position
                self._settle(None)
                if self._last is not None:
                    self.finish(self._last)
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
    def _give_up(saves: list[tuple[Any, Future[None]]], error: BaseException) -> list[tuple[Any, Future[None]]]:
        for _, done in saves:
            if not done.done():
                done.set_exception(error)
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
        if self._fault is not None or self.position >= last:
            self._stream.close()
