"""A hub that repeats a run from elsewhere: events that have their stamps, fed in by whoever reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from weavegraph.bus._hub import EventHub
from weavegraph.bus._stream import EventStream, OnLag
from weavegraph.events import GAP_SCOPE, STREAM_END_SCOPE, Event, EventFilter, Predicate, admit

__all__ = ["ReplayHub"]

BUFFER = 1024
"""Events that are read ahead of the reader."""


class ReplayHub(EventHub):
    """One reader's view of a run in a log: positions are ``run_seq``, a trimmed beginning is an exact gap.

    The feeder waits for the reader, so nothing is lost however slow it is, and no more than ``BUFFER`` events are held.
    """

    def __init__(self, run_id: str, after: int) -> None:
        super().__init__(BUFFER, name=run_id)
        self._warns = False
        self._ring.head = self._ring.tail = after
        self._replan()

    def stream(self, filter: EventFilter | Predicate | None, on_lag: OnLag, name: str | None) -> EventStream:
        """The one reader."""
        stream = self.subscribe(after=self.head, overflow="block", on_lag=on_lag, filter=filter, name=name)
        stream._warns = False
        return stream

    async def feed(self, events: AsyncIterator[Event], *, follow: bool, last: Any) -> None:
        """Pass ``events`` on until they end; without ``follow`` also where an attempt ended and none has begun.

        ``last``: a coroutine function that tells the run's last position in its source.
        """
        try:
            async for event in events:
                if event.scope == GAP_SCOPE and event.run_seq is None:
                    await self._jump(int(event.metadata["last_seq"]))
                    continue
                await self._repeat(event)
                if not self._streams:
                    return  # the reader left
                if event.scope == STREAM_END_SCOPE and not follow and await last() == event.run_seq:
                    return
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            self._failure = exc
        finally:
            self.close()
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    async def _repeat(self, event: Event) -> None:
        event, extra = admit(event, reserved=True, stamp_bytes=0)
        while not await self._room():
            if not self._streams:
                return
        ring = self._ring
        with self._lock:
            seq = ring.head + 1
            if seq > self._limit or extra:
                self._make_room(seq, extra, self._ask(seq, extra, True))
            ring.slots[seq % ring.size] = event
            ring.head = seq
            if extra:
                ring.weigh(seq, extra)
        if self._wakeups.armed:
            self._wakeups.notify()

    async def _jump(self, last: int) -> None:
        """Everything up to ``last`` is gone at the source: let the reader take what is before, then learn of it."""
        while self._streams and any(stream._position < self.head for stream in self._living()):
            await self._room(empty=True)
        with self._lock:
            self._ring.head = self._ring.tail = max(self._ring.head, last)
            self._replan()
        if self._wakeups.armed:
            self._wakeups.notify()

    async def _room(self, *, empty: bool = False) -> bool:
        """Wait until the reader has room for one more (or has read all), or until it moved or left."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._producers[future] = loop
        try:
            behind = max((self.head - stream._position for stream in self._living()), default=0)
            if behind < (1 if empty else BUFFER):
                return True
            await future
            return False
        finally:
            self._producers.pop(future, None)
