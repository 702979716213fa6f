"""The hub beside a model that is nothing but lists and integers, after every single step (contract 2–6)."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support import StillClock, clause, examples
from weavegraph import (
    GAP_SCOPE,
    BackpressureError,
    EndOfStream,
    EventHub,
    EventStream,
    HubClosedError,
    Lagged,
    NodeEvent,
    SubscriberOverflowError,
    node_message,
)
from weavegraph.bus import _stream
from weavegraph.errors import InvalidPositionError


@dataclass
class Reader:
    """What the contract says about one subscriber."""

    stream: EventStream | None
    capacity: int
    overflow: str
    on_lag: str
    filtered: bool
    s0: int
    floor: int
    position: int
    window: int
    replay_end: int
    delivered: list[int] = field(default_factory=list)
    dropped: int = 0
    reported: int = 0
    passed: int = 0
    closed_at: int | None = None
    cut: bool = False

    def matches(self, seq: int) -> bool:
        return not self.filtered or seq % 3 != 0

    def lost_up_to(self, head: int) -> int:
        if self.overflow == "drop_oldest":
            return max(self.floor, head - self.window, self.position)
        return max(self.floor, self.position)

    def books(self, head: int) -> tuple[int, ...]:
        if self.closed_at is not None:
            pending, unread = 0, self.closed_at - self.position
            buffered, abandoned = 0, unread
        else:
            pending = self.lost_up_to(head) - self.position
            buffered, abandoned = head - self.position - pending, 0
        dropped = self.dropped + pending
        skip = self.on_lag == "skip"
        reported = dropped if skip else self.reported
        return (
            len(self.delivered), self.passed, dropped, reported, 0 if skip else pending, buffered, abandoned
        )  # fmt: skip

    def close(self, head: int) -> None:
        if self.closed_at is None:
            lost = self.lost_up_to(head) - self.position
            self.dropped += lost
            self.reported += lost
            self.position += lost
            self.closed_at = head

    def full_at(self) -> int:
        return max(self.position, self.floor) + self.window

    def overflows(self, head: int) -> bool:
        return self.overflow == "disconnect" and self.closed_at is None and head > self.full_at()

    def cut_off(self) -> None:
        self.closed_at, self.cut = self.full_at() + 1, True


class HubBesideModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hub: EventHub | None = None
        self.readers: list[Reader] = []
        self.head = self.refused_full = self.refused_closed = 0
        self.closed = False
        self.loop = asyncio.new_event_loop()
        # A receive that only finds events to filter out gives up after some milliseconds: here none pass.
        self.clock, _stream.clock = _stream.clock, lambda: 0.0

    def teardown(self) -> None:
        _stream.clock = self.clock
        for reader in self.readers:
            if reader.stream is not None:
                reader.stream.close()
        if self.hub is not None:
            self.hub.close()
        self.loop.close()

    @precondition(lambda self: self.hub is None)
    @rule(capacity=st.integers(1, 40) | st.sampled_from([64, 1000, None]))
    def create(self, capacity: int | None) -> None:
        self.capacity = 1 << 62 if capacity is None else capacity
        self.hub = EventHub(capacity, clock=StillClock())

    @precondition(lambda self: self.hub is not None)
    @rule(count=st.integers(1, 50))
    def publish(self, count: int) -> None:
        assert self.hub is not None
        for _ in range(count):
            event = node_message("a", str(self.head + 1))
            full = any(
                reader.overflow == "block" and reader.closed_at is None and self.head + 1 > reader.full_at()
                for reader in self.readers
            )  # fmt: skip
            if self.closed:
                with pytest.raises(HubClosedError):
                    self.hub.publish(event)
                self.refused_closed += 1
            elif full:
                with pytest.raises(BackpressureError):
                    self.hub.publish(event)
                self.refused_full += 1
            else:
                self.head += 1
                assert self.hub.publish(event) == self.head
                for reader in self.readers:
                    if reader.overflows(self.head):
                        reader.cut_off()

    @precondition(lambda self: self.hub is not None and len(self.readers) < 12)
    @rule(
        after=st.none() | st.floats(0, 1) | st.just(0.0) | st.just(1.0),
        capacity=st.none() | st.integers(1, 60),
        overflow=st.sampled_from(["drop_oldest", "drop_oldest", "block", "disconnect"]),
        on_lag=st.sampled_from(["notice", "raise", "skip"]),
        filtered=st.booleans(),
    )
    def subscribe(self, after: float | None, capacity: int | None, overflow: Any, on_lag: Any, filtered: bool) -> None:
        assert self.hub is not None
        position = None if after is None else round(after * self.head)
        stream = self.hub.subscribe(
            after=position, capacity=capacity, overflow=overflow, on_lag=on_lag,
            filter=(lambda event: event.seq % 3 != 0) if filtered else None,
        )  # fmt: skip
        start = self.head if position is None else position
        own = self.capacity if capacity is None else capacity
        floor = max(self.head - self.capacity, 0)
        # Replayed events do not count until the reader has caught up.
        window = own + self.head - max(start, floor)
        replay_end = self.head if start < self.head else 0
        self.readers.append(
            Reader(stream, own, overflow, on_lag, filtered, start, floor, start, window, replay_end)
        )  # fmt: skip

    @precondition(lambda self: self.hub is not None)
    @rule(beyond=st.integers(1, 5))
    def subscribe_beyond_the_head(self, beyond: int) -> None:
        assert self.hub is not None
        with pytest.raises(InvalidPositionError):
            self.hub.subscribe(after=self.head + beyond)

    def some(self, index: int) -> Reader | None:
        held = [reader for reader in self.readers if reader.stream is not None]
        return held[index % len(held)] if held else None

    def before_receiving(self, reader: Reader) -> tuple[str, Any]:
        """What the next receive has to begin with."""
        if reader.closed_at is not None:
            return ("overflow" if reader.cut else "end"), None
        if (
            reader.replay_end
            and reader.position >= reader.replay_end
            and self.head - reader.position <= reader.capacity
        ):
            reader.replay_end, reader.window = 0, reader.capacity
        floor = reader.lost_up_to(self.head)
        if floor > reader.position:
            lost = (reader.position + 1, floor)
            reader.dropped += floor - reader.position
            reader.reported += floor - reader.position
            reader.position = floor
            if reader.on_lag != "skip":
                return "lost", lost
            return self.before_receiving(reader)
        rest = range(reader.position + 1, self.head + 1)
        following = next((seq for seq in rest if reader.matches(seq)), None)
        if following is not None:
            return "event", following
        return "none", None

    def nothing_matches(self, reader: Reader) -> None:
        reader.passed += self.head - reader.position
        reader.position = self.head

    def receive(self, reader: Reader, call: Any) -> None:
        stream = reader.stream
        assert stream is not None
        kind, detail = self.before_receiving(reader)
        try:
            got = call()
        except EndOfStream:
            assert kind == "end" or (kind == "none" and self.closed)
            if kind == "none":
                self.nothing_matches(reader)
                reader.close(self.head)
            return
        except SubscriberOverflowError as error:
            assert kind == "overflow"
            assert error.last_position == reader.position
            return
        except Lagged as lagged:
            assert (kind, reader.on_lag) == ("lost", "raise")
            assert (lagged.first_seq, lagged.last_seq) == detail
            assert lagged.missed == detail[1] - detail[0] + 1
            return
        if kind == "none":
            assert not got
            self.nothing_matches(reader)
            return
        batch = got if isinstance(got, tuple) else (got,)
        if kind == "lost":
            (notice,) = batch
            assert (notice.scope, notice.seq) == (GAP_SCOPE, 0)
            assert (notice.metadata["first_seq"], notice.metadata["last_seq"]) == detail
            assert notice.metadata["count"] == detail[1] - detail[0] + 1
            return
        assert kind == "event"
        passed = range(reader.position + 1, stream.position + 1)
        expected = [seq for seq in passed if reader.matches(seq)]
        assert [event.seq for event in batch] == expected
        assert [event.message for event in batch] == [str(seq) for seq in expected]
        assert expected[0] == detail
        reader.delivered += expected
        reader.passed += len(passed) - len(expected)
        reader.position = stream.position

    @rule(index=st.integers(0, 50), times=st.integers(1, 20))
    def try_recv(self, index: int, times: int) -> None:
        reader = self.some(index)
        if reader is not None and reader.stream is not None:
            for _ in range(times):
                before = len(reader.delivered)
                self.receive(reader, reader.stream.try_recv)
                assert len(reader.delivered) - before <= 1

    @rule(index=st.integers(0, 50), most=st.integers(1, 70))
    def take_many(self, index: int, most: int) -> None:
        reader = self.some(index)
        if reader is not None and reader.stream is not None:
            stream, before = reader.stream, len(reader.delivered)
            self.receive(reader, lambda: stream._take_many(most))
            assert len(reader.delivered) - before <= most

    @rule(index=st.integers(0, 50), how=st.sampled_from(["recv_many", "next_timeout", "cancelled"]))
    def receive_in_a_loop(self, index: int, how: str) -> None:
        reader = self.some(index)
        if reader is None or reader.stream is None:
            return
        stream = reader.stream

        async def call() -> Any:
            if how == "next_timeout":
                return await stream.next_timeout(0)
            task = asyncio.ensure_future(stream.recv_many(7))
            for _ in range(3):
                await asyncio.sleep(0)
            if not task.done() or how == "cancelled":
                task.cancel()
            await asyncio.wait([task])
            return () if task.cancelled() else task.result()

        self.receive(reader, lambda: self.loop.run_until_complete(call()))

    @rule(index=st.integers(0, 50), dropped=st.booleans())
    def leave(self, index: int, dropped: bool) -> None:
        reader = self.some(index)
        if reader is not None and reader.stream is not None:
            reader.close(self.head)
            if dropped:
                reader.stream._warns = False
            else:
                reader.stream.close()
                self.check_one(reader)
                reader.stream.close()
            reader.stream = None
            if dropped:
                gc.collect()  # a Lagged from a task holds its frames, and with them the stream, in a cycle

    @precondition(lambda self: self.hub is not None and self.head > 60)
    @rule()
    def close(self) -> None:
        assert self.hub is not None
        self.hub.close()
        self.closed = True

    def check_one(self, reader: Reader) -> None:
        assert reader.stream is not None
        stats = reader.stream.stats()
        found = (
            stats.delivered, stats.filtered, stats.dropped, stats.reported, stats.pending_report, stats.buffered,
            stats.abandoned,
        )  # fmt: skip
        assert found == reader.books(self.head)
        assert stats.unaccounted == 0
        assert stats.dropped == stats.reported + stats.pending_report
        assert stats.head == (self.head if reader.closed_at is None else reader.closed_at)
        assert (stats.s0, stats.position, stats.closed) == (reader.s0, reader.position, reader.closed_at is not None)

    @invariant()
    def the_totals_and_every_readers_books_are_the_models(self) -> None:
        if self.hub is None:
            return
        metrics = self.hub.metrics()
        assert metrics == self.hub.metrics()
        for reader in self.readers:
            if reader.stream is not None:
                self.check_one(reader)
        books = [reader.books(self.head) for reader in self.readers]
        totals = [sum(column) for column in zip(*books, strict=True)] or [0] * 7
        assert [
            metrics.delivered, metrics.filtered, metrics.dropped, metrics.buffered, metrics.abandoned
        ] == [totals[0], totals[1], totals[2], totals[5], totals[6]]  # fmt: skip
        assert (metrics.head, metrics.accepted, self.hub.head) == (self.head,) * 3
        assert (metrics.refused_full, metrics.refused_closed) == (self.refused_full, self.refused_closed)
        assert metrics.attempts == self.head + self.refused_full + self.refused_closed
        assert len(metrics.subscribers) == sum(reader.closed_at is None for reader in self.readers)
        assert metrics.oldest == max(self.head - self.capacity, 0)


HubBesideModel.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


@clause("O1", "A1", "A2", "A3", "A4", "A5", "A7", "K1", "E1", "E2", "L1", "L5", "C1", "R1", "R6", "4.drop_oldest")
@clause("4.block", "4.disconnect")
class TestHub(HubBesideModel.TestCase):  # type: ignore[name-defined,misc]
    """Every sequence of steps gives what the model says."""


@clause("L3", "K1", "A1", "A2", "A3", "L4")
@given(
    max_bytes=st.integers(1024, 60_000),
    capacity=st.none() | st.integers(1, 60),
    lane=st.booleans(),
    steps=st.lists(
        st.tuples(st.just("publish"), st.integers(0, 9000), st.booleans())
        | st.tuples(st.just("read"), st.integers(1, 30), st.booleans())
        | st.tuples(st.just("subscribe"), st.integers(0, 2), st.booleans()),
        max_size=120,
    ),
)
@settings(max_examples=examples(150), deadline=None)
def test_within_any_byte_bound_the_books_are_exact_and_the_newest_event_is_held(
    max_bytes: int, capacity: int | None, lane: bool, steps: list[tuple[str, int, bool]]
) -> None:
    from weavegraph.bus import Lane

    bus = EventHub(capacity, max_bytes=max_bytes)
    hub: EventHub = Lane(bus, "r", "s") if lane else bus
    streams: list[EventStream] = [hub.subscribe()]
    seen: dict[int, list[int]] = {0: []}
    for what, number, flag in steps:
        if what == "publish":
            event = NodeEvent("weavegraph.node.failed" if flag and lane else "a", "x" * number)
            stamped = hub._accept(event, reserved=True)
            position = stamped.run_seq if lane else stamped.seq
            assert position == hub.head
            with hub.subscribe(after=hub.head - 1) as late:
                newest = late.try_recv()
                assert newest is stamped
            charge = 1024 if number < 85 else number + 1700
            assert bus.metrics().bytes <= max(max_bytes, charge)
        elif what == "subscribe" and len(streams) < 5:
            after = None if number == 2 else number * hub.head // 2
            seen[len(streams)] = []
            streams.append(hub.subscribe(after=after, capacity=None if flag else 5, on_lag="notice"))
        elif what == "read":
            index = number % len(streams)
            stream, last = streams[index], seen[index]
            for _ in range(number if flag else 1):
                before = stream.stats()
                got = stream.try_recv()
                if got is None:
                    assert before.buffered == before.pending_report == 0
                    break
                if got.scope == GAP_SCOPE:
                    assert got.metadata["first_seq"] == before.position + 1
                    assert stream.position == got.metadata["last_seq"]
                    assert before.pending_report >= got.metadata["count"]
                else:
                    position = got.run_seq if lane else got.seq
                    assert position == before.position + 1 == stream.position
                    last.append(position)
        for stream in streams:
            stats = stream.stats()
            assert stats.unaccounted == 0
            assert stats.dropped == stats.reported + stats.pending_report
            assert min(stats.delivered, stats.dropped, stats.buffered, stats.pending_report) >= 0
    for index, stream in enumerate(streams):
        while (got := stream.try_recv()) is not None:
            if got.scope != GAP_SCOPE:
                seen[index].append(got.run_seq or got.seq)
        stats = stream.stats()
        assert (stats.buffered, stats.delivered) == (0, len(seen[index]))
        assert stats.dropped == stats.head - stats.s0 - len(seen[index])
        stream.close()
    hub.close()
    bus.close()
