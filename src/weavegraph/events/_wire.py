"""Events as JSON, both ways. Strict: what is refused is refused by name, and nothing but data is ever built."""

from __future__ import annotations

import functools
from datetime import UTC, timedelta
from typing import Any, Literal

import msgspec

from weavegraph.errors import EmitterError, EventDecodeError
from weavegraph.events._admit import MAX_EVENT_BYTES, admit
from weavegraph.events._frozen import FrozenDict
from weavegraph.events._types import (
    LLM_SCOPE,
    SCHEMA_VERSION,
    DiagnosticEvent,
    Event,
    LLMStreamingEvent,
    NodeEvent,
)

__all__ = ["from_json", "to_json"]

_encode = msgspec.json.Encoder().encode


class _Version(msgspec.Struct):
    v: int | None = None


_version = msgspec.json.Decoder(_Version)


@functools.cache  # made when first needed: 1 ms of the import
def _decoder() -> msgspec.json.Decoder[NodeEvent | DiagnosticEvent | LLMStreamingEvent]:
    return msgspec.json.Decoder(NodeEvent | DiagnosticEvent | LLMStreamingEvent, strict=True)


def to_json(event: Event, style: Literal["weavegraph", "rust"] = "weavegraph") -> bytes:
    """One event as one line of UTF-8 JSON; see ``Event.to_json``."""
    if style == "rust":
        event = admit(event, reserved=True, stamp_bytes=0)[0]
        return _encode(_rust(event))
    if style != "weavegraph":
        raise ValueError(f"style={style!r}: choose 'weavegraph' or 'rust'")
    if event.seq == 0 or type(event.metadata) is not FrozenDict:
        # Not through the door: nobody has checked it yet, and msgspec would write NaN as null.
        event = admit(event, reserved=True)[0]
    return _encode(event)


def from_json(data: bytes | str, /) -> Event:
    """The event in ``data``, checked like one that is emitted; the exact inverse of ``to_json()``.

    Raises:
        EventDecodeError: no JSON, not an event, an unknown schema version, or beyond a limit. Nothing else is
            raised for any input, and no object but an event, text, numbers, lists and dicts is ever built.
    """
    try:
        raw = data.encode() if isinstance(data, str) else bytes(memoryview(data))
        if len(raw) > MAX_EVENT_BYTES:
            raise EventDecodeError(f"{len(raw)} bytes; the limit is {MAX_EVENT_BYTES}")
        _check_version(raw)
        event = _decoder().decode(raw)
        if event.timestamp.tzinfo is None:
            raise EventDecodeError("the timestamp has no time zone")
        if event.timestamp.utcoffset() != timedelta(0):
            event = msgspec.structs.replace(event, timestamp=event.timestamp.astimezone(UTC))
        if not (0 <= event.seq < 2**63 and (event.run_seq is None or 0 < event.run_seq < 2**63)):
            raise EventDecodeError("seq or run_seq is out of range")
        return admit(event, reserved=True, stamp_bytes=0)[0]
    except EventDecodeError:
        raise
    except (msgspec.MsgspecError, EmitterError, RecursionError, ValueError, TypeError, OverflowError) as exc:
        raise EventDecodeError(str(exc)) from exc


def _check_version(raw: bytes) -> None:
    version = _version.decode(raw).v
    if version != SCHEMA_VERSION:
        raise EventDecodeError(f"schema version {version!r}; this release reads version {SCHEMA_VERSION}")


def _rust(event: Event) -> dict[str, Any]:
    """The Rust library's normalised form: five keys, ids folded into the metadata.

    There, an LLM stream's last chunk has the scope of the end of the whole run; here it has the scope ``final``.
    """
    scope = event.scope
    metadata: dict[str, Any] = {}
    if isinstance(event, LLMStreamingEvent):
        ids: dict[str, Any] = {"session_id": event.session_id, "node_id": event.node_id, "stream_id": event.stream_id}
        metadata = {key: value for key, value in ids.items() if value is not None}
        metadata = {**metadata, "is_final": event.is_final, **event.metadata}
        scope = event.phase if event.scope == LLM_SCOPE else event.scope
    elif isinstance(event, NodeEvent):
        ids = {"node_id": event.node_id, "step": event.step}
        metadata = {**event.metadata, **{key: value for key, value in ids.items() if value is not None}}
    kind = {NodeEvent: "node", DiagnosticEvent: "diagnostic", LLMStreamingEvent: "llm"}[type(event)]
    return {
        "type": kind,
        "scope": scope,
        "message": event.message,
        "timestamp": event.timestamp,
        "metadata": dict(sorted(metadata.items())),
    }
