"""Runs and events as rows of SQLite, both ways; what is read is checked before it is believed.

An event is one row whose key holds run and position, so that a run lies together, a duplicate cannot exist, and one
b-tree serves writing and reading. Its checksum covers run id, position and bytes; a run's record has one of its own;
a directory row counts the runs, so that a run that vanished is missed. ``from_json`` alone decodes events.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec

from weavegraph.errors import EventDecodeError, EventInvalidError, LogCorruptError, LogError, LogVersionError
from weavegraph.events import SCHEMA_VERSION, Event, from_json
from weavegraph.log._rules import RunRecord
from weavegraph.storage import Schema

__all__ = [
    "EVENTS",
    "add_run",
    "bodies",
    "check_directory",
    "decode",
    "delete",
    "drop_run",
    "find",
    "find_all",
    "insert",
    "records",
    "rows",
    "update",
]

EVENTS = Schema(
    "events",
    (
        (
            "CREATE TABLE log_runs(run_key INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, session_id TEXT NOT NULL,"
            " attempt INTEGER NOT NULL, epoch TEXT NOT NULL, first_position INTEGER NOT NULL,"
            " last_position INTEGER NOT NULL, outcome TEXT, events INTEGER NOT NULL, bytes INTEGER NOT NULL,"
            " started_at TEXT NOT NULL, updated_at TEXT NOT NULL, crc INTEGER NOT NULL, digest INTEGER NOT NULL)"
            " STRICT",
            "CREATE TABLE log_events(id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, body BLOB NOT NULL) STRICT",
            "CREATE TABLE log_directory(id INTEGER PRIMARY KEY CHECK (id = 1), runs INTEGER NOT NULL,"
            " digests INTEGER NOT NULL) STRICT",
            "INSERT INTO log_directory VALUES (1, 0, 0)",
        ),
    ),
)

_SEQ_BITS = 36
"""Positions up to 6.9 × 10^10 a run and 1.3 × 10^8 runs a file."""
_ROWS = 64
"""Rows of one INSERT. A statement a row would give up the interpreter's lock for each, and wait up to 5 ms to get it
back when the main thread computes: measured 1,160 µs a row against 47."""
_INSERT = {n: "INSERT INTO log_events VALUES " + ",".join(["(?,?,?)"] * n) for n in range(1, _ROWS + 1)}
_COLUMNS = (
    "run_id, session_id, attempt, epoch, first_position, last_position, outcome, events, bytes, started_at, updated_at"
)
_TYPES = frozenset((str, str, int, str, int, int, outcome, int, int, str, str) for outcome in (str, type(None)))
_FIND = {
    n: f"SELECT run_key, {_COLUMNS}, crc, digest FROM log_runs WHERE run_id IN ({','.join('?' * n)})"
    for n in range(1, _ROWS + 1)
}
_UPDATE = {
    n: "WITH new(key, a, e, f, l, o, n, b, u, c) AS"
    f" (VALUES {','.join(['(?,?,?,?,?,?,?,?,?,?)'] * n)}) UPDATE log_runs SET attempt = a, epoch = e,"
    " first_position = f, last_position = l, outcome = o, events = n, bytes = b, updated_at = u, crc = c"
    " FROM new WHERE run_key = key"
    for n in range(2, _ROWS + 1)
}
_UPDATE[1] = (
    "UPDATE log_runs SET attempt = ?2, epoch = ?3, first_position = ?4, last_position = ?5, outcome = ?6, events = ?7,"
    " bytes = ?8, updated_at = ?9, crc = ?10 WHERE run_key = ?1"
)


class _Version(msgspec.Struct):
    v: int


_version = msgspec.json.Decoder(_Version)


def find(connection: sqlite3.Connection, run_id: str, place: str) -> tuple[int, RunRecord] | None:
    """The run's key and record."""
    return find_all(connection, (run_id,), place).get(run_id)


def find_all(connection: sqlite3.Connection, run_ids: Sequence[str], place: str) -> dict[str, tuple[int, RunRecord]]:
    """Keys and records of those of these runs that are there."""
    found: dict[str, tuple[int, RunRecord]] = {}
    for at in range(0, len(run_ids), _ROWS):
        part = run_ids[at : at + _ROWS]
        for row in connection.execute(_FIND[len(part)], part):
            key, record = _record(row, place)
            if record.run_id not in part:
                raise LogCorruptError(place, f"the index of runs leads from one of {part!r} to {record.run_id!r}")
            found[record.run_id] = key, record
    return found


def records(connection: sqlite3.Connection, place: str, where: str = "1", values: Sequence[Any] = ()) -> list[Any]:
    """Keys and records of the runs that ``where`` (a fixed text of ours) selects, oldest first."""
    check_directory(connection, place)
    rows = connection.execute(
        f"SELECT run_key, {_COLUMNS}, crc, digest FROM log_runs NOT INDEXED WHERE {where}", values
    ).fetchall()
    return sorted(_record(row, place) for row in rows)


def check_directory(connection: sqlite3.Connection, place: str, missing: str = "") -> None:
    """Whether all runs are there that were begun; 0.1 ms for a thousand. ``missing``: a run the index does not know."""
    found = connection.execute(
        "SELECT count(*), coalesce(sum(digest), 0), coalesce(max(run_id = ?), 0) FROM log_runs NOT INDEXED", (missing,)
    ).fetchone()
    noted = connection.execute("SELECT runs, digests FROM log_directory WHERE id = 1").fetchone()
    if noted != found[:2] or found[2]:
        raise LogCorruptError(place, f"the directory of runs is damaged: {noted} noted, {found} found")


def add_run(connection: sqlite3.Connection, record: RunRecord) -> int:
    """Make room for a run; its record is written by ``update``."""
    digest = zlib.crc32(record.run_id.encode())
    cursor = connection.execute(
        f"INSERT INTO log_runs({_COLUMNS}, crc, digest) VALUES ({','.join('?' * 13)})", (*_values(record), 0, digest)
    )
    connection.execute("UPDATE log_directory SET runs = runs + 1, digests = digests + ? WHERE id = 1", (digest,))
    assert cursor.lastrowid is not None
    if cursor.lastrowid >= 1 << (63 - _SEQ_BITS):
        raise LogError(f"the log has had {cursor.lastrowid} runs, more than one file can tell apart; begin a new file")
    return cursor.lastrowid


def drop_run(connection: sqlite3.Connection, key: int, record: RunRecord) -> None:
    """Forget that there was such a run."""
    connection.execute("DELETE FROM log_runs WHERE run_key = ?", (key,))
    digest = zlib.crc32(record.run_id.encode())
    connection.execute("UPDATE log_directory SET runs = runs - 1, digests = digests - ? WHERE id = 1", (digest,))


def update(connection: sqlite3.Connection, records: Sequence[tuple[int, RunRecord]]) -> None:
    """Write the records of runs under their keys."""
    values: list[Any] = []
    for key, record in records:
        columns = _values(record)
        # Without run_id, session_id and started_at, which never change: naming run_id would rewrite its index too.
        values += (key, *columns[2:9], columns[10], _check_of(key, columns))
    for at in range(0, len(values), 10 * _ROWS):
        part = values[at : at + 10 * _ROWS]
        connection.execute(_UPDATE[len(part) // 10], part)


def rows(key: int, run_id: str, first: int, bodies: Sequence[bytes]) -> list[Any]:
    """Events from position ``first`` on as values for ``insert``, three each.

    Raises:
        EventInvalidError: the position is too large.
    """
    if first + len(bodies) >= 1 << _SEQ_BITS:
        raise EventInvalidError("run_seq", f"{first} is beyond what a log can count to")
    start, base = zlib.crc32(run_id.encode()), key << _SEQ_BITS
    values: list[Any] = []
    for seq, body in enumerate(bodies, first):
        values += (base | seq, zlib.crc32(body, zlib.crc32(seq.to_bytes(8), start)), body)
    return values


def insert(connection: sqlite3.Connection, values: Sequence[Any]) -> None:
    """Write events, of any runs."""
    for at in range(0, len(values), 3 * _ROWS):
        part = values[at : at + 3 * _ROWS]
        connection.execute(_INSERT[len(part) // 3], part)


def delete(connection: sqlite3.Connection, key: int, first: int, upto: int) -> None:
    base = key << _SEQ_BITS
    connection.execute("DELETE FROM log_events WHERE id BETWEEN ? AND ?", (base | first, base | upto))


def bodies(
    connection: sqlite3.Connection, key: int, record: RunRecord, after: int, limit: int, place: str
) -> Iterator[tuple[int, bytes]]:
    """Positions and JSON after ``after``, checked; without a hole, since each is the next one or an error."""
    base, start = key << _SEQ_BITS, zlib.crc32(record.run_id.encode())
    expected = max(after + 1, record.first)
    for id_, crc, body in connection.execute(
        "SELECT id, crc, body FROM log_events WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
        (base | expected, base | record.last, limit),
    ):
        if type(body) is not bytes or id_ != base | expected:
            raise LogCorruptError(place, f"run {record.run_id!r}: position {expected} is missing")
        if crc != zlib.crc32(body, zlib.crc32(expected.to_bytes(8), start)):
            raise LogCorruptError(place, f"run {record.run_id!r}: the checksum of position {expected} does not fit")
        yield expected, body
        expected += 1


def decode(body: bytes, place: str) -> Event:
    """The event in a checked body.

    Raises:
        LogVersionError: written by a later release. LogCorruptError: anything else that is no event.
    """
    try:
        return from_json(body)
    except EventDecodeError as exc:
        try:
            version = _version.decode(body).v
        except msgspec.MsgspecError:
            version = SCHEMA_VERSION
        if version > SCHEMA_VERSION:
            raise LogVersionError(f"an event in {place}", version, SCHEMA_VERSION) from exc
        raise LogCorruptError(place, str(exc)) from exc


def _record(row: Sequence[Any], place: str) -> tuple[int, RunRecord]:
    key, values, crc, digest = row[0], row[1:12], row[12], row[13]
    if tuple(map(type, values)) not in _TYPES:
        raise LogCorruptError(place, f"the record of run {values[0]!r} is damaged")
    if crc != _check_of(key, values) or digest != zlib.crc32(values[0].encode()):
        raise LogCorruptError(place, f"the checksum of the record of run {values[0]!r} does not fit")
    run_id, session_id, attempt, epoch, first, last, outcome, events, size, started_at, updated_at = values
    return key, RunRecord(
        run_id=run_id,
        session_id=session_id,
        attempt=attempt,
        epoch=epoch,
        first=first,
        last=last,
        outcome=outcome,
        events=events,
        size=size,
        started_at=datetime.fromisoformat(started_at),
        updated_at=datetime.fromisoformat(updated_at),
    )


def _values(record: RunRecord) -> tuple[Any, ...]:
    return (
        record.run_id,
        record.session_id,
        record.attempt,
        record.epoch,
        record.first,
        record.last,
        record.outcome,
        record.events,
        record.size,
        record.started_at.isoformat(),
        record.updated_at.isoformat(),
    )


def _check_of(key: int, values: Sequence[Any]) -> int:
    return zlib.crc32(repr((key, *values)).encode())
