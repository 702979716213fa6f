"""Opening a store's file: what is checked before anything is written, and how each kind of connection is set up."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from weavegraph.errors import LogCorruptError, LogUnavailableError
from weavegraph.storage._mark import Mark
from weavegraph.storage._schema import check, install

__all__ = ["look", "may_write", "open_reader", "open_writer", "side_file"]

T = TypeVar("T")
WAL_PAGES = 4000
"""Pages (of 4 KiB) in the write-ahead log before a commit moves them into the database: 16 MiB, as four times
SQLite's default; a commit that moves them costs two more syncs."""


def open_writer(path: Path, mark: Mark, busy_timeout: float) -> sqlite3.Connection:
    """The one writing connection; makes the file (mode 0600) when there is none.

    Raises:
        LogCorruptError, LogVersionError: not ours, not known, or shorter than what was acknowledged; nothing was
            written. LogUnavailableError, sqlite3.Error: for the writer to translate.
    """
    _create(path, mark)
    # Asked first: side files that SQLite makes beside a read-only database stay read-only when it no longer is.
    if not may_write(path):
        what = "its folder" if _access(path) else "it"
        raise LogUnavailableError(str(path), f"read-only: this user may not write {what}")
    noted = mark.read()  # before the look at the store, whose number may only be larger
    # A read-only connection leaves a hot write-ahead log alone; a writing one would move it into the database.
    with contextlib.closing(open_reader(path, busy_timeout)) as reader:
        try:
            _patiently(lambda: look(reader, path, noted, mark), busy_timeout)
        except sqlite3.OperationalError as exc:
            # Cut off while it was made, it has a journal that only a writing connection can undo.
            if exc.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
    connection = sqlite3.connect(
        path, timeout=busy_timeout, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        found = _patiently(lambda: look(connection, path, noted, mark), busy_timeout)
        _patiently(lambda: _use_wal(connection, path), busy_timeout)
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        connection.execute("PRAGMA journal_size_limit = 67108864")  # bytes of -wal kept after a burst
        _harden(connection)
        if not found:
            _install(connection, path)
        mark.open(_state(connection, path)[0])
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path, busy_timeout: float, *, immutable: bool = False) -> sqlite3.Connection:
    """A connection that cannot write, not even when it is closed last.

    ``immutable``: it makes no file beside, takes no lock, and trusts that nobody writes.
    """
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=ro{'&immutable=1' if immutable else ''}",
        uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False,
    )  # fmt: skip
    _harden(connection)
    return connection


def may_write(path: Path) -> bool:
    """Whether this user may write the file, and what SQLite keeps beside it; or may try to make it."""
    if not path.exists():
        return True
    return _access(path) and (_access(path.parent) or _access(side_file(path, "-wal")))


def side_file(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _access(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def look(connection: sqlite3.Connection, path: Path, noted: tuple[bytes, int], mark: Mark) -> bool:
    """Whether the file is set up, after making sure that it is ours and lacks no acknowledged commit."""
    if check(connection, str(path)):
        store_id, commits = _state(connection, path)
        if noted[0] == store_id and noted[1] > commits:
            raise _missing(path, noted[1] - commits, mark)
        return True
    if noted[1]:  # the file is empty, and was not
        raise _missing(path, noted[1], mark)
    return False


def _create(path: Path, mark: Mark) -> None:
    try:
        # Never open a file that SQLite may have open: closing it would drop the process's locks.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600))
        mark.forget()  # of a store that was here before and was deleted
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # the file's name survives a power cut too
            finally:
                os.close(folder)
    except FileExistsError:
        pass
    except OSError as exc:
        raise LogUnavailableError(str(path), f"cannot be created: {exc.strerror}") from exc


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LogUnavailableError(str(path), f"this file system cannot hold a write-ahead log (got {mode!r})")


def _harden(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def _install(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not check(connection, str(path)):  # again: another process may have been faster
            install(connection)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _state(connection: sqlite3.Connection, path: Path) -> tuple[bytes, int]:
    """The store's id and the number of its commits."""
    row = connection.execute("SELECT store_id, commits FROM store_state WHERE id = 1").fetchone()
    if row is None or type(row[0]) is not bytes or len(row[0]) != 16 or type(row[1]) is not int:
        raise LogCorruptError(str(path), "the table store_state is damaged")
    return row[0], row[1]


def _missing(path: Path, commits: int, mark: Mark) -> LogCorruptError:
    problem = f"{commits} acknowledged commits are missing at its end (to do without them, delete {mark.path.name})"
    return LogCorruptError(str(path), problem)


def _patiently(step: Callable[[], T], timeout: float) -> T:
    """``step`` again while the file is locked: SQLite's own waiting leaves out a change of the journal mode."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return step()
        except sqlite3.OperationalError as exc:
            busy = getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
