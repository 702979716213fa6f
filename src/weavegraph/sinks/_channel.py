"""Events into a queue of your own: a view on ``subscribe()``, not a second buffer in the bus."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

from weavegraph.bus import EventBus, EventHub, EventStream
from weavegraph.errors import EndOfStream, StreamError
from weavegraph.events import Event

__all__ = ["ChannelSink"]


class ChannelSink:
    """Moves events from a subscription into an ``asyncio.Queue`` or a ``queue.Queue``, then ``END``.

    For code that already reads a queue; new code iterates ``subscribe()``. The bus never pushes into the queue: this
    view reads its subscription, and waits while the queue is full, so the subscription's ``capacity`` and
    ``overflow`` decide what is lost, and its ``stats()`` count it. An ``asyncio.Queue`` is fed by a task of the loop
    in which ``open()`` is called, a ``queue.Queue`` by a thread.
    """

    END: Any = None
    """What is put after the last event."""

    def __init__(self, source: EventBus | EventHub, target: asyncio.Queue[Any] | queue.Queue[Any], **subscribe: Any):
        self.stream: EventStream = source.subscribe(**subscribe)
        self._target = target
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def open(self) -> ChannelSink:
        """Start feeding the queue. Events since the constructor are not lost by opening late."""
        if isinstance(self._target, asyncio.Queue):
            self._task = asyncio.get_running_loop().create_task(self._feed(self._target))
        else:
            self._thread = threading.Thread(target=self._feed_thread, args=(self._target,), daemon=True)
            self._thread.start()
        return self

    async def _feed(self, target: asyncio.Queue[Event | None]) -> None:
        try:
            async for event in self.stream:
                await target.put(event)
        except StreamError:
            pass  # cut off by overflow="disconnect"; the stats tell
        await target.put(self.END)

    def _feed_thread(self, target: queue.Queue[Event | None]) -> None:
        events = self.stream.blocking()
        try:
            while not self._closing.is_set():
                self._put(target, events.recv())
        except (EndOfStream, StreamError):
            pass
        self._put(target, self.END)

    def _put(self, target: queue.Queue[Event | None], item: Event | None) -> None:
        while not self._closing.is_set():
            try:
                return target.put(item, timeout=0.1)
            except queue.Full:
                continue  # look whether close() was called, then wait on

    def close(self) -> None:
        """Stop feeding and unsubscribe. What is in the queue stays there."""
        self._closing.set()
        if self._task is not None:
            self._task.cancel()
        self.stream.close()

    def __enter__(self) -> ChannelSink:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()
