"""Contract sections 2 and 3: order, and where every event went."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support import balanced, clause, drain, fill, settle
from weavegraph import (
    GAP_SCOPE,
    EndOfStream,
    Event,
    EventBus,
    EventHub,
    EventHubMetrics,
    EventStream,
    Lagged,
    MemorySink,
    RunClosedError,
    node_message,
)
from weavegraph.bus import RetryPolicy
from weavegraph.bus._ring import Ring
from weavegraph.errors import BackpressureError, EventInvalidError, HubClosedError


@clause("O1", "O2")
def test_all_readers_see_one_order_that_respects_each_producer() -> None:
    """Eight threads, four readers, the interpreter switching as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with EventHub(capacity=50_000) as hub:
            readers = [hub.subscribe() for _ in range(4)]
            returned: list[list[int]] = [[] for _ in range(8)]

            def produce(who: int) -> None:
                for n in range(500):
                    returned[who].append(hub.publish(node_message("a", f"{who} {n}")))

            threads = [threading.Thread(target=produce, args=(who,)) for who in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            orders = []
            for reader in readers:
                events = []
                while (event := reader.try_recv()) is not None:
                    events.append((event.seq, event.message))
                orders.append(events)
                assert balanced(reader).delivered == 4000
                reader.close()
    finally:
        sys.setswitchinterval(interval)
    assert all(order == orders[0] for order in orders)
    assert [seq for seq, _ in orders[0]] == list(range(1, 4001))
    for who, positions in enumerate(returned):
        assert positions == sorted(positions)
        mine = [message for _, message in orders[0] if message.startswith(f"{who} ")]
        assert mine == [f"{who} {n}" for n in range(500)]


@clause("O1", "O2")
def test_the_order_of_the_bus_agrees_with_each_lanes() -> None:
    bus = EventBus(capacity=50_000)
    everything = bus.subscribe()
    lanes = [bus.open_lane(f"r{n}", "s") for n in range(4)]

    def produce(lane: EventHub) -> None:
        for n in range(300):
            lane.publish(node_message("a", str(n)))

    threads = [threading.Thread(target=produce, args=(lane,)) for lane in lanes for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = []
    while (event := everything.try_recv()) is not None:
        seen.append(event)
    assert [event.seq for event in seen] == list(range(1, 2401))
    for lane in lanes:
        alone = lane.subscribe(after=0)
        got = []
        while (event := alone.try_recv()) is not None:
            got.append(event)
        assert got == [event for event in seen if event.run_id == lane.name]
        assert [event.run_seq for event in got] == list(range(1, 601))
    bus.close()
    everything.close()


@clause("O3")
def test_nothing_is_accepted_after_the_end_of_a_run_and_the_refusal_is_counted() -> None:
    bus = EventBus()
    lane = bus.open_lane("r", "s")
    fill(lane, 3)
    bus.end_attempt(lane, "completed")
    with pytest.raises(RunClosedError) as caught:
        lane.emitter().emit(node_message("a", "late"))
    assert caught.value.run_id == "r"
    assert lane.producer_stats().refused_closed == 1
    assert lane.producer_stats().attempts == 4
    assert drain(lane.subscribe(after=0)) == [1, 2, 3]
    bus.close()


@clause("O7")
def test_stamps_are_taken_at_emission_and_decide_nothing() -> None:
    class Backwards:
        """A wall clock that jumps a day back at every look."""

        at = datetime(2026, 1, 10, tzinfo=UTC)

        def now(self) -> datetime:
            self.at -= timedelta(days=1)
            return self.at

        def monotonic(self) -> float:
            return 0.0

    with EventHub(clock=Backwards()) as hub, hub.subscribe() as stream:
        old = node_message("a", "made before")
        fill(hub, 2)
        hub.publish(old)
        events = [stream.try_recv() for _ in range(3)]
        assert [event.seq for event in events if event] == [1, 2, 3]
        assert [event.timestamp.day for event in events if event] == [9, 8, 7]
        assert all(event and event.timestamp.utcoffset() == timedelta(0) for event in events)


@clause("A1", "A2", "A3")
@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("on_lag", ["notice", "raise", "skip"])
def test_the_books_add_up_after_every_single_event_and_receive(capacity: int, on_lag: str) -> None:
    """``received + lagged == sent``, at every instant; between two events the gap is exactly what was reported."""
    with EventHub(capacity=8) as hub:
        stream = hub.subscribe(capacity=capacity, on_lag=on_lag, filter=lambda event: event.seq % 3 != 0)  # type: ignore[arg-type]
        last = reported = 0
        for round_ in range(60):
            for _ in range(round_ % 11):
                fill(hub, 1)
                balanced(stream)
            for _ in range(round_ % 7):
                before = stream.stats()
                try:
                    event = stream.try_recv()
                except Lagged as lagged:
                    assert lagged.missed == lagged.last_seq - lagged.first_seq + 1
                    reported += lagged.missed
                    balanced(stream)
                    continue
                stats = balanced(stream)
                if event is None:
                    assert stats.buffered == 0
                    break
                if event.seq == 0:
                    reported += event.metadata["count"]
                    assert stats.delivered == before.delivered
                    continue
                if on_lag == "skip":
                    reported += stats.dropped - before.dropped + before.pending_report
                    reported = stats.dropped
                passed = event.seq - last - 1
                assert passed + last == reported + stats.filtered + stats.delivered - 1
                last = event.seq
        stats = balanced(stream)
        assert stats.filtered > 0
        stream.close()
        assert balanced(stream).pending_report == 0


@clause("A1", "A2")
@pytest.mark.parametrize("read", [0, 1, 2])
def test_who_leaves_after_a_loss_that_was_not_told_has_it_in_the_books(read: int) -> None:
    with EventHub() as hub:
        stream = hub.subscribe(capacity=3)
        fill(hub, 3)
        for _ in range(read):
            stream.try_recv()
        fill(hub, 5)
        stream.close()
        stats = balanced(stream)
        assert (stats.delivered, stats.dropped, stats.reported, stats.abandoned) == (read, 5 - read, 5 - read, 3)


@clause("A1", "A3", "L3")
def test_what_a_reader_has_in_hand_survives_the_byte_bound() -> None:
    with EventHub(max_bytes=10 * 1024) as hub, hub.subscribe() as stream:
        fill(hub, 8)
        assert stream.try_recv() is not None  # fetched eight
        fill(hub, 20)
        stats = balanced(stream)
        assert (stats.delivered, stats.pending_report, stats.buffered) == (1, 10, 17)
        assert drain(stream) == [*range(2, 9), (9, 18), *range(19, 29)]
        assert balanced(stream).delivered == 18


@clause("A2")
def test_a_last_gap_notice_comes_before_the_end() -> None:
    with EventHub() as hub:
        stream = hub.subscribe(capacity=2)
        fill(hub, 5)
        hub.close()
        assert balanced(stream).pending_report == 3
        assert drain(stream) == [(1, 3), 4, 5]
        assert balanced(stream).pending_report == 0
        assert stream.closed


@clause("A3")
def test_one_notice_for_each_contiguous_range() -> None:
    with EventHub() as hub, hub.subscribe(capacity=3) as stream:
        fill(hub, 5)
        fill(hub, 5)
        assert drain(stream) == [(1, 7), 8, 9, 10]
        fill(hub, 4)
        assert drain(stream) == [(11, 11), 12, 13, 14]


@clause("A4", "A7")
def test_totals_include_closed_readers_and_never_go_back() -> None:
    with EventHub() as hub:
        one, two, three = hub.subscribe(capacity=2), hub.subscribe(), hub.subscribe(filter=lambda event: False)
        fill(hub, 10)
        drain(one), two.try_recv(), drain(three)
        before = hub.metrics()
        for stream in (one, two, three):
            stream.close()
        del stream, one, two, three
        after = hub.metrics()
        assert (before.delivered, before.dropped, before.filtered, before.buffered) == (3, 8, 10, 9)
        assert (after.delivered, after.dropped, after.filtered) == (3, 8, 10)
        assert (after.buffered, after.abandoned, after.subscribers) == (0, 9, ())
        assert hub.metrics() == after
        assert isinstance(hub.dropped, int) and hub.dropped == 8


@clause("A5")
async def test_every_attempt_to_publish_ends_in_exactly_one_count() -> None:
    hub = EventHub(block_timeout=0.0)
    reader = hub.subscribe(capacity=2, overflow="block")
    fill(hub, 2)
    with pytest.raises(BackpressureError):
        hub.publish(node_message("a", "full"))
    assert hub.emitter().emit(node_message("a", "full")) is None
    with pytest.raises(BackpressureError):
        await hub.publish_async(node_message("a", "full"))
    with pytest.raises(EventInvalidError):
        hub.publish(node_message("a", "nan", x=float("nan")))
    hub.block_timeout = 60.0
    waiting = asyncio.create_task(hub.publish_async(node_message("a", "waits")))
    await settle()
    stats = hub.producer_stats()
    assert (stats.accepted, stats.refused_full, stats.refused_invalid, stats.waiting) == (2, 3, 1, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hub.close()
    with pytest.raises(HubClosedError):
        hub.publish(node_message("a", "late"))
    stats = hub.producer_stats()
    assert (stats.accepted, stats.refused_full, stats.refused_invalid) == (2, 3, 1)
    assert (stats.refused_closed, stats.cancelled, stats.waiting, stats.attempts) == (1, 1, 0, 8)
    assert drain(reader) == [1, 2]


@clause("A6")
async def test_the_books_of_sinks_add_up_with_dead_letters_loss_and_what_is_in_hand() -> None:
    hold, begun = threading.Event(), threading.Event()

    class Stuck:
        name, capacity, max_batch = "stuck", 10, 4

        def handle(self, batch: object) -> None:
            begun.set()
            hold.wait(30)

    bus = EventBus([Stuck(), MemorySink()])
    fill(bus._hub, 3)
    assert await asyncio.to_thread(begun.wait, 30)
    fill(bus._hub, 100)
    for stats in bus.metrics().sinks:
        assert stats.unaccounted == 0
    (stuck,) = [stats for stats in bus.metrics().sinks if stats.name == "stuck"]
    assert (stuck.delivered, stuck.head) == (0, 103)
    assert stuck.buffered + stuck.dropped == 103
    hold.set()
    await bus.flush(timeout=30)
    for stats in bus.metrics().sinks:
        assert (stats.unaccounted, stats.buffered) == (0, 0)
        assert stats.delivered + stats.dropped == 103
    report = await bus.shutdown(30)
    assert report.complete


@clause("A7")
def test_counts_are_integers_and_reading_changes_nothing() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        fill(hub, 3)
        first, second = stream.stats(), stream.stats()
        counts = ("s0", "head", "delivered", "filtered", "dropped", "reported", "buffered", "abandoned")
        assert all(type(getattr(first, count)) is int for count in counts)
        assert all(getattr(first, count) == getattr(second, count) for count in counts)


@clause("A1", "A2")
@pytest.mark.parametrize("how", ["try_recv", "recv", "recv_many", "async for", "next_timeout", "blocking"])
async def test_delivered_is_what_the_reader_really_got(how: str) -> None:
    """Against the events in its hands, not against another count."""
    with EventHub(max_bytes=64 * 1024) as hub:
        stream = hub.subscribe(capacity=7, filter=lambda event: event.seq % 2 == 0)
        got: list[int] = []
        lost: list[tuple[int, int]] = []

        def take(event: Event) -> None:
            if event.seq:
                got.append(event.seq)
            else:
                lost.append((event.metadata["first_seq"], event.metadata["last_seq"]))

        for burst in (3, 20, 1, 7, 8, 30):
            fill(hub, burst)
            while stream.lag or stream.stats().pending_report:
                if how == "try_recv":
                    event = stream.try_recv()
                    events = () if event is None else (event,)
                elif how == "recv_many":
                    events = stream._take_many(3)
                elif how == "blocking":
                    event = await asyncio.to_thread(stream.blocking().next_timeout, 0)
                    events = () if event is None else (event,)
                else:
                    event = await stream.next_timeout(0) if how != "async for" else await _one(stream)
                    events = () if event is None else (event,)
                for each in events:
                    take(each)
                stats = balanced(stream)
                assert stats.delivered == len(got)
                assert stats.reported == sum(last - first + 1 for first, last in lost)
        missing = {seq for first, last in lost for seq in range(first, last + 1)}
        assert sorted([*got, *missing]) == sorted({*range(2, hub.head + 1, 2), *missing})
        assert balanced(stream).filtered == hub.head - len(got) - len(missing)
        stream.close()


async def _one(stream: EventStream) -> Event | None:
    if stream.lag == 0 and not stream.stats().pending_report:
        return None
    reading = asyncio.ensure_future(anext(aiter(stream)))
    await settle()
    if reading.done():
        return reading.result()
    reading.cancel()
    await asyncio.wait([reading])
    return None


@clause("A6")
async def test_delivered_of_a_sink_is_what_it_really_took() -> None:
    """Sync, inline, async and with its own loop, each with a bounded room and failures, against what they hold."""

    class Base:
        capacity, max_batch = 50, 7

        def __init__(self, name: str) -> None:
            self.name, self.got = name, []  # type: ignore[var-annotated]

        def take(self, batch: Sequence[Event]) -> None:
            if any(event.message.endswith("13") for event in batch):
                raise ValueError
            self.got += [event.seq for event in batch]

    class Sync(Base):
        def handle(self, batch: Sequence[Event]) -> None:
            self.take(batch)

    class Inline(Sync):
        inline = True

    class Async(Base):
        async def handle(self, batch: Sequence[Event]) -> None:
            await asyncio.sleep(0)
            self.take(batch)

    class Own(Base):
        async def run(self, stream: EventStream) -> None:
            async for event in stream:
                if event.seq:
                    self.got.append(event.seq)

    sinks = [Sync("sync"), Inline("inline"), Async("async"), Own("own")]
    bus = EventBus(sinks, sink_retry=RetryPolicy(tries=2, base=0.0, cap=0.0))
    for _ in range(20):
        fill(bus._hub, 100)
        assert (await bus.flush(timeout=30)).complete
        for sink, stats in zip(sinks, bus.metrics().sinks, strict=True):
            assert (stats.unaccounted, stats.buffered, stats.position) == (0, 0, bus.head)
            assert stats.delivered == len(sink.got) == len(set(sink.got))
            assert sink.got == sorted(sink.got)
            assert stats.dead_lettered + stats.delivered + stats.dropped == bus.head
    assert sum(stats.dead_lettered for stats in bus.metrics().sinks) == len(bus.dead_letters())
    await bus.shutdown(30)


@clause("A3")
@pytest.mark.parametrize("moment", ["before the loss is booked", "between two looks"])
def test_a_stream_closed_by_another_thread_while_it_takes_gives_no_empty_notice(moment: str) -> None:
    with EventHub() as hub:
        stream = hub.subscribe(capacity=2)
        fill(hub, 10)
        real = stream._lose

        def lose(floor: int) -> object:
            stream.close()
            if moment == "between two looks":
                fill(hub, 5)
            return real(floor)

        stream._lose = lose  # type: ignore[method-assign, assignment]
        with pytest.raises(EndOfStream):
            stream.try_recv()
        stats = balanced(stream)
        assert (stats.delivered, stats.dropped, stats.reported, stats.abandoned) == (0, 8, 8, 2)


@clause("A1", "A4", "A7", "L4")
def test_a_slice_that_goes_while_it_is_taken_is_lost_as_the_books_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader reads without the lock; what the byte bound took before the slice was in its hand stays lost."""
    told: list[EventHubMetrics] = []
    read = Ring.read

    def interrupted(ring: Ring, *given: Any) -> Any:
        found = read(ring, *given)
        if not told:
            for _ in range(40):
                hub.publish(node_message("big", "x" * 100_000))
            told.append(hub.metrics())
        return found

    with EventHub(capacity=1000, max_bytes=2_000_000) as hub, hub.subscribe() as stream:
        fill(hub, 10)
        monkeypatch.setattr(Ring, "read", interrupted)
        notice = stream.try_recv()
        now, stats = hub.metrics(), balanced(stream)
    assert told[0].dropped >= 10
    assert notice is not None and notice.scope == GAP_SCOPE
    assert (stats.delivered, notice.metadata["count"]) == (0, told[0].dropped)
    assert (now.dropped, now.buffered) == (told[0].dropped, told[0].buffered)
