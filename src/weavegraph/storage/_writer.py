"""The writer: one thread and one connection for a file; everything queued at an instant is one transaction."""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias

from weavegraph.errors import LogCorruptError, LogError, LogUnavailableError
from weavegraph.storage._faults import is_environment, translate
from weavegraph.storage._mark import Mark
from weavegraph.storage._notices import Notices
from weavegraph.storage._open import open_writer
from weavegraph.storage._schema import Schema, apply

__all__ = ["Job", "Op", "Writer"]

Op: TypeAlias = Callable[[sqlite3.Connection], Any]
"""One step of a write, run on the writer thread inside of a transaction that it must neither begin nor end.

It may be run again after a rollback, so it changes nothing but the database. An attribute ``about`` (text) names what
it changes: watchers of that topic are woken after the commit.
"""
MAX_GROUP = 1024
"""Writes in one transaction; bounds how long the first of them waits for the last."""
_KEEPS_CONNECTION = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)


class Job:
    """Operations that are kept all together or not at all, and the future that tells."""

    __slots__ = ("durable", "future", "ops", "schemas")

    def __init__(self, ops: Sequence[Op], schemas: Sequence[Schema], durable: bool) -> None:
        self.ops, self.schemas, self.durable = ops, schemas, durable
        self.future: Future[tuple[Any, ...]] = Future()

    def run(self, connection: sqlite3.Connection) -> tuple[Any, ...]:
        values = tuple([op(connection) for op in self.ops])
        if not connection.in_transaction:
            raise RuntimeError("an operation ended the transaction it was given")
        return values


class Writer:
    """Started with its first job. Every attribute below the queue belongs to its thread alone."""

    def __init__(self, path: Path, busy_timeout: float, notices: Notices) -> None:
        self.path = path
        self.generation = 0  # counts connections: readers open anew when it changes
        self.own_commits = 0  # commits made here; read by the poller to tell them from those of other processes
        self.closed: Future[None] = Future()
        self._busy_timeout, self._notices = busy_timeout, notices
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._mark = Mark(path)
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._synchronous = ""
        self._applied: set[Schema] = set()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def put(self, job: Job) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="weavegraph-store", daemon=True)
                    self._thread.start()
        self._queue.put(job)

    def has(self, schemas: Sequence[Schema]) -> bool:
        """Whether the file is open and these are there, so that a reader may look at once. Any thread."""
        return self.generation > 0 and self._applied.issuperset(schemas)

    def stop(self) -> None:
        """Finish what is queued, close the file, end the thread; ``closed`` tells when."""
        with self._lock:
            if self._thread is None:
                self.closed.set_result(None)
            else:
                self._queue.put(None)

    def _run(self) -> None:
        stopped = False
        while not stopped:
            group = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < MAX_GROUP:
                    group.append(self._queue.get_nowait())
            stopped = None in group
            jobs = [job for job in group if job is not None and job.future.set_running_or_notify_cancel()]
            if jobs:
                self._serve(jobs)
            del group, jobs  # an idle thread holds nobody's events
        self._disconnect()
        self.closed.set_result(None)

    def _serve(self, jobs: list[Job]) -> None:
        try:
            connection = self._connected()
            jobs = [job for job in jobs if self._has_schemas(connection, job)]
            outcomes = self._transact(connection, jobs) if any(job.ops for job in jobs) else [() for _ in jobs]
        except BaseException as exc:
            self._recover(exc)
            outcomes = [exc] * len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.future.done():
                continue  # its schema was refused before the others' file failed
            if isinstance(outcome, BaseException):
                self._fail(job, outcome)
            else:
                job.future.set_result(outcome)
        if self._notices:
            abouts = (getattr(op, "about", None) for job in jobs for op in job.ops)
            self._notices.tell({about for about in abouts if isinstance(about, str)})

    def _transact(self, connection: sqlite3.Connection, jobs: list[Job]) -> Sequence[tuple[Any, ...] | BaseException]:
        """One transaction for all. Returns once it is as lasting as the most careful job asks for."""
        durable = any(job.durable for job in jobs)
        self._synchronize(connection, "FULL" if durable else "NORMAL")
        self._make_sure_it_is_still_there()
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes: Sequence[tuple[Any, ...] | BaseException]
            try:
                outcomes = [job.run(connection) for job in jobs]
            except BaseException as exc:
                if len(jobs) == 1 or (isinstance(exc, sqlite3.Error) and is_environment(exc)):
                    raise
                # Savepoints for everyone would cost each write two statements more; they are needed only now.
                connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                outcomes = [_guarded(connection, job) for job in jobs]
            # Also when nothing changed: what an earlier, killed writer left unsynced is acknowledged here again.
            row = connection.execute(
                "UPDATE store_state SET commits = commits + 1 WHERE id = 1 RETURNING commits"
            ).fetchone()
            if row is None:
                raise LogCorruptError(str(self.path), "the table store_state is empty")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        self.own_commits += 1
        if durable:
            self._mark.write(row[0])
        return outcomes

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = open_writer(self.path, self._mark, self._busy_timeout)
            stat = os.stat(self.path)
            self._connection, self._identity = connection, (stat.st_dev, stat.st_ino)
            self._synchronous, self._applied = "", set()
            self.generation += 1
        return self._connection

    def _has_schemas(self, connection: sqlite3.Connection, job: Job) -> bool:
        try:
            for schema in job.schemas:
                if schema not in self._applied:
                    apply(connection, schema, str(self.path))
                    self._applied.add(schema)
        except Exception as exc:
            if isinstance(exc, sqlite3.Error) and is_environment(exc):
                raise
            self._fail(job, exc)
            return False
        return True

    def _synchronize(self, connection: sqlite3.Connection, level: str) -> None:
        if self._synchronous != level:
            connection.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _make_sure_it_is_still_there(self) -> None:
        """SQLite goes on writing into a file that was deleted or moved; nobody would find those events again."""
        try:
            stat = os.stat(self.path)
        except OSError:
            stat = None
        if stat is None or (stat.st_dev, stat.st_ino) != self._identity:
            raise LogUnavailableError(str(self.path), "was moved or deleted while it was open; the next write opens it")

    def _recover(self, exc: BaseException) -> None:
        """A connection that met a bad file is not trusted again; the next job opens another."""
        code = getattr(exc, "sqlite_errorcode", None)
        if isinstance(exc, LogUnavailableError) or (code is not None and code & 0xFF not in _KEEPS_CONNECTION):
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
            self._mark.close()

    def _fail(self, job: Job, exc: BaseException) -> None:
        if isinstance(exc, sqlite3.Error) and not isinstance(exc, (sqlite3.ProgrammingError, sqlite3.InterfaceError)):
            named: LogError = translate(exc, str(self.path))
            named.__cause__ = exc
            exc = named
        job.future.set_exception(exc)


def _guarded(connection: sqlite3.Connection, job: Job) -> tuple[Any, ...] | BaseException:
    """The job's values, or its own error after undoing only what it did."""
    connection.execute("SAVEPOINT job")
    try:
        values = job.run(connection)
    except BaseException as exc:
        if not connection.in_transaction or (isinstance(exc, sqlite3.Error) and is_environment(exc)):
            raise
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        return exc
    connection.execute("RELEASE job")
    return values
