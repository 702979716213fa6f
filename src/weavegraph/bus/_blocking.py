"""The blocking view of a stream: the same cursor, waiting on a thread instead of in a loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from weavegraph.bus._stream import check_timeout
from weavegraph.errors import BlockingInLoopError, EndOfStream, StreamBusyError
from weavegraph.events import Event

if TYPE_CHECKING:
    from weavegraph.bus._stream import EventStream

__all__ = ["BlockingEvents"]


class BlockingEvents:
    """Iterate a stream in a plain thread. Ctrl-C interrupts it; nothing is lost by that.

    Raises:
        BlockingInLoopError: at once, on a thread that runs an event loop.
    """

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self.anywhere = False
        """What is read here comes from no loop of a user's, so blocking this thread cannot stop it (contract R3)."""

    def __iter__(self) -> Iterator[Event]:
        self._refuse_loop()
        return self

    def __next__(self) -> Event:
        self._refuse_loop()
        try:
            event = self._wait(None)
        except EndOfStream:
            raise StopIteration from None
        assert event is not None
        return event

    def recv(self) -> Event:
        """The next event; waits for it. Raises ``EndOfStream`` at the end."""
        self._refuse_loop()
        event = self._wait(None)
        assert event is not None
        return event

    def try_recv(self) -> Event | None:
        """The next event, or ``None`` when nothing is ready. Never waits, so it may be called anywhere."""
        return self._stream.try_recv()

    def next_timeout(self, seconds: float) -> Event | None:
        """The next event, or ``None`` if none came within ``seconds``; ``EndOfStream`` at the end."""
        self._refuse_loop()
        return self._wait(time.monotonic() + check_timeout(seconds))

    def _wait(self, deadline: float | None) -> Event | None:
        stream = self._stream
        wakeups = stream._hub._wakeups
        while True:
            if stream._waiting:
                raise StreamBusyError
            event = stream._take(brief=True)
            if event is not None:
                return event
            remaining = -1.0 if deadline is None else deadline - time.monotonic()
            if deadline is not None and remaining <= 0:
                return None
            lock = wakeups.park_thread(stream)
            stream._waiting = True
            try:
                # Armed; now look again: what came in between would wake nobody.
                if not stream._changed():
                    lock.acquire(timeout=min(remaining, threading.TIMEOUT_MAX))
            finally:
                stream._waiting = False
                wakeups.unpark_thread(stream)

    def close(self) -> None:
        """Unsubscribe at once."""
        self._stream.close()

    def __enter__(self) -> BlockingEvents:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _refuse_loop(self) -> None:
        if not self.anywhere and asyncio._get_running_loop() is not None:
            raise BlockingInLoopError
