"""The writer: one thread and one connection for a file; everything queued at an instant is one transaction."""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from weavegraph.errors import LogClosedError, LogCorruptError, LogError, LogUnavailableError
from weavegraph.storage._faults import is_environment, translate
from weavegraph.storage._job import Job, deliver, run_all
from weavegraph.storage._mark import Mark
from weavegraph.storage._notices import Notices
from weavegraph.storage._open import open_writer
from weavegraph.storage._room import Room
from weavegraph.storage._schema import Schema, apply
from weavegraph.storage._turn import turn

__all__ = ["Writer"]

MAX_GROUP = 1024
"""Writes in one transaction; bounds how long the first of them waits for the last."""
_KEEPS_CONNECTION = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)


class Writer:
    """Started with its first job. Every attribute below the queue belongs to its thread alone."""

    def __init__(self, path: Path, busy_timeout: float, notices: Notices) -> None:
        self.path = path
        self.generation = 0  # counts connections: readers open anew when it changes
        self.own_commits = 0  # commits made here; read by the poller to tell them from those of other processes
        self.closed: Future[None] = Future()
        self._busy_timeout, self._notices = busy_timeout, notices
        self._lock = threading.Lock()  # guards the two below, so that nothing is queued behind the end
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._mark, self._room = Mark(path), Room(path)
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._synchronous = ""
        self._applied: set[Schema] = set()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def put(self, job: Job) -> None:
        with self._lock:
            if self._stopped:
                raise LogClosedError(str(self.path))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="weavegraph-store", daemon=True)
                self._thread.start()
            self._queue.put(job)

    def has(self, schemas: Sequence[Schema]) -> bool:
        """Whether the file is open and these are there, so that a reader may look at once. Any thread."""
        return self.generation > 0 and self._applied.issuperset(schemas)

    def abandon(self) -> None:
        """In a forked child: let go of what would hold up the parent's other processes."""
        self._mark.close()

    def stop(self) -> None:
        """Finish what is queued, close the file, end the thread; ``closed`` tells when."""
        with self._lock:
            self._stopped = True
            self._queue.put(None)
            if self._thread is None:
                self.closed.set_result(None)

    def _run(self) -> None:
        stopped = False
        while not stopped:
            group = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < MAX_GROUP:
                    group.append(self._queue.get_nowait())
            stopped = None in group
            jobs = [job for job in group if job is not None and job.begin()]
            if jobs:
                self._serve(jobs)
            del group, jobs  # an idle thread holds nobody's events
        self._disconnect()
        self.closed.set_result(None)

    def _serve(self, jobs: list[Job]) -> None:
        try:
            connection = self._connected()
            with turn(self._mark, self.path, self._busy_timeout):
                ready = [job for job in jobs if self._has_schemas(connection, job)]
                if any(job.ops for job in ready):
                    self._transact(connection, ready)
        except BaseException as exc:
            self._recover(exc)
            for job in jobs:
                if not isinstance(job.outcome, BaseException):
                    job.outcome = self._named(exc)
        deliver(jobs)
        if self._notices:
            abouts = (getattr(op, "about", None) for job in jobs for op in job.ops)
            self._notices.tell({about for about in abouts if isinstance(about, str)})

    def _transact(self, connection: sqlite3.Connection, jobs: list[Job]) -> None:
        """One transaction for all. Returns once it is as lasting as the most careful job asks for."""
        durable = any(job.durable for job in jobs)
        self._synchronize(connection, "FULL" if durable else "NORMAL")
        self._make_sure_it_is_still_there()
        try:
            connection.execute("BEGIN IMMEDIATE")
            if durable:
                self._room.make()
            outcomes: list[tuple[Any, ...] | BaseException]
            try:
                outcomes = [*run_all(connection, jobs)]
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
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.outcome = self._named(outcome) if isinstance(outcome, BaseException) else outcome

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
            job.outcome = self._named(exc)
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
                connection.close()  # the file's last one moves the write-ahead log, when nobody else is there
            self._mark.close()

    def _named(self, exc: BaseException) -> BaseException:
        """The error for the caller: SQLite's in our words, its own as it is."""
        if isinstance(exc, sqlite3.Error) and not isinstance(exc, (sqlite3.ProgrammingError, sqlite3.InterfaceError)):
            named: LogError = translate(exc, str(self.path))
            named.__cause__ = exc
            return named
        return exc


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
