"""A handle on a store. Everyone in a process that opens the same file shares its writer, readers and poller."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast

from weavegraph.errors import ConfigError, ForkedLogError, LogClosedError
from weavegraph.storage._job import Job, Op, Outcome
from weavegraph.storage._notices import Notices, Watch
from weavegraph.storage._open import may_write
from weavegraph.storage._poller import Poller
from weavegraph.storage._readers import Readers
from weavegraph.storage._schema import Schema
from weavegraph.storage._writer import Writer

__all__ = ["Durability", "SqliteStore"]

Durability: TypeAlias = Literal["durable", "relaxed"]
T = TypeVar("T")
EXIT_PATIENCE = 2.0  # seconds that interpreter exit waits for what is queued (contract P1)


class _Database:
    """What the handles of one file share."""

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path, self.users = path, 0
        self.notices = Notices()
        self.writer = Writer(path, busy_timeout, self.notices)
        self.readers = Readers(path, busy_timeout, lambda: self.writer.generation)
        self.poller = Poller(path, self.notices, lambda: (self.writer.generation, self.writer.own_commits))

    def stop(self, wait: float = 0.0) -> None:
        self.poller.stop(wait)
        self.readers.stop(wait)
        self.writer.stop()


_lock = threading.RLock()  # re-entrant: the collector may give up a handle while this thread opens another
_databases: dict[Path, _Database] = {}  # guarded by _lock
_closing: set[_Database] = set()  # given up by everyone, and not closed yet; guarded by the GIL
_forked: dict[Path, _Database] = {}  # open in the parent when this process was forked; held so that nothing closes them


class SqliteStore:
    """One SQLite file, for an event log and for checkpoints together. Any thread, any event loop.

    *Opening*: with the first call that needs the file, or ``start``; until then nothing is touched.

    *Writing*: ``write(*ops)`` runs its operations on the file's one writer thread; all of them are kept, or none.
    What several callers have queued shares a transaction and its sync; one caller's error undoes only its own part.

    *Durability*: ``"durable"`` acknowledges after the commit is synced to the disk (``synchronous=FULL``);
    ``"relaxed"`` leaves the syncing to the system: nothing is lost when the process dies, only a suffix when the power
    does. Handles of one file may differ; a transaction is as careful as its most careful write.

    *Errors*: ``LogUnavailableError`` (disk full, read-only, locked for longer than ``busy_timeout``, I/O): nothing of
    that write was kept or damaged, and the next one works as soon as the cause is gone. ``LogCorruptError``,
    ``LogVersionError``: nothing was written.

    *Fork*: a file that was open when the process forked raises ``ForkedLogError`` in the child.

    *Exit*: what is queued gets up to two seconds; the threads are daemons and hold up nothing.

    Args:
        busy_timeout: seconds to wait for a lock of another process; of several handles of one file the first decides.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, durability: Durability = "durable", busy_timeout: float = 5.0
    ) -> None:
        if not os.fspath(path) or os.fspath(path).startswith(":memory:"):
            raise ConfigError(f"a store needs a file, not {os.fspath(path)!r}; to keep nothing, use MemoryLog")
        if durability not in ("durable", "relaxed"):
            raise ConfigError(f"durability={durability!r}: choose 'durable' or 'relaxed'")
        if isinstance(busy_timeout, bool) or not isinstance(busy_timeout, (int, float)) or not 0 <= busy_timeout < 1e6:
            raise ConfigError(f"busy_timeout={busy_timeout!r}: give seconds, 0 or more")
        self.path = Path(path).resolve()
        self.durability: Durability = durability
        self._busy_timeout = float(busy_timeout)
        self._schemas: tuple[Schema, ...] = ()
        self._database: _Database | None = None
        self._closed = False
        self._release: Callable[[], Any] = lambda: None

    def require_schema(self, schema: Schema) -> None:
        """Have these tables there before every later write or read of this handle; they are made or migrated then."""
        if schema not in self._schemas:
            self._schemas = (*self._schemas, schema)

    def require_those_of(self, other: SqliteStore) -> None:
        """Also what another handle of the same file requires, for writes that concern both."""
        for schema in other._schemas:
            self.require_schema(schema)

    async def start(self) -> None:
        """Open now: an error of opening shows here, by its name, and not at the first write."""
        await self.submit()

    def write(self, *ops: Op) -> Future[tuple[Any, ...]]:
        """Run ``ops`` in one transaction; the future holds what each returned, once all of it is acknowledged.

        *Order*: writes of one thread are committed in the order of their calls. *Cancellation* of the future takes
        back a write that has not begun; otherwise whether it was kept is unknown.

        Raises:
            LogClosedError, ForkedLogError: at once. Everything else is in the future.
        """
        job = Job(ops, self._schemas, self.durability == "durable")
        self._open().writer.put(job)
        return cast("Future[tuple[Any, ...]]", job.future)

    async def submit(self, *ops: Op) -> tuple[Any, ...]:
        """``write``, awaited."""
        job = Job(ops, self._schemas, self.durability == "durable", asyncio.get_running_loop())
        self._open().writer.put(job)
        return await cast("asyncio.Future[tuple[Any, ...]]", job.future)

    def post(
        self, ops: Sequence[Op], done: Callable[[Outcome], None], told: Callable[[Outcome], bool] | None = None
    ) -> None:
        """``write``, for a coroutine that goes on meanwhile: ``done`` gets what the operations returned, or the error,
        in the running loop, a turn before one that awaits a future would. It cannot be taken back.

        ``told``: gets it before, on the writer thread, and returns whether ``done`` is to have it. It must be quick,
        and must not raise.
        """
        job = Job(ops, self._schemas, self.durability == "durable", asyncio.get_running_loop(), done, told)
        self._open().writer.put(job)

    async def query(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``function`` on a reader thread: a read-only connection, one snapshot.

        Waits for no writer, unless this call is the one that opens the file. A file that this user may not write, or
        whose folder they may not, is only read, and nothing is made beside it.
        """
        database = self._open()
        if not database.writer.has(self._schemas) and (database.writer.generation or may_write(self.path)):
            await self.start()
        return await asyncio.wrap_future(database.readers.submit(function, self._schemas))

    def watch(self, topic: str) -> Watch:
        """Be woken when ``topic`` may have changed, by this process at once, by another after at most 0.2 seconds."""
        database = self._open()
        watch = database.notices.watch(topic)
        database.poller.ensure()
        return watch

    def close(self) -> None:
        """Give up this handle; the file closes after the last one, with everything queued written. Idempotent."""
        self._closed = True
        self._release()
        if self._database is not None:
            self._database.notices.tell_all()  # who waits looks again, and finds its handle closed

    async def aclose(self) -> None:
        """``close``, and wait until what this handle queued is written, and the file closed if it was the last."""
        database = self._database
        if self._closed or database is None or self.path in _forked:
            self.close()
            return
        self._closed = True
        try:
            if database.writer.started:
                flushed = Job((), (), False, asyncio.get_running_loop())
                database.writer.put(flushed)
                await asyncio.shield(cast("asyncio.Future[Any]", flushed.future))
        except Exception:
            pass  # a file that cannot be opened has nothing to flush
        finally:
            self.close()
        if database.users == 0:
            await asyncio.shield(asyncio.wrap_future(database.writer.closed))

    def _open(self) -> _Database:
        if self._closed:
            raise LogClosedError(str(self.path))
        if self._database is None or self.path in _forked:
            with _lock:
                if self.path in _forked:
                    raise ForkedLogError(str(self.path))
                if self._database is None:
                    database = _databases.get(self.path)
                    if database is None:
                        database = _databases[self.path] = _Database(self.path, self._busy_timeout)
                    database.users += 1
                    self._release = weakref.finalize(self, _give_up, database)
                    self._release.atexit = False
                    self._database = database
        return self._database

    def __repr__(self) -> str:
        return f"<SqliteStore {str(self.path)!r} {self.durability}>"

    def __reduce__(self) -> Any:
        raise TypeError("a SqliteStore lives in one process; pass its path")


def _give_up(database: _Database) -> None:
    with _lock:
        database.users -= 1
        if database.users or database.path in _forked:
            return
        if _databases.get(database.path) is database:
            del _databases[database.path]
        _closing.add(database)
    database.writer.closed.add_done_callback(lambda _: _closing.discard(database))
    # Off this thread, which may run a loop: the readers are waited for, so that the writer closes the file last.
    try:
        threading.Thread(target=database.stop, args=(1.0,), name="weavegraph-store-stop", daemon=True).start()
    except RuntimeError:  # the interpreter exits
        pass


def _flush_at_exit() -> None:
    """Only flush: the bus drains later than this, and its sinks may still write."""
    deadline = time.monotonic() + EXIT_PATIENCE
    with _lock:
        databases = [database for database in _databases.values() if database.writer.started]
    jobs = [Job((), (), False) for _ in databases]
    for database, job in zip(databases, jobs, strict=True):
        with contextlib.suppress(LogClosedError):
            database.writer.put(job)
    for job in jobs:
        try:
            cast("Future[Any]", job.future).result(max(0.0, deadline - time.monotonic()))
        except Exception:
            pass


def _after_fork() -> None:
    """In the child: SQLite's table of locks came along although the locks did not, so the file is out of bounds."""
    global _lock
    _lock = threading.RLock()
    _forked.update(_databases)
    _forked.update({database.path: database for database in _closing})
    _databases.clear()
    for database in _forked.values():
        database.writer.abandon()


atexit.register(_flush_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
