"""Everyone who watches the demo's run: each sees every event, or can say exactly which it missed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from weavegraph import GAP_SCOPE, Event, EventStream
from weavegraph.errors import PermanentSinkError

__all__ = ["PickySink", "blocking_reader", "fast_reader", "slow_reader"]


class PickySink:
    """A sink that refuses some events, to show that its failures are its own and are counted."""

    name = "picky"

    def handle(self, batch: Sequence[Event]) -> None:
        for event in batch:
            if event.scope == "rank":
                raise PermanentSinkError("this sink does not like ranks")


async def fast_reader(stream: EventStream) -> int:
    """Reads as fast as it can, in batches; the number of events it got."""
    async with stream:
        return sum([1 async for _ in stream])


async def slow_reader(stream: EventStream, seconds: float) -> list[str]:
    """Takes its time over every event; what it was told that it missed."""
    gaps: list[str] = []
    async with stream:
        async for event in stream:
            if event.scope == GAP_SCOPE:
                gaps.append(f"{event.metadata['count']} ({event.metadata['first_seq']}–{event.metadata['last_seq']})")
            else:
                await asyncio.sleep(seconds)
    return gaps


def blocking_reader(stream: EventStream) -> threading.Thread:
    """Counts events in a plain thread, with no event loop in it."""

    def read() -> None:
        with stream.blocking() as events:
            for _ in events:
                pass

    thread = threading.Thread(target=read, name="blocking reader", daemon=True)
    thread.start()
    return thread
