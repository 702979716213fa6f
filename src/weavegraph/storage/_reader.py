"""A read-only connection that one thread keeps, also on a file, or in a folder, that this user may not write.

SQLite's write-ahead log wants its ``-shm`` file to be made or written, even to read. Where there is no ``-wal`` file, a
file that may not be written is opened as ``immutable`` instead, which makes nothing beside it; should its owner write
meanwhile, the read is done again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from weavegraph.errors import LogCorruptError, LogUnavailableError
from weavegraph.storage._mark import Mark
from weavegraph.storage._open import look, open_reader, side_file
from weavegraph.storage._schema import Schema, version_of

__all__ = ["Reader"]

T = TypeVar("T")


class Reader:
    """``generation()`` tells when the file was opened anew to be written, and is 0 while it is not: then nobody here
    has looked whether it is ours and whole, and the reader does."""

    def __init__(self, path: Path, busy_timeout: float, generation: Callable[[], int]) -> None:
        self._path, self._busy_timeout, self._generation = path, busy_timeout, generation
        self._connection: sqlite3.Connection | None = None
        self._opened: object = None  # of what generation, or in what condition
        self._whole = False
        self._checked: set[Schema] = set()

    def run(self, function: Callable[[sqlite3.Connection], T], schemas: Sequence[Schema] = ()) -> T:
        """What ``function`` makes of the file."""
        while True:
            generation = self._generation()
            condition = None if generation else _condition(self._path)
            connection = self._connected((generation, condition), immutable=condition is not None)
            try:
                if not generation:
                    self._check(connection, schemas)
                found = function(connection)
            except (sqlite3.Error, LogCorruptError) as exc:
                if condition is None or condition == _condition(self._path):
                    self._explain(exc)
                    raise
            else:
                if condition is None or condition == _condition(self._path):
                    return found

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self, opened: object, *, immutable: bool) -> sqlite3.Connection:
        if self._connection is not None and opened != self._opened:
            self.close()
        if self._connection is None:
            self._connection = open_reader(self._path, self._busy_timeout, immutable=immutable)
            self._opened, self._whole, self._checked = opened, False, set()
        return self._connection

    def _check(self, connection: sqlite3.Connection, schemas: Sequence[Schema]) -> None:
        if not self._whole:
            mark = Mark(self._path)
            if not look(connection, self._path, mark.read(), mark):
                raise LogUnavailableError(str(self._path), "holds nothing yet, and this user may not write it")
            self._whole = True
        for schema in schemas:
            if schema not in self._checked and version_of(connection, schema, str(self._path)) < len(schema.migrations):
                raise LogUnavailableError(str(self._path), f"has no {schema.name} yet, and this user may not write it")
        self._checked.update(schemas)

    def _explain(self, exc: Exception) -> None:
        away = getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN
        if away and side_file(self._path, "-wal").exists() and not side_file(self._path, "-shm").exists():
            remedy = "its write-ahead log can only be read where a -shm file can be made: copy both into another folder"
            raise LogUnavailableError(str(self._path), remedy) from exc


def _condition(path: Path) -> tuple[int, ...] | None:
    """What changes when somebody writes into a file that has no write-ahead log; ``None`` for one that has."""
    try:
        if os.stat(side_file(path, "-wal")).st_size:
            return None
    except FileNotFoundError:
        pass
    except OSError:
        return None
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
