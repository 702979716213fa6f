"""The pump: one thread that feeds all inline sinks, and the watchdog that leaves it to one that hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from weavegraph.bus._hub import EventHub
from weavegraph.bus._worker import SinkWorker
from weavegraph.errors import EndOfStream

__all__ = ["INLINE_PATIENCE", "Pump", "Watchdog"]

INLINE_PATIENCE = 0.05
"""Seconds that one call of an inline sink may take before the others get a fresh pump (contract S1)."""
TICK = INLINE_PATIENCE / 2


class Pump:
    """Feeds its workers in turn, a batch each, on a thread of its own."""

    def __init__(self, hub: EventHub, workers: list[SinkWorker], on_end: Callable[[SinkWorker], None]) -> None:
        self._hub, self._on_end = hub, on_end
        self.workers = workers
        self.current: SinkWorker | None = None
        self.wake_watchdog: Callable[[], None] = lambda: None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="weavegraph-pump", daemon=True)
        self._thread.start()

    def add(self, worker: SinkWorker) -> None:
        self.workers = [*self.workers, worker]
        self._hub._wakeups.notify()

    def remove(self, worker: SinkWorker) -> None:
        self.workers = [other for other in self.workers if other is not worker]
        self._hub._wakeups.notify()

    def _run(self) -> None:
        wakeups, ring = self._hub._wakeups, self._hub._ring
        while self.workers:
            lock = wakeups.park_thread(self)  # arm first: what comes while we pump lets the wait return at once
            workers, head, busy = self.workers, ring.head, False
            for worker in workers:
                if worker not in self.workers:
                    continue  # taken away while an earlier one was served
                self.current = worker
                self.wake_watchdog()
                try:
                    busy |= worker.pump()
                except EndOfStream:
                    self.remove(worker)
                    self._on_end(worker)
                finally:
                    self.current = None
            if not busy and self.workers is workers and ring.head == head and not self._hub.closed:
                lock.acquire()
            wakeups.unpark_thread(self)


class Watchdog:
    """Runs in the bus's loop while inline sinks are at work; sleeps without a timer while they are not."""

    def __init__(self, pump: Pump, on_slow: Callable[[SinkWorker, float], Pump]) -> None:
        self._pump, self._on_slow = pump, on_slow
        self._awake = asyncio.Event()
        self._asleep = False
        self._loop = asyncio.get_running_loop()
        pump.wake_watchdog = self._wake

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._loop.call_soon_threadsafe(self._awake.set)

    async def run(self) -> None:
        idle = 0
        while True:
            await asyncio.sleep(TICK)
            worker = self._pump.current
            called_at = worker.called_at if worker is not None else None
            if worker is not None and called_at is not None:
                idle = 0
                if time.monotonic() - called_at > INLINE_PATIENCE and len(self._pump.workers) > 1:
                    self._pump = self._on_slow(worker, time.monotonic() - called_at)
                    self._pump.wake_watchdog = self._wake
                continue
            idle += 1
            if idle > 20:
                self._awake.clear()
                self._asleep = True
                if self._pump.current is None:
                    await self._awake.wait()
                self._asleep, idle = False, 0
