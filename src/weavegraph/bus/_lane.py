"""A lane: the hub of one run. An event is stamped once, with its positions in run and bus, and goes to both."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from weavegraph.bus._hub import EventHub
from weavegraph.bus._stream import EventStream, OnLag, Overflow
from weavegraph.errors import EventInvalidError, EventTooLargeError, RunClosedError
from weavegraph.events import Event, EventFilter, Predicate, admit

__all__ = ["Lane"]


class Lane(EventHub):
    """Positions of a lane are ``run_seq``: 1, 2, 3 … of this run. It keeps the whole run, bounded by bytes only.

    What the byte bound takes, it takes oldest first; the run's last terminal event and its last 16 error events stay
    (contract L4).
    """

    def __init__(self, bus: EventHub, run_id: str, session_id: str, *, attempt: int = 1) -> None:
        super().__init__(None, max_bytes=bus.max_bytes, block_timeout=bus.block_timeout, name=run_id, clock=bus._clock)
        self._bus = bus
        self._lock = bus._lock  # one lock for both appends: the bus's order agrees with the lane's (contract O1)
        self._epoch = bus._epoch
        self._pins = True
        self._knocking = 0  # coroutines inside of emit_async
        self._warns = False
        self._budget = bus._budget
        if self._budget is not None:
            self._budget.join(self)
        self.run_id, self.session_id, self.attempt = run_id, session_id, attempt

    def _accept(self, event: Event, *, reserved: bool = False, count: bool = True) -> Event:
        try:
            event, extra = admit(event, reserved=reserved)
        except (EventInvalidError, EventTooLargeError):
            with self._lock:
                self._refused_invalid += 1
            raise
        bus = self._bus
        ring, bus_ring, lock = self._ring, bus._ring, self._lock
        lock.acquire()
        try:
            while True:
                run_seq, seq = ring.head + 1, bus_ring.head + 1
                # Both are asked before either is touched: a refused event reached nobody.
                if run_seq > self._limit or extra:
                    self._make_room(run_seq, extra, reserved, count)
                if seq > bus._limit or extra:
                    bus._make_room(seq, extra, reserved, count)
                stamped = replace(
                    event,
                    seq=seq,
                    epoch=self._epoch,
                    timestamp=self._now(),
                    session_id=self.session_id,
                    run_id=self.run_id,
                    run_seq=run_seq,
                    attempt=self.attempt,
                )
                # No call from here to the break: see EventHub._accept.
                if (
                    ring.head + 1 == run_seq
                    and bus_ring.head + 1 == seq
                    and run_seq <= self._limit
                    and seq <= bus._limit
                ):
                    ring.slots[run_seq % ring.size] = stamped
                    ring.head = run_seq
                    bus_ring.slots[seq % bus_ring.size] = stamped
                    bus_ring.head = seq
                    break
            if extra:
                ring.weigh(run_seq, extra)
                bus_ring.weigh(seq, extra)
        finally:
            lock.release()
        if self._wakeups.armed:
            self._wakeups.notify()
        if bus._wakeups.armed:
            bus._wakeups.notify()
        return stamped

    async def _accept_async(self, event: Event) -> Event:
        # Who waits for room waits for readers of both.
        with self._lock:
            self._knocking += 1
            self._bus._producers_elsewhere.add(self)
        try:
            return await super()._accept_async(event)
        finally:
            with self._lock:
                self._knocking -= 1
                if not self._knocking:
                    self._bus._producers_elsewhere.discard(self)

    def _closed_error(self) -> Exception:
        return RunClosedError(self.run_id)

    def _subscribe(
        self,
        after: int | None,
        limit: int,
        overflow: Overflow,
        on_lag: OnLag,
        filter: EventFilter | Predicate | None,
        name: str | None,
    ) -> EventStream:
        stream = super()._subscribe(after, limit, overflow, on_lag, filter, name)
        stream._warns = False
        return stream

    def __repr__(self) -> str:
        return f"<Lane {self.run_id!r} head={self.head}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Lane lives in one process and cannot be pickled")
