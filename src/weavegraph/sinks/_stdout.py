"""Events on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from weavegraph.errors import ConfigError
from weavegraph.events import DiagnosticEvent, Event, LLMStreamingEvent
from weavegraph.protocols import Delivery
from weavegraph.sinks._terminal import escape_controls

__all__ = ["StdOutSink"]

_RESET, _DIM, _CYAN, _GREEN, _RED = "\x1b[0m", "\x1b[2m", "\x1b[36m", "\x1b[32m", "\x1b[31m"


class StdOutSink:
    """One line an event: ``str(event)``, with control characters made visible.

    Colour only on a terminal, and not when ``NO_COLOR`` is set (with rich installed, as rich decides). Delivery: at
    most once.

    Args:
        stream: where to write; default ``sys.stdout`` at the time of writing.
        format: an event to its text; what it returns is escaped too.
        color: ``None``: decide by the stream.
    """

    name = "stdout"
    delivery: Delivery = "at_most_once"

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        format: Callable[[Event], str] = str,
        color: bool | None = None,
    ) -> None:
        if stream is not None and not callable(getattr(stream, "write", None)):
            raise ConfigError(f"StdOutSink(stream={stream!r}): give an open text stream, or None for sys.stdout")
        if not callable(format):
            raise ConfigError(f"StdOutSink(format={format!r}): give a function from an event to its text")
        if color is not None and type(color) is not bool:
            raise ConfigError(f"StdOutSink(color={color!r}): give True, False or None")
        self._stream, self._format, self._color = stream, format, color

    def handle(self, batch: Sequence[Event]) -> None:
        stream = self._stream or sys.stdout
        paint = _paint if self._colored(stream) else _plain
        lines = [paint(event, escape_controls(self._format(event))) for event in batch]
        text = "".join(f"{line}\n" for line in lines)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()

    def _colored(self, stream: TextIO) -> bool:
        if self._color is not None:
            return self._color
        if not stream.isatty():
            return False
        try:
            from rich.console import Console
        except ImportError:
            return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        console = Console(file=stream)
        return console.color_system is not None and not console.no_color


def _plain(event: Event, line: str) -> str:
    return line


def _paint(event: Event, line: str) -> str:
    if isinstance(event, LLMStreamingEvent):
        color = _RED if event.phase == "error" else _GREEN
    elif isinstance(event, DiagnosticEvent):
        color = _RED if event.metadata.get("kind") == "error" or "error" in event.metadata else _DIM
    else:
        color = _CYAN
    head, bracket, rest = line.partition("] ")
    return f"{color}{head}{bracket}{_RESET}{rest}" if bracket else f"{color}{line}{_RESET}"
