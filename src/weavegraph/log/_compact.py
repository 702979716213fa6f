"""Compaction on request: a finished LLM stream read as one event. Pure: two passes over the same events.

The one event stands where the stream's last event stood and has its ``run_seq``; its text is that of all chunks. Its
metadata says ``first_seq``, ``last_seq`` and ``count`` of what it covers: those events count as delivered. The text of
an error is in ``metadata["error"]``. A stream without an end yet, or of more than half a megabyte, is left as it is.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import msgspec

from weavegraph.events import MAX_EVENT_BYTES, Event, LLMStreamingEvent, freeze_metadata, to_json

__all__ = ["Fold", "Survey"]

_Key: TypeAlias = tuple[int | None, str | None, str | None]
_SPARE = 1024  # what the added metadata takes
_encode = msgspec.json.Encoder().encode


def _key(event: LLMStreamingEvent) -> _Key:
    """Which stream: a node that runs again in a later attempt begins its streams anew."""
    return event.attempt, event.stream_id, event.node_id if event.stream_id is None else None


class Survey:
    """First pass: where each LLM stream ends, and whether it is small enough to be one event."""

    def __init__(self) -> None:
        self._sizes: dict[_Key, int] = {}
        self._ends: dict[_Key, deque[tuple[int, bool]]] = {}

    def see(self, event: Event) -> None:
        if not isinstance(event, LLMStreamingEvent) or event.run_seq is None:
            return
        key = _key(event)
        size = self._sizes.pop(key, 0) + 2 * len(_encode(event.chunk))  # the text is there twice: message and chunk
        if event.phase == "chunk":
            self._sizes[key] = size
        else:
            fits = size + len(to_json(event)) + _SPARE <= MAX_EVENT_BYTES
            self._ends.setdefault(key, deque()).append((event.run_seq, fits))

    def fold(self) -> Fold:
        return Fold(self._ends)


class _Open:
    """A stream that is being gathered."""

    __slots__ = ("chunks", "count", "first")

    def __init__(self, first: int) -> None:
        self.first, self.count = first, 0
        self.chunks: list[str] = []


class Fold:
    """Second pass: gives each event on, or keeps it for the one that will stand for it."""

    def __init__(self, ends: dict[_Key, deque[tuple[int, bool]]]) -> None:
        self._ends = ends
        self._open: dict[_Key, _Open] = {}

    def feed(self, event: Event) -> Event | None:
        if not isinstance(event, LLMStreamingEvent) or event.run_seq is None:
            return event
        key, at = _key(event), event.run_seq
        ends = self._ends.get(key)
        while ends and ends[0][0] < at:
            ends.popleft()
        if not ends or not ends[0][1]:
            return event
        stream = self._open.setdefault(key, _Open(at))
        stream.count += 1
        if at < ends[0][0]:
            stream.chunks.append(event.chunk)
            return None
        del self._open[key]
        return _one(event, stream, at)


def _one(event: LLMStreamingEvent, stream: _Open, at: int) -> LLMStreamingEvent:
    metadata = dict(event.metadata)
    if event.phase == "final":
        stream.chunks.append(event.chunk)
    elif event.chunk:
        metadata["error"] = event.chunk
    metadata |= {"first_seq": stream.first, "last_seq": at, "count": stream.count}
    text = "".join(stream.chunks)
    return msgspec.structs.replace(event, message=text, chunk=text, metadata=freeze_metadata(metadata))
