"""Redis Streams, and Valkey: an event log that other machines read, and a sink that publishes to it. Extra ``redis``.

::

    log = RedisLog("redis://127.0.0.1:6379/0")             # as RuntimeConfig(log=…), or to read what others write
    EventBusConfig(sinks=("redis://127.0.0.1:6379/0?prefix=shop",))

A run is one stream, an event one entry, and the entry's id is the position: ``XADD`` itself refuses what is there
already. TLS is ``rediss://``; user and password stand in the URL and are shown nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from weavegraph.bus import RetryPolicy
from weavegraph.clock import SystemClock
from weavegraph.config import SinkConfig, check_seconds
from weavegraph.errors import (
    ConfigError,
    EventInvalidError,
    InvalidPositionError,
    LogAccessError,
    LogClosedError,
    LogCorruptError,
    LogError,
    LogFencedError,
    LogHoleError,
    LogLateError,
    LogUnavailableError,
    LogVersionError,
    MissingExtraError,
    RunNotFoundError,
)
from weavegraph.events import Event, check_id, to_json
from weavegraph.log._compact import Survey
from weavegraph.log._reading import PAGE_BYTES, PAGE_EVENTS, Page, follow_run, read_run
from weavegraph.log._redis_retention import More, Read
from weavegraph.log._redis_scripts import APPEND, FORMAT, INDEX, PAGE, TRIM, Keys, position_of, record_of
from weavegraph.log._redis_server import Command, Following, Server, Write, shared_server
from weavegraph.log._redis_sink import RedisStreamSink
from weavegraph.log._retention import Retention, cuts
from weavegraph.log._rows import decode
from weavegraph.log._rules import FINAL, RunRecord, check_batch, outcome_of
from weavegraph.protocols import Clock, LoggedRun

try:
    from redis import exceptions as said
    from redis.asyncio.connection import ConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as exc:
    raise MissingExtraError("Redis", "redis") from exc

__all__ = ["RedisLog", "RedisStreamSink", "sink_from_url", "tls_sink_from_url"]

RETAIN_EVERY = 1000
"""Events between two looks at the retention; a run's end looks too."""
RETAIN_STEP = 20_000
"""Events of one run that a plan looks at; what lies behind them is for the next plan."""
STEP_EVENTS, STEP_BYTES = 5000, 4 * 1024 * 1024
"""A batch larger than this is kept in several steps, so that the server serves others in between."""
LISTED = 200  # runs whose records one call asks for
_OPTIONS = {"prefix": str, "max_age": float, "max_events": int, "max_bytes": int, "timeout": float}
_TLS = frozenset(
    {"ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"}
    | {"ssl_check_hostname", "ssl_min_version"}
)
_log = logging.getLogger("weavegraph.log")


class RedisLog:
    """An ``EventLog`` in a Redis or Valkey server (6.2 and later). Any thread, any event loop, any number of processes.

    *Order*: positions of a run are ``run_seq``. *Fencing*: one writer a run, checked by the server in the same step
    that writes. *Loss*: what ``retention`` or ``trim`` takes, which readers see as one exact gap, and what the server
    itself forgets: whether an acknowledged event survives its crash is its setting (``appendonly yes`` with
    ``appendfsync always``, or a second at most with ``everysec``). *Waiting*: a call tries, over new connections too,
    until ``timeout``. *Cancellation*: a cancelled ``append`` may be kept or not; give it again. A cancelled call never
    leaves its answer to another. *After close*: ``LogClosedError``. *Fork*: a child makes connections of its own.

    All handles of a process on one server share a thread, connections and one reader: a thousand followers of a run
    cost the server as much as one.

    Raises, from every coroutine and iterator:
        LogUnavailableError: no answer within ``timeout``, loading, out of memory, a replica; whether a write was kept
            is then unknown, and giving it again is right. LogAccessError: user, password or rights. LogVersionError,
            LogCorruptError: nothing was written.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://…`` for TLS, or ``unix:///path?db=0``.
        prefix: before every key, so that several logs may share a database.
        retention: over the whole prefix; checked when a run ends and at least every thousand events of this handle.
        timeout: seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "weavegraph",
        retention: Retention | None = None,
        timeout: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        check_seconds("timeout", timeout)
        if timeout <= 0:
            raise ConfigError(f"timeout={timeout!r}: give seconds, more than 0")
        try:
            check_id("prefix", prefix)
        except EventInvalidError as exc:
            raise ConfigError(f"prefix={prefix!r}: {exc.problem}") from None
        self._driver = _Driver(url, float(timeout))
        self.prefix, self.retention = prefix, retention or Retention()
        self._clock, self._timeout = clock or SystemClock(), float(timeout)
        self._keys = Keys(prefix)
        self._place = f"{self._driver.place}?prefix={prefix}"
        self._server: Server | None = None
        self._release: Callable[[], bool] = lambda: False
        self._pending: set[Any] = set()
        self._retention_lock = threading.Lock()  # guards the next three
        self._since_retained = 0
        self._retention_due = self._retains = False
        self._retaining: Future[int] | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> RedisLog:
        """``redis://host:6379/0?prefix=…&max_age=…&max_events=…&max_bytes=…&timeout=…`` and the options of TLS
        (``ssl_ca_certs``, ``ssl_cert_reqs`` …); all may be left out.

        Raises:
            ConfigError: another scheme, an unknown option, or a value it cannot have.
        """
        parts = _parted(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        rest = {name: options.pop(name) for name in tuple(options) if name not in _OPTIONS}
        return cls._from_options(urlunsplit(parts._replace(query=urlencode(rest))), options)

    @classmethod
    def _from_options(cls, url: str, options: Mapping[str, Any]) -> RedisLog:
        values: dict[str, Any] = {}
        for name, value in options.items():
            try:
                values[name] = _OPTIONS[name](value)
            except (TypeError, ValueError) as exc:
                raise ConfigError(f"redis log: {name}={value!r} is no {_OPTIONS[name].__name__}") from exc
        bounds = {name: values.pop(name) for name in ("max_age", "max_events", "max_bytes") if name in values}
        return cls(url, retention=Retention(**bounds), **values)

    async def start(self) -> None:
        """Connect now, so that a fault shows here and not with the first event."""
        await self._call(("PING",))

    @property
    def outages(self) -> int:
        """How often the connection failed, of all handles of this process on this server."""
        return 0 if self._server is None else self._server.outages

    # ── writing ───────────────────────────────────────────────────────────────────────────────────

    async def append(self, run_id: str, events: Sequence[Event], /) -> int:
        """Keep ``events``, of one run and in order; returns the run's last position once the server has them.

        Events that are there already are passed over. All of a batch is kept, or nothing; of one with more than 5,000
        events or 4 MiB perhaps a beginning.

        Raises:
            LogFencedError: another writer owns the run, or another event stands at that position.
            LogHoleError: a position would be missing. EventInvalidError: of another run, or without ``run_seq``.
            LogLateError: it was there and was taken out, or its place was passed by ``publish``.
        """
        batch = tuple(events)
        check_batch(run_id, batch)
        if not batch:
            return await self.last_position(run_id)
        return await self._write(run_id, [(batch, _first(batch) - 1)])

    async def publish(self, run_id: str, events: Sequence[Event], /, *, after: int = 0) -> int:
        """As ``append``, but positions may be missing before and between the events; readers see exact gaps.

        For who ships what others lost: a bus whose bound was hit, a log whose beginning was trimmed.

        Args:
            after: of the positions that are missing before the first event, the one before them: what this writer
                knows to be there. ``LogHoleError`` says that the server has less than that.
        """
        batch = tuple(events)
        parts = _consecutive(batch)
        for part in parts:
            check_batch(run_id, part)
        if not batch:
            return await self.last_position(run_id)
        return await self._write(run_id, [(part, after if n == 0 else 0) for n, part in enumerate(parts)])

    async def _write(self, run_id: str, parts: Sequence[tuple[Sequence[Event], int]]) -> int:
        server = self._open()
        waiting = []
        for events, since in parts:
            for some, bodies in _steps(events):
                command = APPEND.command(*self._names(run_id), *_arguments(some, since), *bodies)
                commands: tuple[Command, ...] = (command,)
                if self._keys.record(run_id) not in server.indexed:
                    commands = (self._index(run_id, some[0].session_id or ""), command)
                write = Write(run_id, commands, sum(map(len, bodies)))
                server.write(write)
                self._pending.add(write.done)
                write.done.add_done_callback(self._pending.discard)
                waiting.append((some, write))
                since = _last(some)
        last = 0
        if len(waiting) == 1:
            ((some, write),) = waiting
            return await self._wrote(server, run_id, some, write.commands, await asyncio.wrap_future(write.done))
        answers = await asyncio.gather(
            *(asyncio.wrap_future(write.done) for _, write in waiting), return_exceptions=True
        )
        for (some, write), answer in zip(waiting, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            last = await self._wrote(server, run_id, some, write.commands, answer)
        return last

    async def _wrote(
        self, server: Server, run_id: str, events: Sequence[Event], commands: Sequence[Command], answers: list[Any]
    ) -> int:
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._driver.translate(answer) from answer
        word, *facts = answers[-1]
        if word == b"fenced":
            raise LogFencedError(run_id, events[-1].attempt or 1, int(facts[0]))
        if word == b"hole":
            raise LogHoleError(run_id, int(facts[0]), int(facts[1]))
        if word == b"late":
            raise LogLateError(run_id, _first(events), int(facts[0]))
        if word == b"version":
            raise LogVersionError(f"run {run_id!r} in {self._place}", facts[0].decode(), FORMAT)
        if facts[1] == b"1" and len(commands) == 1:  # another process had forgotten the run meanwhile
            await self._call(self._index(run_id, events[0].session_id or ""))
        if len(server.indexed) >= 10_000:
            server.indexed.clear()
        server.indexed.add(self._keys.record(run_id))
        self._added(server, len(events), outcome_of(events[-1]) in FINAL)
        return int(facts[0])

    def _index(self, run_id: str, session_id: str) -> Command:
        return INDEX.command(self._keys.runs, self._keys.count, self._keys.session(session_id), run_id)

    async def trim(self, run_id: str, /, upto: int | None = None) -> int:
        """Forget the run's events up to a position; returns how many went. Readers see an exact gap.

        ``None``: all of it; a run that is over is then not there at all, one that is not keeps its position.

        Raises:
            InvalidPositionError: beyond the last event, or no position.
        """
        gone = 0
        if upto is not None and (type(upto) is not int or upto < 0):
            head = await self.last_position(run_id)
            if head:
                raise InvalidPositionError(upto, head)
            return 0
        while True:
            command = TRIM.command(*self._names(run_id), FORMAT, "" if upto is None else upto)
            ((word, *facts),) = await self._call(command)
            if word == b"none":
                return gone
            if word == b"beyond":
                raise InvalidPositionError(upto, int(facts[0]))
            if word == b"version":
                raise LogVersionError(f"run {run_id!r} in {self._place}", facts[0].decode(), FORMAT)
            gone += int(facts[0])
            if facts[2] == b"1":
                await self._forget(run_id, facts[3].decode())
            if facts[1] == b"0":
                return gone

    async def _forget(self, run_id: str, session_id: str) -> None:
        """The run is gone: off the index, and off that of its session."""
        self._open().indexed.discard(self._keys.record(run_id))
        await self._call(("ZREM", self._keys.runs, run_id), ("ZREM", self._keys.session(session_id), run_id))

    async def retain(self) -> int:
        """Apply the retention now; returns how many events went."""
        gone = 0
        self._open()
        while self.retention:
            records = [record async for record in self._records() if record.events]
            cut = 0
            for record, upto in await self._plan(records):
                with contextlib.suppress(InvalidPositionError):  # forgotten meanwhile
                    cut += await self.trim(record.run_id, upto)
            gone += cut
            if not cut:
                break
        return gone

    async def _plan(self, records: Sequence[RunRecord]) -> list[tuple[RunRecord, int]]:
        """What has to go. The plan is made anew with each page of a run that it turns out to need."""
        now, read = self._clock.now(), {record.run_id: Read() for record in records}
        while True:
            try:
                return list(cuts(records, self.retention, now, lambda record: read[record.run_id].rows(record)))
            except More as more:
                found = read[more.record.run_id]
                page = await self._bodies(more.record.run_id, found.reached or more.record.first - 1)
                for position, body in page:
                    when = decode(body, self._place).timestamp if self.retention.max_age is not None else now
                    found.events.append((position, len(body), when))
                found.ended = not page or len(found.events) >= RETAIN_STEP

    def _added(self, server: Server, count: int, finished: bool) -> None:
        if not self.retention:
            return
        with self._retention_lock:
            self._since_retained += count
            self._retention_due |= finished or self._since_retained >= RETAIN_EVERY
            if not self._retention_due or self._retains:
                return
            self._retains = True
        self._retaining = server.beside(self._retain_quietly())

    async def _retain_quietly(self) -> int:
        gone = 0
        try:
            while True:
                with self._retention_lock:
                    if not self._retention_due:
                        self._retains = False
                        return gone
                    self._retention_due, self._since_retained = False, 0
                gone += await self.retain()
        except BaseException as exc:
            with self._retention_lock:
                self._retains = False
            if not isinstance(exc, LogError):
                raise
            if not isinstance(exc, LogClosedError):
                _log.warning("the retention of %s waits for a later look: %s", self._place, exc)
            return gone

    # ── reading ───────────────────────────────────────────────────────────────────────────────────

    def read(self, run_id: str, /, after: int = 0, *, compact: bool = False) -> AsyncIterator[Event]:
        """What is held after that position at this moment, then the end; a trimmed beginning shows as one gap notice.

        ``compact``: as in ``SqliteLog.read``. A run that is not there has no events.

        Raises:
            InvalidPositionError: ``after`` is beyond the last event, or no position.
        """
        return self._compacted(run_id, after) if compact else read_run(self._fetch(run_id), after)

    def follow(self, run_id: str, /, after: int = 0) -> AsyncIterator[Event]:
        """As ``read``, then what comes, from whatever process writes it; waits for a run that is not there yet.

        Ends when the last event is a terminal one that says completed, failed or cancelled. A server that goes away
        meanwhile costs delay: it is asked again, with growing pauses, after the last event that came. Close it
        (``aclose``) when you leave early.
        """
        followed: list[Following] = []

        def watch() -> Any:
            followed.append(self._open().follow(run_id, self._keys.events(run_id)))
            return followed[0]

        return follow_run(self._fetch_followed(run_id, followed), watch, after)

    async def read_session(self, session_id: str, /) -> AsyncIterator[Event]:
        """The events of all runs of a session, run after run."""
        (found,) = await self._call(("ZRANGE", self._keys.session(session_id), 0, -1))
        for name in found:
            async for event in self.read(name.decode()):
                yield event

    async def last_position(self, run_id: str, /) -> int:
        """0 for a run that is not there."""
        (found,) = await self._call(("HGET", self._keys.record(run_id), "last"))
        return int(found or 0)

    async def runs(self, *, limit: int = 100, before: str | None = None) -> Sequence[LoggedRun]:
        """The newest runs first; ``before``: only those that started before that run, for the next page.

        Raises:
            RunNotFoundError: no run is called ``before``.
        """
        below: Any = "+inf"
        if before is not None:
            (place,) = await self._call(("ZSCORE", self._keys.runs, before))
            if place is None:
                raise RunNotFoundError(before)
            below = b"(" + place
        found: list[LoggedRun] = []
        if limit > 0:
            async for record in self._records(below):
                found.append(record.logged())
                if len(found) >= limit:
                    break
        else:
            self._open()
        return tuple(found)

    async def aclose(self) -> None:
        """Finish what is under way and give up the connections. Idempotent."""
        if self._closed:
            return
        self._closed = True
        server = self._server
        if server is None:
            return
        under_way = [asyncio.wrap_future(future) for future in tuple(self._pending)]
        if under_way:
            await asyncio.wait(under_way, timeout=self._timeout)
        if self._retaining is not None:
            self._retaining.cancel()
        server.notices.tell_all()
        if self._release():
            await server.stop()

    async def _records(self, below: Any = "+inf") -> AsyncIterator[RunRecord]:
        """The records of all runs that began before that place, newest first."""
        while True:
            command = ("ZREVRANGEBYSCORE", self._keys.runs, below, "-inf", "WITHSCORES", "LIMIT", 0, LISTED)
            (found,) = await self._call(command)
            names = [name.decode() for name in found[::2]]
            if not names:
                return
            answers = await self._call(*(("HGETALL", self._keys.record(name)) for name in names))
            for name, fields in zip(names, answers, strict=True):
                record = record_of(name, fields, self._place)
                if record is not None:  # else it was listed, and its first append failed
                    yield record
            below = b"(" + found[-1]

    def _fetch(self, run_id: str) -> Callable[[int], Awaitable[Page]]:
        async def fetch(after: int) -> Page:
            return await self._page(run_id, after)

        return fetch

    def _fetch_followed(self, run_id: str, followed: list[Following]) -> Callable[[int], Awaitable[Page]]:
        looked = False

        async def fetch(after: int) -> Page:
            nonlocal looked
            server = self._open()
            feed = followed[0].feed
            page = feed.page(after) if looked else None  # the first position is checked against the server
            if page is None:
                page = await (self._page_at_last(run_id, after) if looked else self._page(run_id, after))
                if feed.begin(page.record):
                    server.look()
            else:
                await asyncio.sleep(0)  # a reader that always finds events lets others run
            looked = True
            self._open()
            return page

        return fetch

    async def _page_at_last(self, run_id: str, after: int) -> Page:
        """A page, however long the server is away."""
        failures = 0
        while True:
            try:
                return await self._page(run_id, after)
            except LogUnavailableError:
                failures += 1
                await asyncio.sleep(_PATIENT.delay(failures))

    async def _page(self, run_id: str, after: int) -> Page:
        fields, entries = await self._look(run_id, after)
        record = record_of(run_id, fields, self._place)
        if record is None:
            return Page(None)
        expected = max(after + 1, record.first)
        positions = [position_of(entry_id, self._place) for entry_id in entries[::2]]
        if not positions and after < record.last:  # the end is missing
            record = msgspec.structs.replace(record, first=record.last + 1)
        if positions and positions[0] > expected:  # a hole: everything up to there shows as one gap
            expected = positions[0]
            record = msgspec.structs.replace(record, first=expected)
        events = []
        for position, body in zip(positions, entries[1::2], strict=True):
            if position != expected:
                break  # the next page begins with this hole
            events.append(decode(body, self._place))
            expected += 1
        return Page(record, events)

    async def _bodies(self, run_id: str, after: int) -> list[tuple[int, bytes]]:
        _, entries = await self._look(run_id, after)
        return [(position_of(i, self._place), body) for i, body in zip(entries[::2], entries[1::2], strict=True)]

    async def _look(self, run_id: str, after: int) -> tuple[list[bytes], list[bytes]]:
        (answer,) = await self._call(PAGE.command(*self._names(run_id), after, PAGE_EVENTS, PAGE_BYTES))
        fields, entries = answer or ([], [])
        return fields, entries

    async def _compacted(self, run_id: str, after: int) -> AsyncIterator[Event]:
        survey, end = Survey(), await self.last_position(run_id)
        async for event in read_run(self._fetch(run_id), after, end):
            survey.see(event)
        fold = survey.fold()
        async for event in read_run(self._fetch(run_id), after, end):
            if (folded := fold.feed(event)) is not None:
                yield folded

    # ── the server ────────────────────────────────────────────────────────────────────────────────

    def _names(self, run_id: str) -> tuple[str, str]:
        return self._keys.events(run_id), self._keys.record(run_id)

    async def _call(self, *commands: Command) -> list[Any]:
        return await self._open().call(*commands)

    def _open(self) -> Server:
        if self._closed:
            raise LogClosedError(self._place)
        server = self._server
        if server is None or server.forked:
            key = (self._driver.url, self._timeout)
            server, self._release = shared_server(key, self._make_server, self)
            self._server = server
        return server

    def _make_server(self) -> Server:
        return Server(self._driver, self._driver.place, self._timeout)

    def __repr__(self) -> str:
        return f"<RedisLog {self._place!r}>"

    def __reduce__(self) -> Any:
        raise TypeError("a RedisLog lives in one process; make it from its URL there")


_PATIENT = RetryPolicy(base=0.05, cap=2.0)


class _Driver:
    """redis-py, behind what ``Server`` needs; foreign errors get our names here and nowhere else."""

    # A timeout of asyncio's is an OSError.
    faults: tuple[type[BaseException], ...] = (
        *(said.ConnectionError, said.TimeoutError, said.InvalidResponse),
        *(OSError, EOFError),
    )
    refusals: tuple[type[Exception], ...] = (said.ResponseError,)

    def __init__(self, url: str, timeout: float) -> None:
        shown, parts = _shown(url), _parted(url)
        for name in dict(parse_qsl(parts.query, keep_blank_values=True)):
            if name not in _TLS and not (parts.scheme == "unix" and name == "db"):
                known = ", ".join(sorted((*_OPTIONS, *_TLS)))
                raise ConfigError(f"redis log {shown!r}: no option is called {name!r}; known: {known}")
        self.url = url  # with the password: never shown
        try:
            self._pool: Any = ConnectionPool.from_url(
                url,
                protocol=2,
                socket_connect_timeout=timeout,
                socket_timeout=None,  # every exchange has a limit of ours
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
            host, port = parts.hostname, parts.port
        except (ValueError, TypeError) as exc:
            raise ConfigError(f"redis log {shown!r}: not an address of a server ({type(exc).__name__})") from None
        host = f"[{host}]" if host and ":" in host else host
        where = parts.path if parts.scheme == "unix" else f"{host or 'localhost'}:{port or 6379}"
        path = "" if parts.scheme == "unix" else parts.path or "/0"
        self.place = f"{parts.scheme}://{where}{path}"

    async def connect(self) -> Any:
        connection = self._pool.make_connection()
        try:
            await connection.connect()
        except BaseException:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)
            raise
        return connection

    def pack(self, connection: Any, commands: Sequence[Command]) -> Any:
        return connection.pack_commands(commands)

    def translate(self, error: BaseException) -> Exception:
        if isinstance(error, LogError):
            return error
        text = str(error)
        if isinstance(error, (said.AuthenticationError, said.AuthorizationError, said.NoPermissionError)):
            return LogAccessError(self.place, _denied(text))
        if text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
            return LogAccessError(self.place, _denied(text))
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return LogAccessError(self.place, "its certificate is not one that ssl_ca_certs vouches for")
        if isinstance(error, self.faults):
            problem = text or "no answer in time; whether it was carried out is unknown"
            return LogUnavailableError(self.place, problem)
        if isinstance(error, said.AskError):  # of which MovedError is one
            node = f"{error.host}:{error.port}"
            return LogUnavailableError(self.place, f"{_CLUSTER} (it is on {node})")
        if isinstance(error, (said.OutOfMemoryError, said.ReadOnlyError)) or text.startswith(_PASSING):
            return LogUnavailableError(self.place, text)
        if text.startswith("WRONGTYPE") or "smaller than the target stream" in text:
            return LogCorruptError(self.place, f"another program uses these keys: {text}")
        return LogError(f"{self.place}: the server refused: {text}")

    def is_unknown_script(self, error: Exception) -> bool:
        return isinstance(error, said.NoScriptError)

    def is_across_slots(self, error: Exception) -> bool:
        return str(error).startswith("CROSSSLOT") or "same slot" in str(error)

    def __repr__(self) -> str:
        return f"<_Driver {self.place}>"


_CLUSTER = (
    "this run is on another node of the cluster; clusters of several nodes are not followed: give one server's URL"
)
_PASSING = ("OOM", "MISCONF", "LOADING", "BUSY", "READONLY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN")


def _denied(text: str) -> str:
    """What the server said, without what it may repeat of the command."""
    return text.split(":")[0] if text else "access denied"


def _parted(url: str) -> SplitResult:
    """The parts of a URL that has the form it must have, so that what is shown of it later holds no password."""
    shown = _shown(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"redis log {shown!r}: not an address of a server") from None
    known, local = parts.scheme in ("redis", "rediss", "unix"), parts.scheme == "unix"
    if not known or not url.startswith(f"{parts.scheme}://") or not (local or re.fullmatch(r"(/\d*)?", parts.path)):
        raise ConfigError(f"redis log {shown!r}: write it as redis://host:6379/0, or rediss:// for TLS")
    return parts


def _shown(url: str) -> str:
    try:
        return SinkConfig.parse(url).url
    except ConfigError:
        return url.partition(":")[0]


def sink_from_url(target: str = "", **options: Any) -> RedisStreamSink:
    """The sink behind ``redis://host:6379/0?prefix=shop``; its log is closed with it."""
    return _sink("redis", target, options)


def tls_sink_from_url(target: str = "", **options: Any) -> RedisStreamSink:
    """The sink behind ``rediss://…``."""
    return _sink("rediss", target, options)


def _sink(scheme: str, target: str, options: dict[str, Any]) -> RedisStreamSink:
    rest = {name: options.pop(name) for name in tuple(options) if name not in _OPTIONS}
    query = urlencode(rest)
    return RedisStreamSink(
        RedisLog._from_options(f"{scheme}:{target}{'?' if query else ''}{query}", options), owns_log=True
    )


def _first(events: Sequence[Event]) -> int:
    return events[0].run_seq or 0


def _last(events: Sequence[Event]) -> int:
    return events[-1].run_seq or 0


def _arguments(events: Sequence[Event], since: int) -> tuple[Any, ...]:
    first, last = events[0], events[-1]
    return (
        _first(events),
        since,
        FORMAT,
        last.attempt or 1,
        last.epoch or "",
        outcome_of(last) or "",
        first.session_id or "",
        first.timestamp.isoformat(),
        last.timestamp.isoformat(),
    )


def _consecutive(events: Sequence[Event]) -> list[Sequence[Event]]:
    """The batch, cut where positions are missing."""
    parts: list[list[Event]] = []
    for event in events:
        if parts and (parts[-1][-1].run_seq or 0) + 1 == event.run_seq:
            parts[-1].append(event)
        else:
            parts.append([event])
    return list(parts)


def _steps(events: Sequence[Event]) -> Iterator[tuple[Sequence[Event], list[bytes]]]:
    """The batch in steps that the server takes whole, each with its JSON."""
    start, size = 0, 0
    bodies: list[bytes] = []
    for n, event in enumerate(events):
        body = to_json(event)
        if bodies and (len(bodies) >= STEP_EVENTS or size + len(body) > STEP_BYTES):
            yield events[start:n], bodies
            start, size, bodies = n, 0, []
        bodies.append(body)
        size += len(body)
    yield events[start:], bodies
