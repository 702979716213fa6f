"""The event log in an SQLite file, with the standard library alone.

::

    log = SqliteLog("events.db")                                    # durable: acknowledged means on the disk
    log = SqliteLog("events.db", durability="relaxed", retention=Retention(max_age=7 * 86400))
    log = SqliteLog.from_url("sqlite:events.db?durability=relaxed&max_events=1000000")

*Durability* (contract D1). ``durable``: ``append`` returns after its commit is synced (``synchronous=FULL``; all that
is queued shares one sync). ``relaxed``: a dying process loses nothing; a power cut may lose a suffix, nothing else.

*After a crash* (D2) the log is a prefix of what was given, without hole, duplicate or torn event. Every event carries
a checksum; a file that was damaged, or cut behind what was acknowledged, is refused with ``LogCorruptError``.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from weavegraph.clock import SystemClock
from weavegraph.errors import ConfigError, InvalidPositionError, RunNotFoundError
from weavegraph.events import Event, to_json
from weavegraph.log._compact import Survey
from weavegraph.log._reading import PAGE_BYTES, PAGE_EVENTS, Page, follow_run, read_run
from weavegraph.log._retention import Retention, cuts
from weavegraph.log._rows import (
    EVENTS,
    add_run,
    bodies,
    check_directory,
    decode,
    delete,
    drop_run,
    find,
    find_all,
    insert,
    records,
    rows,
    update,
)
from weavegraph.log._rules import RunRecord, advance, check_batch, check_writer, fenced, held
from weavegraph.log._sink import LogSink
from weavegraph.protocols import Clock, LoggedRun
from weavegraph.storage import Durability, Op, SqliteStore

__all__ = ["SqliteLog", "sink_from_url"]

RETAIN_EVERY = 1000
"""Events between two looks at the retention; a run's end looks too."""


class SqliteLog:
    """An ``EventLog`` in one SQLite file. Any thread, any event loop; any number of processes read, each run is written
    by one (fencing). The file is opened with the first call that needs it, or by ``start``.

    *Order*: positions of a run are ``run_seq``, without holes. *Loss*: what ``durability`` says, and what ``retention``
    or ``trim`` takes, which readers see as one exact gap. *Waiting*: ``append`` waits for its group commit, readers
    never for writers. *Cancellation*: a cancelled ``append`` may be kept or not; give it again. *After close*:
    ``LogClosedError``. *Fork*: ``ForkedLogError`` in a child when the parent had the file open. *Reading only*: a file
    that this user may not write, or whose folder they may not, is read and followed; nothing is made beside it.

    Raises, from every coroutine and iterator:
        LogUnavailableError: disk full, read-only, locked for ``busy_timeout`` seconds, I/O; nothing is damaged, and the
            next call works once the cause is gone. LogCorruptError, LogVersionError: nothing was written.

    Args:
        durability: ``"durable"`` or ``"relaxed"``.
        retention: checked when a run ends and at least every thousand events; ``retain()`` does it now.
        busy_timeout: seconds to wait for another process's lock.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "durable",
        retention: Retention | None = None,
        busy_timeout: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self.store = SqliteStore(path, durability=durability, busy_timeout=busy_timeout)
        self.store.require_schema(EVENTS)
        self.retention = retention or Retention()
        self._clock = clock or SystemClock()
        self._place = str(self.store.path)
        self._since_retained = 0  # events; the writer thread's own
        self._checked = 0  # id of the writer's connection whose directory was checked; the writer thread's own

    @classmethod
    def from_url(cls, url: str) -> SqliteLog:
        """``sqlite:PATH?durability=…&max_age=…&max_events=…&max_bytes=…&busy_timeout=…``; all options may be left out.

        Raises:
            ConfigError: another scheme, an unknown option, or a value it cannot have.
        """
        kind, _, rest = url.partition(":")
        target, _, query = rest.partition("?")
        if kind != "sqlite":
            raise ConfigError(f"log {url!r}: write it as sqlite:PATH, for instance 'sqlite:events.db'")
        return cls._from_options(target, dict(parse_qsl(query, keep_blank_values=True)))

    @classmethod
    def _from_options(cls, target: str, options: dict[str, Any]) -> SqliteLog:
        kinds = {"durability": str, "max_age": float, "max_events": int, "max_bytes": int, "busy_timeout": float}
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in kinds:
                raise ConfigError(f"sqlite log: no option is called {name!r}; known: {', '.join(kinds)}")
            try:
                values[name] = kinds[name](value)
            except (TypeError, ValueError) as exc:
                raise ConfigError(f"sqlite log: {name}={value!r} is no {kinds[name].__name__}") from exc
        bounds = {name: values.pop(name) for name in ("max_age", "max_events", "max_bytes") if name in values}
        return cls(target, retention=Retention(**bounds), **values)

    async def start(self) -> None:
        """Open the file now, so that a fault shows here and not with the first event."""
        await self.store.start()

    async def append(self, run_id: str, events: Sequence[Event], /) -> int:
        """Keep ``events``, of one run and in order; returns the run's last position once they are acknowledged.

        Events that are there already are passed over. All of the batch is kept, or nothing.

        Raises:
            LogFencedError: another writer owns the run, or another event stands at that position.
            LogHoleError: a position would be missing. EventInvalidError: of another run, or without ``run_seq``.
        """
        (last,) = await self.store.submit(self.appending(run_id, events))
        return int(last)

    async def publish(self, run_id: str, events: Sequence[Event], /, *, after: int = 0) -> int:
        """As ``append``, but a run that is not there may begin behind a gap, when nothing is known to be before it."""
        (last,) = await self.store.submit(_Append(self, run_id, tuple(events), anywhere=not after))
        return int(last)

    def appending(self, run_id: str, events: Sequence[Event], /) -> Op:
        """The same as an operation, to be committed together with others: ``store.submit(log.appending(…), save)``."""
        return _Append(self, run_id, tuple(events))

    def read(self, run_id: str, /, after: int = 0, *, compact: bool = False) -> AsyncIterator[Event]:
        """What is held after that position at this moment, then the end. A trimmed beginning shows as one gap notice.

        ``compact``: a finished LLM stream is one event, at its last position, with the whole text; its metadata names
        ``first_seq``, ``last_seq`` and ``count`` of the events it stands for. A run that is not there has no events.

        Raises:
            InvalidPositionError: ``after`` is beyond the last event, or no position.
        """
        return self._compacted(run_id, after) if compact else read_run(self._fetch(run_id), after)

    def follow(self, run_id: str, /, after: int = 0) -> AsyncIterator[Event]:
        """As ``read``, then what comes, from whatever process writes it; waits for a run that is not there yet.

        Ends when the last event is a terminal one that says completed, failed or cancelled; ``paused`` and
        ``interrupted`` are followed by more. Close it (``aclose``) when you leave early.
        """
        return follow_run(self._fetch(run_id), lambda: self.store.watch(run_id), after)

    async def read_session(self, session_id: str, /) -> AsyncIterator[Event]:
        """The events of all runs of a session, run after run."""
        found = await self.store.query(lambda db: records(db, self._place, "session_id = ?", (session_id,)))
        for _, record in found:
            async for event in self.read(record.run_id):
                yield event

    async def last_position(self, run_id: str, /) -> int:
        """0 for a run that is not there."""
        found = await self.store.query(partial(self._find, run_id=run_id))
        return 0 if found is None else found[1].last

    async def runs(self, *, limit: int = 100, before: str | None = None) -> Sequence[LoggedRun]:
        """The newest runs first; ``before``: only those that started before that run, for the next page.

        Raises:
            RunNotFoundError: no run is called ``before``.
        """
        found = await self.store.query(lambda db: self._runs(db, max(limit, 0), before))
        return tuple(record.logged() for _, record in found)

    async def trim(self, run_id: str, /, upto: int | None = None) -> int:
        """Forget the run's events up to a position; returns how many went. Readers see an exact gap.

        ``None``: all of it; a run that is over is then not there at all, one that is not keeps its position.

        Raises:
            InvalidPositionError: beyond the last event, or no position.
        """
        (gone,) = await self.store.submit(_Trim(self, run_id, upto))
        return int(gone)

    async def retain(self) -> int:
        """Apply the retention now; returns how many events went."""
        (gone,) = await self.store.submit(self._retain)
        return int(gone)

    async def aclose(self) -> None:
        """Finish what is queued and give up the file. Idempotent."""
        await self.store.aclose()

    # ── on a reader thread ────────────────────────────────────────────────────────────────────────

    def _find(self, connection: sqlite3.Connection, run_id: str) -> tuple[int, RunRecord] | None:
        found = find(connection, run_id, self._place)
        if found is None:
            check_directory(connection, self._place, run_id)
        return found

    def _runs(self, connection: sqlite3.Connection, limit: int, before: str | None) -> list[Any]:
        below = 1 << 62
        if before is not None:
            found = self._find(connection, before)
            if found is None:
                raise RunNotFoundError(before)
            below = found[0]
        keys = "run_key IN (SELECT run_key FROM log_runs WHERE run_key < ? ORDER BY run_key DESC LIMIT ?)"
        return records(connection, self._place, keys, (below, limit))[::-1]

    def _fetch(self, run_id: str) -> Callable[[int], Awaitable[Page]]:
        def page(connection: sqlite3.Connection, after: int) -> Page:
            found = self._find(connection, run_id)
            if found is None:
                return Page(None)
            key, record = found
            events, size = [], 0
            for _, body in bodies(connection, key, record, after, PAGE_EVENTS, self._place):
                events.append(decode(body, self._place))
                size += len(body)
                if size > PAGE_BYTES:
                    break
            return Page(record, events)

        return lambda after: self.store.query(partial(page, after=after))

    async def _compacted(self, run_id: str, after: int) -> AsyncIterator[Event]:
        survey, end = Survey(), await self.last_position(run_id)
        async for event in read_run(self._fetch(run_id), after, end):
            survey.see(event)
        fold = survey.fold()
        async for event in read_run(self._fetch(run_id), after, end):
            if (folded := fold.feed(event)) is not None:
                yield folded

    # ── on the writer thread ──────────────────────────────────────────────────────────────────────

    def _find_to_write(self, connection: sqlite3.Connection, run_id: str) -> tuple[int, RunRecord] | None:
        found = find(connection, run_id, self._place)
        if found is None:
            self._check_once(connection, run_id)
        return found

    def _check_once(self, connection: sqlite3.Connection, run_id: str) -> None:
        """A run is not there: was it never? Once, since a look at every new run would cost more and more."""
        if self._checked != id(connection):
            check_directory(connection, self._place, run_id)
            self._checked = id(connection)

    def _append_all(self, connection: sqlite3.Connection, appends: Sequence[_Append]) -> list[int]:
        """Each run's last position. Runs are found, events written and records updated by a statement for up to 64."""
        for append in appends:
            check_batch(append.about, append.events)
        stand = find_all(connection, [*{append.about: None for append in appends}], self._place)
        values: list[Any] = []
        changed: dict[str, tuple[int, RunRecord]] = {}
        results: list[int] = []
        count = 0
        for append in appends:
            run_id, events = append.about, append.events
            found = stand.get(run_id)
            if found is None:
                self._check_once(connection, run_id)
            key, record = (0, None) if found is None else found
            known = held(record, events)
            if known and record is not None:
                if run_id in changed:  # what is compared must be there
                    insert(connection, values)
                    values = []
                append.compare(connection, key, record, events[:known])
            if known == len(events):
                results.append(0 if record is None else record.last)
                continue
            check_writer(run_id, record, events, known, anywhere=append.anywhere)
            new = events[known:]
            texts = [to_json(event) for event in new]
            first = new[0].run_seq
            assert first is not None
            record = advance(record, new, sum(map(len, texts)))
            key = key or add_run(connection, record)
            values += rows(key, run_id, first, texts)
            count += len(new)
            stand[run_id] = changed[run_id] = key, record
            results.append(record.last)
        insert(connection, values)
        update(connection, [*changed.values()])
        self._added(connection, count, any(record.finished for _, record in changed.values()))
        return results

    def _added(self, connection: sqlite3.Connection, count: int, finished: bool) -> None:
        self._since_retained += count
        if self.retention and (finished or self._since_retained >= RETAIN_EVERY):
            self._retain(connection)

    def _retain(self, connection: sqlite3.Connection) -> int:
        self._since_retained = 0
        found = records(connection, self._place, "events > 0")
        keys = {record.run_id: key for key, record in found}

        def rows(record: RunRecord) -> Iterable[tuple[int, int, Any]]:
            held = bodies(connection, keys[record.run_id], record, 0, record.events, self._place)
            for position, body in held:
                yield position, len(body), lambda body=body: decode(body, self._place).timestamp

        plan = list(cuts([record for _, record in found], self.retention, self._clock.now(), rows))
        return sum(_cut(connection, keys[record.run_id], record, upto, self._place) for record, upto in plan)

    def __repr__(self) -> str:
        return f"<SqliteLog {self._place!r} {self.store.durability}>"


class _Append:
    """``append`` as an operation of the store."""

    def __init__(self, log: SqliteLog, run_id: str, events: tuple[Event, ...], *, anywhere: bool = False) -> None:
        self.about, self.events, self.anywhere, self._log = run_id, events, anywhere, log
        self.batch = log._append_all  # appends to one log, by whatever runs, are one batch

    def __call__(self, connection: sqlite3.Connection) -> int:
        return self.batch(connection, (self,))[0]

    def compare(self, connection: sqlite3.Connection, key: int, record: RunRecord, events: tuple[Event, ...]) -> None:
        """What is given again must be what is held; positions that were trimmed are taken on trust."""
        first = events[0].run_seq
        assert first is not None
        for position, body in bodies(connection, key, record, first - 1, len(events), self._log._place):
            if position - first >= len(events):
                break
            if body != to_json(events[position - first]):
                raise fenced(record, self.events[-1])


class _Trim:
    """``trim`` as an operation of the store."""

    def __init__(self, log: SqliteLog, run_id: str, upto: int | None) -> None:
        self.about, self._log, self._upto = run_id, log, upto

    def __call__(self, connection: sqlite3.Connection) -> int:
        found = self._log._find_to_write(connection, self.about)
        if found is None:
            return 0
        (key, record), upto = found, self._upto
        if upto is not None and (type(upto) is not int or not 0 <= upto <= record.last):
            raise InvalidPositionError(upto, record.last)
        gone = _cut(connection, key, record, record.last if upto is None else upto, self._log._place)
        if upto is None and record.finished:
            drop_run(connection, key, record)
        return gone


def _cut(connection: sqlite3.Connection, key: int, record: RunRecord, upto: int, place: str) -> int:
    gone = upto - record.first + 1
    if gone <= 0:
        return 0
    size = record.size
    if upto < record.last:
        size = sum(len(body) for _, body in bodies(connection, key, record, 0, gone, place))
    delete(connection, key, record.first, upto)
    update(connection, [(key, record.trimmed(upto, size))])
    return gone


def sink_from_url(target: str = "", **options: Any) -> LogSink:
    """The sink behind ``sqlite:events.db?durability=relaxed``: an ``SqliteLog`` of its own, closed with the sink."""
    sink = LogSink(SqliteLog._from_options(target, options), owns_log=True)
    sink.name = "sqlite"
    return sink
