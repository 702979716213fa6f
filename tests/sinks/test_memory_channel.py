"""Memory and channel sinks."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

import pytest

from tests.support import clause
from weavegraph import ChannelSink, EventBus, EventBusConfig, EventHub, MemorySink, StdOutSink, node_message
from weavegraph.errors import ConfigError


@clause("S4")
def test_delivery_is_stated_per_sink() -> None:
    assert (StdOutSink.delivery, MemorySink.delivery) == ("at_most_once", "at_most_once")


async def test_a_memory_sink_from_configuration_is_read_through_the_bus() -> None:
    """Trap: the original builds a memory sink that nobody can get a handle on."""
    async with EventBus.from_config(EventBusConfig().with_memory_sink()) as bus:
        sent = [bus.emitter().emit(node_message("a", str(n))) for n in range(100)]
        await bus.flush(timeout=30)
        memory = bus.sinks["memory"]
        assert memory.snapshot() == tuple(sent)
        memory.clear()
        assert memory.snapshot() == ()


def test_a_memory_sink_may_keep_the_newest_only() -> None:
    sink = MemorySink(limit=2)
    batch = [node_message("a", str(n)) for n in range(5)]
    sink.handle(batch)
    assert sink.snapshot() == tuple(batch[-2:])
    with pytest.raises(ConfigError):
        MemorySink(limit=0)


@clause("S4")
async def test_a_channel_feeds_an_asyncio_queue_and_then_says_the_end() -> None:
    target: asyncio.Queue[Any] = asyncio.Queue(maxsize=2)
    with EventHub() as hub, ChannelSink(hub, target):
        sent = [hub.publish(node_message("a", str(n))) for n in range(10)]
        hub.close()
        got = [await target.get() for _ in range(11)]
    assert [event.seq for event in got[:10]] == sent
    assert got[10] is ChannelSink.END


def test_a_channel_feeds_a_thread_queue() -> None:
    target: queue.Queue[Any] = queue.Queue(maxsize=2)
    with EventHub() as hub, ChannelSink(hub, target) as channel:
        sent = [hub.publish(node_message("a", str(n))) for n in range(10)]
        hub.close()
        got = [target.get(timeout=30) for _ in range(11)]
        assert channel.stream.stats().delivered == 10
    assert [event.seq for event in got[:10]] == sent
    assert got[10] is ChannelSink.END


async def test_opening_a_channel_late_loses_nothing_and_its_loss_is_counted() -> None:
    target: asyncio.Queue[Any] = asyncio.Queue()
    with EventHub() as hub:
        channel = ChannelSink(hub, target, capacity=3)
        for n in range(10):
            hub.publish(node_message("a", str(n)))
        hub.close()
        with channel:
            got = [await target.get() for _ in range(5)]
        assert got[0].metadata == {"count": 7, "first_seq": 1, "last_seq": 7}
        assert [event.seq for event in got[1:4]] == [8, 9, 10]
        assert channel.stream.stats().dropped == 7


@pytest.mark.parametrize("how", ["loop", "thread"])
@pytest.mark.parametrize("end", ["the source closes", "close", "cut off"])
async def test_the_end_comes_once_however_it_ends_also_with_raised_lags(how: str, end: str) -> None:
    target: Any = asyncio.Queue() if how == "loop" else queue.Queue()

    async def take() -> Any:
        return await target.get() if how == "loop" else await asyncio.to_thread(target.get, timeout=30)

    with EventHub() as hub:
        overflow = "disconnect" if end == "cut off" else "drop_oldest"
        channel = ChannelSink(hub, target, capacity=2, on_lag="raise", overflow=overflow)
        for n in range(2):
            hub.publish(node_message("a", str(n)))
        assert channel.open() is channel.open()
        assert [(await take()).seq for _ in range(2)] == [1, 2]
        with hub._lock:  # the feeder does not see them one by one
            for n in range(5):
                hub.publish(node_message("a", str(n)))
        got = []
        if end != "cut off":
            got = [(await take()).seq for _ in range(2)]
            assert got == [6, 7] or how == "thread"
        channel.close() if end == "close" else hub.close()
        while (event := await take()) is not ChannelSink.END:
            got.append(event.seq)
        assert got == [] or got[-1] == 7
        assert channel.stream.closed
        assert target.empty()
        channel.close()


async def test_the_end_waits_for_room_in_a_full_queue() -> None:
    target: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
    with EventHub() as hub:
        channel = ChannelSink(hub, target).open()
        sent = [hub.publish(node_message("a", str(n))) for n in range(3)]
        assert (await target.get()).seq == sent[0]
        channel.close()
        rest = [await target.get() for _ in range(2)]
        while rest[-1] is not ChannelSink.END:
            rest.append(await target.get())
        assert [event.seq for event in rest[:-1]] in ([2], [2, 3])
