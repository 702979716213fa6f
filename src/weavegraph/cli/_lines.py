"""Events as lines for people, and the tokens of a model's answer as running text. Pure: it gives text, and no more.

::

       1  run r1 of graph 'digest' · session s1
       2  step 1: outline
       4  outline@1  drafting: started  words=120
       5  draft ▸ Tea is a drink made by pouring hot water over
            │ cured leaves.
      30  run completed

In front stands the position (``run_seq``), which ``--after`` takes. Chunks of one answer follow each other on one line
until another event comes between. Every text is made safe: what begins a line is always ours, so an event cannot
look like another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from weavegraph.cli._screen import plain
from weavegraph.events import (
    GAP_SCOPE,
    RESERVED_PREFIX,
    STREAM_END_SCOPE,
    DiagnosticEvent,
    Event,
    LLMStreamingEvent,
)

__all__ = ["Lines", "cut", "duration"]

_RESET, _BOLD, _DIM, _CYAN, _GREEN, _RED = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[32m", "\x1b[31m"
_encode = msgspec.json.Encoder().encode
_Stream = tuple[int | None, tuple[str, ...], str | None, str | None]


class Lines:
    """Turns events into text, one after the other.

    Args:
        width: cut lines to so many columns; ``None``: as long as they are. Answers of models are never cut.
    """

    def __init__(self, *, width: int | None = None, color: bool = False, unicode: bool = True) -> None:
        self._width, self._color = width, color
        self._arrow, self._bar, self._dot, self._more = ("▸", "│", "·", "…") if unicode else (">", "|", "-", "...")
        self._open: _Stream | None = None  # the answer whose line has no end yet

    def feed(self, event: Event) -> str:
        """The text that ``event`` adds, line ends included."""
        if isinstance(event, LLMStreamingEvent):
            return self._tokens(event)
        return self.close() + self._row(event.run_seq, *self._told(event))

    def close(self) -> str:
        """Ends a line that is still open."""
        if self._open is None:
            return ""
        self._open = None
        return "\n"

    # ── answers of models ─────────────────────────────────────────────────────────────────────────

    def _tokens(self, event: LLMStreamingEvent) -> str:
        stream: _Stream = (event.attempt, event.path, event.node_id, event.stream_id)
        if event.phase in ("error", "cancelled"):
            name = plain(event.stream_id or event.node_id or "model")
            word = "failed" if event.phase == "error" else "was cancelled"
            text = f"answer {word}" + (f": {plain(event.chunk)}" if event.chunk else "")
            return self.close() + self._row(event.run_seq, name, text, _RED if event.phase == "error" else _DIM)
        text = ""
        if stream != self._open:
            if not event.chunk and event.phase == "final":
                return ""
            name = plain(event.stream_id or event.node_id or "model")
            text = self.close() + self._gutter(event.run_seq) + self._painted(f"{name} {self._arrow} ", _GREEN)
            self._open = stream
        parts = event.chunk.replace("\r\n", "\n").split("\n")
        margin = " " * 6 + self._painted(f"{self._bar} ", _DIM)
        text += f"\n{margin}".join(plain(part) for part in parts)
        return text + self.close() if event.phase == "final" else text

    # ── everything else ───────────────────────────────────────────────────────────────────────────

    def _row(self, position: int | None, label: str, text: str, color: str) -> str:
        room = None if self._width is None else max(self._width - 8, 20)
        if room is not None:
            label = cut(label, room - 4, self._more)
            text = cut(text, room - (_cells(label) + 2 if label else 0), self._more)
        head = self._painted(label, _CYAN if color != _RED else _RED) + "  " if label else ""
        return f"{self._gutter(position)}{head}{self._painted(text, color)}\n"

    def _gutter(self, position: int | None) -> str:
        return self._painted(f"{'' if position is None else position:>6}", _DIM) + "  "

    def _painted(self, text: str, color: str) -> str:
        return f"{color}{text}{_RESET}" if self._color and color and text else text

    def _told(self, event: Event) -> tuple[str, str, str]:
        """Label, text and colour of an event that is no token."""
        told = _RUNTIME.get(event.scope) if event.scope.startswith(RESERVED_PREFIX) else None
        if told is not None:
            try:
                text, color = told(event.metadata, self._dot)
                return _place(event) if event.scope.startswith("weavegraph.node.") else "", plain(text), color
            except (KeyError, TypeError, ValueError):
                pass  # of another release: as what anybody says
        if isinstance(event, DiagnosticEvent):
            label, color = f"[{plain(event.scope)}]", _DIM
            text = plain(event.message)
        else:
            label, color = _place(event), ""
            text = plain(": ".join(part for part in (event.scope, event.message) if part))
        facts = " ".join(f"{plain(str(key))}={_shown(value)}" for key, value in event.metadata.items())
        return label, "  ".join(part for part in (text, facts) if part), color


def _place(event: Event) -> str:
    node = "/".join((*event.path, event.node_id or ""))
    return plain(node if event.step is None else f"{node}@{event.step}")


def _shown(value: Any) -> str:
    if isinstance(value, str) and value and " " not in value and value.isprintable():
        return plain(value)
    try:
        return plain(_encode(value).decode())
    except (TypeError, ValueError, RecursionError):
        return plain(repr(value))


# ── the runtime's own events, in words: metadata → text, colour ─────────────────────────────────────


def _run_started(facts: Mapping[str, Any], dot: str) -> tuple[str, str]:
    tags = facts.get("tags")
    return f"run of graph {facts['graph']!r} {dot} session {facts['session']}" + (
        f" {dot} {', '.join(map(str, tags))}" if tags else ""
    ), _BOLD


def _step_started(facts: Mapping[str, Any], dot: str) -> tuple[str, str]:
    counts: dict[str, int] = {}
    for node in facts["nodes"]:
        counts[node] = counts.get(node, 0) + 1
    names = ", ".join(node if count == 1 else f"{node} ×{count}" for node, count in counts.items())
    return f"step {facts['step']}: {names}", _DIM


def _step_finished(facts: Mapping[str, Any], dot: str) -> tuple[str, str]:
    more = {key: value for key, value in facts.items() if key not in ("step", "nodes")}
    return f"step {facts['step']} finished" + "".join(f"  {key}={_shown(value)}" for key, value in more.items()), _DIM


def _node(word: str, color: str) -> Callable[[Mapping[str, Any], str], tuple[str, str]]:
    def told(facts: Mapping[str, Any], dot: str) -> tuple[str, str]:
        text = word
        if facts.get("duration") is not None:
            text += f" in {duration(float(facts['duration']))}"
        if facts.get("try", 1) != 1:
            text += f", try {facts['try']}"
        return text + (f": {facts['error']}" if "error" in facts else ""), color

    return told


def _paused(facts: Mapping[str, Any], dot: str) -> tuple[str, str]:
    return f"asks: {_shown(facts['question'])}  id={facts['id']}", _BOLD


def _saved(facts: Mapping[str, Any], dot: str) -> tuple[str, str]:
    return f"checkpoint {facts['number']} saved", _DIM


def _ended(facts: Mapping[str, Any], dot: str) -> tuple[str, str]:
    why = facts.get("error") or facts.get("code")
    color = _RED if facts["outcome"] == "failed" else _BOLD
    return f"run {facts['outcome']}" + (f": {why}" if why else ""), color


def _gap(facts: Mapping[str, Any], dot: str) -> tuple[str, str]:
    count = facts.get("count")
    if count is None:
        return "events are missing here, nobody knows how many", _RED
    which = f"{facts['first_seq']} to {facts['last_seq']}" if count != 1 else str(facts["first_seq"])
    return f"{count} event{'s' * (count != 1)} missing: {which}", _RED


_RUNTIME: dict[str, Callable[[Mapping[str, Any], str], tuple[str, str]]] = {
    "weavegraph.run.started": _run_started,
    "weavegraph.step.started": _step_started,
    "weavegraph.step.finished": _step_finished,
    "weavegraph.node.started": _node("started", _DIM),
    "weavegraph.node.finished": _node("finished", _DIM),
    "weavegraph.node.failed": _node("failed", _RED),
    "weavegraph.node.retried": _node("tries again", _RED),
    "weavegraph.node.skipped": _node("skipped", _DIM),
    "weavegraph.node.paused": _paused,
    "weavegraph.checkpoint.saved": _saved,
    STREAM_END_SCOPE: _ended,
    GAP_SCOPE: _gap,
}


def duration(seconds: float) -> str:
    """A time as people say it: ``0.4 ms``, ``12 ms``, ``3.4 s``, ``2 min 05 s``."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _cells(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, room: int, more: str) -> str:
    """``text`` in at most ``room`` columns, with a mark where something is left out."""
    if _cells(text) <= room:
        return text
    while text and _cells(text) > room - len(more):
        text = text[: max(room - len(more), 0)] if len(text) > room else text[:-1]
    return text + more
