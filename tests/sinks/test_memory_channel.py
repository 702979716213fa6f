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
