"""The three kinds of event, as frozen values: what a node says, what the system says, what a model says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from weavegraph.clock import SystemClock
from weavegraph.events._frozen import EMPTY

__all__ = [
    "GAP_SCOPE",
    "INVOCATION_END_SCOPE",
    "LLM_SCOPE",
    "RESERVED_PREFIX",
    "SCHEMA_VERSION",
    "STREAM_END_SCOPE",
    "DiagnosticEvent",
    "Event",
    "LLMPhase",
    "LLMStreamingEvent",
    "NodeEvent",
]

SCHEMA_VERSION = 1
RESERVED_PREFIX = "weavegraph."
"""Scopes that only the runtime may write (contract E6)."""
GAP_SCOPE = "weavegraph.gap"
STREAM_END_SCOPE = "weavegraph.stream.end"
INVOCATION_END_SCOPE = "weavegraph.invocation.end"
LLM_SCOPE = "llm_stream"

LLMPhase: TypeAlias = Literal["chunk", "final", "error", "cancelled"]

_now = SystemClock().now


def _empty() -> Mapping[str, Any]:
    return EMPTY


def _version() -> int:
    return SCHEMA_VERSION


class _Envelope(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type", gc=False
):
    # gc=False: an event holds text, numbers and frozen metadata, which cannot point back at it; the
    # collector then has nothing to visit in a ring of many thousands.
    # Defaults made by a function are always encoded, so the five keys and the version never miss.
    scope: str
    message: str
    metadata: Mapping[str, Any] = msgspec.field(default_factory=_empty)
    timestamp: datetime = msgspec.field(default_factory=_now)
    v: int = msgspec.field(default_factory=_version)
    seq: int = 0
    epoch: str | None = None
    session_id: str | None = None
    run_id: str | None = None
    run_seq: int | None = None
    node_id: str | None = None
    step: int | None = None
    attempt: int | None = None
    path: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``"node"``, ``"diagnostic"`` or ``"llm"``; ``type`` in its JSON."""
        return str(self.__struct_config__.tag)

    def to_json(self, *, style: Literal["weavegraph", "rust"] = "weavegraph") -> bytes:
        """This event as one line of UTF-8 JSON; ``style="rust"`` gives the Rust library's five keys.

        Raises:
            EventInvalidError: the event was never emitted and holds what JSON cannot say.
        """
        from weavegraph.events import _wire

        return _wire.to_json(self, style)  # type: ignore[arg-type]


class NodeEvent(_Envelope, frozen=True, tag="node", gc=False):
    """What a node says: a scope of its own choosing, a message, metadata.

    ``seq`` is the position in the hub (0 before emission), ``run_seq`` the one in its run, which travels.
    ``timestamp`` is aware UTC, taken at emission, informative. ``path`` names enclosing nodes, outermost first.
    """

    def __str__(self) -> str:
        return _label(self.node_id, self.step) + self.message


class DiagnosticEvent(_Envelope, frozen=True, tag="diagnostic", gc=False):
    """What the system says: lifecycle of runs, steps and nodes, gaps, failures of sinks."""

    def __str__(self) -> str:
        return f"[{self.scope}] {self.message}" if self.message else f"[{self.scope}]"


class LLMStreamingEvent(_Envelope, frozen=True, tag="llm", gc=False):
    """One piece of a model's answer. ``message`` is the chunk; ``stream_id`` tells parallel answers apart.

    ``index`` counts 0, 1, 2 … within the stream, and exactly one event of it has a phase other than ``chunk``;
    that one has ``is_final``. The end of an answer is never the end of the run.
    """

    chunk: str = msgspec.field(default_factory=str)
    phase: LLMPhase = msgspec.field(default_factory=lambda: "chunk")
    is_final: bool = msgspec.field(default_factory=bool)
    index: int = msgspec.field(default_factory=int)
    stream_id: str | None = None

    def __str__(self) -> str:
        label = self.stream_id or self.node_id
        return f"[LLM {label}] {self.chunk}" if label else self.chunk


Event: TypeAlias = NodeEvent | DiagnosticEvent | LLMStreamingEvent


def _label(node_id: str | None, step: int | None) -> str:
    if node_id is None:
        return "" if step is None else f"[step {step}] "
    return f"[{node_id}] " if step is None else f"[{node_id}@{step}] "
