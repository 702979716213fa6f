"""One client of a stream: where it stands, what it is given next, and when it is given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeAlias

from weavegraph.errors import EndOfStream, WeavegraphError
from weavegraph.events import EventFilter, to_json
from weavegraph.web._feed import Catching, Chunk, Feed, Form, Frame, encode
from weavegraph.web._source import epoch_gap

__all__ = ["Ending", "Viewer"]

Ending: TypeAlias = Literal["over", "shutdown", "reauth", "gone", "stalled", "failed"]
"""Why a stream ended: everything was read; the server ends; the caller is no longer known; the client left, or took
nothing for too long; the source broke."""


class Viewer:
    """One client's cursor in a feed. Of one event loop; ``next`` has one caller.

    *Waiting*: ``next`` waits for events, and returns nothing when a heartbeat is due. *Ending*: ``end`` may be called
    at any time, also twice; what was taken is sent, then ``next`` raises ``EndOfStream``. *Slow clients* hold the
    bytes of one send, and are ended as ``stalled`` when one send takes longer than ``send_timeout``.
    """

    def __init__(self, feed: Feed, after: int, *, form: Form, wanted: EventFilter | None, foreign: bool) -> None:
        self.position = after
        self.ending: Ending | None = None
        self.failure: WeavegraphError | None = None
        self.foreign = foreign  # its position was of another epoch
        self._feed, self._form, self._wanted = feed, form, wanted
        self._catching: Catching | None = None
        self._left: Chunk | None = None  # of its own reading, sent in part
        self._waiter: asyncio.Future[None] | None = None
        self._task = asyncio.current_task()
        self.abort: Callable[[], None] | None = None  # gives the connection up at once, where the server can
        self.sending_since: float | None = None
        self.sent_at = time.monotonic()
        self.due = False  # a heartbeat

    async def next(self) -> bytes:
        """Bytes of whole frames; empty when a heartbeat is due. ``EndOfStream``: see ``ending``."""
        if self.foreign:
            self.foreign = False
            event = epoch_gap()
            return Frame(event, to_json(event), 0, 0, None).encoded(self._form)
        while self.ending is None:
            behind = self._left is not None or not self._feed.holds(self.position)
            data = await self._own() if behind else self._shared()
            if data:
                return data
            if self.due:
                self.due, self.sent_at = False, time.monotonic()
                return b""
            if data is None:
                await self._wait()
        raise EndOfStream

    def _shared(self) -> bytes | None:
        feed = self._feed
        if self.position < feed.last:
            data, self.position = feed.take(self.position, self._form, self._wanted)
            return data
        if feed.over:
            self.failure = feed.failure
            self.end("over" if feed.failure is None else "failed")
            return b""
        return None

    async def _own(self) -> bytes:
        """The next bytes of what the window no longer holds, read for this viewer alone."""
        try:
            if self._left is None:
                if self._catching is None:
                    self._catching = Catching(self._feed.source, self.position, self._feed.redactor)
                self._left = await self._interruptible(self._catching.chunk())
                if self._left is None:
                    return b""
            data, self.position = encode(self._left, self.position, self._form, self._wanted)
            if self.position >= self._left.last:
                self._left = None
                if self._feed.holds(self.position):
                    await self._stop_catching()
        except EndOfStream:
            self.end("over")
            return b""
        except WeavegraphError as exc:
            self.failure = exc
            self.end("failed")
            return b""
        return data

    async def _interruptible(self, work: Coroutine[Any, Any, Chunk]) -> Chunk | None:
        """The result of ``work``, or nothing when the stream is ended before."""
        reading = asyncio.get_running_loop().create_task(work)
        try:
            while not reading.done() and self.ending is None:
                self._waiter = asyncio.get_running_loop().create_future()
                both: list[asyncio.Future[Any]] = [reading, self._waiter]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if self.due and not reading.done():
                    return None
        finally:
            self._waiter = None
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
        return None if reading.cancelled() else reading.result()

    async def _wait(self) -> None:
        self._waiter = self._feed.waiter()
        try:
            await self._waiter
        finally:
            self._feed.forget(self._waiter)
            self._waiter = None

    async def _stop_catching(self) -> None:
        catching, self._catching = self._catching, None
        if catching is not None:
            await catching.aclose()

    # ── from outside ──────────────────────────────────────────────────────────────────────────────

    def end(self, why: Ending) -> None:
        """Let ``next`` end. The first reason counts."""
        if self.ending is None:
            self.ending = why
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def look(self, now: float, heartbeat: float, send_timeout: float) -> None:
        """Called every now and then: whether a heartbeat is due, or a send takes too long."""
        if self.sending_since is not None:
            patience = min(send_timeout, 1.0) if self.ending == "shutdown" else send_timeout
            if now - self.sending_since > patience:
                self.give_up()
        elif now - self.sent_at >= heartbeat and not self.due:
            self.due = True
            self._wake()

    def give_up(self) -> None:
        """The client takes nothing: drop the connection, and what waits for it."""
        if self.ending is None or self.ending == "shutdown":
            self.ending = "stalled"
        if self.abort is not None:
            self.abort()
        elif self._task is not None:
            self._task.cancel()

    async def send(self, sending: Awaitable[None]) -> None:
        """Await a send, watched by ``look``."""
        self.sending_since = time.monotonic()
        try:
            await sending
        finally:
            self.sending_since = None
            self.sent_at = time.monotonic()

    async def aclose(self) -> None:
        self.end("gone")
        await self._stop_catching()
