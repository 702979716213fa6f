"""What a node is given: where it is, and how it speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable
from typing import Any

from weavegraph.bus import HubEmitter, Lane
from weavegraph.events import LLM_SCOPE, Event, LLMPhase, LLMStreamingEvent, NodeEvent, check_id
from weavegraph.llm import chunks_of

__all__ = ["LLMReply", "LLMStream", "NodeContext"]


class NodeContext:
    """One node's view of its run. ``emit`` works from any thread and never waits; there is no context variable."""

    def __init__(self, lane: Lane, node_id: str, step: int) -> None:
        self._lane = lane
        self.node_id, self.step = node_id, step
        self.run_id, self.session_id, self.attempt = lane.run_id, lane.session_id, lane.attempt
        self.emitter = HubEmitter(lane)
        self._streams: dict[str, LLMStream] = {}

    def emit(self, scope: str, message: str = "", /, **metadata: Any) -> Event | None:
        """Say something: ``ctx.emit("drafting", "started", words=120)``. Returns the stamped event.

        Raises:
            NodeContextError: the event breaks a rule (``EventInvalidError``, ``EventTooLargeError``), or the run is
                over (``RunClosedError``).
        """
        return self.emitter.emit(self._event(scope, message, metadata))

    async def emit_async(self, scope: str, message: str = "", /, **metadata: Any) -> Event:
        """As ``emit``, but waits for subscribers with ``overflow="block"``."""
        return await self.emitter.emit_async(self._event(scope, message, metadata))

    def _event(self, scope: str, message: str, metadata: dict[str, Any]) -> NodeEvent:
        return NodeEvent(scope, message, metadata, node_id=self.node_id, step=self.step)

    def stream_llm(
        self, source: AsyncIterable[Any] | Iterable[Any], *, stream_id: str | None = None, **metadata: Any
    ) -> LLMStream:
        """Pass a model's token stream on as LLM events: chunk …, then exactly one of final, error, cancelled.

        ``reply = await ctx.stream_llm(tokens)`` gives the whole; ``async for chunk in ctx.stream_llm(tokens)`` each
        piece. If the node ends before the stream does, the runtime writes the terminal event.
        """
        if stream_id is None:
            stream_id = f"{self.node_id}:{self.step}:{len(self._streams)}"
        check_id("stream_id", stream_id)
        if stream_id in self._streams:
            raise ValueError(f"stream_id={stream_id!r} is used by another stream of this node; give another, or none")
        stream = self._streams[stream_id] = LLMStream(self, source, stream_id, metadata)
        return stream

    def close_streams(self, phase: LLMPhase, message: str = "") -> None:
        """The node ended: streams that it left open end with it. Called by the runtime."""
        for stream in self._streams.values():
            stream._end(phase, message)


class LLMReply:
    """A whole answer."""

    __slots__ = ("chunks", "stream_id", "text")

    def __init__(self, stream_id: str, chunks: tuple[str, ...]) -> None:
        self.stream_id, self.chunks = stream_id, chunks
        self.text = "".join(chunks)


class LLMStream:
    """A token stream that is passed on: await it for the reply, or iterate its chunks; once."""

    def __init__(self, context: NodeContext, source: Any, stream_id: str, metadata: dict[str, Any]) -> None:
        self._context, self._source, self._metadata = context, source, metadata
        self.stream_id = stream_id
        self._index = 0
        self._ended = False
        self._taken = False

    def __await__(self) -> Generator[Any, None, LLMReply]:
        return self._collect().__await__()

    async def _collect(self) -> LLMReply:
        chunks = [chunk async for chunk in self]
        return LLMReply(self.stream_id, tuple(chunks))

    async def __aiter__(self) -> AsyncIterator[str]:
        if self._taken:
            raise RuntimeError(f"LLM stream {self.stream_id!r} was read already")
        self._taken = True
        try:
            async for text in chunks_of(self._source):
                self._emit("chunk", text)
                yield text
        except (asyncio.CancelledError, GeneratorExit):
            self._end("cancelled", "")
            raise
        except BaseException as exc:
            self._end("error", f"{type(exc).__name__}: {exc}")
            raise
        self._end("final", "")

    def _end(self, phase: LLMPhase, message: str) -> None:
        if not self._ended:
            self._ended = True
            if self._taken:
                self._emit(phase, message)

    def _emit(self, phase: LLMPhase, text: str) -> None:
        context = self._context
        event = LLMStreamingEvent(
            LLM_SCOPE,
            text,
            {"severity": "error", **self._metadata} if phase == "error" else self._metadata,
            chunk=text,
            phase=phase,
            is_final=phase != "chunk",
            index=self._index,
            stream_id=self.stream_id,
            node_id=context.node_id,
            step=context.step,
        )
        # What ends a stream is never refused by a full reader.
        if phase == "chunk":
            context.emitter.emit(event)
        else:
            context._lane._accept(event, reserved=True)
        self._index += 1
