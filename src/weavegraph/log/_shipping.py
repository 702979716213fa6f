"""From a log to somewhere else: what outboxes, resends and copies share."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Sequence
from typing import Any

from weavegraph.events import GAP_SCOPE, Event
from weavegraph.log._reading import PAGE_BYTES, PAGE_EVENTS
from weavegraph.protocols import EventLog

__all__ = ["batches_of", "called", "publish"]


async def batches_of(log: EventLog, run_id: str, after: int, upto: int | None = None) -> AsyncIterator[Any]:
    """What the log holds after that position: batches of events, and for each gap how many are missing."""
    batch: list[Event] = []
    size = 0
    reading: Any = log.read(run_id, after)
    async with contextlib.aclosing(reading) as events:
        async for event in events:
            if event.scope == GAP_SCOPE and event.run_seq is None:
                if batch:
                    yield batch
                    batch, size = [], 0
                missing = int(event.metadata["count"])
                if upto is not None and int(event.metadata["last_seq"]) > upto:
                    return
                yield missing
                continue
            if upto is not None and (event.run_seq or 0) > upto:
                break
            batch.append(event)
            size += len(event.message) + 512
            if len(batch) >= PAGE_EVENTS or size >= PAGE_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


async def publish(target: Any, run_id: str, batch: Sequence[Event], since: int) -> None:
    """To a log; where positions are missing before the batch, as a gap if the log can have one."""
    publish = getattr(target, "publish", None)
    if publish is None:
        await target.append(run_id, batch)
    else:
        await publish(run_id, batch, after=since)


async def called(function: Any, *arguments: Any) -> None:
    """A sink's method, sync or async; a sync one on a thread, for it may block."""
    if inspect.iscoroutinefunction(function):
        await function(*arguments)
        return
    result = await asyncio.to_thread(function, *arguments)
    if inspect.isawaitable(result):
        await result
