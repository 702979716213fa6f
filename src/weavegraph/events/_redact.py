"""What an audience may see of an event: a view that changes texts and metadata, never a position, an index or a count.

*Look-back.* A model's answer comes in pieces, and a secret may be cut by their borders. So the hook is never shown a
piece alone: the piece's last, unfinished word is held back until the next piece ends it, and the hook sees what came
before as well. The texts of an answer, put together, are then the hook's view of the whole; pieces only carry them a
word later. Every piece is still one event with its own index.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import msgspec

from weavegraph.errors import WeavegraphError
from weavegraph.events._admit import freeze_metadata
from weavegraph.events._types import Event, LLMStreamingEvent
from weavegraph.events._wire import to_json

__all__ = ["LOOK_BACK", "Redact", "Redactor", "View", "mask_secrets"]

Redact: TypeAlias = Callable[[Event, str], Event]
"""``redact(event, audience)`` returns the event as that audience may see it."""

LOOK_BACK = 256
"""Characters of an answer that the hook sees before a piece, that are held back at most, and events that are read
again before the position where a reader begins."""
WITHHELD = "[withheld: the redaction hook failed]"
_STREAMS = 1024
_log = logging.getLogger("weavegraph.events")
_FIXED = (
    "v", "seq", "epoch", "timestamp", "session_id", "run_id", "run_seq", "node_id", "step", "attempt", "path", "scope",
)  # fmt: skip
_SECRETS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?",
    r"(?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}",
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}",
    r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bA(?:KI|SI)A[A-Z0-9]{16}\b",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
    r"(?<=://)[^\s/:@]{1,128}:[^\s/@]{1,256}(?=@)",
    r"(?i:\b(?:password|passwd|secret|api[_-]?key|token)\b[\"']?\s*[=:]\s*[\"']?[^\s\"',;]{4,})",
)
_SECRET_KEY = re.compile(r"(?i)pass(word|wd|phrase)|secret|api_?key|token$|authorization|cookie|credential")


def mask_secrets(patterns: Iterable[str] = _SECRETS, *, mask: str = "***") -> Redact:
    """A hook that masks what looks like a key, a bearer token or a password, in texts and metadata.

    Metadata is masked whole where its key says so (``password``, ``api_key``, ``authorization`` …). Patterns find what
    has a known shape; what must not be seen should not be emitted.
    """
    regex = re.compile("|".join(f"(?:{each})" for each in patterns))

    def text(value: str) -> str:
        return regex.sub(mask, value)

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return text(value)
        if isinstance(value, dict):
            return {
                key: mask if _SECRET_KEY.search(key) and isinstance(each, str) else plain(each)
                for key, each in value.items()
            }
        return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

    def redact(event: Event, audience: str) -> Event:
        changes: dict[str, Any] = {}
        message = text(event.message)
        if message != event.message:
            changes["message"] = message
        if event.metadata:
            changes["metadata"] = plain(event.metadata)
        if changes and isinstance(event, LLMStreamingEvent):
            changes["chunk"] = message
        return msgspec.structs.replace(event, **changes) if changes else event

    return redact


class View:
    """One reader's view of a run, or of all runs: events in order in, events in order out, one for one."""

    def __init__(self, redact: Redact, audience: str) -> None:
        self._redact, self._audience = redact, audience
        self._before: OrderedDict[tuple[str | None, str | None], tuple[str, str]] = OrderedDict()
        """By run and stream of open answers: what was shown (original, its end), and what is held back."""
        self._complained = False

    def see(self, event: Event) -> Event:
        """``event`` as the audience sees it."""
        try:
            if isinstance(event, LLMStreamingEvent) and event.stream_id is not None:
                return self._piece(event)
            return self._fixed(event, self._redact(event, self._audience))
        except Exception as exc:
            if not self._complained:
                self._complained = True
                _log.warning("the redaction hook failed; what it failed on is withheld", exc_info=exc)
            return self._withheld(event)

    def _piece(self, event: LLMStreamingEvent) -> Event:
        key = (event.run_id, event.stream_id)
        if event.phase in ("error", "cancelled"):
            self._before.pop(key, None)
            return self._fixed(event, self._redact(event, self._audience))
        unseen = key not in self._before and event.index > 0
        shown, held = self._before.pop(key, ("", ""))
        text = held + event.chunk
        cut = len(text) if event.phase == "final" else _last_border(text)
        released, held = text[:cut], text[cut:]
        if event.phase == "chunk":
            self._before[key] = ((shown + released)[-LOOK_BACK:], held)
            if len(self._before) > _STREAMS:
                self._before.popitem(last=False)
        if unseen:  # the beginning of its first word is not known here
            _, space, rest = released.partition(" ")
            released = f"…{space}{rest}"
        before, whole = self._mask(event, shown), self._mask(event, shown + released)
        view = whole[_shared(before, whole) :]
        masked = self._redact(msgspec.structs.replace(event, message=released, chunk=released), self._audience)
        return self._fixed(event, msgspec.structs.replace(masked, message=view, chunk=view))

    def _mask(self, event: LLMStreamingEvent, text: str) -> str:
        if not text:
            return ""
        piece = msgspec.structs.replace(event, message=text, chunk=text)
        return self._redact(piece, self._audience).message

    def _fixed(self, event: Event, view: Event) -> Event:
        """``view`` with everything that is not text or metadata as it was; raises when it cannot be sent."""
        if view is event:
            return event
        if type(view) is not type(event):
            raise TypeError(f"a redaction hook returned a {type(view).__name__}")
        changes: dict[str, Any] = {name: getattr(event, name) for name in _FIXED}
        changes["metadata"] = freeze_metadata(view.metadata)
        if isinstance(event, LLMStreamingEvent):
            changes |= {"chunk": view.message, "phase": event.phase, "is_final": event.is_final}
            changes |= {"index": event.index, "stream_id": event.stream_id}
        fixed = msgspec.structs.replace(view, **changes)
        to_json(fixed)
        return fixed

    def _withheld(self, event: Event) -> Event:
        changes: dict[str, Any] = {"message": WITHHELD, "metadata": freeze_metadata({})}
        if isinstance(event, LLMStreamingEvent):
            changes["chunk"] = WITHHELD
        return msgspec.structs.replace(event, **changes)


class Redactor:
    """Makes views for one audience, or none where nothing is redacted."""

    def __init__(self, redact: Redact | None, audience: str = "wire") -> None:
        if redact is not None and not callable(redact):
            raise WeavegraphError(f"redact={redact!r}: give a function of an event and its audience")
        self._redact, self._audience = redact, audience

    @property
    def look_back(self) -> int:
        """Events before a reader's first that its view wants to see."""
        return 0 if self._redact is None else LOOK_BACK

    def view(self) -> View | None:
        return None if self._redact is None else View(self._redact, self._audience)


def _last_border(text: str) -> int:
    """Where the last word of ``text`` begins; a word that is longer than what may be held back is cut."""
    cut = max(text.rfind(" "), text.rfind("\n"), text.rfind("\t")) + 1
    return max(cut, len(text) - LOOK_BACK)


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with together."""
    if other.startswith(one):
        return len(one)
    return next(n for n, (a, b) in enumerate(zip(one, other + "\0", strict=False)) if a != b)
