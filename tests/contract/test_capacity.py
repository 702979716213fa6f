"""Contract section 4: capacity, overflow, lag, memory."""

from __future__ import annotations

import asyncio
import gc
import logging
from datetime import timedelta

import pytest

from tests.support import StillClock, balanced, clause, drain, fill, replay, settle
from weavegraph import (
    GAP_SCOPE,
    BackpressureError,
    EventBus,
    EventHub,
    EventStream,
    Lagged,
    MemorySink,
    SubscriberOverflowError,
    llm_error,
    node_message,
)
from weavegraph.errors import ConfigError

BIG = "x" * 10_000


@clause("K1")
@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_the_history_is_exactly_the_capacity(capacity: int) -> None:
    """Trap: tokio's channel rounds up to a power of two."""
    with EventHub(capacity) as hub:
        assert hub.capacity == capacity
        fill(hub, capacity)
        assert replay(hub, on_lag="skip")[:1] == [1]
        fill(hub, 3)
        with hub.subscribe(after=0) as late:
            assert drain(late) == [(1, 3), *range(4, capacity + 4)]
            assert balanced(late).dropped == 3


@clause("K1", "4.drop_oldest")
@pytest.mark.parametrize("capacity", [1, 2, 3, 9, 40])
def test_a_subscriptions_capacity_is_exact_also_beyond_the_hubs(capacity: int) -> None:
    with EventHub(4) as hub, hub.subscribe(capacity=capacity) as stream:
        fill(hub, capacity)
        assert balanced(stream).dropped == 0
        fill(hub, 1)
        assert (balanced(stream).dropped, stream.lag, stream.stats().lag) == (1, capacity, capacity)
        assert drain(stream) == [(1, 1), *range(2, capacity + 2)]


@clause("K1")
def test_replayed_events_do_not_count_until_the_reader_has_caught_up() -> None:
    with EventHub(100) as hub:
        fill(hub, 100)
        stream = hub.subscribe(after=0, capacity=2)
        fill(hub, 2)
        assert drain(stream) == [*range(1, 103)]
        fill(hub, 3)
        assert drain(stream) == [(103, 103), 104, 105]
        stream.close()


@clause("K1", "4.disconnect", "4.block")
def test_what_was_gone_before_a_reader_came_takes_none_of_its_room() -> None:
    with EventHub(1) as hub:
        fill(hub, 8)
        with hub.subscribe(after=0, overflow="disconnect") as stream:
            assert (balanced(stream).dropped, balanced(stream).closed) == (7, False)
            assert drain(stream) == [(1, 7), 8]
        with hub.subscribe(after=0, overflow="block") as stream:
            hub.publish(node_message("a", "9"))  # event 8 is replayed and does not count, so there is room for one
            with pytest.raises(BackpressureError):
                hub.publish(node_message("a", "10"))
            assert drain(stream) == [(1, 7), 8, 9]


@clause("K1", "L3")
def test_the_ring_never_holds_more_than_its_bytes() -> None:
    with EventHub(max_bytes=200_000) as hub, hub.subscribe(after=0) as stream:
        for _ in range(100):
            hub.publish(node_message("a", BIG))
            assert hub.metrics().bytes <= 200_000
            balanced(stream)
        held = hub.head - hub.metrics().oldest
        assert 15 <= held <= 20
        assert drain(stream) == [(1, 100 - held), *range(101 - held, 101)]


@clause("K1")
def test_an_event_is_charged_at_least_its_text_and_metadata_and_512_bytes() -> None:
    for message, metadata in (("", {}), ("é" * 400, {}), (BIG, {}), ("", {"k": "v" * 5000}), ("\x00" * 300, {})):
        with EventHub() as hub:
            event = hub.emitter().emit(node_message("a", message, **metadata))
            assert event is not None
            assert hub.metrics().bytes >= len(message.encode()) + len(str(metadata)) - 2 + 512


@clause("K1", "L6")
def test_at_the_buss_bound_the_largest_lane_loses_first() -> None:
    bus = EventBus(capacity=1, bus_max_bytes=300 * 1024)
    small, large = bus.open_lane("small", "s"), bus.open_lane("large", "s")
    fill(small, 20)
    watcher = large.subscribe(after=0)
    fill(large, 2000)
    assert bus.metrics().bytes <= 300 * 1024
    assert replay(small) == [*range(1, 21)]
    (first, last), *rest = drain(watcher)
    assert first == 1 and rest == [*range(last + 1, 2001)]
    assert balanced(watcher).dropped == last
    bus.close()


@clause("K2", "L2")
async def test_a_burst_of_ten_thousand_without_awaiting_loses_nothing() -> None:
    memory = MemorySink()
    bus = EventBus([memory])
    lane = bus.open_lane("r", "s")
    stream = lane.subscribe()
    everything = bus.subscribe()
    for n in range(10_000):
        lane.publish(node_message("a", str(n), text="y" * 700))
    assert balanced(stream).dropped == balanced(everything).dropped == 0
    assert drain(stream) == [*range(1, 10_001)]
    assert (await bus.flush(timeout=50)).complete
    assert [event.run_seq for event in memory.snapshot()] == [*range(1, 10_001)]
    batches = [await everything.recv_many() for _ in range(10)]
    assert max(map(len, batches)) <= 1024
    assert everything.position == sum(map(len, batches))
    await bus.shutdown()
    stream.close(), everything.close()


@clause("K3")
def test_finished_runs_are_kept_while_held_and_the_newest_keep_runs() -> None:
    bus = EventBus(keep_runs=2)
    held = bus.open_lane("held", "s")
    fill(held, 1)
    bus.end_attempt(held, "completed")
    for n in range(4):
        lane = bus.open_lane(f"r{n}", "s")
        fill(lane, 1)
        bus.end_attempt(lane, "completed")
    del lane
    gc.collect()
    known = [name for name in ("held", "r0", "r1", "r2", "r3") if bus.lane(name) is not None]
    assert known == ["held", "r2", "r3"]
    stream = held.subscribe(after=0)
    del held
    gc.collect()
    assert bus.lane("held") is not None
    assert drain(stream) == [1]
    del stream
    gc.collect()
    assert bus.lane("held") is None
    bus.close()


@clause("4.block")
async def test_block_refuses_at_once_or_waits_and_a_refused_event_reached_nobody() -> None:
    hub = EventHub(block_timeout=30.0)
    blocking, other = hub.subscribe(capacity=2, overflow="block"), hub.subscribe()
    fill(hub, 2)
    with pytest.raises(BackpressureError):
        hub.publish(node_message("a", "no"))
    assert hub.head == 2
    waiting = [asyncio.create_task(hub.publish_async(node_message("a", str(n)))) for n in range(3)]
    await settle()
    assert (hub.head, hub.producer_stats().waiting) == (2, 3)
    assert (await blocking.recv()).seq == 1
    await settle()
    assert (hub.head, hub.producer_stats().waiting) == (3, 2)
    blocking.close()
    assert sorted(await asyncio.gather(*waiting)) == [3, 4, 5]
    assert drain(other) == [1, 2, 3, 4, 5]
    assert balanced(blocking).delivered + balanced(blocking).abandoned == 3
    hub.close()


@clause("4.block")
async def test_block_gives_every_accepted_event_and_asks_all_hubs_before_any_append() -> None:
    bus = EventBus(block_timeout=0.0)
    lane = bus.open_lane("r", "s")
    on_lane = lane.subscribe()
    on_bus = bus.subscribe(capacity=1, overflow="block")
    assert lane.emitter().emit(node_message("a", "one")) is not None
    assert lane.emitter().emit(node_message("a", "two")) is None
    with pytest.raises(BackpressureError):
        await lane.emitter().emit_async(node_message("a", "two"))
    assert (lane.head, bus.head) == (1, 1)
    runtime = lane._accept(node_message("a", "runtime"), reserved=True)
    assert (runtime.run_seq, runtime.seq) == (2, 2)
    assert drain(on_lane) == [1, 2]
    assert drain(on_bus) == [1, 2]
    await bus.shutdown()
    on_lane.close()


@clause("4.block")
async def test_a_producer_that_waits_for_a_reader_of_the_bus_goes_on_when_it_reads() -> None:
    bus = EventBus(block_timeout=30.0)
    lane = bus.open_lane("r", "s")
    on_bus = bus.subscribe(capacity=1, overflow="block")
    fill(lane, 1)
    waiting = asyncio.create_task(lane.emitter().emit_async(node_message("a", "two")))
    await settle()
    assert not waiting.done()
    assert on_bus.try_recv() is not None
    event = await waiting
    assert (event.seq, event.run_seq) == (2, 2)
    on_bus.close()
    await bus.shutdown()


@clause("4.block")
def test_byte_full_counts_as_full() -> None:
    with EventHub(max_bytes=100_000) as hub:
        stream = hub.subscribe(capacity=1_000_000, overflow="block")
        accepted = 0
        with pytest.raises(BackpressureError):
            while True:
                hub.publish(node_message("a", BIG))
                accepted += 1
        assert accepted == hub.head
        assert drain(stream) == [*range(1, accepted + 1)]
        assert hub.publish(node_message("a", BIG)) == accepted + 1
        stream.close()


@clause("4.block", "R7")
async def test_an_iteration_that_holds_more_than_its_capacity_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it catches up a reader has more room; producers may use it up just before it has caught up."""
    caught_up = EventStream._caught_up

    def late(stream: EventStream) -> None:
        fill(hub, 4)
        caught_up(stream)

    monkeypatch.setattr(EventStream, "_caught_up", late)
    with EventHub(capacity=100) as hub:
        fill(hub, 3)
        stream, seen = hub.subscribe(after=0, capacity=1, overflow="block"), list[int]()
        async for event in stream:
            seen.append(event.seq)
            if event.seq == 7:
                break
        balanced(stream)
        stream.close()
    assert seen == [1, 2, 3, 4, 5, 6, 7]


@clause("4.disconnect")
async def test_disconnect_closes_the_reader_who_resumes_after_its_last_position() -> None:
    with EventHub() as hub:
        stream = hub.subscribe(capacity=3, overflow="disconnect")
        fill(hub, 3)
        assert (await stream.recv()).seq == 1
        fill(hub, 5)
        for _ in range(2):
            with pytest.raises(SubscriberOverflowError) as caught:
                await stream.recv()
            assert (caught.value.last_position, caught.value.capacity) == (1, 3)
        stats = balanced(stream)
        assert (stats.head, stats.delivered, stats.abandoned, stats.dropped, stats.closed) == (5, 1, 4, 0, True)
        with hub.subscribe(after=caught.value.last_position) as resumed:
            assert drain(resumed) == [*range(2, 9)]


@clause("L1")
async def test_notice_raise_and_skip() -> None:
    with EventHub() as hub:
        notice, raises, skips = (hub.subscribe(capacity=2, on_lag=how) for how in ("notice", "raise", "skip"))  # type: ignore[arg-type]
        fill(hub, 5)
        hub.close()
        assert [event.scope async for event in notice] == [GAP_SCOPE, "a", "a"]
        with pytest.raises(Lagged) as caught:
            async for _ in raises:
                pass
        assert (caught.value.missed, caught.value.first_seq, caught.value.last_seq) == (3, 1, 3)
        assert [event.seq async for event in raises] == [4, 5]
        assert skips.stats().pending_report == 0
        assert [event.seq async for event in skips] == [4, 5]
        assert skips.dropped == 3


@clause("L4")
def test_a_lane_keeps_its_terminal_event_and_its_last_sixteen_errors() -> None:
    bus = EventBus(max_bytes=100 * 1024)
    lane = bus.open_lane("r", "s")
    stream = lane.subscribe()
    for n in range(1, 21):
        lane.publish(llm_error(f"e{n}", stream_id="x"))
    fill(lane, 500)
    seen = replay(lane)
    assert seen[0] == (1, 4)
    assert seen[1:17] == [*range(5, 21)]
    (first, last), *rest = seen[17:]
    assert first == 21 and rest == [*range(last + 1, 521)]
    assert drain(stream) == seen
    assert balanced(stream).dropped == 4 + last - 20
    bus.close()


@clause("L5")
def test_a_filtered_reader_advances_and_a_filter_that_raises_is_no_match(caplog: pytest.LogCaptureFixture) -> None:
    def bad(event: object) -> bool:
        raise ZeroDivisionError

    with EventHub() as hub:
        none, broken, other = hub.subscribe(filter=lambda event: False), hub.subscribe(filter=bad), hub.subscribe()
        small = hub.subscribe(filter=lambda event: event.seq == 4, capacity=2)
        fill(hub, 5)
        with caplog.at_level(logging.WARNING, "weavegraph.event_bus"):
            assert drain(none) == drain(broken) == []
        assert (none.position, broken.position) == (5, 5)
        assert (broken.stats().filtered, broken.stats().filter_errors) == (5, 5)
        assert len([record for record in caplog.records if "filter" in record.message]) == 1
        assert drain(other) == [1, 2, 3, 4, 5]
        assert drain(small) == [(1, 3), 4]
        for stream in (none, broken, other, small):
            balanced(stream)
            stream.close()


@clause("L6")
def test_a_stream_of_one_run_loses_nothing_to_other_runs() -> None:
    bus = EventBus(capacity=4)
    quiet, loud = bus.open_lane("quiet", "s"), bus.open_lane("loud", "s")
    stream = quiet.subscribe(capacity=3)
    fill(quiet, 3)
    fill(loud, 5000)
    assert drain(stream) == [1, 2, 3]
    assert stream.stats().head == 3
    stream.close()
    bus.close()


@clause("L7")
async def test_no_readers_pace_delays_a_producer_or_another_reader() -> None:
    with EventHub(capacity=8) as hub:
        never, always = hub.subscribe(), hub.subscribe()
        for n in range(1, 1001):
            assert hub.publish(node_message("a", str(n))) == n
            assert (await always.recv()).seq == n
        assert never.stats().dropped == 992
        never.close(), always.close()


def test_one_warning_in_ten_seconds_for_all_who_lag_or_are_cut_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "weavegraph.event_bus")
    seconds = 1000.0
    monkeypatch.setattr("weavegraph.bus._stream.clock", lambda: seconds)
    bus = EventBus()
    hub, hint = bus.open_lane("r", "s"), "read faster, or give it more capacity"
    with hub.subscribe(capacity=1, name="tortoise") as stream, bus.subscribe(capacity=1) as other:
        for _ in range(20):
            fill(hub, 3)
            drain(stream), drain(other)
        seconds += 9.9
        fill(hub, 3)
        drain(other)
        assert [record.message for record in caplog.records] == [
            f"subscriber 'tortoise' of 'r' lagged and lost 2 events (2 in all); {hint}"
        ]
        seconds += 0.2
        fill(hub, 3)
        drain(other)
        assert [record.message for record in caplog.records][1:] == [
            f"subscriber 'bus-1' of 'bus' lagged and lost 2 events (44 in all); {hint}"
        ]
    seconds += 20.0
    with hub.subscribe(capacity=1, overflow="disconnect", name="snail") as snail:
        fill(hub, 3)
        for _ in range(3):
            with pytest.raises(SubscriberOverflowError):
                snail.try_recv()
    assert [record.message for record in caplog.records][2:] == [
        f"subscriber 'snail' of 'r' fell behind and was cut off; {hint}"
    ]
    bus.close()


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True, "8"])
def test_what_is_no_capacity_is_refused(capacity: object) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        EventHub(capacity)  # type: ignore[arg-type]
    with EventHub() as hub, pytest.raises(ConfigError, match="whole number"):
        hub.subscribe(capacity=capacity)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"overflow": "lossy"}, {"on_lag": "panic"}, {"filter": 3}])
def test_other_wrong_arguments_of_subscribe_are_refused(wrong: dict[str, object]) -> None:
    with EventHub() as hub, pytest.raises(ConfigError):
        hub.subscribe(**wrong)  # type: ignore[arg-type]


@clause("4.block", "L6")
@pytest.mark.parametrize("text", ["", BIG])
@pytest.mark.parametrize("who", ["its own lane", "another lane", "the bus"])
def test_at_the_buss_byte_bound_a_block_reader_loses_nothing(text: str, who: str) -> None:
    bus = EventBus(capacity=1 if who != "the bus" else 1000, bus_max_bytes=300 * 1024)
    large, small = bus.open_lane("large", "s"), bus.open_lane("small", "s")
    reader = bus.subscribe(overflow="block") if who == "the bus" else large.subscribe(overflow="block")
    beside = large.subscribe(overflow="disconnect")
    accepted = 0
    with pytest.raises(BackpressureError):
        for _ in range(1000):
            large.publish(node_message("a", text))
            accepted += 1
            if who == "another lane" and accepted == (15 if text else 140):
                fill(small, 300)  # at the bound it takes from itself
    assert accepted == large.head > 4
    assert (balanced(reader).dropped, reader.lag) == (0, reader.stats().head)
    assert balanced(beside).closed is (who == "the bus" and beside.closed)
    assert len(drain(reader)) == reader.stats().head
    large.publish(node_message("a", text))
    assert large.head == accepted + 1
    reader.close(), beside.close()
    bus.close()


@clause("4.block")
def test_what_the_runtime_writes_exceeds_the_bytes_rather_than_taking_from_a_block_reader() -> None:
    bus = EventBus(max_bytes=100 * 1024)
    lane = bus.open_lane("r", "s")
    reader = lane.subscribe(overflow="block")
    with pytest.raises(BackpressureError):
        while True:
            lane.publish(node_message("a", BIG))
    full = lane.head
    for _ in range(3):
        lane._accept(node_message("weavegraph.x", BIG), reserved=True)
    assert drain(reader) == [*range(1, full + 4)]
    assert balanced(reader).dropped == 0
    reader.close()
    bus.close()


@clause("4.disconnect", "4.block", "A2")
def test_a_refused_event_cuts_nobody_off_and_takes_nothing_from_anybody() -> None:
    bus = EventBus(max_bytes=100 * 1024)
    lane = bus.open_lane("r", "s")
    cut, other, block = lane.subscribe(overflow="disconnect"), lane.subscribe(), bus.subscribe(overflow="block")
    with pytest.raises(BackpressureError):
        while True:
            lane.publish(node_message("a", "y" * 3000))
    stats = balanced(cut)
    assert (stats.closed, stats.head, balanced(other).dropped) == (False, lane.head, 0)
    assert drain(cut) == drain(other) == drain(block) == [*range(1, lane.head + 1)]
    for stream in (cut, other, block):
        stream.close()
    bus.close()


@clause("4.disconnect")
def test_the_head_of_who_is_cut_off_by_the_bytes_is_that_of_the_event_that_did_it() -> None:
    with EventHub(max_bytes=100 * 1024) as hub:
        stream = hub.subscribe(overflow="disconnect")
        while not stream.closed:
            hub.publish(node_message("a", BIG))
        assert (balanced(stream).head, stream.stats().abandoned) == (hub.head, hub.head)


@clause("A5", "4.block")
async def test_an_emit_that_the_bus_refuses_is_counted_where_it_was_made_sync_or_async() -> None:
    bus = EventBus(block_timeout=0.0)
    lane = bus.open_lane("r", "s")
    block = bus.subscribe(capacity=1, overflow="block")
    fill(lane, 1)
    assert lane.emitter().emit(node_message("a", "two")) is None
    with pytest.raises(BackpressureError):
        await lane.emitter().emit_async(node_message("a", "two"))
    assert (lane.producer_stats().refused_full, bus._hub.producer_stats().refused_full) == (2, 0)
    assert lane.producer_stats().attempts == 3
    block.close()
    await bus.shutdown()
    with pytest.raises(Exception, match="is over"):
        lane.publish(node_message("a", "late"))
    assert (lane.producer_stats().refused_closed, lane.producer_stats().attempts) == (1, 4)


@clause("A1")
def test_lag_in_seconds_and_the_distance_to_loss() -> None:
    clock = StillClock()
    with EventHub(clock=clock, max_bytes=100 * 1024) as hub:
        bounded, bytes_decide = hub.subscribe(capacity=10), hub.subscribe(capacity=10**9)
        assert (bounded.stats().lag_seconds, bounded.stats().distance_to_loss) == (0.0, 10)
        assert bytes_decide.stats().distance_to_loss == 100
        fill(hub, 3)
        clock.at += timedelta(seconds=4)
        fill(hub, 4)
        clock.at += timedelta(seconds=1)
        stats = bounded.stats()
        assert (stats.lag, stats.lag_seconds, stats.distance_to_loss) == (7, 5.0, 3)
        assert bytes_decide.stats().distance_to_loss == 93
        for _ in range(3):
            bounded.try_recv()
        assert (bounded.stats().lag_seconds, bounded.stats().distance_to_loss) == (1.0, 6)
        fill(hub, 6)
        assert (bounded.stats().distance_to_loss, bounded.stats().dropped) == (0, 0)
        fill(hub, 1)
        assert (bounded.stats().distance_to_loss, bounded.stats().dropped) == (0, 1)
        bounded.close(), bytes_decide.close()
        assert (bounded.stats().lag_seconds, bounded.stats().distance_to_loss) == (0.0, None)
