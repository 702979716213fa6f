"""A model's token stream, passed on as events: chunks, then exactly one end (contract O5)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any

from weavegraph.errors import BackpressureError, EmitterError, LLMStreamClosedError, RunCancelledError, RunClosedError
from weavegraph.events import LLM_SCOPE, Event, LLMPhase, LLMStreamingEvent
from weavegraph.llm import close_early, pieces_of, text_of
from weavegraph.runtime._attempt import describe

if TYPE_CHECKING:
    from weavegraph.runtime._context import NodeContext

__all__ = ["LLMRecord", "LLMReply", "LLMStream"]


class LLMRecord:
    """One LLM stream of a node: its index, and whether it has ended. Whoever emits passes here, in whatever thread."""

    __slots__ = ("_context", "_index", "_lock", "_metadata", "_waiting", "ended", "stream_id")

    def __init__(self, context: NodeContext[Any, Any], stream_id: str, metadata: dict[str, Any]) -> None:
        self._context, self._metadata = context, metadata
        self.stream_id = stream_id
        self._lock = threading.RLock()  # held while an event takes its index: no two get the same
        self._index = 0
        self._waiting: asyncio.Future[Event] | None = None  # a chunk that waits for room; no other may overtake it
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
        with self._lock:
            if self.ended:
                raise LLMStreamClosedError(self.stream_id)
            if self._waiting is not None:
                return None
            stamped = self._context.emitter.emit(self.event("chunk", text, more))
            if stamped is not None:  # one that a full reader refused reached nobody and has no index
                self._index += 1
            return stamped

    async def chunk_async(self, text: str) -> None:
        with self._lock:
            if self.ended:
                raise LLMStreamClosedError(self.stream_id)
            waiting = asyncio.ensure_future(self._context.emitter.emit_async(self.event("chunk", text)))
            self._waiting = waiting
        try:
            await waiting
        except BackpressureError:  # counted as refused; the reply is whole all the same
            pass
        except asyncio.CancelledError:
            if self.ended and waiting.cancelled():
                raise LLMStreamClosedError(self.stream_id) from None
            raise
        finally:
            with self._lock:
                self._waiting = None
                if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                    self._index += 1

    def end(self, phase: LLMPhase, text: str = "", more: dict[str, Any] | None = None) -> Event | None:
        """Write the terminal, once. It is never refused by a full reader."""
        attempt = self._context._attempt
        with self._lock:
            if self.ended:
                raise LLMStreamClosedError(self.stream_id)
            event = self.event(phase, text, more)
            if attempt.lane.attempt != attempt.number:
                self._over()
                raise RunClosedError(attempt.lane.run_id)
            try:
                stamped = attempt.lane._accept(event, reserved=True)
            except RunClosedError:
                self._over()
                raise
            self._over()
            self._index += 1
            return stamped

    def close(self, phase: LLMPhase, text: str) -> None:
        """The node is over: a stream that it left open ends with it."""
        with self._lock:
            if self.begun and not self.ended:
                with contextlib.suppress(EmitterError):  # the attempt, or the bus, is over
                    self.end(phase, text)
            self._over()

    def _over(self) -> None:
        self.ended = True
        self._context._attempt.open_streams.pop(self, None)
        if self._waiting is not None:
            self._waiting.cancel()


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
    so does a request to cancel the run, at the next chunk. A source that has not ended then is closed: its ``aclose``
    or ``close`` is called, where it has one.
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
                await pieces.aclose()  # closes the source, if it has not ended
        self._close("final", "")

    def __iter__(self) -> Iterator[str]:
        record, token = self._begin(), self._context.cancel_token
        pieces = iter(self._source)
        try:
            for piece in pieces:
                if token.cancelled:
                    raise RunCancelledError(self._context.run_id, token.reason or "cancelled")
                if text := text_of(piece):
                    record.chunk(text)
                    yield text
        except (GeneratorExit, RunCancelledError):
            self._close("cancelled", "")
            close_early(pieces, self._source)
            raise
        except BaseException as exc:
            self._close("error", describe(exc))
            close_early(pieces, self._source)
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
        # Before this: the node ended, or the attempt, and the runtime wrote the terminal.
        with contextlib.suppress(RunClosedError, LLMStreamClosedError):
            self._record.end(phase, text)
