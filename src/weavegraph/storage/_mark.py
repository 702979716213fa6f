"""How far commits were acknowledged, noted beside the database, so that a lost end is seen and not believed.

SQLite ends its recovery at the first frame of the write-ahead log that does not check, and says nothing: one flipped
bit, or a deleted ``-wal`` file, silently takes every later commit along. The mark is the number of the last
acknowledged durable commit, written (not synced) after it. After a power cut it may be old, which proves less but
never wrongly; after a kill it is exact. A store that knows fewer commits than its mark has lost some.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

__all__ = ["Mark"]

_FORM = struct.Struct(">16sQI")


class Mark:
    """The file ``NAME-mark`` of one store; the writer thread's own."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + "-mark")
        self.file: int | None = None  # the descriptor while the store is open
        self._store_id = b""

    def read(self) -> tuple[bytes, int]:
        """The store's id and the number noted; ``(b"", 0)`` if there is no readable mark: then nothing is known."""
        try:
            data = self.path.read_bytes()
            store_id, commits, _ = _FORM.unpack(data)
        except (OSError, struct.error):
            return b"", 0
        return (store_id, commits) if data == _packed(store_id, commits) else (b"", 0)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def open(self, store_id: bytes) -> None:
        self._store_id = store_id
        with contextlib.suppress(OSError):
            self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)

    def write(self, commits: int) -> None:
        """Note an acknowledged commit. A mark that cannot be written costs its protection, never the commit."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                if hasattr(os, "pwrite"):
                    os.pwrite(self.file, _packed(self._store_id, commits), 0)
                else:  # Windows
                    os.lseek(self.file, 0, os.SEEK_SET)
                    os.write(self.file, _packed(self._store_id, commits))

    def close(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


def _packed(store_id: bytes, commits: int) -> bytes:
    return _FORM.pack(store_id, commits, zlib.crc32(store_id + commits.to_bytes(8)))
