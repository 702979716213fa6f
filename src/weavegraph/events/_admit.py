"""The door: what may become an event. Checks once, freezes once, and says what the event weighs.

Everything behind the door may rely on it: an admitted event encodes, survives the round trip, is within the
limits, and nobody can change it. Limits are those of section 12 of the contract.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from weavegraph.errors import EmitterError, EventInvalidError, EventTooLargeError
from weavegraph.events._frozen import EMPTY, FrozenDict, FrozenList
from weavegraph.events._types import (
    RESERVED_PREFIX,
    SCHEMA_VERSION,
    DiagnosticEvent,
    Event,
    LLMStreamingEvent,
    NodeEvent,
)

__all__ = [
    "FLAT_BYTES",
    "MAX_DEPTH",
    "MAX_EVENT_BYTES",
    "MAX_SCOPE_CHARS",
    "admit",
    "check_id",
    "check_scope",
    "clean_text",
    "freeze_metadata",
    "freeze_usual",
]

MAX_EVENT_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_SCOPE_CHARS = 256
FLAT_BYTES = 1024
"""What a small event is charged: its text and metadata encode to at most 512 bytes, and 512 for the rest."""

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_SMALL_CHARS = 85
"""85 characters are at most 510 bytes of JSON: the longest escape of one character is six bytes."""
STAMP_BYTES = 640
"""What a stamp adds to an event on the wire, at most: seq, epoch, run and session id, run_seq, attempt."""
_encode = msgspec.json.Encoder().encode
_known_scopes: dict[str, str] = {}
_known_nodes: dict[str, str] = {}
"""What was found good, to the very same text: most producers send one object again and again."""
MAX_KNOWN = 1024
"""They may come from data."""
_known_scope, _known_node = _known_scopes.get, _known_nodes.get
_NO_PATH: tuple[str, ...] = ()
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


def check_id(field: str, value: object) -> str:
    """``value`` if it may name a run, session, node or LLM stream: ``[A-Za-z0-9_.:-]{1,128}``."""
    if type(value) is not str or not _ID.fullmatch(value):
        raise EventInvalidError(field, f"{_short(value)} is no id: use 1 to 128 of A-Z a-z 0-9 _ . : -")
    if field == "node_id" and len(_known_nodes) < MAX_KNOWN:
        _known_nodes[value] = value
    return value


def check_scope(scope: object) -> str:
    """``scope`` if a user may write it: 1 to 256 printable characters, not reserved (contract E6)."""
    if type(scope) is str and scope in _known_scopes:
        return scope
    if type(scope) is not str or not 0 < len(scope) <= MAX_SCOPE_CHARS or not scope.isprintable():
        problem = f"{_short(scope)} is no scope: use 1 to {MAX_SCOPE_CHARS} printable characters"
        raise EventInvalidError("scope", problem)
    if scope.startswith(RESERVED_PREFIX):
        raise EventInvalidError("scope", f"{scope!r}: the prefix {RESERVED_PREFIX!r} is the runtime's own")
    if len(_known_scopes) < MAX_KNOWN:
        _known_scopes[scope] = scope
    return scope


def clean_text(field: str, text: object) -> str:
    """``text`` as a plain str that UTF-8 can carry: lone surrogates become U+FFFD, pairs become one character."""
    if type(text) is not str:
        if not isinstance(text, str):
            raise EventInvalidError(field, f"expected text, got {type(text).__name__}")
        text = str.__str__(text)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def freeze_metadata(metadata: object) -> FrozenDict:
    """A deep, read-only copy of ``metadata`` made of what JSON knows; tuples become lists.

    Raises:
        EventInvalidError: a key that is no text, NaN or infinity, an integer beyond 64 bits, or a value of
            another type; the text says where.
        EventTooLargeError: deeper than 32 levels (a structure that contains itself is too).
    """
    if type(metadata) is FrozenDict:
        return metadata
    if not isinstance(metadata, Mapping):
        raise EventInvalidError("metadata", f"expected a mapping, got {type(metadata).__name__}")
    try:
        return _freeze_dict(metadata, "metadata", 1) if metadata else EMPTY
    except EmitterError:
        raise
    except Exception as exc:  # of a mapping, a key or a value that is somebody's own class
        raise EventInvalidError("metadata", f"it cannot be read: {type(exc).__name__}") from exc


def _freeze_dict(mapping: Mapping[Any, Any], where: str, depth: int) -> FrozenDict:
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise EventInvalidError(where, f"key {_short(key)} is no text")
        key = clean_text(where, key)
        kind = type(value)
        if kind is str and value.isascii() or kind is bool or value is None:
            out[key] = value
        else:
            out[key] = _freeze(value, f"{where}.{key}", depth)
    return FrozenDict(out)


def _freeze(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, str):
        return clean_text(where, value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise EventInvalidError(where, "an integer beyond 64 bits; send it as text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise EventInvalidError(where, f"{value!r} is not JSON")
        return float(value)
    if depth >= MAX_DEPTH:
        raise EventTooLargeError(f"the depth of {where[:80]}", depth + 1, MAX_DEPTH)
    if isinstance(value, Mapping):
        return _freeze_dict(value, where, depth + 1)
    if isinstance(value, (list, tuple)):
        return FrozenList(_freeze(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value))
    raise EventInvalidError(where, f"{type(value).__name__} is not JSON; convert it to text, numbers, lists, mappings")


def freeze_usual(scope: object, message: object, metadata: Mapping[str, Any], node_id: object) -> FrozenDict | None:
    """The metadata, frozen, of what a node usually says: an event that ``admit`` would neither change nor charge.

    ``None`` says nothing: then make the event, and ask ``admit``. ``metadata`` are keywords that nobody else holds.
    """
    if (
        type(scope) is not str or _known_scope(scope) is not scope
        or type(message) is not str or not message.isascii()
        or (node_id is not None and (type(node_id) is not str or _known_node(node_id) is not node_id))
    ):  # fmt: skip
        return None
    chars = len(message)
    for key, value in metadata.items():
        kind = type(value)
        if kind is str:
            if not value.isascii():
                return None
            chars += len(value)
        elif kind is int:
            if not _INT_MIN <= value <= _INT_MAX:
                return None
        elif kind is not bool and value is not None and (kind is not float or not math.isfinite(value)):
            return None
        if type(key) is not str or not key.isascii():
            return None
        chars += len(key) + 5  # five more are 30 bytes, in which a number, the quotes, the colon and the comma fit
    frozen = FrozenDict(metadata) if metadata else EMPTY
    small = chars <= _SMALL_CHARS - 1 or (
        chars <= FLAT_BYTES - 512 and len(_encode(message)) + len(_encode(frozen)) <= FLAT_BYTES - 512
    )
    return frozen if small else None


def admit(event: Event, reserved: bool = False, *, stamp_bytes: int = STAMP_BYTES) -> tuple[Event, int]:
    """The event as it may be stored, and its charge in bytes beyond ``FLAT_BYTES`` (0 for small ones).

    Args:
        reserved: the runtime writes: scopes with the reserved prefix are allowed.
        stamp_bytes: how much longer its JSON may become; 0 for an event that carries its stamp.
    """
    scope: Any = ""
    node_id = None
    try:
        kind = type(event)
        if kind is not NodeEvent and kind is not LLMStreamingEvent and kind is not DiagnosticEvent:
            raise EventInvalidError("event", f"expected a weavegraph event, got {type(event).__name__}")
        scope, message, metadata, node_id = event.scope, event.message, event.metadata, event.node_id
        # The usual event of a node: one look at each field, which halves the price of this door (420 to 220 ns).
        if (
            metadata is EMPTY and kind is NodeEvent and _known_scope(scope, event) is scope
            and type(message) is str and len(message) <= _SMALL_CHARS and message.isascii()
            and (node_id is None or _known_node(node_id) is node_id)
            and ((step := event.step) is None or (type(step) is int and 0 <= step < 2**63))
            and event.session_id is None and event.run_id is None and event.run_seq is None and event.attempt is None
            and event.epoch is None and event.path is _NO_PATH and event.v == SCHEMA_VERSION
        ):  # fmt: skip
            return event, 0
        if not (reserved and type(scope) is str and scope.startswith(RESERVED_PREFIX)):
            check_scope(scope)
        elif len(scope) > MAX_SCOPE_CHARS or not scope.isprintable():
            raise EventInvalidError("scope", f"{_short(scope)} is no scope")
        changes: dict[str, Any] = {}
        if type(message) is not str or not message.isascii():
            cleaned = clean_text("message", message)
            if cleaned is not message:
                changes["message"] = cleaned
        if type(metadata) is not FrozenDict:
            changes["metadata"] = metadata = freeze_metadata(metadata)
        if node_id is not None:
            check_id("node_id", node_id)
        if event.session_id is not None:
            check_id("session_id", event.session_id)
        if event.step is not None and (type(event.step) is not int or not 0 <= event.step < 2**63):
            raise EventInvalidError("step", f"expected a whole number from 0, got {_short(event.step)}")
        if kind is LLMStreamingEvent:
            _admit_llm(event, changes)  # type: ignore[arg-type]
        if (
            event.run_id is not None or event.run_seq is not None or event.attempt is not None
            or event.epoch is not None or event.path != () or event.v != SCHEMA_VERSION
        ):  # fmt: skip
            _admit_origin(event, changes)
        if changes:
            event = msgspec.structs.replace(event, **changes)
        return event, 0 if metadata is EMPTY and len(message) <= _SMALL_CHARS else _weigh(event, stamp_bytes)
    except EmitterError:
        raise
    except Exception as exc:  # of somebody's own class in a field: its hash, its comparison, its text
        if type(scope) is not str:
            check_scope(scope)
        if node_id is not None:
            check_id("node_id", node_id)
        raise EventInvalidError("event", f"it cannot be read: {type(exc).__name__}") from exc


def _admit_origin(event: Event, changes: dict[str, Any]) -> None:
    """What an event brings along that was emitted elsewhere before."""
    if event.v != SCHEMA_VERSION:
        raise EventInvalidError("v", f"expected {SCHEMA_VERSION}, got {_short(event.v)}")
    if event.run_id is not None:
        check_id("run_id", event.run_id)
    if event.epoch is not None:
        check_id("epoch", event.epoch)
    for field in ("run_seq", "attempt"):
        value = getattr(event, field)
        if value is not None and (type(value) is not int or not 0 < value < 2**63):
            raise EventInvalidError(field, f"expected a whole number from 1, got {_short(value)}")
    if event.path != ():
        if not isinstance(event.path, (tuple, list)):
            raise EventInvalidError("path", f"expected a tuple of node ids, got {type(event.path).__name__}")
        changes["path"] = tuple(check_id("path", node) for node in event.path)


def _admit_llm(event: LLMStreamingEvent, changes: dict[str, Any]) -> None:
    if event.stream_id is not None:
        check_id("stream_id", event.stream_id)
    if event.phase not in ("chunk", "final", "error", "cancelled"):
        raise EventInvalidError("phase", f"{_short(event.phase)} is not chunk, final, error or cancelled")
    if event.is_final is not (event.phase != "chunk"):
        raise EventInvalidError("is_final", f"{event.is_final!r} does not go with phase {event.phase!r}")
    if type(event.index) is not int or not 0 <= event.index < 2**63:
        raise EventInvalidError("index", f"expected a whole number from 0, got {_short(event.index)}")
    if event.chunk != event.message:
        raise EventInvalidError("chunk", "differs from message; build LLM events with llm_chunk, llm_final, llm_error")
    changes["chunk"] = changes.get("message", event.message)
    if "message" not in changes and event.chunk is event.message:
        del changes["chunk"]


def _weigh(event: Event, stamp_bytes: int) -> int:
    """Bytes beyond the flat charge; the exact encoded size of the whole event, so that the limit is one on the wire."""
    content = len(_encode(event.message)) + len(_encode(event.metadata))
    if content <= FLAT_BYTES - 512:
        return 0
    size = len(_encode(event)) + stamp_bytes
    if size > MAX_EVENT_BYTES:
        raise EventTooLargeError("its JSON in bytes", size, MAX_EVENT_BYTES)
    return max(content + 512, size) - FLAT_BYTES if max(content + 512, size) > FLAT_BYTES else 0


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # of somebody's own class
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "…"
