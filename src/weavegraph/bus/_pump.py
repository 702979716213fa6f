"""Threads that feed sync sinks: one for each, and one for all inline ones, with a watchdog that leaves it to a sink
whose call does not come back."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint

from weavegraph.bus._wakeups import Wakeups
from weavegraph.bus._worker import PumpedWorker
from weavegraph.errors import EndOfStream

__all__ = ["INLINE_PATIENCE", "Pump", "Watchdog"]

INLINE_PATIENCE = 0.05
"""Seconds that one call of an inline sink may take before the others get a fresh pump (contract S1)."""
TICK = INLINE_PATIENCE / 2
IDLE_TICKS = 20


class Pump:
    """Feeds its workers in turn, a step each, on a thread of its own; ends with the last of them."""

    def __init__(self, wakeups: Wakeups, workers: Sequence[PumpedWorker], name: str) -> None:
        self._wakeups = wakeups
        self._lock = threading.Lock()  # guards which workers are ours, and the beginning of a round
        self._workers: list[PumpedWorker] = []
        self._served: list[PumpedWorker] = []  # whom this round serves
        self._turns: Iterator[PumpedWorker] = iter(())  # those of them whose turn is still to come
        self.parked = False
        self.stopped = False
        self.watchdog: Watchdog | None = None
        self._adopt(workers)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def workers(self) -> tuple[PumpedWorker, ...]:
        return tuple(self._workers)

    def _adopt(self, workers: Sequence[PumpedWorker]) -> None:
        for worker in workers:
            worker.pump = self
        self._workers = [*self._workers, *workers]

    def add(self, worker: PumpedWorker) -> bool:
        """Feed this one too; ``False``: the pump has ended, start another."""
        with self._lock:
            if self.stopped:
                return False
            self._adopt((worker,))
        self.wake()
        return True

    def wake(self) -> None:
        self._wakeups.wake_thread(self)

    def _run(self) -> None:
        while True:
            parked = self._wakeups.park_thread(self)  # armed first: what comes from now on lets the wait return at once
            wait = self._round()
            with self._lock:
                if not self._workers:
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
        """A step of each; how long nobody wants another."""
        with self._lock:
            self._served = self._workers
            turns = self._turns = iter(self._served)
        if self.watchdog is not None and self.watchdog.asleep:
            self.watchdog.wake()
        wait = math.inf
        for worker in turns:
            try:
                wait = min(wait, worker.step())
            except Exception as ended:
                if not isinstance(ended, EndOfStream):
                    worker.fail(ended)  # ours, not the sink's; the others are fed on
                with self._lock:
                    self._workers = [other for other in self._workers if other is not worker]
        return wait

    # ── for the watchdog ──────────────────────────────────────────────────────────────────────────

    def look(self) -> tuple[object, int] | None:
        """Which call of which round the thread is in; ``None`` while it is parked."""
        turns = self._turns
        return None if self.parked or self.stopped else (turns, length_hint(turns))

    def leave_to_current(self, seen: tuple[object, int]) -> tuple[PumpedWorker, list[PumpedWorker]] | None:
        """Leave this thread to the worker that it was seen in, and give the others away.

        *Exclusion*: exhausting the iterator of the round is one call of C code, after which this thread can begin no
        call but its own worker's; no round begins meanwhile. So no worker is ever fed by two threads.
        """
        with self._lock:
            if self._turns is not seen[0] or length_hint(self._turns) != seen[1]:
                return None  # it came back in the meantime
            served, rest = self._served, list(self._turns)
            self.wake()  # those whose turn was taken are looked after in another round
            if len(rest) == len(served):
                return None  # it had not begun with the first
            current = served[len(served) - len(rest) - 1]
            others = [worker for worker in self._workers if worker is not current]
            self._workers = [current]
            return current, others

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
