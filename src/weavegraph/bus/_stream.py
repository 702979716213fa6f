"""A reader: a cursor over a hub, with its own books. Async, blocking and polled use share one cursor.

A stream has one reader; subscribe once more for a second. Taking an event and moving the cursor happen in one step
without an await, so cancelling or timing out a receive loses nothing: the next call returns the same event.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weavegraph.bus._ring import INFINITE, MAX_SLICE
from weavegraph.bus._stats import SubscriberStats
from weavegraph.errors import (
    EndOfStream,
    ForkedHubError,
    Lagged,
    StreamBusyError,
    SubscriberOverflowError,
    WrongLoopError,
)
from weavegraph.events import FLAT_BYTES, GAP_SCOPE, DiagnosticEvent, Event, EventFilter, Predicate, freeze_metadata

if TYPE_CHECKING:
    from weavegraph.bus._blocking import BlockingEvents
    from weavegraph.bus._hub import EventHub
    from weavegraph.bus._wakeups import LoopGroup

__all__ = ["Alarm", "EventStream", "OnLag", "Overflow", "check_timeout", "gap_event"]

Overflow: TypeAlias = Literal["drop_oldest", "block", "disconnect"]
OnLag: TypeAlias = Literal["notice", "raise", "skip"]

_get_running_loop = asyncio._get_running_loop
YIELD_AFTER = 0.002
"""Seconds after which a reader that always finds events lets its loop run. Contract R7 allows 5 ms; it is looked at
only now and then, and the first look after a wait counts as the turn that the wait was."""
FEW = 2
"""So many events are taken one by one, without a slice of the ring: as many as a reader of a crowd finds when the
producer yields after each event. With 64 readers that saves 29 % of an event's instructions."""
FILTER_SLICE = 256
"""Events that one ``recv_many`` shows to its filter before it looks at the clock."""
WARN_EVERY = 10.0
COLLECT_PATIENCE = 0.1
_log = logging.getLogger("weavegraph.event_bus")
clock = time.monotonic


class Alarm:
    """Warns of readers that are too slow: once in a while for all hubs of a bus, for with many it is rarely one."""

    def __init__(self) -> None:
        self._at = float("-inf")

    def ring(self, text: str, *arguments: object) -> None:
        """Not called under a hub's lock: a logging handler may take its time, or emit."""
        now = clock()
        if now - self._at >= WARN_EVERY:
            self._at = now
            _log.warning(f"{text}; read faster, or give it more capacity", *arguments)


def gap_event(count: int, first_seq: int, last_seq: int) -> DiagnosticEvent:
    """The notice that ``count`` events, ``first_seq`` to ``last_seq``, were lost to this reader. It has no seq."""
    metadata = freeze_metadata({"count": count, "first_seq": first_seq, "last_seq": last_seq})
    return DiagnosticEvent(GAP_SCOPE, f"{count} events lost ({first_seq} to {last_seq})", metadata)


class Run:
    """Events that an iteration is in the middle of. The iterator counts itself, so taking an event is one step of C
    code and no store, which is 30 % of ``async for``."""

    __slots__ = ("_end", "_items")

    def __init__(self, items: Iterator[Event], end: int) -> None:
        self._items, self._end = items, end

    @property
    def position(self) -> int:
        return self._end - length_hint(self._items)

    def stop(self) -> int:
        """Take the rest away, in one call of C code: nothing is taken by the iteration after this."""
        return self._end - len(tuple(self._items))


class EventStream:
    """One subscription; made by ``subscribe``. One reader at a time, in one event loop or in plain threads.

    Loss: as chosen by ``overflow`` and ``on_lag`` of ``subscribe``; ``stats()`` accounts for every event.
    Cancellation: safe everywhere, nothing is lost. After the end: every receive raises ``EndOfStream``.
    """

    # CPython keeps at most 30 attributes of an object in a quick place; beyond that `publish` and `recv_many` cost 20 %
    # more. `__dict__` holds none of them: it is for who instruments a method.
    __slots__ = (
        "__dict__", "__weakref__", "_base", "_capacity", "_closed_at", "_cut_at", "_dropped", "_filter",
        "_filter_errors", "_filtered", "_follow", "_group", "_history_floor", "_hub", "_iteration", "_limit", "_loop",
        "_on_lag", "_overflow", "_owner", "_replay_end", "_reported", "_rested", "_ring", "_run", "_s0", "_slice",
        "_slice_start", "_special", "_stop_at", "_told_cut", "_turn_at", "_waiting", "_warns", "name",
    )  # fmt: skip

    def __init__(
        self,
        hub: EventHub,
        after: int,
        history_floor: int,
        capacity: int,
        overflow: Overflow,
        on_lag: OnLag,
        filter: EventFilter | Predicate | None,
        name: str,
    ) -> None:
        self.name = name
        self._hub = hub
        self._ring = hub._ring
        self._s0 = self._base = after  # the position, unless a run knows it
        self._run: Any = None  # a Run of an iteration, or for a sink the Cohort that it is fed with
        self._history_floor = history_floor  # older events than the hub's capacity are lost to a late reader
        head = hub._ring.head
        # Replayed events do not count against the capacity until the reader has caught up (contract K1).
        self._capacity = capacity
        self._replay_end = head if after < head else 0
        self._limit = min(capacity + head - max(after, history_floor), INFINITE)
        self._overflow: Overflow = overflow
        self._on_lag: OnLag = on_lag
        self._filter: Callable[[Event], bool] | None = filter
        self._filtered = self._filter_errors = self._dropped = self._reported = 0
        # The newest slice read from the ring, which holds the events after position _slice_start.
        self._slice: tuple[Event, ...] = ()
        self._slice_start = 0
        self._closed_at: int | None = None  # the head when this stream was closed
        self._cut_at: int | None = None  # the head when overflow="disconnect" struck
        self._follow = True  # false: it ends where its run pauses
        self._stop_at = INFINITE  # this stream ends at that position, though its hub goes on (contract O4)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._group: LoopGroup | None = None
        self._waiting = False  # a receive is parked: a second one is refused
        self._turn_at = 0.0  # when a receive was last known to have let the loop run
        self._rested = False  # it did so since, by waiting
        self._iteration: weakref.ref[AsyncGenerator[Event, None]] | None = None
        self._told_cut = False
        self._owner: object = None
        self._warns = True

        self._special = True
        self._look_at_yourself()

    # ── the one way to take events; everything else is a shell around it ─────────────────────────────

    @property
    def _position(self) -> int:
        run = self._run
        position: int = self._base if run is None else run.position
        return position

    def _settle(self) -> int:
        """End the run of an iteration, which then looks again; the position. Taking one more cannot come between."""
        with self._hub._lock:
            if self._run is not None:
                self._base = self._run.stop()
                self._run = None
            return self._base

    def _look_at_yourself(self) -> None:
        """Whether this is anything but the usual: unfiltered, live, no end in sight, the oldest dropped.

        Whatever changes that calls this; the usual stream is then received from without asking all of it each time.
        """
        self._special = (
            self._filter is not None
            or self._overflow != "drop_oldest"
            or self._replay_end > 0
            or self._stop_at < INFINITE
            or self._closed_at is not None
            or self._hub._closed
            or self._hub._forked
        )

    def _end_at(self, position: int) -> None:
        """This stream ends at that position, though its hub goes on."""
        self._stop_at = position
        self._look_at_yourself()

    def _poll(self) -> tuple[Event, ...] | DiagnosticEvent | None:
        """What is ready after the cursor: events (not yet passed), a gap notice (passed), or nothing.

        Raises ``EndOfStream``, ``Lagged`` (its range is passed) or ``SubscriberOverflowError``.
        """
        ring, hub = self._ring, self._hub
        if self._run is not None:
            self._settle()
        if not self._special:
            head, position = ring.head, self._base
            if head == position:
                return None
            if head - position <= self._limit:
                start = self._slice_start
                if not start <= position < start + len(self._slice):
                    found = ring.read(position, head)
                    if found is not None and self._hold(found, position):
                        return found
        while True:
            if self._closed_at is not None:
                self._raise_end()
            if hub._forked:
                raise ForkedHubError
            head, position = ring.head, self._base
            if head > self._stop_at:
                head = self._stop_at
            behind = head - position
            if self._replay_end and position >= self._replay_end and behind <= self._capacity:
                self._caught_up()
            if self._overflow == "disconnect" and (head > self._full_at() or self._cut_at is not None):
                self._overflown(self._full_at() + 1)
                self._raise_end()
            floor = max(head - self._limit, self._history_floor) if self._overflow != "block" else self._history_floor
            if floor > position:
                notice = self._lose(floor)
                if notice is not None:
                    return notice
                continue
            start = self._slice_start
            if start <= position < start + len(self._slice):
                return self._slice if start == position else self._slice[position - start :]
            if not behind:
                if position >= self._stop_at:
                    self._finish()
                    self._raise_end()
                if hub._closed:
                    # What was published before the close is in the ring: look once more, then it is the end.
                    if ring.head != head:
                        continue
                    self._finish()
                    self._raise_end()
                return None
            oldest = ring.oldest()
            if position < oldest:
                pinned = ring.pinned_after(position)
                if pinned is not None and pinned[0] == position + 1:
                    self._slice, self._slice_start = (pinned[1],), position
                    return self._slice
                notice = self._lose(oldest if pinned is None else pinned[0] - 1)
                if notice is not None:
                    return notice
                continue
            found = ring.read(position, head)
            if found is not None:
                if position + len(found) > self._stop_at:
                    found = found[: self._stop_at - position]
                if self._hold(found, position):
                    return found

    def _hold(self, found: tuple[Event, ...], position: int) -> bool:
        """Take a slice in hand; ``False``: it went meanwhile, and whoever read the books was told that it is lost."""
        self._slice = ()  # first, so that nobody sees the new slice at the old place: see `_in_hand`
        self._slice_start = position
        self._slice = found
        if position >= self._ring.oldest():
            return True
        self._slice = ()
        return False

    def _in_hand(self) -> tuple[int, int]:
        """The positions from and up to which events are in hand, while the reader may take others."""
        while True:
            held, start = self._slice, self._slice_start
            if self._slice is held:
                return start, start + len(held)

    def _unread_after(self) -> int:
        """What follows this position is unread and was not gone before this reader came."""
        return max(self._position, self._history_floor)

    def _full_at(self) -> int:
        """The head at which this reader's room is used up; what was gone before it came takes none."""
        return self._unread_after() + self._limit

    def _caught_up(self) -> None:
        with self._hub._lock:
            self._replay_end = 0
            self._look_at_yourself()
            self._limit = self._capacity
            if self._overflow == "block":
                self._hub._replan()  # producers go by the larger limit of the replay

    def _lose(self, floor: int) -> DiagnosticEvent | None:
        """Pass everything up to ``floor`` as lost; the notice to deliver, if this reader wants one."""
        with self._hub._lock:
            first, count = self._base + 1, floor - self._base
            if count <= 0 or self._closed_at is not None:
                return None  # closed by another thread since we looked, which counted the loss
            self._dropped += count
            self._reported += count
            self._base = floor
        self._hub._alarm.ring(
            "subscriber %r of %r lagged and lost %d events (%d in all)", self.name, self._hub.name, count, self._dropped
        )
        if self._on_lag == "raise":
            raise Lagged(count, first, floor)
        return gap_event(count, first, floor) if self._on_lag == "notice" else None

    def _matches(self, event: Event) -> bool:
        try:
            return bool(self._filter(event))  # type: ignore[misc]
        except Exception:
            self._filter_errors += 1
            if self._filter_errors == 1:
                _log.warning("the filter of subscriber %r raised; it counts as no match", self.name, exc_info=True)
            return False

    def _pass_over(self, count: int, moved: int = 1) -> None:
        """The cursor moves by ``moved``, of which ``count`` do not match. Both at once, for whoever reads the books."""
        with self._hub._lock:
            self._filtered += count
            self._base += moved

    def _pass(self) -> None:
        """The cursor moved: a producer that waits for this reader may look again."""
        if self._overflow == "block" and (self._hub._producers or self._hub._producers_elsewhere):
            self._hub._room_freed()

    # ── receiving ─────────────────────────────────────────────────────────────────────────────────

    def try_recv(self) -> Event | None:
        """The next event, or ``None`` when nothing is ready. Never waits.

        Raises:
            EndOfStream: the stream is over. Lagged: with ``on_lag="raise"``. StreamBusyError: somebody waits.
        """
        if self._waiting:
            raise StreamBusyError
        return self._take()

    def _take(self, *, brief: bool = False) -> Event | None:
        """The next event that matches; ``brief``: or ``None`` after some milliseconds of events that do not."""
        until = 0.0
        while True:
            ready = self._poll()
            if ready is None or type(ready) is DiagnosticEvent:
                return ready  # type: ignore[return-value]
            for event in ready:  # type: ignore[union-attr]
                if self._filter is None or self._matches(event):
                    self._base += 1
                    self._pass()
                    return event
                self._pass_over(1)
                self._pass()
                if brief:
                    until = until or clock() + YIELD_AFTER
                    if clock() > until:
                        return None

    async def recv(self) -> Event:
        """The next event; waits for it.

        Raises:
            EndOfStream: the stream is over. Lagged: with ``on_lag="raise"``. StreamBusyError, WrongLoopError: misuse.
        """
        if self._loop is not _get_running_loop():
            self._here()
        if clock() - self._turn_at > YIELD_AFTER:
            await self._yield()
        while True:
            if self._waiting:
                raise StreamBusyError
            event = self._take(brief=True)
            if event is not None:
                return event
            await self._park()

    async def recv_many(self, max: int = MAX_SLICE) -> tuple[Event, ...]:
        """At least one event and at most ``max``, in order; waits for the first. The fastest way to read.

        A gap notice comes alone. Raises as ``recv``.
        """
        if type(max) is not int or max < 1:
            raise ValueError(f"max={max!r}: give a whole number from 1")
        if self._loop is not _get_running_loop():
            self._here()
        if clock() - self._turn_at > YIELD_AFTER:
            await self._yield()
        while True:
            if self._ring.head != self._base or self._special:
                batch = self._take_many(max)
                if batch:
                    return batch
            elif self._waiting:
                raise StreamBusyError
            future = self._arm()
            if future is None:
                if clock() - self._turn_at > YIELD_AFTER:
                    await self._yield()
                continue
            try:  # as `_park`, but without a coroutine of its own: 2 to 7 % of a wake-up
                await future
            except BaseException:
                self._group.parked.pop(self, None)  # type: ignore[union-attr]
                raise
            finally:
                self._waiting, self._rested = False, True

    def _take_many(self, most: int) -> tuple[Event, ...]:
        """What is ready, at most ``most``; nothing also after some milliseconds of events that do not match."""
        if self._waiting:
            raise StreamBusyError
        until = 0.0
        while True:
            if not self._special and self._run is None:
                # What another reader at this position was given, this one is: a fifth of `recv_many` with many readers.
                position, head = self._base, self._ring.head
                start, seen, found = self._ring.newest
                if (
                    start == position
                    and seen == head
                    and found
                    and len(found) <= most
                    and head - position <= self._limit
                ):
                    self._base = position + len(found)
                    return found
            ready = self._poll()
            if ready is None:
                return ()
            if type(ready) is DiagnosticEvent:
                return (ready,)
            batch: tuple[Event, ...] = ready  # type: ignore[assignment]
            if self._filter is None:
                batch = batch[:most]
                self._base += len(batch)
                self._pass()
                return batch
            batch = batch[: min(most, FILTER_SLICE)]
            kept = tuple(event for event in batch if self._matches(event))
            self._pass_over(len(batch) - len(kept), len(batch))
            self._pass()
            if kept:
                return kept
            until = until or clock() + YIELD_AFTER
            if clock() > until:
                return ()

    async def next_timeout(self, seconds: float) -> Event | None:
        """The next event, or ``None`` if none came within ``seconds``: one deadline over the whole call.

        Raises:
            EndOfStream: the stream is over (never ``None``).
        """
        loop = self._here()
        deadline = loop.time() + check_timeout(seconds)
        if clock() - self._turn_at > YIELD_AFTER:
            await self._yield()
        while True:
            if self._waiting:
                raise StreamBusyError
            event = self._take(brief=True)
            if event is not None:
                return event
            if loop.time() >= deadline:
                return None
            await self._park_until(deadline)

    def __aiter__(self) -> AsyncIterator[Event]:
        if self._iterating():
            raise StreamBusyError  # two iterations would share the events, each seeing some (contract R4)
        iteration = self._iterate()
        self._iteration = weakref.ref(iteration)
        return iteration

    def _iterating(self) -> bool:
        # An iteration that was left by break or an exception is gone at once, with its last reference.
        iteration = None if self._iteration is None else self._iteration()
        return getattr(iteration, "ag_frame", None) is not None

    async def _iterate(self) -> AsyncGenerator[Event, None]:
        # An async generator over the persistent cursor is the fastest pure-Python form (a coroutine __anext__
        # costs 15 to 20 % more). The cursor lives on the stream: breaking out and iterating again goes on.
        self._here()
        ring = self._ring
        since, chunk, rested = clock(), 8, 0
        plain = self._filter is None and self._overflow != "block"
        while True:
            if self._waiting:
                raise StreamBusyError
            if not self._special:
                # The usual reader of a live stream waits, or finds few events. Without a call: 30 % of a wake-up.
                head, position = ring.head, self._base
                if head == position:
                    rested = FEW
                    future = self._arm()
                    if future is None:
                        if clock() - self._turn_at > YIELD_AFTER:
                            await self._yield()
                        continue
                    try:  # as `_park`, but without a coroutine of its own: 2 to 7 % of a wake-up
                        await future
                    except BaseException:
                        self._group.parked.pop(self, None)  # type: ignore[union-attr]
                        raise
                    finally:
                        self._waiting, self._rested = False, True
                    continue
                behind = head - position
                if behind <= rested and behind <= self._limit and self._run is None:
                    slots = ring.slots
                    event = slots[(position + 1) % len(slots)] if behind <= len(slots) else None
                    # From the test to the assignment there is no call: nothing of these went meanwhile.
                    if event is not None and ring.head == head and position >= ring.tail:
                        self._base = position + 1
                        rested -= 1
                        yield event
                        continue
            try:
                ready = self._poll()
            except EndOfStream:
                return
            if ready is None:
                await self._park()
                continue
            if type(ready) is DiagnosticEvent:
                yield ready
                continue
            position = self._base
            # Until the head passes `bound` nothing of this slice can be lost to this reader's own capacity. A reader
            # that producers wait for loses nothing to it, and may hold more: what came in just before it caught up.
            bound = position + self._limit if self._overflow != "block" else INFINITE
            if not plain:
                for event in islice(ready, chunk):  # type: ignore[arg-type]
                    if self._base != position or self._closed_at is not None or ring.head > bound:
                        break  # somebody else moved the cursor or closed the stream, or this slice is partly lost
                    matches = self._filter is None or self._matches(event)
                    if self._base != position:
                        break
                    if matches:
                        self._base += 1
                    else:
                        self._pass_over(1)
                    position += 1
                    self._pass()
                    if matches:
                        yield event
            elif len(ready) == 1:  # type: ignore[arg-type]
                self._base = position + 1
                yield ready[0]  # type: ignore[index]
            else:
                part: tuple[Event, ...] = ready[:chunk]  # type: ignore[assignment, index]
                items, end = iter(part), position + len(part)
                run = self._run = Run(items, end)
                for event in items:
                    yield event
                    if ring.head > bound:
                        break  # partly lost: look again
                else:
                    if self._run is run:  # nobody else took any meanwhile, nor closed the stream
                        self._base, self._run = end, None
            now = clock()
            if now - since <= YIELD_AFTER:
                chunk = min(2 * chunk, MAX_SLICE)
            else:
                if not self._rested:
                    # Chunks shrink until one takes well under the bound, so the clock is read once a chunk only.
                    chunk = max(1, chunk // 4)
                await self._yield()
                since = clock()

    def blocking(self) -> BlockingEvents:
        """The same cursor for a plain thread: an iterator with its own ``next_timeout``."""
        from weavegraph.bus._blocking import BlockingEvents

        return BlockingEvents(self)

    async def _yield(self) -> None:
        """Let the loop run: this reader has found events for some milliseconds (contract R7). Nothing is in hand."""
        if self._rested:  # it was parked since it was last asked: that was a turn of the loop
            self._rested = False
        else:
            await asyncio.sleep(0)
        self._turn_at = clock()

    def _here(self) -> asyncio.AbstractEventLoop:
        """The running loop, which is the one that this stream belongs to from its first async receive on."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise WrongLoopError
            self._loop = loop
            self._group = self._hub._wakeups.group(loop)
        return loop

    def _unpark(self) -> None:
        """In this stream's loop: let a parked receive look again."""
        future = None if self._group is None else self._group.parked.pop(self, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _arm(self) -> asyncio.Future[None] | None:
        """What the next news resolves; ``None``: there are news already."""
        future: asyncio.Future[None] = self._loop.create_future()  # type: ignore[union-attr]
        self._group.parked[self] = future  # type: ignore[union-attr]
        self._hub._wakeups.armed = True
        # Armed; now look again: what came in between would wake nobody.
        if (self._ring.head != self._base or self._special) and self._changed():
            self._group.parked.pop(self, None)  # type: ignore[union-attr]
            return None
        self._waiting = True
        return future

    async def _park(self) -> None:
        """Wait until something may be ready."""
        future = self._arm()
        if future is None:
            if clock() - self._turn_at > YIELD_AFTER:
                await self._yield()
            return
        try:
            await future
        except BaseException:
            self._group.parked.pop(self, None)  # type: ignore[union-attr]
            raise
        finally:
            self._waiting, self._rested = False, True

    async def _park_until(self, deadline: float) -> None:
        """The same, but no longer than until ``deadline`` on the loop's clock."""
        timer = self._loop.call_at(deadline, self._unpark)  # type: ignore[union-attr]
        try:
            await self._park()
        finally:
            timer.cancel()

    def _changed(self) -> bool:
        """Whether there may be something to receive: what a reader asks after arming, before it sleeps."""
        position = self._position
        return (
            self._ring.head != position or self._hub._closed or self._closed_at is not None or position >= self._stop_at
        )

    # ── ending ────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Unsubscribe at once. What was not read is counted as abandoned. Idempotent; any thread."""
        self._finish()
        if self._waiting:
            self._hub._wakeups.notify()

    async def aclose(self) -> None:
        """As ``close``; for symmetry with other async resources."""
        self.close()

    def _finish(self) -> None:
        with self._hub._lock:
            if self._closed_at is not None:
                return
            self._settle()
            self._settle_loss()
            self._closed_at = min(self._ring.head, self._stop_at) if self._cut_at is None else self._cut_at
            self._slice = ()
            self._look_at_yourself()
            self._hub._forget(self)

    def _settle_loss(self) -> None:
        """What is lost by now is counted; a reader that leaves needs no notice of it."""
        lost = self._pending(self._base)
        self._dropped += lost
        self._reported += lost
        self._base += lost

    def _overflown(self, head: int) -> None:
        """``overflow="disconnect"`` struck when the head reached ``head``."""
        with self._hub._lock:
            if self._cut_at is None and self._closed_at is None:
                self._settle()
                self._cut_at = head
                self._closed_at = head
                self._slice = ()
                self._look_at_yourself()
                self._hub._forget(self)

    def _raise_end(self) -> None:
        if self._hub._failure is not None and self._closed_at == self._hub.head:
            raise self._hub._failure  # what was repeated here cannot be read further
        if self._cut_at is not None:
            if not self._told_cut:
                self._told_cut = True
                self._hub._alarm.ring("subscriber %r of %r fell behind and was cut off", self.name, self._hub.name)
            raise SubscriberOverflowError(self._position, None if self._capacity == INFINITE else self._capacity)
        raise EndOfStream

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        hub = getattr(self, "_hub", None)
        if hub is None or hub._forked or not hasattr(self, "_warns"):  # __init__ did not finish
            return
        if self._closed_at is None and self._warns and not hub._closed:
            text = f"unclosed {self!r}: close it, or read it to the end"
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)
        # The collector may run while this thread has another hub's lock: waiting for this one could be for ever.
        if hub._lock.acquire(timeout=COLLECT_PATIENCE):
            try:
                if hub._counting:
                    hub._unfinished.append(self)
                else:
                    self._finish()
                    hub._bury(self)
            finally:
                hub._lock.release()
        else:
            hub._unfinished.append(self)  # lives until the hub's next decision

    # ── the books ─────────────────────────────────────────────────────────────────────────────────

    @property
    def position(self) -> int:
        """The position of the last event that was received, passed over, or reported lost."""
        return self._position

    @property
    def lag(self) -> int:
        """Events accepted and not yet received."""
        return self.stats().buffered

    @property
    def dropped(self) -> int:
        """Events lost to this reader, reported or not yet."""
        return self.stats().dropped

    @property
    def closed(self) -> bool:
        """Whether the stream is over: closed, cut off, or read to the end."""
        return self._closed_at is not None

    def stats(self) -> SubscriberStats:
        """Where every event since this stream's start went; exact at the instant of the call."""
        with self._hub._lock:
            return self._stats()

    def _pending(self, position: int) -> int:
        """Events after ``position`` that are lost already, and that the reader will learn of at its next receive."""
        if self._closed_at is not None:
            return 0
        ring = self._ring
        head = min(ring.head, self._stop_at)
        floor = max(position, self._history_floor)
        if self._overflow == "drop_oldest":
            floor = max(floor, head - self._limit)
        start, in_hand = self._in_hand()
        if start <= floor < in_hand:
            # What is in hand survives the byte bound, so a second range may be lost behind it.
            return floor - position + min(ring.lost_after(in_hand), head - in_hand)
        return floor - position + min(ring.lost_after(floor), head - floor)

    def _stats(self) -> SubscriberStats:
        head = min(self._ring.head, self._stop_at)
        if self._overflow == "disconnect" and self._closed_at is None and head > self._full_at():
            self._overflown(self._full_at() + 1)
        closed_at = self._closed_at
        if closed_at is not None:
            head = closed_at
        position = self._position  # once: an iteration in another thread moves it without the lock
        pending = self._pending(position)
        dropped = self._dropped + pending
        unread = head - position - pending
        in_skip = self._on_lag == "skip"
        oldest = None if closed_at is not None or not unread else self._oldest_unread()
        return SubscriberStats(
            name=self.name,
            s0=self._s0,
            head=head,
            position=position,
            delivered=position - self._s0 - self._dropped - self._filtered,
            filtered=self._filtered,
            dropped=dropped,
            reported=dropped if in_skip else self._reported,
            pending_report=0 if in_skip else pending,
            buffered=0 if closed_at is not None else unread,
            abandoned=unread if closed_at is not None else 0,
            filter_errors=self._filter_errors,
            lag_seconds=0.0 if oldest is None else max(0.0, (self._hub._now() - oldest.timestamp).total_seconds()),
            distance_to_loss=None if closed_at is not None else max(0, self._room_for() - unread),
            closed=closed_at is not None,
        )

    def _room_for(self) -> int:
        """Events that may wait for this reader: its own capacity, or as many small ones as the bytes still allow."""
        ring, hub = self._ring, self._hub
        return min(self._limit, (hub.max_bytes - ring.extra) // FLAT_BYTES)

    def _oldest_unread(self) -> Event | None:
        ring = self._ring
        seq = max(self._position, ring.oldest(), ring.head - self._limit) + 1
        return ring.slots[seq % ring.size] if seq <= ring.head else None

    def __repr__(self) -> str:
        state = "closed" if self._closed_at is not None else "open"
        return f"<EventStream {self.name!r} {state} position={self._position}>"

    def __reduce__(self) -> Any:
        raise TypeError("an EventStream lives in one process and cannot be pickled; send its position instead")


def check_timeout(seconds: float) -> float:
    """``seconds``, unless no clock could ever reach them."""
    if seconds != seconds:
        raise ValueError(f"seconds={seconds!r}: give a number of seconds")
    return seconds
