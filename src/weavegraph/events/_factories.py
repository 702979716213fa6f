"""Constructors in the blueprint's names. They build; the hub checks and stamps when the event is emitted."""

from __future__ import annotations

from typing import Any

from weavegraph.events._frozen import EMPTY
from weavegraph.events._types import LLM_SCOPE, DiagnosticEvent, LLMPhase, LLMStreamingEvent, NodeEvent

__all__ = ["diagnostic", "llm_chunk", "llm_error", "llm_final", "node_message"]


def node_message(
    scope: str, message: str, /, *, node_id: str | None = None, step: int | None = None, **metadata: Any
) -> NodeEvent:
    """An event that a node says: ``node_message("drafting", "started", words=120)``."""
    return NodeEvent(scope, message, metadata or EMPTY, node_id=node_id, step=step)


def diagnostic(scope: str, message: str, /, **metadata: Any) -> DiagnosticEvent:
    """An event that the system says. The scope prefix ``weavegraph.`` is the runtime's own."""
    return DiagnosticEvent(scope, message, metadata or EMPTY)


def llm_chunk(
    chunk: str,
    /,
    *,
    stream_id: str | None = None,
    node_id: str | None = None,
    session_id: str | None = None,
    index: int = 0,
    **metadata: Any,
) -> LLMStreamingEvent:
    """One piece of a model's answer."""
    return _llm(chunk, "chunk", stream_id, node_id, session_id, index, metadata)


def llm_final(
    chunk: str = "",
    /,
    *,
    stream_id: str | None = None,
    node_id: str | None = None,
    session_id: str | None = None,
    index: int = 0,
    **metadata: Any,
) -> LLMStreamingEvent:
    """The last piece of a model's answer; often empty."""
    return _llm(chunk, "final", stream_id, node_id, session_id, index, metadata)


def llm_error(
    message: str,
    /,
    *,
    stream_id: str | None = None,
    node_id: str | None = None,
    session_id: str | None = None,
    index: int = 0,
    **metadata: Any,
) -> LLMStreamingEvent:
    """The end of a model's answer by a failure; its metadata says ``severity="error"``."""
    return _llm(message, "error", stream_id, node_id, session_id, index, {"severity": "error", **metadata})


def _llm(
    chunk: str,
    phase: LLMPhase,
    stream_id: str | None,
    node_id: str | None,
    session_id: str | None,
    index: int,
    metadata: dict[str, Any],
) -> LLMStreamingEvent:
    return LLMStreamingEvent(
        LLM_SCOPE,
        chunk,
        metadata or EMPTY,
        chunk=chunk,
        phase=phase,
        is_final=phase != "chunk",
        index=index,
        stream_id=stream_id,
        node_id=node_id,
        session_id=session_id,
    )
