"""A window of encoded chunks against a plain list: whatever a viewer asks, from wherever it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import clause, settle
from tests.web.support import Parser
from weavegraph.bus import gap_event
from weavegraph.errors import EndOfStream, LogUnavailableError
from weavegraph.events import Event, EventFilter, Redactor, diagnostic, node_message
from weavegraph.web._feed import SEND_BYTES, WINDOW_EVENTS, Feed, encode, gap_frame
from weavegraph.web._ids import WireIds
from weavegraph.web._viewer import Viewer


class Told:
    """A source that holds events after ``oldest``, in batches; more may be said, and it may break or end."""

    def __init__(self, oldest: int = 0, pad: int = 0) -> None:
        self.ids = WireIds("r", None)
        self.events: list[Event] = []
        self.oldest, self.pad = oldest, pad
        self.done: Exception | None = None
        self.readers = self.opened = 0
        self._changed = asyncio.Event()

    def say(self, count: int) -> None:
        for _ in range(count):
            seq = len(self.events) + 1
            make = node_message if seq % 3 else diagnostic
            event = make("even" if seq % 2 == 0 else "odd", "x" * self.pad)
            self.events.append(msgspec.structs.replace(event, seq=seq, run_seq=seq, run_id="r"))
        self.change()

    def change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def position(self, event: Event) -> int:
        return event.run_seq or 0

    def open(self, after: int) -> Any:
        self.readers += 1
        self.opened += 1
        return Reading(self, after)

    async def head(self) -> int:
        return len(self.events)

    async def over(self) -> bool:
        return isinstance(self.done, EndOfStream)

    def owned(self) -> bool:
        return True


class Reading:
    def __init__(self, told: Told, after: int) -> None:
        self._told, self._after = told, after

    async def batch(self) -> Sequence[Event]:
        told = self._told
        while True:
            if self._after < told.oldest:
                first, self._after = self._after + 1, told.oldest
                return [gap_event(told.oldest - first + 1, first, told.oldest)]
            found = told.events[self._after : self._after + 7]
            if found:
                self._after += len(found)
                return found
            if told.done is not None:
                raise told.done
            await told._changed.wait()

    async def aclose(self) -> None:
        self._told.readers -= 1


def positions(data: bytes) -> list[Any]:
    parser = Parser()
    parser.feed(data)
    found: list[Any] = []
    for frame in parser.frames:
        if frame.event == "gap":
            assert frame.id is None
            found.append((frame.json["metadata"]["first_seq"], frame.json["metadata"]["last_seq"]))
        else:
            found.append(frame.json["run_seq"])
    return found


async def read(viewer: Viewer) -> list[Any]:
    found = b""
    try:
        async with asyncio.timeout(10):
            while True:
                data = await viewer.next()
                assert len(data) <= 2 * SEND_BYTES + 40_000
                found += data
    except EndOfStream:
        await viewer.aclose()
        return positions(found)


@clause("10.valid", "10.trimmed", "A3")
@given(
    st.integers(0, 60), st.integers(0, 30), st.integers(0, 60), st.integers(0, 60),
    st.sampled_from([None, EventFilter(scopes=("odd",)), EventFilter(kinds=("node",))]),
)  # fmt: skip
def test_what_a_viewer_is_given_from_wherever_it_stands(
    count: int, oldest: int, start: int, after: int, wanted: EventFilter | None
) -> None:
    async def watch() -> tuple[list[Any], Told]:
        told = Told(min(oldest, count))
        told.say(count)
        told.done = EndOfStream()
        feed = Feed(told, min(start, count), Redactor(None), lambda _: None)
        found = await read(Viewer(feed, min(after, count), form="sse", wanted=wanted, foreign=False))
        await feed.closed()
        return found, told

    found, told = asyncio.run(watch())
    at = min(after, count)
    expected: list[Any] = [(at + 1, told.oldest)] if at < told.oldest else []
    expected += [event.run_seq for event in told.events[max(at, told.oldest) :] if wanted is None or wanted(event)]
    assert found == expected
    assert told.readers == 0


async def test_who_stands_in_a_gap_is_told_of_the_rest_of_it() -> None:
    told = Told(10)
    told.say(12)
    told.done = EndOfStream()
    feed = Feed(told, 0, Redactor(None), lambda _: None)
    await feed.closed()
    assert await read(Viewer(feed, 4, form="sse", wanted=None, foreign=False)) == [(5, 10), 11, 12]
    assert gap_frame(5, 10).id is None


async def test_the_window_is_bounded_and_who_falls_out_reads_for_itself() -> None:
    told = Told(pad=3000)
    feed = Feed(told, 0, Redactor(None), lambda _: None)
    slow = Viewer(feed, 0, form="sse", wanted=None, foreign=False)
    told.say(2 * WINDOW_EVENTS)
    await settle(2000)
    assert feed.last == 2 * WINDOW_EVENTS
    assert feed._bytes < 1.1 * 1024 * 1024 and not feed.holds(0)
    told.done = EndOfStream()
    told.change()
    assert await read(slow) == [*range(1, 2 * WINDOW_EVENTS + 1)]
    assert told.opened == 2 and told.readers == 0


async def test_those_in_the_window_are_given_the_same_bytes() -> None:
    told = Told()
    feed = Feed(told, 0, Redactor(None), lambda _: None)
    told.say(5)
    await settle()
    one, other = (Viewer(feed, 0, form="sse", wanted=None, foreign=False) for _ in range(2))
    assert await one.next() is await other.next()
    feed.close()


async def test_a_source_that_breaks_is_told_by_its_code() -> None:
    told = Told()
    told.say(3)
    told.done = LogUnavailableError("/secret/place", "disk full")
    feed = Feed(told, 0, Redactor(None), lambda _: None)
    viewer = Viewer(feed, 0, form="sse", wanted=None, foreign=False)
    assert await read(viewer) == [1, 2, 3]
    assert viewer.ending == "failed" and viewer.failure is not None and viewer.failure.code == "log_unavailable"


async def test_an_event_that_is_larger_than_a_send_is_sent_alone() -> None:
    told = Told(pad=SEND_BYTES + 1)
    told.say(3)
    told.done = EndOfStream()
    feed = Feed(told, 0, Redactor(None), lambda _: None)
    await feed.closed()
    data, position = encode(feed._chunks[0], 0, "sse", None)
    assert position == 1 and positions(data) == [1]


@pytest.mark.parametrize("why", ["shutdown", "gone", "reauth"])
async def test_a_stream_can_be_ended_while_it_waits(why: Any) -> None:
    told = Told()
    feed = Feed(told, 0, Redactor(None), lambda _: None)
    viewer = Viewer(feed, 0, form="sse", wanted=None, foreign=False)
    reading = asyncio.create_task(read(viewer))
    await settle()
    viewer.end(why)
    viewer.end("gone")
    assert await reading == [] and viewer.ending == why
    feed.close()
    await feed.closed()
    assert told.readers == 0
