"""What an outbox still has to ship: asked of the log, cheaply when log and cursors share a file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from weavegraph.log._outbox_store import OUTBOX, Cursor, SqliteOutboxStore
from weavegraph.protocols import EventLog

__all__ = ["Pending", "Source", "source_of"]

AT_ONCE = 200
"""Runs that one look names."""
SHARE = 20
"""A look that found nothing is followed by a pause of this many times its own length, so that looking costs at most a
twentieth of a processor however many runs there are."""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """Runs with something to ship, the one that began first before others; and how much there is in all."""

    runs: tuple[str, ...] = ()
    run_count: int = 0
    event_count: int = 0
    gone: tuple[str, ...] = ()
    """Runs with a cursor that the log no longer has."""


class Source(Protocol):
    pause: float
    """Seconds to wait before the next look, at least."""

    async def pending(self, cursors: Mapping[str, Cursor]) -> Pending: ...


def source_of(log: EventLog, store: Any, name: str) -> Source:
    shared = getattr(log, "store", None)
    if isinstance(store, SqliteOutboxStore) and getattr(shared, "path", None) == store.store.path:
        return _OneFile(log, name)
    return _AnyLog(log)


class _OneFile:
    """Log and cursors in one SQLite file: a join finds what is pending; nothing is read while nothing was committed."""

    def __init__(self, log: Any, name: str) -> None:
        self._store, self._name = log.store, name
        self._store.require_schema(OUTBOX)
        self._nothing_at = -1  # the commit number at which there was nothing to ship
        self.pause = 0.0

    async def pending(self, cursors: Mapping[str, Cursor]) -> Pending:
        commits, seconds, rows, gone = await self._store.query(self._look)
        self.pause = SHARE * seconds
        self._nothing_at = commits if not rows else -1
        return Pending(
            runs=tuple(row[0] for row in rows),
            run_count=rows[0][1] if rows else 0,
            event_count=rows[0][2] if rows else 0,
            gone=gone,
        )

    def _look(self, connection: sqlite3.Connection) -> tuple[int, float, list[Any], tuple[str, ...]]:
        (commits,) = connection.execute("SELECT commits FROM store_state WHERE id = 1").fetchone()
        if commits == self._nothing_at:
            return commits, 0.0, [], ()
        began = time.monotonic()
        rows = connection.execute(
            "SELECT r.run_id, count(*) OVER (), sum(r.last_position - coalesce(c.position, 0)) OVER ()"
            " FROM log_runs r LEFT JOIN outbox_cursors c ON c.name = ? AND c.run_id = r.run_id"
            " WHERE r.last_position > coalesce(c.position, 0) ORDER BY r.run_key LIMIT ?",
            (self._name, AT_ONCE),
        ).fetchall()
        gone: tuple[str, ...] = ()
        if not rows:
            gone = tuple(
                row[0]
                for row in connection.execute(
                    "SELECT run_id FROM outbox_cursors WHERE name = ? AND run_id NOT IN (SELECT run_id FROM log_runs)",
                    (self._name,),
                )
            )
        return commits, time.monotonic() - began, rows, gone


class _AnyLog:
    """Compares the log's list of runs with the cursors."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.pause = 0.0

    async def pending(self, cursors: Mapping[str, Cursor]) -> Pending:
        began = time.monotonic()
        found: list[str] = []
        there: set[str] = set()
        events, before = 0, None
        while page := await self._log.runs(limit=AT_ONCE, before=before):
            for run in page:
                there.add(run.run_id)
                behind = run.last_position - cursors.get(run.run_id, Cursor()).position
                if behind > 0:
                    found.append(run.run_id)
                    events += behind
            before = page[-1].run_id
        gone = tuple(run_id for run_id in cursors if run_id not in there)
        self.pause = SHARE * (time.monotonic() - began)
        return Pending(runs=tuple(found[::-1][:AT_ONCE]), run_count=len(found), event_count=events, gone=gone)
