"""Events into a queue of your own: a view on ``subscribe()``, not a second buffer in the bus."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

from weavegraph.bus import EventBus, EventHub, EventStream
from weavegraph.errors import EndOfStream, Lagged, StreamError
from weavegraph.events import Event

__all__ = ["ChannelSink"]


class ChannelSink:
    """Moves events from a subscription into an ``asyncio.Queue`` or a ``queue.Queue``, then ``END``.

    For code that already reads a queue; new code iterates ``subscribe()``. The bus never pushes into the queue: this
    view reads its subscription, and waits while the queue is full, so the subscription's ``capacity`` and
    ``overflow`` decide what is lost, and its ``stats()`` count it (with ``on_lag="raise"`` as well). An
    ``asyncio.Queue`` is fed by a task of the loop in which ``open()`` is called, a ``queue.Queue`` by a thread.

    *The end*: ``END`` comes once, after the last event, whether the source ended, the subscription was cut off, or
    ``close()`` was called; into a full queue as soon as it has room.
    """

    END: Any = None
    """What is put after the last event."""

    def __init__(self, source: EventBus | EventHub, target: asyncio.Queue[Any] | queue.Queue[Any], **subscribe: Any):
        self.stream: EventStream = source.subscribe(**subscribe)
        self._target = target
        self._feeder: asyncio.Task[None] | threading.Thread | None = None

    def open(self) -> ChannelSink:
        """Start feeding the queue; idempotent. Events since the constructor are not lost by opening late."""
        if self._feeder is not None:
            return self
        if isinstance(self._target, asyncio.Queue):
            self._feeder = asyncio.get_running_loop().create_task(self._feed(self._target))
        else:
            self._feeder = threading.Thread(target=self._feed_thread, args=(self._target,), daemon=True)
            self._feeder.start()
        return self

    async def _feed(self, target: asyncio.Queue[Event | None]) -> None:
        while True:
            try:
                await target.put(await self.stream.recv())
            except Lagged:
                continue
            except (EndOfStream, StreamError):
                break
        await target.put(self.END)

    def _feed_thread(self, target: queue.Queue[Event | None]) -> None:
        events = self.stream.blocking()
        while True:
            try:
                target.put(events.recv())
            except Lagged:
                continue
            except (EndOfStream, StreamError):
                break
        target.put(self.END)

    def close(self) -> None:
        """Unsubscribe: nothing more is fed but ``END``. What is in the queue stays there."""
        self.stream.close()

    def __enter__(self) -> ChannelSink:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()
