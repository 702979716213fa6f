"""Reading a run page by page: the past, the seam, what comes; the same for every log that can fetch a page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeAlias

import msgspec

from weavegraph.bus import gap_event
from weavegraph.errors import LogCorruptError
from weavegraph.events import Event
from weavegraph.log._rules import RunRecord, check_after
from weavegraph.storage import Watch

__all__ = ["PAGE_BYTES", "PAGE_EVENTS", "Fetch", "Page", "follow_run", "read_run"]

PAGE_EVENTS, PAGE_BYTES = 500, 1024 * 1024
"""A page ends with whichever comes first; it holds one event at least."""


class Page(msgspec.Struct, frozen=True):
    """The run and its events after a position, of one instant. ``record`` is ``None`` for a run that is not there."""

    record: RunRecord | None
    events: Sequence[Event] = ()


Fetch: TypeAlias = Callable[[int], Awaitable[Page]]
"""Called with a position; the page after it."""


async def read_run(fetch: Fetch, after: int, upto: int | None = None) -> AsyncIterator[Event]:
    """What is held after ``after`` at this moment, or up to ``upto``; then the end."""
    page = await fetch(after if type(after) is int and after >= 0 else 0)
    position = check_after(after, page.record)
    if page.record is None:
        return
    end = page.record.last if upto is None else min(upto, page.record.last)
    while position < end:
        for event in _entries(page, position, end):
            position = _reached(event)
            yield event
        if position < end:
            page = await fetch(position)


async def follow_run(fetch: Fetch, watch: Callable[[], Watch], after: int) -> AsyncIterator[Event]:
    """As ``read_run``, then what comes, until a final outcome is the last thing there."""
    with watch() as changes:  # before the first look: nothing can come unseen between the two
        page = await fetch(after if type(after) is int and after >= 0 else 0)
        position, head = check_after(after, page.record), 0
        while True:
            if page.record is not None:
                head = page.record.last
                for event in _entries(page, position, page.record.last):
                    position = _reached(event)
                    yield event
                if position >= page.record.last:
                    if page.record.finished:
                        return
                    await changes.wait()
            elif head:  # finished, and forgotten
                for event in _entries(page, position, head):
                    yield event
                return
            else:
                await changes.wait()
            page = await fetch(position)


def _reached(event: Event) -> int:
    """The position of an event, or the last one of a gap."""
    return event.run_seq or int(event.metadata["last_seq"])


def _entries(page: Page, position: int, end: int) -> Iterator[Event]:
    """The page's events up to ``end``; first a gap for what is no longer held."""
    record = page.record
    first = end + 1 if record is None else min(record.first, end + 1)
    if first > position + 1:
        gap = gap_event(first - position - 1, position + 1, first - 1)
        if record is not None:
            gap = msgspec.structs.replace(gap, run_id=record.run_id, session_id=record.session_id or None)
        position = first - 1
        yield gap
    for event in page.events:
        if position >= end:
            return
        if event.run_seq != position + 1:
            break
        position += 1
        yield event
    else:
        if page.events or position >= end:
            return
    assert record is not None
    raise LogCorruptError(f"run {record.run_id!r}", f"position {position + 1} is missing, {record.last} is the last")
