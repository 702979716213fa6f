"""One server as this process sees it: a thread with a loop of its own, connections, a queue of writes, one reader.

Everyone in a process who names the same server shares this. All input and output happens in its loop, whatever loop or
thread asks, so a caller that is cancelled or gone leaves no answer behind for the next one: a connection on which an
exchange did not end is thrown away (contract X6).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

from weavegraph.bus import LoopThread, RetryPolicy
from weavegraph.errors import LogClosedError, LogUnavailableError
from weavegraph.events import Event
from weavegraph.log._redis_feed import Feed
from weavegraph.log._redis_scripts import Script, position_of
from weavegraph.storage import Notices, Watch

__all__ = ["Command", "Driver", "Following", "Server", "Write", "shared_server"]

Command: TypeAlias = tuple[Any, ...]
"""A command's words; the first may be a ``Script``."""
CONNECTIONS = 8  # at a time for calls, beside the one that reads
TOGETHER, TOGETHER_BYTES = 128, 4 * 1024 * 1024
"""Writes, and their bytes, that are sent before their answers are awaited."""
BLOCK = 1.0  # seconds that the reader's command waits on the server
READ = 100  # entries of each run that one answer to the reader may hold
POLL_SHORTEST, POLL_LONGEST = 0.02, 0.2
"""Seconds between two looks where the server cannot wait for several runs at once (a cluster)."""
GOODBYE = 0.4  # seconds that a connection may take to end when the server's thread does
_AGAIN = RetryPolicy(base=0.02, cap=1.0)
"""Pauses before another connection; for calls and writes also less than a part of their timeout."""
_log = logging.getLogger("weavegraph.log")


class Driver(Protocol):
    """The client library, behind the few things that are needed of it."""

    faults: tuple[type[BaseException], ...]
    """What says that the connection is at fault."""
    refusals: tuple[type[Exception], ...]
    """What says that the server answered with an error; the connection goes on."""

    async def connect(self) -> Any: ...

    def pack(self, connection: Any, commands: Sequence[Command]) -> Any: ...

    def translate(self, error: BaseException) -> Exception:
        """The named error for a fault or refusal."""
        ...

    def is_unknown_script(self, error: Exception) -> bool: ...

    def is_across_slots(self, error: Exception) -> bool: ...


class Write:
    """Commands that belong together, sent in order; ``done`` becomes their answers."""

    __slots__ = ("begun", "commands", "deadline", "done", "run_id", "size")

    def __init__(self, run_id: str, commands: Sequence[Command], size: int) -> None:
        self.run_id, self.commands, self.size = run_id, commands, size
        self.begun, self.deadline = False, 0.0
        self.done: Future[list[Any]] = Future()


class Server:
    """Any thread may call. ``timeout``: seconds until a call that gets no answer raises."""

    def __init__(self, driver: Driver, place: str, timeout: float) -> None:
        self.place, self.timeout, self.pid, self.users = place, timeout, os.getpid(), 0
        self.notices = Notices()
        self.outages = 0  # exchanges that failed by the connection
        self.indexed: set[str] = set()  # keys of runs whose index entry this process has seen
        self._driver = driver
        self._thread = LoopThread("weavegraph-redis")
        self._stopped = False
        # All below belongs to the loop.
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[Any] = []
        self._queue: deque[Write] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()  # the runs to be followed are others than those that are being waited for
        self._waits: Any = None  # the id of the connection that waits on the server, while it does
        self._feeds_lock = threading.RLock()  # guards the next; re-entrant: the collector may end a follower
        self._feeds: dict[tuple[str, str], Feed] = {}

    @property
    def forked(self) -> bool:
        """Whether it is the parent's: its thread did not come along."""
        return self.pid != os.getpid()

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    async def call(self, *commands: Command) -> list[Any]:
        """The answers, in order; a refusal is raised by its name. Tries again until ``timeout`` is over.

        *Cancellation*: whether the commands were carried out is unknown; their connection is closed.

        Raises:
            LogUnavailableError: no connection, or no answer in time.
        """
        answers: list[Any] = await asyncio.wrap_future(self._submit(self._patiently(commands)))
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._driver.translate(answer) from answer
        return answers

    def write(self, write: Write) -> None:
        """Queue it: writes are carried out in the order of these calls, many in one exchange.

        When one fails, those of the same run that were queued behind it fail as well: what comes later must not stand
        where something is missing.
        """
        if self._stopped:
            raise LogClosedError(self.place)
        loop = self._thread.loop or self._thread.start()
        try:
            loop.call_soon_threadsafe(self._enqueue, write)
        except RuntimeError:  # stopped meanwhile
            raise LogClosedError(self.place) from None

    def beside(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run something of a handle's in the loop; it ends with the server."""
        return self._submit(work)

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._stopped:
            work.close()
            raise LogClosedError(self.place)
        return self._thread.submit(work)

    async def stop(self) -> None:
        """Close the connections and end the thread."""
        self._stopped = True
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.wrap_future(self._thread.submit(self._close())), 1.0)
        self._thread.stop(0.0)

    def abandon(self) -> None:
        """The same, for who cannot wait."""
        self._stopped = True
        if self._thread.loop is not None:
            with contextlib.suppress(RuntimeError):  # the interpreter exits
                self._thread.submit(self._close_and_end())

    async def _close_and_end(self) -> None:
        await self._close()
        self._thread.stop(0.0)

    async def _close(self) -> None:
        tasks = [task for task in (self._writing, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)  # each gives its connection back
        finally:
            idle, self._idle = self._idle, []
            await asyncio.gather(*map(self._discard, idle))

    # ── in the loop ───────────────────────────────────────────────────────────────────────────────

    async def _patiently(self, commands: Sequence[Command]) -> list[Any]:
        clock = asyncio.get_running_loop().time
        deadline, failures = clock() + self.timeout, 0
        while True:
            try:
                return await self._exchange(commands, deadline - clock())
            except self._driver.faults as exc:
                self.outages += 1
                failures += 1
                pause, error = self._pause(failures), self._driver.translate(exc)
                if clock() + pause >= deadline or not isinstance(error, LogUnavailableError):
                    raise error from exc
            await asyncio.sleep(pause)

    async def _exchange(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """Send all, then read an answer for each; a refusal is an answer."""
        async with asyncio.timeout(max(timeout, 0.001)), self._room, self._connection() as connection:
            answers = await self._ask(connection, [_by_name(command) for command in commands])
            if any(isinstance(answer, Exception) and self._driver.is_unknown_script(answer) for answer in answers):
                # A server that was restarted has forgotten the scripts. All again, in order, with their text: what
                # had been carried out nevertheless is passed over.
                answers = await self._ask(connection, [_in_full(command) for command in commands])
            return answers

    def _pause(self, failures: int) -> float:
        return min(_AGAIN.delay(failures), self.timeout / 4)

    async def _ask(self, connection: Any, commands: Sequence[Command]) -> list[Any]:
        await connection.send_packed_command(self._driver.pack(connection, commands), check_health=False)
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except self._driver.refusals as exc:
                answers.append(exc)
        return answers

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        connection = self._idle.pop() if self._idle else await self._driver.connect()
        try:
            yield connection
        except BaseException:
            await self._discard(connection)  # answers may still come on it, and they are nobody's
            raise
        if self._stopped:
            await self._discard(connection)
        else:
            self._idle.append(connection)

    async def _discard(self, connection: Any) -> None:
        with contextlib.suppress(Exception):
            if self._stopped:  # the loop will end: TLS takes some turns of it to say goodbye
                await asyncio.wait_for(connection.disconnect(), GOODBYE)
            else:
                await connection.disconnect(nowait=True)

    # ── writes ────────────────────────────────────────────────────────────────────────────────────

    def _enqueue(self, write: Write) -> None:
        write.deadline = asyncio.get_running_loop().time() + self.timeout
        self._queue.append(write)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_all())

    async def _write_all(self) -> None:
        clock, failures = asyncio.get_running_loop().time, 0
        batch: list[Write] = []
        try:
            while batch := self._next_batch():
                try:
                    commands = [command for write in batch for command in write.commands]
                    answers = await self._exchange(commands, self.timeout)
                except self._driver.faults as exc:
                    self.outages += 1
                    failures += 1
                    pause, error = self._pause(failures), self._driver.translate(exc)
                    error.__cause__ = exc
                    mends = isinstance(error, LogUnavailableError)
                    self._put_back(batch, clock() + pause if mends else math.inf, error)
                    await asyncio.sleep(pause)
                else:
                    failures = 0
                    for write in batch:
                        mine, answers = answers[: len(write.commands)], answers[len(write.commands) :]
                        _settle(write, mine)
        except BaseException as exc:
            self._put_back(batch, math.inf, LogClosedError(self.place))
            if not isinstance(exc, asyncio.CancelledError):
                raise

    def _next_batch(self) -> list[Write]:
        batch: list[Write] = []
        size = 0
        while self._queue and len(batch) < TOGETHER and size < TOGETHER_BYTES:
            write = self._queue.popleft()
            if write.begun or write.done.set_running_or_notify_cancel():
                write.begun = True
                batch.append(write)
                size += write.size
        return batch

    def _put_back(self, batch: Sequence[Write], now: float, error: Exception) -> None:
        """To the head of the queue, but for those whose time is over, and what depends on them."""
        failed: set[str] = set()
        rest = deque(batch)
        rest.extend(self._queue)
        self._queue.clear()
        for write in rest:
            if write.run_id in failed or write.deadline <= now:
                failed.add(write.run_id)
                _settle(write, error)
            else:
                self._queue.append(write)

    # ── following ─────────────────────────────────────────────────────────────────────────────────

    def follow(self, run_id: str, key: str) -> Following:
        return Following(self, run_id, key)

    def _join(self, run_id: str, key: str) -> Feed:
        with self._feeds_lock:
            feed = self._feeds.setdefault((run_id, key), Feed(run_id))
            feed.users += 1
            return feed

    def _leave(self, feed: Feed, key: str) -> None:
        with self._feeds_lock:
            feed.users -= 1
            if not feed.users:
                self._feeds.pop((feed.run_id, key), None)

    def look(self) -> None:
        """A feed has begun: have it read as well."""
        with contextlib.suppress(LogClosedError):
            self._submit(self._look())

    async def _look(self) -> None:
        self._asked.set()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read_all())
        # The reader may be about to wait: ask again until it was woken, or has seen the request by itself.
        for _ in range(20):
            if self._waits is None or not self._asked.is_set():
                return
            with contextlib.suppress(*self._driver.faults):
                (woken,) = await self._exchange([("CLIENT", "UNBLOCK", self._waits)], self.timeout)
                if woken == 1 or isinstance(woken, Exception):
                    return  # where users may not do that, the reader's own wait is short enough
            await asyncio.sleep(0.001)

    async def _read_all(self) -> None:
        """The one reader of this process: waits on the server for all followed runs at once (contract X5)."""
        connection: Any = None
        name: Any = None
        failures, pause, waits = 0, POLL_SHORTEST, True
        try:
            while True:
                self._asked.clear()
                feeds = self._followed()
                if not feeds:
                    await self._asked.wait()
                    continue
                try:
                    if connection is None:
                        connection = await asyncio.wait_for(self._driver.connect(), self.timeout)
                        (name,) = await asyncio.wait_for(self._ask(connection, [("CLIENT", "ID")]), self.timeout)
                    if waits:
                        self._waits = None if isinstance(name, Exception) else name
                    answers = await asyncio.wait_for(
                        self._ask(connection, _reads(feeds, waits)), self.timeout + BLOCK * waits
                    )
                    failures = 0
                except self._driver.faults:
                    if connection is not None:
                        await self._discard(connection)
                    connection, failures = None, failures + 1
                    self.outages += 1
                    self._waits = None
                    await asyncio.sleep(_AGAIN.delay(failures))
                    continue
                except Exception:
                    _log.exception("the reader of %s goes on after a pause", self.place)
                    if connection is not None:
                        await self._discard(connection)
                    connection = None
                    await asyncio.sleep(_AGAIN.cap)
                    continue
                finally:
                    self._waits = None
                if waits and isinstance(answers[0], Exception) and self._driver.is_across_slots(answers[0]):
                    waits = False
                    continue
                found = self._hand_out(feeds, answers)
                if not waits:
                    pause = POLL_SHORTEST if found else min(2 * pause, POLL_LONGEST)
                    await asyncio.sleep(pause)
                elif isinstance(answers[0], Exception):
                    await asyncio.sleep(POLL_LONGEST)  # no right to read, no memory: its followers' looks will tell
        finally:
            if connection is not None:
                await self._discard(connection)

    def _followed(self) -> dict[bytes, tuple[Feed, int]]:
        with self._feeds_lock:
            feeds = dict(self._feeds)  # in one step: see bus/_wakeups.py
        return {key.encode(): (feed, at) for (_, key), feed in feeds.items() if (at := feed.position) is not None}

    def _hand_out(self, feeds: dict[bytes, tuple[Feed, int]], answers: Sequence[Any]) -> bool:
        found = False
        for answer in answers:
            if isinstance(answer, Exception):
                continue
            for key, entries in answer or ():
                feed = feeds[key][0]
                try:
                    feed.take([_entry(entry, self.place) for entry in entries])
                except Exception:
                    feed.forget()  # the followers' own look gives the damage its name
                self.notices.tell((key.decode(),))
                found = True
        return found


class Following:
    """A follower's share of a feed, and its notices: a ``Watch`` that also tells the reader what is wanted."""

    def __init__(self, server: Server, run_id: str, key: str) -> None:
        self._server, self._key = server, key
        self.feed = server._join(run_id, key)
        self._watch: Watch = server.notices.watch(key)

    async def wait(self) -> None:
        await self._watch.wait()

    def close(self) -> None:
        self._watch.close()
        self._server._leave(self.feed, self._key)

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _by_name(command: Command) -> Command:
    script = command[0]
    if isinstance(script, Script):
        return ("EVALSHA", script.sha, script.keys, *command[1:])
    return command


def _in_full(command: Command) -> Command:
    script = command[0]
    if isinstance(script, Script):
        return ("EVAL", script.text, script.keys, *command[1:])
    return command


def _reads(feeds: dict[bytes, tuple[Feed, int]], waits: bool) -> list[Command]:
    if waits:
        wait = ("XREAD", "COUNT", READ, "BLOCK", int(BLOCK * 1000), "STREAMS")
        return [(*wait, *feeds, *(f"{at}-0" for _, at in feeds.values()))]
    return [("XREAD", "COUNT", READ, "STREAMS", key, f"{at}-0") for key, (_, at) in feeds.items()]


def _entry(entry: Any, place: str) -> tuple[int, Event, int]:
    from weavegraph.log._rows import decode

    body = entry[1][1]
    return position_of(entry[0], place), decode(body, place), len(body)


def _settle(write: Write, outcome: list[Any] | Exception) -> None:
    if write.done.done():
        return
    if isinstance(outcome, Exception):
        write.done.set_exception(outcome)
    else:
        write.done.set_result(outcome)


# ── one for a process ───────────────────────────────────────────────────────────────────────────────

_lock = threading.RLock()  # re-entrant: the collector may give up a handle while this thread opens another
_servers: dict[Any, Server] = {}  # guarded by _lock
_inherited: list[Server] = []  # of the parent, in a forked child: held, so that nothing closes its sockets


def shared_server(key: Any, make: Callable[[], Server], owner: object) -> tuple[Server, Callable[[], bool]]:
    """The process's server of that key, and how to give it up: true when that was the last user."""
    with _lock:
        server = _servers.get(key)
        if server is None:
            server = _servers[key] = make()
        server.users += 1
    given_up = weakref.finalize(owner, _give_up, key, server, True)
    given_up.atexit = False

    def release() -> bool:
        return given_up.detach() is not None and _give_up(key, server, False)

    return server, release


def _give_up(key: Any, server: Server, forget: bool) -> bool:
    with _lock:
        server.users -= 1
        if server.users:
            return False
        if _servers.get(key) is server:
            del _servers[key]
    if forget:
        server.abandon()
    return True


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _inherited.extend(_servers.values())
    _servers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
