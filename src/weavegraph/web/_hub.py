"""Who watches what: feeds by stream, viewers with their slots, the clock that looks after them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from weavegraph.errors import InvalidCursorError, NotCaughtUpError, ServerClosingError, TooManyStreamsError
from weavegraph.events import EventFilter, Redactor
from weavegraph.runtime import App
from weavegraph.web._config import WebConfig
from weavegraph.web._feed import WINDOW_EVENTS, Feed, Form
from weavegraph.web._ids import EVERYTHING
from weavegraph.web._source import BusSource, LaneSource, LogSource, Source, durable_log
from weavegraph.web._viewer import Ending, Viewer

__all__ = ["StreamHub"]


class StreamHub:
    """All streams of one web app. Of one event loop."""

    def __init__(self, app: App[Any], config: WebConfig) -> None:
        self._app, self._config = app, config
        self._redactor = Redactor(config.redact or app.config.redact_for("wire"))
        self._feeds: dict[str, Feed] = {}
        self._viewers: set[Viewer] = set()
        self._rechecks: dict[Viewer, Callable[[], Awaitable[bool]]] = {}
        self._slots: dict[str, int] = {}
        self._taken = 0
        self._ticker: asyncio.Task[None] | None = None
        self.closing = False
        self.on_viewers: Callable[[str, int], None] | None = None
        """Called with a run id and +1 or -1 as viewers come to it and leave it."""

    @property
    def streams(self) -> int:
        """Slots that are taken."""
        return self._taken

    @property
    def feeds(self) -> int:
        return len(self._feeds)

    def source(self, run_id: str | None) -> Source:
        """Where a run's events come from; ``None``: those of everything."""
        if run_id is None:
            return BusSource(self._app)
        log = durable_log(self._app)
        return LaneSource(self._app, run_id) if log is None else LogSource(self._app, log, run_id)

    @contextlib.asynccontextmanager
    async def watch(
        self,
        run_id: str | None,
        after: str | None,
        *,
        form: Form,
        wanted: EventFilter | None,
        principal: str | None,
        recheck: Callable[[], Awaitable[bool]] | None = None,
    ) -> AsyncIterator[Viewer | None]:
        """A viewer with a slot, both given back at the end; ``None`` when everything was read and nothing follows.

        Raises:
            RunNotFoundError, InvalidCursorError, NotCaughtUpError: see section 10 of the contract.
            TooManyStreamsError, ServerClosingError: no slot.
        """
        self._take_slot(principal)
        viewer: Viewer | None = None
        feed: Feed | None = None
        try:
            source = self.source(run_id)
            start = await self._start(source, after)
            if start is None:
                yield None
                return
            if self.closing:
                raise ServerClosingError
            position, foreign, head = start
            feed = self._feed(EVERYTHING if run_id is None else run_id, source, head)
            feed.viewers += 1
            viewer = Viewer(feed, position, form=form, wanted=wanted, foreign=foreign)
            self._enter(viewer, run_id, recheck)
            yield viewer
        finally:
            self._give_slot(principal)
            if viewer is not None:
                self._viewers.discard(viewer)
                self._rechecks.pop(viewer, None)
                if not self._viewers and self._ticker is not None:
                    self._ticker.cancel()
                    self._ticker = None
                if self.on_viewers is not None and run_id is not None and viewer.ending != "shutdown":
                    self.on_viewers(run_id, -1)
            if feed is not None:
                feed.viewers -= 1
                if not feed.viewers:
                    self._drop(feed)
                    feed.close()
            if viewer is not None:
                await viewer.aclose()

    async def _start(self, source: Source, after: str | None) -> tuple[int, bool, int] | None:
        """Position, whether it is of another epoch, and the head; ``None`` when nothing will follow."""
        head = await source.head()
        position, foreign = head, False
        if after is not None:
            position, foreign = source.ids.parse(after)
            if foreign:
                return 0, True, head
            if position > head:
                head = await self._caught_up(source, position)
        if position == head and await source.over(position):
            return None
        return position, False, head

    async def _caught_up(self, source: Source, position: int) -> int:
        """The head, once it reaches a position that another server has given away."""
        waits = self._config.catch_up
        until = time.monotonic() + waits
        while not source.owned():
            if (head := await source.head()) >= position:
                return head
            if time.monotonic() > until or self.closing:
                raise NotCaughtUpError(waits)
            await asyncio.sleep(min(0.05, waits))
        raise InvalidCursorError("beyond the last event")

    def _feed(self, key: str, source: Source, head: int) -> Feed:
        feed = self._feeds.get(key)
        if feed is None:
            start = 0 if head <= WINDOW_EVENTS // 2 else head - WINDOW_EVENTS // 4
            feed = self._feeds[key] = Feed(source, start, self._redactor, self._drop)
        return feed

    def _drop(self, feed: Feed) -> None:
        for key, each in tuple(self._feeds.items()):
            if each is feed:
                del self._feeds[key]

    # ── slots ─────────────────────────────────────────────────────────────────────────────────────

    def _take_slot(self, principal: str | None) -> None:
        """A stream's place; of a principal, where there are principals, at most so many."""
        config = self._config
        if self.closing:
            raise ServerClosingError
        if self._taken >= config.max_streams:
            raise TooManyStreamsError(config.max_streams, 503)
        if principal is not None:
            held = self._slots.get(principal, 0)
            if held >= config.max_streams_each:
                raise TooManyStreamsError(config.max_streams_each, 429)
            self._slots[principal] = held + 1
        self._taken += 1

    def _give_slot(self, principal: str | None) -> None:
        self._taken -= 1
        if principal is not None:
            self._slots[principal] -= 1
            if not self._slots[principal]:
                del self._slots[principal]

    # ── looking after viewers ─────────────────────────────────────────────────────────────────────

    def _enter(self, viewer: Viewer, run_id: str | None, recheck: Callable[[], Awaitable[bool]] | None) -> None:
        self._viewers.add(viewer)
        if recheck is not None:
            self._rechecks[viewer] = recheck
        if self.on_viewers is not None and run_id is not None:
            self.on_viewers(run_id, 1)
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="weavegraph web clock")

    async def _tick(self) -> None:
        """One clock for all: a timer a client, set anew with each event, costs more than this look."""
        config = self._config
        pause = min(1.0, max(0.02, min(config.heartbeat, config.send_timeout) / 4))
        checked = time.monotonic()
        checking: asyncio.Task[None] | None = None
        while self._viewers:
            await asyncio.sleep(min(pause, 0.25) if self.closing else pause)
            now = time.monotonic()
            for viewer in tuple(self._viewers):
                viewer.look(now, config.heartbeat, config.send_timeout)
            if now - checked >= config.recheck and self._rechecks and (checking is None or checking.done()):
                checked = now
                checking = asyncio.get_running_loop().create_task(self._recheck(), name="weavegraph web recheck")

    async def _recheck(self) -> None:
        """Whether those who watch may still; a hook that hangs keeps nobody else waiting but the next round."""
        for viewer, recheck in tuple(self._rechecks.items()):
            if viewer.ending is None and not await recheck():
                viewer.end("reauth")

    def end_streams(self, why: Ending = "shutdown") -> None:
        """No new streams; those that are open are told, and end."""
        self.closing = True
        for viewer in tuple(self._viewers):
            viewer.end(why)
