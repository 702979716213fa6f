"""A followed run: what the one reader of this process found, for everyone here who follows it. No connection, no loop.

A feed begins at the position where its first follower's direct look ended, and holds what came since, contiguously, in
a ring. Who stands inside of the ring is served from it; who is behind asks the server directly. Whatever does not fit
behind the ring's end (a hole, after a trim) makes the feed forget everything and begin again with the next look.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from weavegraph.events import Event
from weavegraph.log._reading import PAGE_BYTES, PAGE_EVENTS, Page
from weavegraph.log._rules import RunRecord, advance

__all__ = ["RING_BYTES", "RING_EVENTS", "Feed"]

RING_EVENTS, RING_BYTES = 2048, 8 * 1024 * 1024
"""Of one feed. Beyond either, its older half goes: followers that far behind read from the server."""


class Feed:
    """Any thread reads pages; the reader's thread alone takes entries."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.users = 0  # guarded by the lock of who holds the feeds
        self._lock = threading.Lock()  # guards all below
        self._begun = False
        self._base = 0  # the position before the ring's first event
        self._events: list[Event] = []
        self._sizes: list[int] = []
        self._bytes = 0
        self._record: RunRecord | None = None

    @property
    def position(self) -> int | None:
        """The last position it has; ``None`` until it began."""
        with self._lock:
            return self._base + len(self._events) if self._begun else None

    def begin(self, record: RunRecord | None) -> bool:
        """Begin behind what a direct look showed; ``False`` when it has begun already."""
        with self._lock:
            if self._begun:
                return False
            self._begun, self._record = True, record
            self._base = 0 if record is None else record.last
            return True

    def take(self, entries: Sequence[tuple[int, Event, int]]) -> None:
        """What the reader found: positions, events and their sizes, in order."""
        with self._lock:
            for position, event, size in entries:
                end = self._base + len(self._events)
                if not self._begun or position <= end:
                    continue
                if position > end + 1:
                    self._forget()
                    return
                self._events.append(event)
                self._sizes.append(size)
                self._bytes += size
                self._record = advance(self._record, (event,), size)
            if len(self._events) > RING_EVENTS or self._bytes > RING_BYTES:
                self._drop_half()

    def page(self, after: int) -> Page | None:
        """The page after that position, or ``None`` when the server has to be asked."""
        with self._lock:
            start = after - self._base
            if not self._begun or start < 0 or start > len(self._events):
                return None
            stop, size = start, 0
            while stop < min(start + PAGE_EVENTS, len(self._events)) and size <= PAGE_BYTES:
                size += self._sizes[stop]
                stop += 1
            return Page(self._record, self._events[start:stop])

    def forget(self) -> None:
        """Begin anew with the next direct look."""
        with self._lock:
            self._forget()

    def _drop_half(self) -> None:
        # One event stays at least, however large it is.
        count = max(1, len(self._events) // 2)
        self._bytes -= sum(self._sizes[:count])
        self._base += count
        del self._events[:count], self._sizes[:count]

    def _forget(self) -> None:
        self._begun, self._record, self._bytes = False, None, 0
        self._events, self._sizes = [], []
