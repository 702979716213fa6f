"""Threads that feed sync sinks: one for each, and one for all inline ones, with a watchdog that leaves it to a sink
whose call does not come back."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any

from weavegraph.bus._hub import EventHub
from weavegraph.bus._retry import as_error
from weavegraph.bus._worker import Cohort, PumpedWorker
from weavegraph.errors import EndOfStream
from weavegraph.events import Event

__all__ = ["INLINE_PATIENCE", "Pump", "Watchdog"]

INLINE_PATIENCE = 0.05
"""Seconds that one call of an inline sink may take before the others get a fresh pump (contract S1)."""
TICK = INLINE_PATIENCE / 2
IDLE_TICKS = 20


class Pump:
    """Feeds its workers in turn on a thread of its own, those at one position together; ends with the last of them."""

    def __init__(self, hub: EventHub, workers: Sequence[PumpedWorker], name: str) -> None:
        self._hub, self._wakeups = hub, hub._wakeups
        self._lock = threading.Lock()  # guards which workers are ours, and the beginning of a round; after the hub's
        self._alone: list[PumpedWorker] = []  # those that are not in the cohort
        self._cohort: Cohort | None = None
        # The round that is going on: whom it serves, and as many as there are of them whose turn is still to come.
        self._served: list[PumpedWorker] = []
        self._turns: Iterator[Any] = iter(())
        self._batch: tuple[Event, ...] = ()  # what is handed to the cohort in it; empty when it is not the cohort's
        self._failures: dict[int, Exception] = {}  # of that, by index
        self._left_to: int | None = None  # the index of the one that the watchdog has left this thread to
        self._since = 0.0
        self._goal = 0  # where those who are alone meet
        self._disturbed = False  # somebody wants something of a worker
        self.parked = False
        self.stopped = False
        self.watchdog: Watchdog | None = None
        self._adopt(workers)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def workers(self) -> list[PumpedWorker]:
        return [*self._cohort.workers, *self._alone] if self._cohort is not None else self._alone

    def _adopt(self, workers: Sequence[PumpedWorker]) -> None:
        for worker in workers:
            worker.pump = self
        self._alone = [*self._alone, *workers]

    def add(self, worker: PumpedWorker) -> bool:
        """Feed this one too; ``False``: the pump has ended, start another."""
        with self._lock:
            if self.stopped:
                return False
            self._adopt((worker,))
        self.wake()
        return True

    def wake(self) -> None:
        self._disturbed = True
        self._wakeups.wake_thread(self)

    def _run(self) -> None:
        while True:
            parked = self._wakeups.park_thread(self)  # armed first: what comes from now on lets the wait return at once
            wait = self._round()
            with self._lock:
                if not self.workers:
                    self.stopped = True
                    break
            if wait > 0:
                self.parked = True
                parked.acquire(timeout=-1 if wait == math.inf else min(wait, threading.TIMEOUT_MAX))
                self.parked = False
            self._wakeups.unpark_thread(self)
        self._wakeups.unpark_thread(self)
        if self.watchdog is not None:
            self.watchdog.wake()

    def _round(self) -> float:
        """The cohort, then a step of each of the others; how long nobody wants another."""
        if self.watchdog is not None and self.watchdog.asleep:
            self.watchdog.wake()
        disturbed, self._disturbed = self._disturbed, False
        wait = math.inf
        if (cohort := self._cohort) is not None:
            if disturbed or self._hub._closed:
                self._release(cohort, [worker for worker in cohort.workers if not worker.may_join()])
            if cohort.workers and self._feed(cohort):
                wait = 0.0
        if not self._alone:
            return wait
        # Those who are alone go no further than the cohort is, or all will be, so that they meet there.
        if self._cohort is not None:
            self._goal = self._cohort.position
        elif all(worker.stream._position >= self._goal for worker in self._alone):
            self._goal = self._hub._ring.head
        for worker in self._begin(self._alone, self._alone):
            try:
                wait = min(wait, worker.step(self._goal))
            except Exception as ended:
                if not isinstance(ended, EndOfStream):
                    worker.fail(ended)  # ours, not the sink's; the others are fed on
                with self._lock:
                    self._alone = [other for other in self._alone if other is not worker]
        if self._alone and not self._hub._closed and self._left_to is None:
            self._gather()
        return wait

    def _begin(self, served: list[PumpedWorker], turns: list[Any], batch: tuple[Event, ...] = ()) -> Iterator[Any]:
        with self._lock:
            self._served, self._turns, self._batch = served, iter(turns), batch
            self._failures, self._left_to, self._since = {}, None, time.monotonic()
            return self._turns

    # ── many sinks at one position ────────────────────────────────────────────────────────────────

    def _gather(self) -> None:
        """Feed those together that are idle at one position: 20× as fast with 1,000 sinks and an event at a time."""
        with self._hub._lock, self._lock:
            cohort = self._cohort or Cohort(self._goal)
            joining = [worker for worker in self._alone if worker.is_ready(cohort.position)]
            if not joining:
                return
            for worker in joining:
                worker.stream.join(cohort)
                cohort.workers.append(worker)
                cohort.handles.append(worker.sink.handle)
            self._cohort = cohort
            self._alone = [worker for worker in self._alone if worker.stream._run is not cohort]

    def _release(self, cohort: Cohort, workers: list[PumpedWorker]) -> None:
        for worker in workers:
            worker.leave_cohort()
        with self._lock:
            cohort.workers = [worker for worker in cohort.workers if worker.stream._run is cohort]
            cohort.handles = [worker.sink.handle for worker in cohort.workers]
            self._alone = [*self._alone, *workers]
            if not cohort.workers:
                self._cohort = None

    def _feed(self, cohort: Cohort) -> bool:
        """Hand what is ready to all of them; whether there was anything."""
        head = self._hub._ring.head
        if head == cohort.position:
            return False
        batch = self._hub._ring.read(cohort.position, head)
        if batch is None:  # lost to the bound of bytes; each books that for itself
            self._release(cohort, cohort.workers)
            return True
        calls = self._begin(cohort.workers, cohort.handles, batch)
        while True:
            try:
                for handle in calls:
                    if (result := handle(batch)) is not None:
                        self._served[self._index()].returned(result)
                break
            except BaseException as raised:
                self._failures[self._index()] = as_error(raised)
        with self._hub._lock, self._lock:
            if self._left_to is not None:
                self._came_back(cohort, self._left_to)
                return True
            for index in sorted(self._failures, reverse=True):
                worker = cohort.workers.pop(index)
                del cohort.handles[index]
                worker.leave_cohort(failed=(batch, self._failures[index]))
                self._alone = [*self._alone, worker]
            cohort.position += len(batch)
            cohort.handled_at = self._hub._now()
            if not cohort.workers:
                self._cohort = None
        return True

    def _index(self) -> int:
        """Of the one whose call is running."""
        with self._lock:
            return len(self._served) - length_hint(self._turns) - 1 if self._left_to is None else self._left_to

    def _came_back(self, cohort: Cohort, index: int) -> None:
        """The call that the watchdog did not wait for has returned."""
        worker, error = cohort.workers[index], self._failures.get(index)
        worker.called_at = None
        if error is None:
            worker.leave_cohort(len(self._batch))
        else:
            worker.leave_cohort(failed=(self._batch, error))

    # ── for the watchdog ──────────────────────────────────────────────────────────────────────────

    def look(self) -> tuple[object, int] | None:
        """Which call of which round the thread is in; ``None`` while it is parked."""
        turns = self._turns
        return None if self.parked or self.stopped else (turns, length_hint(turns))

    def call_began(self, worker: PumpedWorker) -> float | None:
        """When the cohort's round began, if it is in a call of this one now."""
        served, index, since = self._served, len(self._served) - length_hint(self._turns) - 1, self._since
        busy = self._batch and not self.parked and 0 <= index < len(served) and served[index] is worker
        return since if busy else None

    def leave_to_current(self, seen: tuple[object, int]) -> tuple[PumpedWorker, list[PumpedWorker]] | None:
        """Leave this thread to the worker that it was seen in, and give the others away.

        *Exclusion*: exhausting the iterator of the round is one call of C code, after which this thread can begin no
        call but its own worker's; no round begins meanwhile. So no worker is ever fed by two threads.
        """
        with self._hub._lock, self._lock:
            if self._turns is not seen[0] or length_hint(self._turns) != seen[1]:
                return None  # it came back in the meantime
            served, rest = self._served, list(self._turns)
            self.wake()  # those whose turn was taken are looked after in another round
            index = len(served) - len(rest) - 1
            if index < 0:
                return None  # it had not begun with the first
            current = served[index]
            others = [worker for worker in self.workers if worker is not current]
            if self._batch:
                self._break_off(served, index)
            elif self._cohort is not None:
                for worker in self._cohort.workers:
                    worker.leave_cohort()
            self._alone, self._cohort, self._left_to = [current], None, index
            return current, others

    def _break_off(self, served: list[PumpedWorker], current: int) -> None:
        """In the middle of a cohort's round: each goes on alone, from where it is."""
        served[current].called_at = self._since
        for index, worker in enumerate(served):
            if index in self._failures:
                worker.leave_cohort(failed=(self._batch, self._failures[index]))
            elif index != current:
                worker.leave_cohort(len(self._batch) if index < current else 0)

    def take_back(self, workers: list[PumpedWorker]) -> None:
        with self._lock:
            self._adopt(workers)
        self.wake()


class Watchdog:
    """Looks at the inline sinks' pump while it is at work; sleeps without a timer while it is not."""

    def __init__(self, pump: Pump, on_slow: Callable[[PumpedWorker, float, list[PumpedWorker]], Pump | None]) -> None:
        self._on_slow = on_slow
        self._awake = threading.Event()
        self.asleep = False
        self.watch(pump)
        threading.Thread(target=self._run, name="weavegraph-watchdog", daemon=True).start()

    def watch(self, pump: Pump) -> None:
        self._pump, pump.watchdog = pump, self
        self._awake.set()

    def wake(self) -> None:
        self.asleep = False
        self._awake.set()

    def _run(self) -> None:
        idle, seen, since = 0, None, 0.0
        while not self._pump.stopped:
            time.sleep(TICK)
            look, now = self._pump.look(), time.monotonic()
            if look is None:
                seen, idle = None, idle + 1
                if idle > IDLE_TICKS:
                    self._sleep()
                    idle = 0
            elif look != seen:
                seen, since, idle = look, now, 0
            elif now - since >= INLINE_PATIENCE:
                if not self._slow(look, now - since):
                    return
                seen = None

    def _slow(self, seen: tuple[object, int], seconds: float) -> bool:
        """Leave the pump to its slow sink; whether there are others to watch."""
        pump = self._pump
        left = pump.leave_to_current(seen)
        if left is None:
            return True
        current, others = left
        try:
            fresh = self._on_slow(current, seconds, others)
        except RuntimeError:  # no thread can be had: they wait for the slow one
            pump.take_back(others)
            return True
        pump.watchdog = None
        if fresh is not None:
            self.watch(fresh)
        return fresh is not None

    def _sleep(self) -> None:
        self._awake.clear()
        self.asleep = True
        if self._pump.parked:  # else a round began between the look and the flag
            self._awake.wait()
        self.asleep = False
