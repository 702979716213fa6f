"""Room in the write-ahead log, made before it is needed.

A commit that makes the file longer has the file system commit the new length too, which takes as long again as the
data: measured 440 µs a commit of three pages against 250 into blocks that the file has already. SQLite overwrites its
log once it has been moved into the database, 16 MiB later; until then zeros are put behind its frames. To SQLite they
are what a log may end with anyway: a frame is one only with the log's salt and a checksum over all before it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from weavegraph.storage._open import WAL_PAGES, side_file

__all__ = ["Room"]

MOST = 1 << 20
"""Bytes at a time; before that as much again as there is, so that a short log stays short."""
FULL = WAL_PAGES * 4096
"""Bytes at which the log is moved into the database and overwritten from its start."""


class Room:
    """Of one store; the writer thread's own."""

    def __init__(self, database: Path) -> None:
        self._path = side_file(database, "-wal")
        self._size = 0  # of the file, when it was last looked at

    def make(self) -> None:
        """Lengthen the log if commits have done so since the last call. Only inside of a write transaction: then
        nobody else, in no process, appends to it or cuts it. What cannot be written costs speed, never the commit."""
        with contextlib.suppress(OSError):
            size = os.stat(self._path).st_size
            if self._size < size < FULL and hasattr(os, "pwrite"):
                file = os.open(self._path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
                try:
                    size += os.pwrite(file, bytes(min(size, MOST)), size)
                finally:
                    os.close(file)
            self._size = size
