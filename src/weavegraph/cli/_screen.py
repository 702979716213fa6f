"""Where commands write: knows whether it is a terminal, how wide, whether in colour, and what its encoding can say."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any, TextIO

import msgspec

from weavegraph.sinks import escape_controls

__all__ = ["Screen", "data_of", "plain", "safe_json", "say"]


class Screen:
    """One output stream. Text given to it is safe already (``plain``), and colour is the caller's to ask for."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.tty = stream.isatty()
        self.width = shutil.get_terminal_size((80, 24)).columns if self.tty else None
        """Columns of a terminal; ``None`` when lines may be of any length."""
        self.color = self.tty and _wants_color(stream)
        self.unicode = _can_say("│└─▸✗…", self.encoding)

    @classmethod
    def out(cls) -> Screen:
        return cls(sys.stdout)

    def write(self, text: str) -> None:
        """Write and pass on at once; raises ``BrokenPipeError`` when nobody reads any more."""
        self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        self.stream.flush()

    def line(self, text: str = "") -> None:
        self.write(f"{text}\n")

    def json(self, data: bytes) -> None:
        """One value as a line of JSON, as it is; on a terminal without anything that it would obey."""
        text = data.decode()
        self.line(safe_json(text) if self.tty else text)


def say(text: str) -> None:
    """A sentence beside the output, for whoever sits there."""
    screen = Screen(sys.stderr)
    screen.line("\n".join(plain(line) for line in text.split("\n")))


def plain(text: str) -> str:
    """``text`` as one line without anything that a terminal would obey."""
    return escape_controls(text)


def safe_json(text: str) -> str:
    """The same JSON without control characters, which JSON itself lets pass (C1, DEL, marks of direction)."""
    if escape_controls(text) == text:
        return text
    return json.dumps(json.loads(text), separators=(",", ":")).replace("\x7f", "\\u007f")


def data_of(value: Any) -> Any:
    """A state, or whatever else a program holds, as plain data; what is no data is shown as its ``repr``."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=_hook)


def _hook(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else repr(value)


def _wants_color(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return False
    from rich.console import Console

    return Console(file=stream).color_system is not None


def _can_say(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
