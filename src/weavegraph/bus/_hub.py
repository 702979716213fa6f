"""One ring, its lock, its readers: what is accepted, in which order, and for how long it is kept.

*Order.* ``publish`` takes effect at one instant, the assignment of ``seq``; every subscriber sees that order.

*Lagging.* A subscriber that falls more than its capacity behind loses its oldest unread events: exactly those, no
rounding. Nothing is done to it when that happens: what it lost follows from positions, so a publisher's cost does
not grow with the number of subscribers. It learns of the loss at its next receive.

*Closing.* ``close`` takes effect at one instant; then ``publish`` raises, and subscribers read what is held and end.

*Memory.* ``capacity`` events of history, and what living subscribers still have room for, within ``max_bytes``.
"""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from weavegraph.bus._ring import INFINITE, Ring
from weavegraph.bus._stats import EventHubMetrics, ProducerStats, SubscriberStats, SubscriberTotals
from weavegraph.bus._stream import Alarm, EventStream, OnLag, Overflow
from weavegraph.bus._wakeups import Wakeups
from weavegraph.clock import SystemClock
from weavegraph.config import check_seconds, check_whole
from weavegraph.errors import (
    BackpressureError,
    ConfigError,
    EmitterError,
    EventInvalidError,
    EventTooLargeError,
    ForkedHubError,
    HubClosedError,
    InvalidPositionError,
    SinkError,
)
from weavegraph.events import FLAT_BYTES, Event, EventFilter, Predicate, admit

if TYPE_CHECKING:
    from weavegraph.bus._emitter import HubEmitter
    from weavegraph.protocols import Clock

__all__ = ["DEFAULT_BLOCK_TIMEOUT", "DEFAULT_CAPACITY", "DEFAULT_MAX_BYTES", "Budget", "EventHub"]

DEFAULT_CAPACITY = 16_384
"""Events of history. The smallest power of two that keeps a burst of 10,000 (contract L2): benchmarks/capacity.py."""
DEFAULT_MAX_BYTES = 64 * 1024 * 1024
DEFAULT_BLOCK_TIMEOUT = 5.0
FIRST_SIZE = 16
"""Slots of a new ring; it doubles with use. Small, because ten thousand runs each have one."""


class Budget:
    """The bytes that all hubs of one bus may hold together; the largest one gives way first (contract L6).

    Guarded by the lock that the hubs of a bus share.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._total = 0
        self.returned: deque[int] = deque()
        """What hubs held that were collected; a finaliser only appends, for it must not wait for a lock."""
        self.evict: Callable[[], bool] = lambda: False
        """Forget the oldest finished run; ``False`` when there is none."""
        self._hubs: weakref.WeakSet[EventHub] = weakref.WeakSet()

    def join(self, hub: EventHub) -> None:
        self._hubs.add(hub)

    def settle(self, hub: EventHub, charge: int) -> None:
        """``hub`` now holds room for ``charge`` bytes."""
        self._total += charge - hub._charged
        hub._charged = charge

    @property
    def total(self) -> int:
        while self.returned:
            self._total -= self.returned.popleft()
        return self._total

    def allows(self, hub: EventHub, more: int) -> bool:
        """Whether ``hub`` may grow by ``more`` bytes; finished runs, then larger hubs, give way for it."""
        while (over := self.total + more - self.max_bytes) > 0:
            if self.evict():
                continue
            larger = [other for other in self._hubs if other is not hub and other._charged > hub._charged + more]
            larger.sort(key=lambda other: other._charged, reverse=True)
            if not any(other._shrink(over) for other in larger):
                return False
        return True


class Room(NamedTuple):
    """What an event that is to be stored needs of its hub."""

    lost: int  # everything up to here has to go
    size: int  # slots
    cut: list[EventStream]  # those whose unread events go, and who asked to be cut off then
    needed: int
    demands: bool
    gates: bool


class Plan(NamedTuple):
    """A hub's consent to an event."""

    number: int  # of the hub's state; anything that changes it makes the plan void
    gate_limit: int
    room: Room | None


class EventHub:
    """An in-process broadcast of events. Any method may be called from any thread, task or signal handler.

    Args:
        capacity: events kept for late readers, exactly; ``None`` keeps all that fit into ``max_bytes``.
        max_bytes: bytes that the held events may be charged (their text and metadata, at least 1 KiB each).
        block_timeout: seconds that ``publish_async`` waits for a full subscriber with ``overflow="block"``.
        name: for logs and metrics.
    """

    # As for EventStream: more than 30 attributes need slots to be quick.
    __slots__ = (
        "__dict__", "__weakref__", "_alarm", "_budget", "_cancelled", "_capacity", "_charged", "_clock", "_closed",
        "_counting", "_ended", "_epoch", "_failure", "_forked", "_heed", "_limit", "_lock", "_looked", "_now",
        "_on_first", "_past", "_pins", "_plan", "_producers", "_producers_elsewhere", "_refused_closed",
        "_refused_full", "_refused_invalid", "_resting", "_ring", "_room_limit", "_stream_count", "_streams",
        "_unfinished", "_waiting", "_wakeups", "_warns", "block_timeout", "max_bytes", "name",
    )  # fmt: skip
    _depth = 0

    def __init__(
        self,
        capacity: int | None = DEFAULT_CAPACITY,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        block_timeout: float = DEFAULT_BLOCK_TIMEOUT,
        name: str = "hub",
        clock: Clock | None = None,
    ) -> None:
        check_capacity(capacity)
        check_whole("max_bytes", max_bytes, FLAT_BYTES)  # room for one small event
        check_seconds("block_timeout", block_timeout)
        self.name = name
        self.block_timeout = block_timeout
        self.max_bytes = max_bytes
        self._capacity = INFINITE if capacity is None else capacity
        self._clock: Clock = clock or SystemClock()
        self._now = self._clock.now
        self._epoch = os.urandom(16).hex()
        self._ring = Ring(min(self._capacity, FIRST_SIZE, max_bytes // FLAT_BYTES))
        self._lock: Any = threading.RLock()
        self._budget: Budget | None = None
        self._charged = 0  # what the budget counts for this hub
        # The one number that publishing compares: beyond it there is something to decide (room, a full reader,
        # close, fork). 0 means: decide at the next event.
        self._limit = 0
        self._room_limit = 0
        self._plan = 0  # counts what changes the decision
        self._wakeups = Wakeups()
        self._streams: dict[int, weakref.ref[EventStream]] = {}
        self._heed: dict[int, weakref.ref[EventStream]] = {}
        self._ended: dict[int, weakref.ref[EventStream]] = {}  # closed, and still held by somebody
        self._counting = False  # `metrics` is adding up
        self._looked: dict[int, SubscriberStats] = {}  # as `metrics` saw them last, until they are collected
        self._stream_count = 0
        self._closed = self._forked = self._pins = False
        self._resting = False  # a lane between two attempts of its run
        self._failure: BaseException | None = None  # why a hub that repeats another source ended
        self._warns = True
        self._alarm = Alarm()
        self._unfinished: deque[EventStream] = deque()  # collected while somebody else had the lock
        self._on_first: Callable[[], None] | None = None  # starts the sinks of a bus with the first event
        self._past = SubscriberTotals()
        self._refused_closed = self._refused_full = self._refused_invalid = self._cancelled = self._waiting = 0
        self._producers_elsewhere: weakref.WeakSet[EventHub] = weakref.WeakSet()  # lanes whose producers wait for us
        self._producers: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        _hubs.add(self)

    # ── publishing ────────────────────────────────────────────────────────────────────────────────

    def publish(self, event: Event) -> int:
        """Accept ``event`` and return its position. Never waits.

        Publishing one event object twice gives two separately stamped events. With no subscriber it succeeds.

        Raises:
            EventInvalidError, EventTooLargeError: before a position is taken; other events are unaffected.
            BackpressureError: a subscriber with ``overflow="block"`` is full; the event reached nobody.
            HubClosedError: after ``close()``.
        """
        return self._accept(event).seq

    async def publish_async(self, event: Event) -> int:
        """As ``publish``, but waits up to ``block_timeout`` seconds for full ``block`` subscribers.

        *Cancellation*: while it waits the event has reached nobody, and never will.
        """
        return (await self._accept_async(event)).seq

    def _accept(self, event: Event, *, reserved: bool = False, count: bool = True) -> Event:
        """Check, stamp and store one event; returns it stamped. ``reserved``: the runtime writes, never refused."""
        try:
            event, extra = admit(event, reserved)
        except (EventInvalidError, EventTooLargeError):
            with self._lock:
                self._refused_invalid += 1
            raise
        ring, lock = self._ring, self._lock
        # An RLock: a signal handler or __del__ that emits from inside this region comes before or after, in full.
        lock.acquire()
        try:
            while True:
                head = ring.head
                seq = head + 1
                if seq > self._limit or extra:
                    self._make_room(seq, extra, self._ask(seq, extra, reserved))
                stamped = replace(event, seq=seq, epoch=self._epoch, timestamp=self._now())
                # From the test to the last assignment there is no call: no signal handler can come between.
                if ring.head == head and seq <= self._limit:
                    ring.slots[seq % ring.size] = stamped
                    ring.head = seq
                    break
            if extra:
                ring.weigh(seq, extra)
        except EmitterError as refusal:
            self._count(refusal, count)
            raise
        finally:
            lock.release()
        if self._wakeups.armed:
            self._wakeups.notify()
        return stamped

    def _count(self, refusal: EmitterError, count: bool) -> None:
        """An attempt is counted where it was made, also when another hub refused it."""
        if not isinstance(refusal, BackpressureError):
            self._refused_closed += 1
        elif count:
            self._refused_full += 1

    async def _accept_async(self, event: Event) -> Event:
        try:
            return self._accept(event, count=False)
        except BackpressureError:
            pass
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.block_timeout
        with self._lock:
            self._waiting += 1
        try:
            while True:
                room = loop.create_future()
                self._producers[room] = loop
                try:
                    return self._accept(event, count=False)
                except BackpressureError:
                    remaining = deadline - loop.time()
                    if remaining <= 0:
                        with self._lock:
                            self._refused_full += 1
                        raise BackpressureError(self.block_timeout) from None
                    timer = loop.call_later(remaining, _resolve, room)
                    try:
                        await room
                    finally:
                        timer.cancel()
                finally:
                    self._producers.pop(room, None)
        except (asyncio.CancelledError, GeneratorExit):
            with self._lock:
                self._cancelled += 1
            raise
        finally:
            with self._lock:
                self._waiting -= 1

    def _room_freed(self) -> None:
        """A ``block`` subscriber read or left: let waiting producers look again."""
        for room, loop in dict(self._producers).items():
            try:
                loop.call_soon_threadsafe(_resolve, room)
            except RuntimeError:  # that producer's loop is closed; so is the producer
                self._producers.pop(room, None)
        with self._lock:
            lanes = tuple(self._producers_elsewhere)
        for lane in lanes:
            lane._room_freed()

    # ── room ──────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, seq: int, extra: int, forced: bool) -> Plan:
        """What has to be done so that event ``seq`` can be stored. Nobody loses anything by the asking.

        Raises:
            HubClosedError, BackpressureError: it must not be stored. ``forced``: it is never refused for want of room.
        """
        if self._forked:
            raise ForkedHubError
        if self._closed or self._resting:
            raise self._closed_error()
        if self._on_first is not None:
            try:
                self._on_first()
            except SinkError:
                pass  # no thread can be had: the next event tries again; `flush` tells
        self._finish_collected()
        number = self._plan
        gates = [stream for stream in self._heeded() if stream._overflow != "drop_oldest"]
        gate_limit = min((stream._full_at() for stream in gates if stream._overflow == "block"), default=INFINITE)
        if seq > gate_limit and not forced:
            raise BackpressureError(0.0)
        if self._on_first is not None:
            gate_limit = seq
        room = self._find_room(seq, extra, gates, forced) if seq > self._room_limit or extra else None
        return Plan(number, gate_limit, room)

    def _make_room(self, seq: int, extra: int, plan: Plan) -> None:
        """Carry the plan out, and set how far publishing needs no further look."""
        room_limit = self._room_limit
        if plan.room is not None:
            room_limit = self._carry_out(seq, extra, plan.room)
        limit = max(seq, min(plan.gate_limit, room_limit))
        # A signal handler may have closed, subscribed or published meanwhile: then decide again. No call in between.
        if self._plan == plan.number:
            self._room_limit = room_limit
            self._limit = limit

    def _replan(self) -> None:
        """Readers or state changed: the next event decides anew."""
        self._plan += 1
        self._limit = -1 if self._closed or self._forked or self._resting else 0
        self._room_limit = 0

    def _closed_error(self) -> EmitterError:
        return HubClosedError()

    def _find_room(self, seq: int, extra: int, gates: list[EventStream], forced: bool) -> Room:
        """Trim what nobody needs, grow if somebody needs more, lose the oldest if the bytes do not suffice."""
        ring, capacity = self._ring, self._capacity
        demands = [stream for stream in self._heeded() if stream._limit > capacity]
        needed = min((max(stream._position, seq - stream._limit) for stream in demands), default=INFINITE)
        lost = max(min(seq - capacity, needed), 0)
        if ring.extra or extra:
            lost = max(lost, ring.excess(seq, extra, self.max_bytes))
        else:
            lost = max(lost, seq - self.max_bytes // FLAT_BYTES)
        size, span = ring.size, seq - max(lost, ring.oldest())
        if span > size:
            size = min(max(2 * size, span), max(self.max_bytes // FLAT_BYTES, 1))
            if not demands:
                size = min(size, capacity)
        if self._budget is not None:
            if size > ring.size and not self._budget.allows(self, (size - ring.size) * FLAT_BYTES):
                size = ring.size
                # An eighth at once, so that a bus at its bound does not decide this anew at every event.
                lost = max(lost, seq - size + size // 8)
            if extra and not self._budget.allows(self, (size - ring.size) * FLAT_BYTES + extra):
                lost = max(lost, ring.excess(seq, extra, max(ring.bytes, FLAT_BYTES)))
        held = self._held(gates)
        if lost > held:  # somebody reads with "block": nothing unread may go
            if not forced:
                raise BackpressureError(0.0)
            lost, size = held, max(size, seq - held)
        cut = [stream for stream in gates if stream._overflow == "disconnect" and stream._unread_after() < lost]
        return Room(lost, size, cut, needed, bool(demands), bool(gates))

    @staticmethod
    def _held(streams: list[EventStream]) -> int:
        """Nothing beyond this position may be lost."""
        return min((stream._unread_after() for stream in streams if stream._overflow == "block"), default=INFINITE)

    def _carry_out(self, seq: int, extra: int, room: Room) -> int:
        ring = self._ring
        for stream in room.cut:
            stream._overflown(seq)
        ring.trim(min(max(room.lost, seq - room.size), seq - 1), pin=self._pins)
        if room.size > ring.size:
            ring.resize(room.size)
        if self._budget is not None:
            self._budget.settle(self, ring.size * FLAT_BYTES + ring.extra + extra)
        return max(seq, self._next_decision(seq, extra, room.needed, room.demands, room.gates))

    def _next_decision(self, seq: int, extra: int, needed: int, demands: bool, gates: bool) -> int:
        """The last position that needs no look at room again."""
        ring = self._ring
        size, most = ring.size, self.max_bytes // FLAT_BYTES
        if self._pins or (size < self._capacity and size < most):
            limit = ring.oldest() + size  # overwriting would skip the pinning, or shorten the history
        elif not demands or (size >= most and not gates):
            limit = INFINITE  # as large as it gets: the oldest is overwritten
        else:
            limit = needed + size
        if ring.extra or extra:
            used = (seq - ring.oldest()) * FLAT_BYTES + ring.extra + extra
            limit = min(limit, seq + (self.max_bytes - used) // FLAT_BYTES)
        return limit

    def _shrink(self, count: int) -> bool:
        """Give up ``count`` bytes, if the oldest events have so many, for the bus's bound; ``False`` for none."""
        ring, before = self._ring, self._charged
        streams = self._heeded()
        last = min(ring.head - 1, self._held(streams))
        tail, target = ring.oldest(), max(ring.bytes - count, FLAT_BYTES)
        while tail < last and ring.bytes > target:
            tail = min(last, tail + max(1, (ring.bytes - target) // FLAT_BYTES // 2))
            ring.trim(tail, pin=self._pins)
        for stream in streams:
            if stream._overflow == "disconnect" and stream._unread_after() < ring.tail:
                stream._overflown(ring.head)
        ring.resize(max(ring.head - ring.oldest(), 1))
        if self._budget is not None:
            self._budget.settle(self, ring.size * FLAT_BYTES + ring.extra)
        self._replan()
        return self._charged < before

    # ── subscribing ───────────────────────────────────────────────────────────────────────────────

    def subscribe(
        self,
        *,
        after: int | None = None,
        capacity: int | None = None,
        overflow: Overflow = "drop_oldest",
        on_lag: OnLag = "notice",
        filter: EventFilter | Predicate | None = None,
        name: str | None = None,
    ) -> EventStream:
        """A reader of its own: it sees every later event, or is told which it missed.

        Args:
            after: a position of this hub: first what is held after it, then live, with no gap and no duplicate.
                Older than what is held: an exact gap first. ``None``: live from now.
            capacity: events that may wait for this reader, exactly; ``None``: the hub's. Replayed events do not
                count until it has caught up once.
            overflow: what happens when it is full: ``"drop_oldest"`` its oldest unread event is lost,
                ``"block"`` producers wait or are refused, ``"disconnect"`` this reader is closed.
            on_lag: how it learns of a loss: ``"notice"`` an event of scope ``GAP_SCOPE`` in the stream,
                ``"raise"`` ``Lagged``, ``"skip"`` in its counts only.
            filter: an ``EventFilter``, or in process any predicate. What does not match is passed over and
                counted; it takes room like any event until the reader has passed it.

        Raises:
            InvalidPositionError: ``after`` is no position from 0 to the head.
            ConfigError: another argument is wrong.
        """
        check_capacity(capacity)
        limit = self._capacity if capacity is None else capacity
        return self._subscribe(after, limit, overflow, on_lag, filter, name)

    def _subscribe(
        self,
        after: int | None,
        limit: int,
        overflow: Overflow,
        on_lag: OnLag,
        filter: EventFilter | Predicate | None,
        name: str | None,
        kind: type[EventStream] = EventStream,
    ) -> EventStream:
        if overflow not in ("drop_oldest", "block", "disconnect"):
            raise ConfigError(f"overflow={overflow!r}: choose 'drop_oldest', 'block' or 'disconnect'")
        if on_lag not in ("notice", "raise", "skip"):
            raise ConfigError(f"on_lag={on_lag!r}: choose 'notice', 'raise' or 'skip'")
        if filter is not None and not callable(filter):
            raise ConfigError(f"filter={filter!r}: give an EventFilter or a function of one event")
        with self._lock:
            if self._forked:
                raise ForkedHubError
            head = self._ring.head
            if after is None:
                after = head
            elif type(after) is not int or not 0 <= after <= head:
                raise InvalidPositionError(after, head)
            self._stream_count += 1
            stream = kind(
                self, after, max(head - self._capacity, 0), limit, overflow, on_lag, filter,
                name or f"{self.name}-{self._stream_count}",
            )  # fmt: skip
            self._streams[id(stream)] = weakref.ref(stream)
            if stream._limit > self._capacity or overflow != "drop_oldest":
                self._heed[id(stream)] = self._streams[id(stream)]
                if not self._closed:
                    self._replan()
        return stream

    def _tell_readers(self) -> None:
        for stream in self._living():
            stream._look_at_yourself()

    def _living(self) -> list[EventStream]:
        return [stream for ref in list(self._streams.values()) if (stream := ref()) is not None]

    def _heeded(self) -> list[EventStream]:
        """Those that publishing must think of: with more room than the history, or not content to lose the oldest."""
        return [stream for ref in list(self._heed.values()) if (stream := ref()) is not None]

    def _forget(self, stream: EventStream) -> None:
        """The stream was closed; its counts stay. Called under the lock."""
        found = self._streams.pop(id(stream), None)
        if found is not None:
            # A reader in another thread may be taking an event just now; its last word is at its collection.
            self._ended[id(stream)] = found
            if self._heed.pop(id(stream), None) is not None:
                self._replan()
            if stream._overflow == "block":
                self._room_freed()

    def _bury(self, stream: EventStream) -> None:
        """The stream is being collected: its counts are final. Called under the lock."""
        self._looked.pop(id(stream), None)
        if self._ended.pop(id(stream), None) is not None:
            self._past.add(stream._stats())

    def _finish_collected(self) -> None:
        while self._unfinished and not self._counting:
            stream = self._unfinished.popleft()
            stream._finish()
            self._bury(stream)

    # ── closing and looking ───────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Accept nothing more. Idempotent. Subscribers read what is held, then end; nobody hangs."""
        with self._lock:
            self._closed = True
            self._replan()
            self._tell_readers()
        self._wakeups.notify()
        self._room_freed()

    def __enter__(self) -> EventHub:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether ``close()`` took effect."""
        return self._closed

    @property
    def head(self) -> int:
        """The position of the last accepted event; 0 before the first."""
        return self._ring.head

    @property
    def epoch(self) -> str:
        """128 random bits in hex: positions mean something only within one epoch."""
        return self._epoch

    @property
    def capacity(self) -> int | None:
        """Events kept for late readers; ``None``: bounded by bytes only."""
        return None if self._capacity == INFINITE else self._capacity

    @property
    def lag(self) -> int:
        """The largest number of unread events of a living subscriber."""
        return max((stream.lag for stream in self._living()), default=0)

    @property
    def dropped(self) -> int:
        """Events that subscribers lost, living and closed ones together."""
        return self.metrics().dropped

    def emitter(self) -> HubEmitter:
        """An ``EventEmitter`` on this hub; hand it to whoever should only emit."""
        from weavegraph.bus._emitter import HubEmitter

        return HubEmitter(self)

    def producer_stats(self) -> ProducerStats:
        """What became of every attempt to publish."""
        with self._lock:
            return ProducerStats(
                accepted=self._ring.head,
                refused_closed=self._refused_closed,
                refused_full=self._refused_full,
                refused_invalid=self._refused_invalid,
                cancelled=self._cancelled,
                waiting=self._waiting,
            )

    def metrics(self) -> EventHubMetrics:
        """Everything at one instant; totals include closed subscribers and are never reset."""
        with self._lock:
            self._finish_collected()
            # The collector may run in here, and bury a stream between two sums: it waits until this is over.
            counting, self._counting = self._counting, True
            try:
                return self._count_all()
            finally:
                self._counting = counting

    def _count_all(self) -> EventHubMetrics:
        # Looking at a stream may find that overflow="disconnect" has struck; then it is one of the closed.
        streams = {**self._streams, **self._ended}
        for key, ref in streams.items():
            # One whose collection has begun says its last word when it is buried; until then the one before counts.
            if (stream := ref()) is not None:
                self._looked[key] = stream._stats()
        looked = [self._looked[key] for key in streams if key in self._looked]
        living = tuple(stats for stats in looked if not stats.closed)
        past = SubscriberTotals()
        past.add(self._past)
        for stats in looked:
            if stats.closed:
                past.add(stats)
        producers = self.producer_stats()
        return EventHubMetrics(
            capacity=self.capacity,
            head=self._ring.head,
            oldest=max(self._ring.oldest(), self._ring.head - self._capacity),
            epoch=self._epoch,
            bytes=self._ring.bytes,
            lag=max((stats.buffered for stats in living), default=0),
            delivered=past.delivered + sum(stats.delivered for stats in living),
            filtered=past.filtered + sum(stats.filtered for stats in living),
            dropped=past.dropped + sum(stats.dropped for stats in living),
            buffered=past.buffered + sum(stats.buffered for stats in living),
            abandoned=past.abandoned + sum(stats.abandoned for stats in living),
            attempts=producers.attempts,
            accepted=producers.accepted,
            refused_closed=producers.refused_closed,
            refused_full=producers.refused_full,
            refused_invalid=producers.refused_invalid,
            cancelled=producers.cancelled,
            waiting=producers.waiting,
            subscribers=living,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<EventHub {self.name!r} {state} head={self.head} subscribers={len(self._streams)}>"

    def __reduce__(self) -> Any:
        raise TypeError("an EventHub lives in one process and cannot be pickled; create one in each process")

    def __del__(self) -> None:
        if (budget := getattr(self, "_budget", None)) is not None:
            budget.returned.append(self._charged)
        if getattr(self, "_warns", False) and not self._closed and self._ring.head and not self._forked:
            warnings.warn(f"unclosed {self!r}: call close()", ResourceWarning, source=self, stacklevel=2)

    def _after_fork(self) -> None:
        """In a forked child: an unused hub starts afresh, a used one refuses (its readers live in the parent)."""
        self._wakeups = Wakeups()
        if self._ring.head == 0:
            self._epoch = os.urandom(16).hex()
            for stream in self._living():
                stream._loop = stream._group = None
                stream._waiting = False
        else:
            self._forked = True
            self._replan()
            self._tell_readers()


def check_capacity(capacity: object) -> None:
    """Refuse what is no capacity: ``None`` or a whole number from 1."""
    if capacity is not None and (type(capacity) is not int or capacity < 1):
        raise ConfigError(f"capacity={capacity!r}: give a whole number of events from 1, or None")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_hubs: weakref.WeakSet[EventHub] = weakref.WeakSet()


def _mark_forked() -> None:
    hubs = tuple(_hubs)
    for hub in hubs:  # the parent's locks may be held by threads that do not exist here
        hub._lock = threading.RLock()
    for hub in sorted(hubs, key=lambda hub: hub._depth):  # a lane follows its bus
        hub._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)
