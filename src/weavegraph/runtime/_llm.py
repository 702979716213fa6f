"""A model's token stream, passed on as events: chunks, then exactly one end (contract O5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any

from weavegraph.errors import BackpressureError, LLMStreamClosedError, RunCancelledError, RunClosedError
from weavegraph.events import LLM_SCOPE, Event, LLMPhase, LLMStreamingEvent
from weavegraph.llm import pieces_of, text_of
from weavegraph.runtime._attempt import describe

if TYPE_CHECKING:
    from weavegraph.runtime._context import NodeContext

__all__ = ["LLMRecord", "LLMReply", "LLMStream"]


class LLMRecord:
    """One LLM stream of a node: its index, and whether it has ended. Whoever emits, it passes here."""

    __slots__ = ("_context", "_index", "_metadata", "ended", "stream_id")

    def __init__(self, context: NodeContext[Any, Any], stream_id: str, metadata: dict[str, Any]) -> None:
        self._context, self._metadata = context, metadata
        self.stream_id = stream_id
        self._index = 0
        self.ended = False

    @property
    def begun(self) -> bool:
        return self._index > 0

    def event(self, phase: LLMPhase, text: str, more: dict[str, Any] | None = None) -> LLMStreamingEvent:
        context = self._context
        metadata = {**self._metadata, **more} if more else self._metadata
        return LLMStreamingEvent(
            LLM_SCOPE,
            text,
            {"severity": "error", **metadata} if phase == "error" else metadata,
            chunk=text,
            phase=phase,
            is_final=phase != "chunk",
            index=self._index,
            stream_id=self.stream_id,
            node_id=context.node_id,
            step=context.step,
            path=context.path,
        )

    def chunk(self, text: str, more: dict[str, Any] | None = None) -> Event | None:
        if self.ended:
            raise LLMStreamClosedError(self.stream_id)
        stamped = self._context.emitter.emit(self.event("chunk", text, more))
        if stamped is not None:  # one that a full reader refused reached nobody and has no index
            self._index += 1
        return stamped

    async def chunk_async(self, text: str) -> None:
        with contextlib.suppress(BackpressureError):  # counted as refused; the reply is whole all the same
            await self._context.emitter.emit_async(self.event("chunk", text))
            self._index += 1

    def end(self, phase: LLMPhase, text: str = "", more: dict[str, Any] | None = None) -> Event | None:
        """Write the terminal, once. It is never refused by a full reader."""
        if self.ended:
            raise LLMStreamClosedError(self.stream_id)
        self.ended = True
        attempt = self._context._attempt
        if attempt.lane.attempt != attempt.number:
            raise RunClosedError(attempt.lane.run_id)
        stamped = attempt.lane._accept(self.event(phase, text, more), reserved=True)
        self._index += 1
        return stamped

    def close(self, phase: LLMPhase, text: str) -> None:
        """The node is over: a stream that it left open ends with it."""
        if self.begun and not self.ended:
            self.end(phase, text)
        self.ended = True


class LLMReply:
    """A whole answer: ``text``, and the ``chunks`` that it came in."""

    __slots__ = ("chunks", "stream_id", "text")

    def __init__(self, stream_id: str, chunks: tuple[str, ...]) -> None:
        self.stream_id, self.chunks = stream_id, chunks
        self.text = "".join(chunks)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<LLMReply {self.stream_id!r} {len(self.chunks)} chunks, {len(self.text)} characters>"


class LLMStream:
    """A token stream that is passed on: await it for the whole reply, or iterate its chunks; once.

    In a sync node iterate it with ``for``, or take ``.read()``. Leaving the loop early ends the stream as cancelled;
    so does a request to cancel the run, at the next chunk.
    """

    __slots__ = ("_context", "_record", "_source", "_taken")

    def __init__(self, context: NodeContext[Any, Any], source: Any, record: LLMRecord) -> None:
        self._context, self._source, self._record = context, source, record
        self._taken = False

    @property
    def stream_id(self) -> str:
        """As in its events; unique in the run."""
        return self._record.stream_id

    def __await__(self) -> Generator[Any, None, LLMReply]:
        return self._collect().__await__()

    async def _collect(self) -> LLMReply:
        chunks = [chunk async for chunk in self]
        return LLMReply(self.stream_id, tuple(chunks))

    async def __aiter__(self) -> AsyncIterator[str]:
        record, token = self._begin(), self._context.cancel_token
        pieces = pieces_of(self._source, self._context._call_in_thread)
        try:
            async for text in pieces:
                if token.cancelled:
                    raise RunCancelledError(self._context.run_id, token.reason or "cancelled")
                if record.chunk(text) is None:
                    await record.chunk_async(text)
                yield text
        except (asyncio.CancelledError, GeneratorExit, RunCancelledError):
            self._close("cancelled", "")
            raise
        except BaseException as exc:
            self._close("error", describe(exc))
            raise
        finally:
            with contextlib.suppress(Exception):
                await pieces.aclose()
        self._close("final", "")

    def __iter__(self) -> Iterator[str]:
        record, token = self._begin(), self._context.cancel_token
        try:
            for piece in self._source:
                if token.cancelled:
                    raise RunCancelledError(self._context.run_id, token.reason or "cancelled")
                if text := text_of(piece):
                    record.chunk(text)
                    yield text
        except (GeneratorExit, RunCancelledError):
            self._close("cancelled", "")
            raise
        except BaseException as exc:
            self._close("error", describe(exc))
            raise
        self._close("final", "")

    def read(self) -> LLMReply:
        """The whole reply, in a sync node."""
        return LLMReply(self.stream_id, tuple(self))

    def _begin(self) -> LLMRecord:
        if self._taken:
            raise LLMStreamClosedError(self.stream_id)
        self._taken = True
        return self._record

    def _close(self, phase: LLMPhase, text: str) -> None:
        if not self._record.ended:
            with contextlib.suppress(RunClosedError):  # the attempt ended before: the runtime wrote the terminal
                self._record.end(phase, text)
