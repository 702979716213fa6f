"""One stream, read once and encoded once for all who watch it in this process.

::

    source ──reader──▶ Feed ──window of encoded chunks──┬──▶ Viewer: a position, and the bytes that are being sent
                                                        └──▶ Viewer …

A feed keeps a bounded window of what it read last. A viewer has no queue: it has a position. Whoever is in the window
is given bytes that were made before; whoever is older than it (late, resuming, slow) reads from the source by itself,
page by page, until it has caught up. So a slow viewer costs nobody memory, and loses only what the source no longer
has, which it is told exactly.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

from weavegraph.bus import gap_event
from weavegraph.errors import EndOfStream, WeavegraphError
from weavegraph.events import (
    GAP_SCOPE,
    STREAM_END_SCOPE,
    DiagnosticEvent,
    Event,
    EventFilter,
    LLMStreamingEvent,
    Redactor,
    to_json,
)
from weavegraph.web._frames import ndjson_line, sse_frame
from weavegraph.web._source import FINAL, Reader, Source

__all__ = ["SEND_BYTES", "WINDOW_BYTES", "WINDOW_EVENTS", "Catching", "Chunk", "Feed", "Form", "Frame", "frame_name"]

Form: TypeAlias = Literal["sse", "ndjson"]
WINDOW_EVENTS, WINDOW_BYTES = 1024, 1024 * 1024
"""What a feed keeps encoded; a chunk that is larger than that is kept alone."""
SEND_BYTES = 64 * 1024
"""Bytes that one send takes, unless a single event is larger."""
_log = logging.getLogger("weavegraph.web")


def frame_name(event: Event) -> str:
    """What ``addEventListener`` takes: node, diagnostic, llm, gap, pause, end."""
    if event.scope == GAP_SCOPE:
        return "gap"
    if event.scope == STREAM_END_SCOPE:
        return "end" if event.metadata.get("outcome") in FINAL else "pause"
    if isinstance(event, LLMStreamingEvent):
        return "llm"
    return "diagnostic" if isinstance(event, DiagnosticEvent) else "node"


class Frame:
    """One event, encoded when somebody first wants it, and once for each form. A gap has no id."""

    __slots__ = ("_forms", "event", "first", "id", "last", "name", "text")

    def __init__(self, event: Event, text: bytes, first: int, last: int, id: str | None) -> None:
        self.event, self.text, self.first, self.last, self.id = event, text, first, last, id
        self.name = frame_name(event)
        self._forms: dict[Form, bytes] = {}

    def encoded(self, form: Form) -> bytes:
        found = self._forms.get(form)
        if found is None:
            make = sse_frame if form == "sse" else ndjson_line
            found = self._forms[form] = make(self.text, id=self.id, event=self.name)
        return found


class Chunk:
    """Frames of consecutive positions, those after ``after`` up to ``last``."""

    __slots__ = ("_forms", "after", "frames", "last", "size")

    def __init__(self, after: int, frames: Sequence[Frame]) -> None:
        self.after, self.frames, self.last = after, frames, frames[-1].last
        self.size = sum(len(frame.text) for frame in frames)
        self._forms: dict[Form, bytes] = {}

    def encoded(self, form: Form) -> bytes:
        """All of it, as one piece of bytes that all who are at its start share."""
        found = self._forms.get(form)
        if found is None:
            found = self._forms[form] = b"".join(frame.encoded(form) for frame in self.frames)
        return found

    def behind(self, position: int) -> Sequence[Frame]:
        """The frames after a position within it; a gap that it stands in is cut."""
        if position <= self.after:
            return self.frames
        rest = [frame for frame in self.frames if frame.last > position]
        if rest and rest[0].first <= position:
            rest[0] = gap_frame(position + 1, rest[0].last)
        return rest


def gap_frame(first: int, last: int) -> Frame:
    event = gap_event(last - first + 1, first, last)
    return Frame(event, to_json(event), first, last, None)


class Catching:
    """Reads chunks after a position for one reader; with redaction, a little of what is before it, unseen."""

    def __init__(self, source: Source, after: int, redactor: Redactor) -> None:
        self._source, self._after = source, after
        self._view = redactor.view()
        self._reader: Reader = source.open(max(after - redactor.look_back, 0))

    async def chunk(self) -> Chunk:
        """The next one; waits for it. ``EndOfStream`` at the end."""
        while True:
            frames = list(self._frames(await self._reader.batch()))
            if frames:
                chunk = Chunk(self._after, frames)
                self._after = chunk.last
                return chunk

    def _frames(self, events: Iterable[Event]) -> Iterable[Frame]:
        after = self._after
        for event in events:
            if event.scope == GAP_SCOPE and not event.seq:
                first, last = int(event.metadata["first_seq"]), int(event.metadata["last_seq"])
                if last > after:
                    yield gap_frame(max(first, after + 1), last)
                continue
            position = self._source.position(event)
            if self._view is not None:
                event = self._view.see(event)
            if position > after:
                yield Frame(event, to_json(event), position, position, self._source.ids.of(position))

    async def aclose(self) -> None:
        await self._reader.aclose()


class Feed:
    """The present of one stream: an upstream reader, a window, and who waits for more. Of one event loop.

    It begins with its first viewer and ends with its last. ``over``: the source ended; ``failure``: it broke.
    """

    def __init__(self, source: Source, start: int, redactor: Redactor, on_over: Callable[[Feed], None]) -> None:
        self.source, self.redactor = source, redactor
        self.start = self.last = start
        self.over = False
        self.failure: WeavegraphError | None = None
        self.viewers = 0
        self._on_over = on_over
        self._chunks: list[Chunk] = []
        self._ends: list[int] = []  # the last position of each chunk
        self._events = self._bytes = 0
        self._waiting: dict[asyncio.Future[None], None] = {}
        loop = asyncio.get_running_loop()
        self._pump = loop.create_task(self._read(), name="weavegraph feed")

    def close(self) -> None:
        self._pump.cancel()

    async def closed(self) -> None:
        await asyncio.wait([self._pump])

    # ── what viewers ask ──────────────────────────────────────────────────────────────────────────

    def holds(self, position: int) -> bool:
        """Whether everything after ``position`` is in the window, or has not happened yet."""
        return position >= (self._chunks[0].after if self._chunks else self.start)

    def take(self, position: int, form: Form, wanted: EventFilter | None) -> tuple[bytes, int]:
        """Bytes after a position that the window holds, about ``SEND_BYTES`` at most, and where they end."""
        parts: list[bytes] = []
        size = 0
        for index in range(bisect_right(self._ends, position), len(self._chunks)):
            chunk = self._chunks[index]
            if size and size + chunk.size > SEND_BYTES:
                break
            part, position = encode(chunk, position, form, wanted)
            parts.append(part)
            size += len(part)
            if size >= SEND_BYTES or position < chunk.last:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts), position

    def waiter(self) -> asyncio.Future[None]:
        """Done when there is more, or the end."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        return future

    def forget(self, waiter: asyncio.Future[None]) -> None:
        self._waiting.pop(waiter, None)

    # ── the upstream reader ───────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        upstream: Catching | None = None
        try:
            upstream = Catching(self.source, self.start, self.redactor)
            while True:
                self._add(await upstream.chunk())
                # Let everyone who was woken take it before the next: what comes meanwhile is one chunk then.
                await asyncio.sleep(0)
        except EndOfStream:
            self.over = True
        except WeavegraphError as exc:
            self.failure = exc
        except Exception as exc:
            _log.exception("a stream broke")
            self.failure = WeavegraphError(type(exc).__name__)
        finally:
            self.over = True
            self._on_over(self)
            self._wake()
            if upstream is not None:
                await upstream.aclose()

    def _add(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._ends.append(chunk.last)
        self._events += len(chunk.frames)
        self._bytes += chunk.size
        while len(self._chunks) > 1 and (self._events > WINDOW_EVENTS or self._bytes > WINDOW_BYTES):
            gone = self._chunks.pop(0)
            self._ends.pop(0)
            self._events -= len(gone.frames)
            self._bytes -= gone.size
        self.last = chunk.last
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)


def encode(chunk: Chunk, position: int, form: Form, wanted: EventFilter | None) -> tuple[bytes, int]:
    """A chunk's bytes after a position, and where they end: at most about ``SEND_BYTES``.

    An attempt's last event and gaps pass every filter: without them a client could not know where it stands.
    """
    if wanted is None and position <= chunk.after and chunk.size <= SEND_BYTES:
        return chunk.encoded(form), chunk.last
    parts: list[bytes] = []
    size = 0
    for frame in chunk.behind(position):
        if wanted is None or frame.name in ("gap", "end", "pause") or wanted(frame.event):
            part = frame.encoded(form)
            if size and size + len(part) > SEND_BYTES:
                break
            parts.append(part)
            size += len(part)
        position = frame.last
    return b"".join(parts), position
