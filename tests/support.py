"""What several tests share."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from weavegraph import GAP_SCOPE, EndOfStream, EventHub, EventStream, node_message
from weavegraph.bus import SubscriberStats

clause = pytest.mark.clause
POLL = 0.002
"""Seconds between two looks at what other tasks and processes do."""
_MORE = int(os.environ.get("WEAVEGRAPH_EXAMPLES", "1"))


def examples(count: int) -> int:
    """How many examples a property test tries: ``count``, and many times as many in `make stress`."""
    return count * _MORE


class StillClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.at, self.seconds = datetime(2026, 1, 1, tzinfo=UTC), 0.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds


async def eventually(happens: Callable[[], Any], within: float = 20.0) -> Any:
    """Wait for what other tasks, threads and processes bring about, and no longer than that; its value.

    ``happens`` may be a coroutine function.
    """
    async with asyncio.timeout(within):
        while True:
            value = happens()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(POLL)  # sleeps: between two looks


def wait_until(happens: Callable[[], Any], within: float = 20.0) -> Any:
    """``eventually`` where no loop runs."""
    deadline = time.monotonic() + within
    while not (value := happens()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {within} s")
        time.sleep(POLL)  # sleeps: between two looks
    return value


async def settle(turns: int = 20) -> None:
    """Let everything that is ready in this loop run; nothing here depends on time."""
    for _ in range(turns):
        await asyncio.sleep(0)


def fill(hub: EventHub, count: int) -> None:
    """Publish ``count`` small events; their message is their position."""
    for _ in range(count):
        hub.publish(node_message("a", str(hub.head + 1)))


def drain(stream: EventStream) -> list[int | tuple[int, int]]:
    """What is ready: positions of events, and gaps as (first, last)."""
    found: list[int | tuple[int, int]] = []
    try:
        while (event := stream.try_recv()) is not None:
            if event.scope == GAP_SCOPE:
                first, last = event.metadata["first_seq"], event.metadata["last_seq"]
                assert event.metadata["count"] == last - first + 1
                assert event.seq == 0
                found.append((first, last))
            else:
                found.append(event.run_seq or event.seq)
    except EndOfStream:
        pass
    return found


def balanced(stream: EventStream) -> SubscriberStats:
    """The stream's books, after checking that they add up (A1, A2)."""
    stats = stream.stats()
    assert stats.unaccounted == 0, stats
    assert stats.dropped == stats.reported + stats.pending_report, stats
    assert min(stats.delivered, stats.filtered, stats.dropped, stats.buffered, stats.abandoned) >= 0, stats
    return stats


def replay(hub: EventHub, **options: Any) -> list[int | tuple[int, int]]:
    """What a late reader gets from the start."""
    with hub.subscribe(after=0, **options) as stream:
        return drain(stream)
