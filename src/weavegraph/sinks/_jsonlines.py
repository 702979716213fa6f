"""Events in a file, one line each, and back."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from weavegraph.errors import ConfigError, EventDecodeError, PermanentSinkError
from weavegraph.events import MAX_EVENT_BYTES, Event, from_json, to_json
from weavegraph.protocols import Delivery

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["JsonLines", "JsonLinesSink", "read_jsonlines"]

DEFAULT_ROTATE_BYTES = 100 * 1024 * 1024
DEFAULT_KEEP = 10
MAX_LINE_BYTES = 4 * MAX_EVENT_BYTES
_log = logging.getLogger("weavegraph.sinks")


class JsonLinesSink:
    """Appends one physical line of JSON an event; never truncates a file that is there.

    *Delivery*: at least once after ``flush``; a batch that fails half-way is written again, and its torn line is
    closed first. *Crash*: at most the last line is torn; reopening ends it, ``read_jsonlines`` skips and counts it.
    *Files*: created with mode 0600; beyond ``rotate_bytes`` the file is renamed to ``NAME.1`` (older ones count up,
    ``keep`` of them stay), checked between batches, so a file may pass the bound by one batch. What cannot be renamed
    is written on, with one warning on the logger ``weavegraph.sinks``; a pipe or a device is never renamed.

    Args:
        path: the file; its folder must exist.
        rotate_bytes: ``None`` never rotates.
        style: ``"rust"`` writes the Rust library's five keys, for its readers: ``read_jsonlines`` counts such lines
            as invalid.
        sync: ``flush`` also asks the system to put the file on the disk (``fsync``).
    """

    name = "jsonl"
    delivery: Delivery = "at_least_once"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rotate_bytes: int | None = DEFAULT_ROTATE_BYTES,
        keep: int = DEFAULT_KEEP,
        style: Literal["weavegraph", "rust"] = "weavegraph",
        sync: bool = False,
    ) -> None:
        if not str(path):
            raise ConfigError("JsonLinesSink needs a path, as in jsonl:events.jsonl")
        if rotate_bytes is not None and (type(rotate_bytes) is not int or rotate_bytes < 1):
            raise ConfigError(f"rotate_bytes={rotate_bytes!r}: give a whole number of bytes from 1, or None")
        if type(keep) is not int or keep < 1:
            raise ConfigError(f"keep={keep!r}: give a whole number of rotated files from 1")
        if style not in ("weavegraph", "rust"):
            raise ConfigError(f"style={style!r}: choose 'weavegraph' or 'rust'")
        if type(sync) is not bool:
            raise ConfigError(f"sync={sync!r}: give True or False")
        from pathlib import Path

        self.path = Path(path)
        self._rotate_bytes, self._keep, self._sync = rotate_bytes, keep, sync
        self._style: Literal["weavegraph", "rust"] = style
        self._file: int | None = None
        self._size = 0
        self._torn = False
        self._regular = True
        self._warned = False

    def start(self) -> None:
        """Open the file and end a line that a crash left torn."""
        try:
            self._open()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as exc:
            raise PermanentSinkError(f"cannot open {self.path}: {exc.strerror}") from exc

    def handle(self, batch: Sequence[Event]) -> None:
        if self._file is None:
            self.start()
        if self._rotate_bytes is not None and self._size >= self._rotate_bytes and self._regular:
            self._rotate()
        data = b"".join(to_json(event, self._style) + b"\n" for event in batch)
        assert self._file is not None
        if self._torn:
            self._write(self._file, b"\n")
        self._torn = True
        self._write(self._file, data)
        self._torn = False

    def flush(self) -> None:
        """What was handled is with the operating system already; with ``sync`` it is on the disk after this."""
        if self._sync and self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self.flush()
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.open(self.path, flags, 0o600)
        status = os.fstat(self._file)
        self._size, self._regular = status.st_size, stat.S_ISREG(status.st_mode)
        self._torn = False
        if self._size:
            os.lseek(self._file, -1, os.SEEK_END)
            self._torn = os.read(self._file, 1) != b"\n"

    def _write(self, file: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(file, view)
            self._size += written
            view = view[written:]

    def _rotate(self) -> None:
        self.close()
        try:
            # Only up to the first free number: a rotation that failed half-way costs no further file the next time.
            free = next((n for n in range(1, self._keep) if not self._numbered(n).exists()), self._keep)
            for number in range(free, 1, -1):
                self._numbered(number - 1).replace(self._numbered(number))
            self.path.replace(self._numbered(1))
        except OSError as exc:
            if not self._warned:
                self._warned = True
                _log.warning("%s cannot be rotated and is written on: %s", self.path, exc)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


class JsonLines(msgspec.Struct):
    """What ``read_jsonlines`` found: events in the order of the file, and lines that are none."""

    events: list[Event] = msgspec.field(default_factory=list)
    torn: int = 0
    """1 when the last line has no end: a crash cut it."""
    invalid: int = 0
    """Other lines that are no events."""


def read_jsonlines(path: str | os.PathLike[str]) -> JsonLines:
    """Read a file that ``JsonLinesSink`` wrote. Lines that are no events are skipped and counted, never raised.

    A batch that was retried is in the file twice; ``epoch`` and ``seq`` tell (delivery is at least once).
    """
    from pathlib import Path

    found = JsonLines()
    for line, ended in _lines(Path(path)):
        try:
            found.events.append(from_json(line))
        except EventDecodeError:
            if ended:
                found.invalid += 1
            else:
                found.torn += 1
    return found


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    # Only b"\n" ends a line: str.splitlines() would also split at U+2028 and friends.
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES:  # no event: pass over the rest of it, and count it once
                end = line
                while not end.endswith(b"\n") and (end := file.readline(MAX_LINE_BYTES)):
                    line = b"too long" + end[-1:]
            if line.strip():
                yield line.rstrip(b"\n"), line.endswith(b"\n")
