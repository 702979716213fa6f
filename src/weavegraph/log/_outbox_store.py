"""Where an outbox remembers how far it came, and what it could not deliver: beside the log, or in memory.

A cursor that is lost costs repeated deliveries, which readers pass over by position; a dead letter is committed with
the cursor that passes it, so neither exists without the other.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from weavegraph.bus import DeadLetter
from weavegraph.errors import LogCorruptError
from weavegraph.events import Event, to_json
from weavegraph.log._rows import decode
from weavegraph.protocols import EventLog
from weavegraph.storage import Schema, SqliteStore

__all__ = ["OUTBOX", "Cursor", "Letter", "MemoryOutboxStore", "OutboxStore", "SqliteOutboxStore", "store_beside"]

OUTBOX = Schema(
    "outbox",
    (
        (
            "CREATE TABLE outbox_cursors(name TEXT NOT NULL, run_id TEXT NOT NULL, position INTEGER NOT NULL,"
            " shipped INTEGER NOT NULL, dead INTEGER NOT NULL, trimmed INTEGER NOT NULL,"
            " PRIMARY KEY (name, run_id)) STRICT, WITHOUT ROWID",
            "CREATE TABLE outbox_letters(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,"
            " run_id TEXT NOT NULL, position INTEGER NOT NULL, error TEXT NOT NULL, tries INTEGER NOT NULL,"
            " first_at TEXT NOT NULL, last_at TEXT NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL,"
            " UNIQUE (name, run_id, position)) STRICT",
        ),
    ),
)
_LETTER = "id, name, error, tries, first_at, last_at, crc, body"


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run was shipped. ``position = shipped + dead + trimmed``."""

    position: int = 0
    shipped: int = 0
    dead: int = 0
    trimmed: int = 0
    """Gone from the log before they could be shipped."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that an outbox could not deliver, kept until it is sent again or dropped."""

    id: int
    outbox: str
    event: Event
    error: str
    tries: int
    first_at: datetime
    last_at: datetime


class OutboxStore(Protocol):
    """Cursors and dead letters of any number of outboxes, told apart by name."""

    async def cursors(self, name: str) -> dict[str, Cursor]: ...

    async def save(self, name: str, run_id: str, cursor: Cursor, dead: Sequence[DeadLetter] = ()) -> None:
        """A run's cursor, and the letters that it passes; of one position the last letter stays."""
        ...

    async def forget(self, name: str, run_ids: Sequence[str]) -> None:
        """Runs that the log no longer has. Their letters stay."""
        ...

    async def letters(self, name: str | None = None, *, limit: int = 100, after: int = 0) -> Sequence[Letter]:
        """Oldest first, those with a larger id than ``after``."""
        ...

    async def letter(self, letter_id: int) -> Letter | None: ...

    async def failed_again(self, letter_id: int, error: str, at: datetime) -> None: ...

    async def drop(self, letter_ids: Sequence[int]) -> int:
        """Forget letters; returns how many went."""
        ...

    async def aclose(self) -> None: ...


class MemoryOutboxStore:
    """For tests, and for logs that end with their process as well."""

    def __init__(self) -> None:
        self._cursors: dict[str, dict[str, Cursor]] = {}
        self._letters: dict[int, Letter] = {}
        self._last = 0

    async def cursors(self, name: str) -> dict[str, Cursor]:
        return dict(self._cursors.get(name, {}))

    async def save(self, name: str, run_id: str, cursor: Cursor, dead: Sequence[DeadLetter] = ()) -> None:
        self._cursors.setdefault(name, {})[run_id] = cursor
        for letter in dead:
            same = [
                one for one in self._letters.values() if (one.outbox, *_place(one.event)) == (name, *_place(letter))
            ]
            self._last += 1
            number = same[0].id if same else self._last
            self._letters[number] = Letter(id=number, outbox=name, **_facts(letter), event=letter.event)

    async def forget(self, name: str, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            self._cursors.get(name, {}).pop(run_id, None)

    async def letters(self, name: str | None = None, *, limit: int = 100, after: int = 0) -> Sequence[Letter]:
        found = [one for one in self._letters.values() if one.id > after and name in (None, one.outbox)]
        return tuple(sorted(found, key=lambda one: one.id)[:limit])

    async def letter(self, letter_id: int) -> Letter | None:
        return self._letters.get(letter_id)

    async def failed_again(self, letter_id: int, error: str, at: datetime) -> None:
        old = self._letters[letter_id]
        self._letters[letter_id] = msgspec.structs.replace(old, error=error, last_at=at, tries=old.tries + 1)

    async def drop(self, letter_ids: Sequence[int]) -> int:
        return sum(self._letters.pop(letter_id, None) is not None for letter_id in letter_ids)

    async def aclose(self) -> None:
        pass


class SqliteOutboxStore:
    """In an SQLite file, as a rule the log's own. Any thread, any loop, any process.

    Letters are durable. Cursors alone are written ``relaxed``: after a power cut the last may be old, and what lies
    behind them is shipped again.
    """

    def __init__(self, path: Any, *, busy_timeout: float = 5.0) -> None:
        self.store = SqliteStore(path, durability="durable", busy_timeout=busy_timeout)
        self._relaxed = SqliteStore(path, durability="relaxed", busy_timeout=busy_timeout)
        for store in (self.store, self._relaxed):
            store.require_schema(OUTBOX)
        self._where = str(self.store.path)

    async def cursors(self, name: str) -> dict[str, Cursor]:
        rows = await self._all(
            "SELECT run_id, position, shipped, dead, trimmed FROM outbox_cursors WHERE name = ?", (name,)
        )
        return {row[0]: Cursor(position=row[1], shipped=row[2], dead=row[3], trimmed=row[4]) for row in rows}

    async def save(self, name: str, run_id: str, cursor: Cursor, dead: Sequence[DeadLetter] = ()) -> None:
        bodies = [to_json(letter.event) for letter in dead]

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO outbox_cursors VALUES (?, ?, ?, ?, ?, ?)",
                (name, run_id, cursor.position, cursor.shipped, cursor.dead, cursor.trimmed),
            )
            for letter, body in zip(dead, bodies, strict=True):
                facts = _facts(letter)
                connection.execute(
                    "INSERT INTO outbox_letters(name, run_id, position, error, tries, first_at, last_at, crc, body)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name, run_id, position) DO UPDATE SET"
                    " error = excluded.error, tries = excluded.tries, last_at = excluded.last_at",
                    (
                        *(name, *_place(letter), facts["error"], facts["tries"]),
                        *(facts["first_at"].isoformat(), facts["last_at"].isoformat(), zlib.crc32(body), body),
                    ),
                )

        await (self.store if dead else self._relaxed).submit(write)

    async def forget(self, name: str, run_ids: Sequence[str]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "DELETE FROM outbox_cursors WHERE name = ? AND run_id = ?", [(name, run_id) for run_id in run_ids]
            )

        if run_ids:
            await self._relaxed.submit(write)

    async def letters(self, name: str | None = None, *, limit: int = 100, after: int = 0) -> Sequence[Letter]:
        rows = await self._all(
            f"SELECT {_LETTER} FROM outbox_letters WHERE id > ? AND (? IS NULL OR name = ?) ORDER BY id LIMIT ?",
            (after, name, name, max(limit, 0)),
        )
        return tuple(self._letter(row) for row in rows)

    async def letter(self, letter_id: int) -> Letter | None:
        rows = await self._all(f"SELECT {_LETTER} FROM outbox_letters WHERE id = ?", (letter_id,))
        return self._letter(rows[0]) if rows else None

    async def failed_again(self, letter_id: int, error: str, at: datetime) -> None:
        text = "UPDATE outbox_letters SET error = ?, last_at = ?, tries = tries + 1 WHERE id = ?"
        await self.store.submit(lambda db: db.execute(text, (error, at.isoformat(), letter_id)).rowcount)

    async def drop(self, letter_ids: Sequence[int]) -> int:
        def write(connection: sqlite3.Connection) -> int:
            text = "DELETE FROM outbox_letters WHERE id = ?"
            return sum(connection.execute(text, (letter_id,)).rowcount for letter_id in letter_ids)

        (gone,) = await self.store.submit(write)
        return int(gone)

    async def aclose(self) -> None:
        await self._relaxed.aclose()
        await self.store.aclose()

    async def _all(self, text: str, values: Sequence[Any]) -> list[Any]:
        query: Callable[[sqlite3.Connection], list[Any]] = lambda db: db.execute(text, values).fetchall()  # noqa: E731
        return await self.store.query(query)

    def _letter(self, row: Sequence[Any]) -> Letter:
        number, name, error, tries, first_at, last_at, crc, body = row
        if zlib.crc32(body) != crc:
            raise LogCorruptError(self._where, f"the checksum of dead letter {number} does not fit")
        return Letter(
            id=number,
            outbox=name,
            event=decode(body, self._where),
            error=error,
            tries=tries,
            first_at=datetime.fromisoformat(first_at),
            last_at=datetime.fromisoformat(last_at),
        )


def store_beside(log: EventLog) -> OutboxStore:
    """In the log's own file, where it has one."""
    store = getattr(log, "store", None)
    return MemoryOutboxStore() if store is None else SqliteOutboxStore(store.path)


def _place(letter: DeadLetter | Event) -> tuple[str, int]:
    event = letter.event if isinstance(letter, DeadLetter) else letter
    return event.run_id or "", event.run_seq or 0


def _facts(letter: DeadLetter) -> Mapping[str, Any]:
    return {
        "error": letter.error,
        "tries": letter.tries,
        "first_at": letter.first_at,
        "last_at": letter.last_at,
    }
