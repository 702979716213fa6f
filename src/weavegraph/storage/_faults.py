"""SQLite's errors in our words, translated once, at the edge; the original is the cause."""

from __future__ import annotations

import sqlite3

from weavegraph.errors import LogCorruptError, LogError, LogUnavailableError

__all__ = ["is_environment", "translate"]

_AWAY = {
    sqlite3.SQLITE_BUSY: "locked by another process; it was waited for",
    sqlite3.SQLITE_LOCKED: "locked by another connection",
    sqlite3.SQLITE_NOMEM: "out of memory",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_INTERRUPT: "interrupted",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PROTOCOL: "locking failed",
    sqlite3.SQLITE_NOLFS: "too large for this file system",
    sqlite3.SQLITE_PERM: "permission denied",
}
"""What passes when its cause does. Everything else that SQLite says about a file of ours means damage."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_environment(error: sqlite3.Error) -> bool:
    """Whether the file or the machine is at fault, not the statement: everyone in the transaction is concerned."""
    code = _code(error)
    return code in _AWAY or code in _DAMAGED


def translate(error: sqlite3.Error, place: str) -> LogError:
    """The named error for what SQLite said about ``place``."""
    code = _code(error)
    if code in _AWAY:
        return LogUnavailableError(place, f"{_AWAY[code]} ({error})")
    # Beside CORRUPT and NOTADB: a missing table or column, text that is no UTF-8, a broken constraint. Our
    # statements are fixed and their values checked, so the stored schema or rows are not what was written.
    return LogCorruptError(place, str(error))


def _code(error: sqlite3.Error) -> int | None:
    extended: int | None = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF
