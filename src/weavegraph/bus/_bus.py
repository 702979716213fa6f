"""The bus: one hub for what watches everything, a lane for each run, and sinks on the bus's own threads."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from weavegraph.bus._hub import (
    DEFAULT_BLOCK_TIMEOUT,
    DEFAULT_CAPACITY,
    DEFAULT_MAX_BYTES,
    Budget,
    EventHub,
    check_capacity,
)
from weavegraph.bus._lane import Lane
from weavegraph.bus._pump import Pump, Watchdog
from weavegraph.bus._ring import INFINITE
from weavegraph.bus._stats import EventHubMetrics, SinkStats
from weavegraph.bus._stream import EventStream, OnLag, Overflow
from weavegraph.bus._threads import LoopThread
from weavegraph.bus._worker import DeadLetter, RetryPolicy, SinkHealth, SinkWorker
from weavegraph.errors import BlockingInLoopError, ConfigError, HubClosedError, RunExistsError, RunNotFoundError
from weavegraph.events import DiagnosticEvent, Event, EventFilter, Predicate, check_id, clean_text, freeze_metadata

if TYPE_CHECKING:
    from weavegraph.bus._emitter import HubEmitter
    from weavegraph.config import EventBusConfig
    from weavegraph.protocols import Clock, EventSink

__all__ = [
    "DEFAULT_BUS_MAX_BYTES",
    "SINK_ERROR_SCOPE",
    "DiagnosticsConfig",
    "EventBus",
    "EventBusMetrics",
    "FlushReport",
    "ShutdownReport",
    "SinkGuard",
]

DEFAULT_BUS_MAX_BYTES = 256 * 1024 * 1024
DEFAULT_KEEP_RUNS = 1000
DEFAULT_SINK_TIMEOUT = 30.0
SINK_ERROR_SCOPE = "weavegraph.sink.error"
EXIT_DRAIN = 2.0
T = TypeVar("T")


class DiagnosticsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of sinks as events on a stream of their own.

    ``capacity``: events kept of it; ``None``: the bus's. ``emit_to_events`` mirrors them to the bus, but never to the
    sink they are about, and never a failure to handle such a mirrored event.
    """

    enabled: bool = True
    capacity: int | None = None
    emit_to_events: bool = False


class FlushReport(msgspec.Struct, frozen=True):
    """Which sinks handled and flushed everything up to the bus position ``upto``, and which did not."""

    upto: int
    flushed: tuple[str, ...]
    pending: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.pending


class ShutdownReport(msgspec.Struct, frozen=True):
    """The last books of every sink. ``pending`` names those that had not finished in time."""

    sinks: tuple[SinkStats, ...]
    pending: tuple[str, ...]
    errors: Mapping[str, str]

    @property
    def complete(self) -> bool:
        return not self.pending and not any(stats.abandoned for stats in self.sinks)


class EventBusMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The bus at one instant: its hub, its sinks, the runs that are live and those that are kept."""

    hub: EventHubMetrics
    sinks: tuple[SinkStats, ...]
    live_runs: int
    kept_runs: int
    bytes: int
    dead_letters: int


class SinkGuard:
    """A hold on one sink of a bus: look at it, wait for it, take it away. Dropping the guard changes nothing."""

    def __init__(self, bus: EventBus, worker: SinkWorker) -> None:
        self._bus, self._worker = bus, worker

    @property
    def name(self) -> str:
        """The sink's name on this bus; unique."""
        return self._worker.name

    def health(self) -> SinkHealth:
        return self._worker.health()

    def stats(self) -> SinkStats:
        return self._worker.stats()

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until the sink handled and flushed everything emitted so far; ``False`` if it did not in time."""
        report = await self._bus._flush_workers((self._worker,), None, timeout)
        return report.complete

    async def remove(self, timeout: float | None = None) -> SinkStats:
        """Drain the sink, close it, and take it off the bus; what it had not handled in time is abandoned."""
        await self.drain(timeout)
        return await self._bus._remove(self._worker)


class EventBus:
    """What nodes emit into and everyone watches. Methods may be called from any thread; the async ones from any loop.

    *Sinks* run on threads that the bus owns, started by the first event, subscription or ``listen_for_events``;
    those given here see every event from the first. *Loss*: sinks are bounded by bytes only, unless one has a
    ``capacity``. *After* ``shutdown`` emitting raises ``HubClosedError``.

    Args:
        sinks: any objects with ``handle(batch)`` or ``async run(stream)``, see ``EventSink``.
        capacity: events kept for late watchers of everything. max_bytes: for each hub; bus_max_bytes: for all.
        keep_runs: finished runs that stay readable. sink_timeout: seconds after which a sink's call counts as stalled.
        block_timeout: seconds that ``emit_async`` waits for subscribers with ``overflow="block"``.
    """

    def __init__(
        self,
        sinks: Iterable[EventSink | Any] = (),
        *,
        capacity: int | None = DEFAULT_CAPACITY,
        max_bytes: int = DEFAULT_MAX_BYTES,
        bus_max_bytes: int = DEFAULT_BUS_MAX_BYTES,
        keep_runs: int = DEFAULT_KEEP_RUNS,
        block_timeout: float = DEFAULT_BLOCK_TIMEOUT,
        sink_timeout: float = DEFAULT_SINK_TIMEOUT,
        sink_retry: RetryPolicy | None = None,
        diagnostics: DiagnosticsConfig | None = None,
        clock: Clock | None = None,
        name: str = "bus",
    ) -> None:
        self._hub = EventHub(capacity, max_bytes=max_bytes, block_timeout=block_timeout, name=name, clock=clock)
        self._hub._warns = False
        self._hub._on_first = self.listen_for_events
        self._clock = self._hub._clock
        self._budget = self._hub._budget = Budget(bus_max_bytes)
        self._budget.join(self._hub)
        self._budget.evict = self._evict
        self._retry = sink_retry or RetryPolicy()
        self._sink_timeout = sink_timeout
        self._keep_runs = keep_runs
        self._lanes: weakref.WeakValueDictionary[str, Lane] = weakref.WeakValueDictionary()
        self._live: dict[str, Lane] = {}
        self._kept: OrderedDict[str, Lane] = OrderedDict()
        self._over: OrderedDict[str, None] = OrderedDict()  # ids of forgotten runs, the newest of them
        self._diagnostics_config = diagnostics or DiagnosticsConfig()
        self._diagnostics = EventHub(self._diagnostics_config.capacity or capacity, name=f"{name}-diagnostics")
        self._diagnostics._warns = False
        self._workers: list[SinkWorker] = []
        self._gone: list[SinkStats] = []
        self._dead: deque[DeadLetter] = deque(maxlen=1000)
        self._dead_count = 0
        self._thread = LoopThread(f"weavegraph-{name}")
        self._pump: Pump | None = None
        self._watch: asyncio.Task[None] | None = None
        self._listening = False
        self._listening_pid = os.getpid()
        self._shut = False
        self._report: ShutdownReport | None = None
        self._late: tuple[str, ...] = ()  # sinks that had not finished when shutdown ran out of time
        self._warns = True
        for sink in sinks:
            self._workers.append(self._make_worker(sink, after=0))
        _live_buses.add(self)

    @classmethod
    def from_config(cls, config: EventBusConfig, *, clock: Clock | None = None) -> EventBus:
        """The bus that a configuration describes; sinks are made from their names or URLs."""
        from weavegraph.bus._factory import make_sinks

        return cls(
            make_sinks(config.sinks),
            capacity=config.capacity,
            max_bytes=config.max_bytes,
            bus_max_bytes=config.bus_max_bytes,
            keep_runs=config.keep_runs,
            block_timeout=config.block_timeout,
            sink_timeout=config.sink_timeout,
            diagnostics=config.diagnostics,
            clock=clock,
        )

    # ── emitting and watching ─────────────────────────────────────────────────────────────────────

    def emitter(self) -> HubEmitter:
        """Emits events of no run to everyone who watches the bus."""
        return self._hub.emitter()

    def subscribe(
        self,
        *,
        after: int | None = None,
        capacity: int | None = None,
        overflow: Overflow = "drop_oldest",
        on_lag: OnLag = "notice",
        filter: EventFilter | Predicate | None = None,
        name: str | None = None,
    ) -> EventStream:
        """Watch everything that is emitted into this bus; see ``EventHub.subscribe``. Starts the sinks."""
        self.listen_for_events()
        return self._hub.subscribe(
            after=after, capacity=capacity, overflow=overflow, on_lag=on_lag, filter=filter, name=name
        )

    def listen_for_events(self) -> None:
        """Start the sinks. Idempotent, in any order with ``subscribe``, ``emitter`` and ``add_sink``.

        Not needed: the first event or subscription does it. Nothing is lost by the order (contract R8, S7).
        """
        with self._hub._lock:
            if self._shut or (self._listening and self._listening_pid == os.getpid()):
                return
            self._listening, self._listening_pid = True, os.getpid()
            if not self._workers:
                return
            workers = tuple(self._workers)
        for worker in workers:
            self._start(worker)

    @property
    def head(self) -> int:
        """The bus position of the last event."""
        return self._hub.head

    @property
    def epoch(self) -> str:
        """128 random bits in hex; all hubs of this bus share it."""
        return self._hub.epoch

    @property
    def closed(self) -> bool:
        """Whether ``shutdown`` began."""
        return self._shut

    # ── runs ──────────────────────────────────────────────────────────────────────────────────────

    def open_lane(self, run_id: str, session_id: str, *, attempt: int = 1, after: int = 0) -> Lane:
        """The hub of a new run; or of a further attempt, which goes on after position ``after`` of its run.

        Raises:
            RunExistsError: a run of that id was here before.
        """
        check_id("run_id", run_id)
        check_id("session_id", session_id)
        with self._hub._lock:
            if self._shut:
                raise HubClosedError
            lane = self._lanes.get(run_id)
            if run_id in self._live or (attempt == 1 and (run_id in self._over or (lane is not None and lane.head))):
                raise RunExistsError(run_id)
            if lane is None:
                lane = self._lanes[run_id] = Lane(self._hub, run_id, session_id)
            lane.continue_after(after)
            lane.reopen(attempt, session_id)
            self._live[run_id] = lane
            self._kept.pop(run_id, None)
            self._over.pop(run_id, None)
        return lane

    def awaited_lane(self, run_id: str) -> Lane:
        """The hub of a run, also of one that has not started: its streams wait for it (contract O4).

        Raises:
            RunNotFoundError: the run is over and its events are no longer kept.
        """
        check_id("run_id", run_id)
        with self._hub._lock:
            lane = self._lanes.get(run_id)
            if lane is None:
                if self._shut or run_id in self._over:
                    raise RunNotFoundError(run_id)
                lane = self._lanes[run_id] = Lane(self._hub, run_id, run_id)
        return lane

    def end_attempt(self, lane: Lane, outcome: str) -> None:
        """Nothing more is accepted from this attempt; the run stays readable as ``keep_runs`` and the bytes allow.

        Only a completed run has no further attempt; a paused or interrupted one does not end streams that follow.
        """
        if outcome == "completed":
            lane.close()
        else:
            lane.rest(ended=outcome in ("failed", "cancelled"))
        with self._hub._lock:
            if self._live.pop(lane.run_id, None) is not None:
                self._kept[lane.run_id] = lane
                while len(self._kept) > self._keep_runs:
                    self._forget_oldest()

    def lane(self, run_id: str) -> Lane | None:
        """The hub of a run that is live, kept, or held by somebody; else ``None``."""
        return self._lanes.get(run_id)

    def _forget_oldest(self) -> Lane:
        run_id, lane = self._kept.popitem(last=False)
        self._over[run_id] = None
        while len(self._over) > 10 * self._keep_runs + 1000:
            self._over.popitem(last=False)
        return lane

    def _evict(self) -> bool:
        if not self._kept:
            return False
        self._budget.settle(self._forget_oldest(), 0)
        return True

    # ── sinks ─────────────────────────────────────────────────────────────────────────────────────

    def add_sink(self, sink: EventSink | Any) -> SinkGuard:
        """Add a sink, also while runs are live; it sees every event from now on."""
        with self._hub._lock:
            if self._shut:
                raise HubClosedError
            worker = self._make_worker(sink, after=None)
            self._workers.append(worker)
            listening = self._listening
        if listening:
            self._start(worker)
        return SinkGuard(self, worker)

    @property
    def sinks(self) -> dict[str, Any]:
        """The sinks by their name on this bus, also those made from configuration."""
        return {worker.name: worker.sink for worker in tuple(self._workers)}

    def sink_health(self) -> tuple[SinkHealth, ...]:
        """How each sink is; one row a sink, also for two of one type."""
        return tuple(worker.health() for worker in tuple(self._workers))

    def guard(self, name: str) -> SinkGuard:
        """The guard of the sink of that name."""
        for worker in tuple(self._workers):
            if worker.name == name:
                return SinkGuard(self, worker)
        known = ", ".join(worker.name for worker in self._workers) or "none"
        raise ConfigError(f"no sink of this bus is called {name!r}; there are: {known}")

    def diagnostics(self) -> EventStream:
        """Failures of sinks as events, from the first that is held; empty when diagnostics are not enabled."""
        stream = self._diagnostics.subscribe(after=0)
        stream._warns = False
        return stream

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """The newest thousand events that a sink could not take; the sinks' stats count all of them."""
        return tuple(self._dead)

    def _make_worker(self, sink: Any, after: int | None) -> SinkWorker:
        runs_itself = inspect.iscoroutinefunction(getattr(sink, "run", None))
        if not runs_itself and not callable(getattr(sink, "handle", None)):
            raise ConfigError(f"{type(sink).__name__} is no sink: it needs handle(batch) or async run(stream)")
        capacity = getattr(sink, "capacity", None)
        check_capacity(capacity)
        name = self._unique(clean_text("name", getattr(sink, "name", None) or type(sink).__name__))
        mirrored = self._diagnostics_config.emit_to_events
        stream = self._hub._subscribe(
            after,
            INFINITE if capacity is None else capacity,
            "drop_oldest",
            "notice" if runs_itself else "skip",
            (lambda event: not _is_about(event, name)) if mirrored else None,
            f"sink {name}",
        )
        stream._warns = False
        return SinkWorker(
            sink,
            name,
            stream,
            retry=self._retry,
            sink_timeout=self._sink_timeout,
            clock=self._clock,
            on_failure=self._sink_failed,
            on_dead=self._sink_gave_up,
        )

    def _unique(self, name: str) -> str:
        taken = {worker.name for worker in self._workers}
        found, count = name, 1
        while found in taken:
            count += 1
            found = f"{name}#{count}"
        return found

    def _start(self, worker: SinkWorker) -> None:
        loop = self._thread.start()
        if worker.inline:
            loop.call_soon_threadsafe(self._start_inline, worker)
        else:
            loop.call_soon_threadsafe(self._start_task, worker)

    def _start_task(self, worker: SinkWorker) -> None:
        worker.task = asyncio.get_running_loop().create_task(worker.run(), name=f"sink {worker.name}")

    def _start_inline(self, worker: SinkWorker) -> None:
        async def begin() -> None:
            await worker.prepare()
            if self._pump is None or not self._pump.workers:
                self._pump = Pump(self._hub, [worker], self._inline_ended)
                self._watch = asyncio.ensure_future(Watchdog(self._pump, self._slow_inline).run())
            else:
                self._pump.add(worker)

        worker.task = asyncio.get_running_loop().create_task(begin())

    def _slow_inline(self, worker: SinkWorker, seconds: float) -> Pump:
        assert self._pump is not None
        slow, others = self._pump, [other for other in self._pump.workers if other is not worker]
        slow.workers = [worker]
        self._pump = Pump(self._hub, others, self._inline_ended)
        self._diagnose(worker, f"took {seconds * 1000:.0f} ms in one call; it now has a thread of its own", (), "slow")
        return self._pump

    def _inline_ended(self, worker: SinkWorker) -> None:
        loop = self._thread.loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                asyncio.run_coroutine_threadsafe(worker.finish(), loop)

    def _sink_failed(self, worker: SinkWorker, error: BaseException, batch: Sequence[Event]) -> None:
        self._diagnose(worker, f"{type(error).__name__}: {error}", batch, "error")

    def _diagnose(self, worker: SinkWorker, text: str, batch: Sequence[Event], kind: str) -> None:
        if not self._diagnostics_config.enabled:
            return
        metadata = freeze_metadata({"sink": worker.name, "error": text, "kind": kind, "occurrence": worker.errors})
        message = clean_text("message", f"sink {worker.name!r}: {text}"[:10_000])
        event = DiagnosticEvent(SINK_ERROR_SCOPE, message, metadata)
        with contextlib.suppress(HubClosedError):
            self._diagnostics._accept(event, reserved=True)
        # A failure to handle a mirrored failure is not mirrored: two failing sinks would answer each other for ever.
        only_mirrored = bool(batch) and all(event.scope == SINK_ERROR_SCOPE for event in batch)
        if self._diagnostics_config.emit_to_events and not only_mirrored:
            with contextlib.suppress(HubClosedError):
                self._hub._accept(event, reserved=True)

    def _sink_gave_up(self, letter: DeadLetter) -> None:
        self._dead.append(letter)
        self._dead_count += 1

    async def _remove(self, worker: SinkWorker) -> SinkStats:
        async def end() -> None:
            if self._pump is not None and worker.inline:
                self._pump.remove(worker)
            elif worker.task is not None:
                worker.task.cancel()
                await asyncio.wait([worker.task], timeout=1.0)
            await worker.finish()

        if self._listening:
            await self._on_thread(end())
        else:
            worker.stream.close()
        with self._hub._lock:
            if worker in self._workers:
                self._workers.remove(worker)
                self._gone.append(worker.stats())
        return worker.stats()

    # ── flushing and ending ───────────────────────────────────────────────────────────────────────

    async def flush(self, upto: int | None = None, timeout: float | None = None) -> FlushReport:
        """Wait until every sink handled and flushed everything up to bus position ``upto`` (default: the head now).

        Dead-lettered and lost events count as handled. Returns who did and who, after ``timeout`` seconds, did not.
        Cancellation: safe; the sinks go on.
        """
        return await self._flush_workers(tuple(self._workers), upto, timeout)

    async def _flush_workers(
        self, workers: tuple[SinkWorker, ...], upto: int | None, timeout: float | None
    ) -> FlushReport:
        upto = self._hub.head if upto is None else upto
        if type(upto) is not int or not 0 <= upto <= self._hub.head:
            raise ConfigError(f"flush(upto={upto!r}): give a bus position from 0 to {self._hub.head}")
        self.listen_for_events()

        async def settle(worker: SinkWorker) -> bool:
            if not await worker.wait_settled(upto):
                return False
            try:
                await worker.flush()
            except Exception as exc:
                worker._failed(exc, ())
                return False
            return True

        async def settle_all() -> FlushReport:
            tasks = {worker.name: asyncio.ensure_future(settle(worker)) for worker in workers}
            if tasks:
                _, late = await asyncio.wait(tasks.values(), timeout=timeout)
                for task in late:
                    task.cancel()
            done = {name for name, task in tasks.items() if task.done() and not task.cancelled() and task.result()}
            return FlushReport(
                upto,
                tuple(name for name in tasks if name in done),
                tuple(name for name in tasks if name not in done),
            )

        if not workers:
            return FlushReport(upto, (), ())
        return await self._on_thread(settle_all())

    async def shutdown(self, timeout: float | None = 10.0) -> ShutdownReport:
        """Accept nothing more, let every sink finish, flush and close it, and end. Idempotent.

        With healthy sinks nothing is abandoned. After ``timeout`` seconds what is unread is abandoned and counted.
        Failures of sinks are in the report, not raised.
        """
        workers = self._stop_accepting()
        if self._report is None and self._listening and workers:
            await self._on_thread(self._drain(workers, timeout))
        return self._finish_shutdown(workers)

    async def aclose(self) -> None:
        """``shutdown`` with its default timeout."""
        await self.shutdown()

    def close(self, timeout: float | None = 10.0) -> ShutdownReport:
        """``shutdown`` for a plain thread; raises ``BlockingInLoopError`` on a thread that runs a loop."""
        if asyncio._get_running_loop() is not None:
            raise BlockingInLoopError
        workers = self._stop_accepting()
        if self._report is None and self._listening and workers:
            self._thread.submit(self._drain(workers, timeout)).result()
        return self._finish_shutdown(workers)

    def _stop_accepting(self) -> tuple[SinkWorker, ...]:
        if self._hub.head and not self._shut:
            self.listen_for_events()
        with self._hub._lock:
            self._shut = True
            lanes = tuple(self._lanes.values())
        for lane in lanes:
            lane.close()
        self._hub.close()
        return tuple(self._workers)

    async def _drain(self, workers: tuple[SinkWorker, ...], timeout: float | None) -> None:
        """In the bus's loop: wait for the workers' ends, then cut off those that did not come to it."""
        await asyncio.sleep(0)  # those that were started a moment ago have their task now
        waits = {asyncio.ensure_future(self._ended(worker)): worker.name for worker in workers}
        _, late = await asyncio.wait(waits, timeout=timeout)
        self._late = tuple(name for wait, name in waits.items() if wait in late)
        for wait in late:
            wait.cancel()
        for worker in workers:
            if worker.task is not None and not worker.task.done():
                worker.task.cancel()
            worker.stream.close()

    @staticmethod
    async def _ended(worker: SinkWorker) -> None:
        if worker.inline:
            await worker.wait_settled(INFINITE)
        elif worker.task is not None:
            await asyncio.wait([worker.task])

    def _finish_shutdown(self, workers: tuple[SinkWorker, ...]) -> ShutdownReport:
        if self._report is None:
            for worker in workers:
                worker.stream.close()
            health = [worker.health() for worker in workers]
            self._report = ShutdownReport(
                tuple(row.stats for row in health),
                self._late,
                {row.name: row.last_error for row in health if row.last_error is not None},
            )
            self._diagnostics.close()
            self._thread.stop(timeout=1.0)
        return self._report

    async def _on_thread(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(work))

    async def __aenter__(self) -> EventBus:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    def metrics(self) -> EventBusMetrics:
        """The hub, the sinks, the runs and the bytes; totals are never reset."""
        with self._hub._lock:
            return EventBusMetrics(
                hub=self._hub.metrics(),
                sinks=(*self._gone, *(worker.stats() for worker in self._workers)),
                live_runs=len(self._live),
                kept_runs=len(self._kept),
                bytes=self._budget.total,
                dead_letters=self._dead_count,
            )

    def __repr__(self) -> str:
        return f"<EventBus {self._hub.name!r} head={self._hub.head} sinks={len(self._workers)}>"

    def __reduce__(self) -> Any:
        raise TypeError("an EventBus lives in one process and cannot be pickled; create one in each process")

    def __del__(self) -> None:
        if getattr(self, "_warns", False) and not self._shut and self._hub.head and not self._hub._forked:
            text = f"unclosed {self!r}: await shutdown(), or close()"
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)


def _is_about(event: Event, name: str) -> bool:
    return event.scope == SINK_ERROR_SCOPE and event.metadata.get("sink") == name


_live_buses: weakref.WeakSet[EventBus] = weakref.WeakSet()


def _drain_at_exit() -> None:
    """What nobody shut down gets two seconds in all, so that a script's last events reach its sinks."""
    for bus in tuple(_live_buses):
        if not bus._shut and bus._listening and not bus._hub._forked and asyncio._get_running_loop() is None:
            bus.close(timeout=EXIT_DRAIN)


atexit.register(_drain_at_exit)
