"""Contract section 4: capacity, overflow, lag, memory."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from tests.support import balanced, clause, drain, fill, replay, settle
from weavegraph import (
    GAP_SCOPE,
    BackpressureError,
    EventBus,
    EventHub,
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


def test_one_warning_when_a_reader_lags(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "weavegraph.event_bus")
    with EventHub() as hub, hub.subscribe(capacity=1, name="tortoise") as stream:
        for _ in range(20):
            fill(hub, 3)
            drain(stream)
    assert [record.message for record in caplog.records] == [
        "subscriber 'tortoise' of 'hub' lagged and lost 2 events (2 in all); read faster, or give it more capacity"
    ]


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
