"""Sessions in an SQLite file; when it is the event log's too, a step and the event that announces it commit together.

::

    checkpointer = SqliteCheckpointer("runs.db")
    app = builder.compile(RuntimeConfig(checkpointer=checkpointer, log=SqliteLog("runs.db")))
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from weavegraph.errors import CheckpointConflictError, ConfigError, LogCorruptError, StateError
from weavegraph.protocols import CheckpointPage
from weavegraph.state import Checkpoint, Finished, flatten, flatten_finished, with_finished
from weavegraph.storage import Durability, Op, Schema, SqliteStore

__all__ = ["SqliteCheckpointer"]

CHECKPOINTS = Schema(
    "checkpoints",
    (
        (
            "CREATE TABLE checkpoints(session_id TEXT NOT NULL, number INTEGER NOT NULL, run_id TEXT NOT NULL,"
            " step INTEGER NOT NULL, ran TEXT NOT NULL, skipped TEXT NOT NULL, crc INTEGER NOT NULL,"
            " body BLOB NOT NULL, PRIMARY KEY (session_id, number)) STRICT",
            # Outputs of the step after a session's latest checkpoint.
            "CREATE TABLE checkpoint_finished(session_id TEXT NOT NULL, number INTEGER NOT NULL,"
            " place INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL,"
            " PRIMARY KEY (session_id, place)) STRICT",
        ),
    ),
)
_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Checkpoint)
_finished_decoder = msgspec.json.Decoder(Finished)
_SELECT = "SELECT session_id, number, crc, body FROM checkpoints"
_ROWS = 64
"""Checkpoints of one statement."""
_INSERT = {n: "INSERT INTO checkpoints VALUES " + ",".join(["(?,?,?,?,?,?,?,?)"] * n) for n in range(1, _ROWS + 1)}
_STANDS = {
    n: f"WITH wanted(name) AS (VALUES {','.join(['(?)'] * n)}) SELECT name,"
    " coalesce((SELECT max(number) FROM checkpoints WHERE session_id = name), 0),"
    " EXISTS (SELECT 1 FROM checkpoint_finished WHERE session_id = name) FROM wanted"
    for n in range(1, _ROWS + 1)
}
"""The last number of each session, and whether outputs of its open step were kept."""
_MOST = 1000


class SqliteCheckpointer:
    """Keeps every checkpoint of every session, or the newest ``keep`` of each. Any thread, any loop, any process.

    Values are stored as plain data with a checksum, and come back by the type hints of the state's schema.

    *Durability*: as of ``SqliteStore``: ``"durable"`` or ``"relaxed"``. *Errors*: ``LogUnavailableError`` (disk full,
    read-only, locked), ``LogCorruptError``, ``LogVersionError``; nothing is half-written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "durable",
        keep: int | None = None,
        busy_timeout: float = 5.0,
    ) -> None:
        if keep is not None and (type(keep) is not int or keep < 1):
            raise ConfigError(f"SqliteCheckpointer(keep={keep!r}): give a whole number from 1, or None")
        self.store = SqliteStore(path, durability=durability, busy_timeout=busy_timeout)
        self.store.require_schema(CHECKPOINTS)
        self._keep = keep

    async def start(self) -> None:
        """Open the file now, so that a fault shows here and not with the first step."""
        await self.store.start()

    async def save(self, checkpoint: Checkpoint, /) -> None:
        await self.store.submit(self.saving(checkpoint))

    def saving(self, checkpoint: Checkpoint, /) -> Op:
        """The same as an operation, to be committed together with others: ``store.submit(log.appending(…), save)``."""
        return _Save(flatten(checkpoint), self._keep, str(self.store.path))

    async def add_finished(self, session_id: str, number: int, finished: Finished, /) -> None:
        body = _encoded(flatten_finished(finished), f"an output in session {session_id!r}")
        row = (session_id, number, finished.index, _crc(session_id, number, body), body)

        def add(connection: sqlite3.Connection) -> None:
            query = "SELECT max(number) FROM checkpoints WHERE session_id = ?"
            if connection.execute(query, (session_id,)).fetchone()[0] == number:
                connection.execute("INSERT OR REPLACE INTO checkpoint_finished VALUES (?, ?, ?, ?, ?)", row)

        await self.store.submit(add)

    async def latest(self, session_id: str, /) -> Checkpoint | None:
        return await self._one("session_id = ? ORDER BY number DESC LIMIT 1", session_id)

    async def get(self, session_id: str, number: int, /) -> Checkpoint | None:
        return await self._one("session_id = ? AND number = ?", session_id, number)

    async def history(
        self,
        session_id: str,
        /,
        *,
        limit: int = 100,
        before: int | None = None,
        min_step: int | None = None,
        max_step: int | None = None,
        ran_node: str | None = None,
        skipped_node: str | None = None,
        run_id: str | None = None,
    ) -> CheckpointPage:
        if type(limit) is not int or not 1 <= limit <= _MOST:
            raise ConfigError(f"history(limit={limit!r}): give a whole number from 1 to {_MOST:,}")
        wanted = {
            "number < ?": before,
            "step >= ?": min_step,
            "step <= ?": max_step,
            "EXISTS (SELECT 1 FROM json_each(ran) WHERE value = ?)": ran_node,
            "EXISTS (SELECT 1 FROM json_each(skipped) WHERE value = ?)": skipped_node,
            "run_id = ?": run_id,
        }
        clauses = ["session_id = ?", *(clause for clause, value in wanted.items() if value is not None)]
        values = [session_id, *(value for value in wanted.values() if value is not None)]
        found = await self._many(f"{' AND '.join(clauses)} ORDER BY number DESC LIMIT ?", *values, limit + 1)
        page = tuple(found[:limit])
        return CheckpointPage(page, page[-1].number if len(found) > limit else None)

    async def sessions(self, *, limit: int = 100, after: str = "") -> Sequence[str]:
        query = "SELECT DISTINCT session_id FROM checkpoints WHERE session_id > ? ORDER BY session_id LIMIT ?"
        return await self.store.query(lambda db: [row[0] for row in db.execute(query, (after, limit))])

    async def delete(self, session_id: str, /) -> int:
        def delete(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM checkpoint_finished WHERE session_id = ?", (session_id,))
            return connection.execute("DELETE FROM checkpoints WHERE session_id = ?", (session_id,)).rowcount

        (gone,) = await self.store.submit(delete)
        return int(gone)

    async def trim(self, session_id: str, /, *, keep: int) -> int:
        if type(keep) is not int or keep < 1:
            raise ConfigError(f"trim(keep={keep!r}): give a whole number from 1")
        (gone,) = await self.store.submit(lambda db: _trim(db, session_id, keep))
        return int(gone)

    async def aclose(self) -> None:
        """Finish what is queued and give up the file. Idempotent."""
        await self.store.aclose()

    async def _one(self, where: str, *values: Any) -> Checkpoint | None:
        place = str(self.store.path)

        def one(connection: sqlite3.Connection) -> Checkpoint | None:
            row = connection.execute(f"{_SELECT} WHERE {where}", values).fetchone()
            return None if row is None else with_finished(_load(place, *row), _finished(connection, place, *row[:2]))

        return await self.store.query(one)

    async def _many(self, where: str, *values: Any) -> list[Checkpoint]:
        query = f"{_SELECT} WHERE {where}"
        place = str(self.store.path)
        return await self.store.query(lambda db: [_load(place, *row) for row in db.execute(query, values)])

    def __repr__(self) -> str:
        return f"<SqliteCheckpointer {str(self.store.path)!r} {self.store.durability}>"


class _Save:
    """``save`` as an operation of the store."""

    def __init__(self, checkpoint: Checkpoint, keep: int | None, place: str) -> None:
        self.session, self.number, self.keep = checkpoint.session_id, checkpoint.number, keep
        self._checkpoint, self._place = checkpoint, place
        self._body = _encoded(checkpoint, f"checkpoint {checkpoint.number} of session {checkpoint.session_id!r}")

    def __call__(self, connection: sqlite3.Connection) -> None:
        _save_all(connection, (self,))

    @staticmethod
    def batch(connection: sqlite3.Connection, saves: Sequence[_Save]) -> Sequence[None]:
        _save_all(connection, saves)
        return [None] * len(saves)

    def row(self) -> tuple[Any, ...]:
        checkpoint, body = self._checkpoint, self._body
        ran, skipped = _names(checkpoint.ran_nodes), _names(checkpoint.skipped_nodes)
        crc = _crc(self.session, self.number, body)
        return self.session, self.number, checkpoint.run_id, checkpoint.step, ran, skipped, crc, body


def _save_all(connection: sqlite3.Connection, saves: Sequence[_Save]) -> None:
    """One statement looks up the last numbers of up to 64 sessions, and one writes as many checkpoints."""
    for at in range(0, len(saves), _ROWS):
        part = saves[at : at + _ROWS]
        last: dict[str, int] = {}
        outputs: list[str] = []
        for session, number, kept in connection.execute(_STANDS[len(part)], [save.session for save in part]):
            last[session] = number
            if kept:
                outputs.append(session)
        values: list[Any] = []
        for save in part:
            if save.number != last[save.session] + 1:
                raise CheckpointConflictError(save.session, save.number - 1, last[save.session])
            last[save.session] = save.number
            values += save.row()
        for session in outputs:
            connection.execute("DELETE FROM checkpoint_finished WHERE session_id = ?", (session,))
        connection.execute(_INSERT[len(part)], values)
    for save in saves:
        if save.keep is not None:
            _trim(connection, save.session, save.keep)


def _trim(connection: sqlite3.Connection, session: str, keep: int) -> int:
    query = "DELETE FROM checkpoints WHERE session_id = ? AND number <= (SELECT max(number) FROM checkpoints WHERE "
    return connection.execute(f"{query}session_id = ?) - ?", (session, session, keep)).rowcount


def _finished(connection: sqlite3.Connection, place: str, session: str, number: int) -> dict[int, Finished]:
    query = "SELECT place, crc, body FROM checkpoint_finished WHERE session_id = ? AND number = ?"
    found: dict[int, Finished] = {}
    for index, crc, body in connection.execute(query, (session, number)):
        if crc != _crc(session, number, body):
            problem = f"an output after checkpoint {number} of session {session!r} has a wrong checksum"
            raise LogCorruptError(place, problem)
        found[index] = _finished_decoder.decode(body)
    return found


def _load(place: str, session: str, number: int, crc: int, body: bytes) -> Checkpoint:
    if crc != _crc(session, number, body):
        raise LogCorruptError(place, f"checkpoint {number} of session {session!r} has a wrong checksum")
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as exc:
        raise LogCorruptError(place, f"checkpoint {number} of session {session!r} cannot be read: {exc}") from exc


def _names(nodes: tuple[str, ...]) -> str:
    return _encode(nodes).decode() if nodes else "[]"


def _encoded(value: Checkpoint | Finished, what: str) -> bytes:
    try:
        return _encode(value)
    except UnicodeEncodeError as exc:
        half = exc.object[exc.start : exc.end]
        raise StateError(f"{what} cannot be saved: its text has half a character, {half!r}; replace it") from exc


def _crc(session: str, number: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(f"{session}\0{number}\0".encode()))
