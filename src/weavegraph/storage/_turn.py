"""One process at a time commits to a file, and moves its write-ahead log.

SQLite serialises commits by itself. Up to 3.51.2, though, a process that moves the write-ahead log into the database
while another does the same and a third commits may, very rarely, damage the file (its "WAL-reset bug"). Processes of
ours take turns instead, by a lock on the mark, which costs two system calls a group commit; a killed process gives its
lock back. Later SQLites need none of it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from weavegraph.errors import LogUnavailableError
from weavegraph.storage._mark import Mark

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["turn"]

NEEDED = fcntl is not None and sqlite3.sqlite_version_info < (3, 51, 3)


@contextlib.contextmanager
def turn(mark: Mark, path: Path, timeout: float) -> Iterator[None]:
    """Wait for this process's turn, up to ``timeout`` seconds.

    Raises:
        LogUnavailableError: another process did not end its turn.
    """
    file = mark.file
    if not NEEDED or file is None or not _taken(file, path, timeout):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _taken(file: int, path: Path, timeout: float) -> bool:
    deadline, pause = time.monotonic() + timeout, 0.0005
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LogUnavailableError(str(path), "locked by another process; it was waited for") from None
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        except OSError:  # a file system without such locks
            return False
