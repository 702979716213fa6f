"""The bus: one hub for what watches everything, a lane for each run, and sinks on threads of their own."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from weavegraph.bus._emitter import HubEmitter
from weavegraph.bus._hub import DEFAULT_BLOCK_TIMEOUT, DEFAULT_CAPACITY, DEFAULT_MAX_BYTES, Budget, EventHub
from weavegraph.bus._lane import Lane
from weavegraph.bus._retry import DeadLetter, RetryPolicy
from weavegraph.bus._ring import INFINITE
from weavegraph.bus._sinks import SINK_ERROR_SCOPE, DiagnosticsConfig, FlushReport, ShutdownReport, Sinks
from weavegraph.bus._stats import EventHubMetrics, SinkStats, SinkTotals
from weavegraph.bus._stream import COLLECT_PATIENCE, EventStream, OnLag, Overflow, check_timeout
from weavegraph.bus._threads import wait_for_all
from weavegraph.bus._worker import SinkHealth, SinkWorker
from weavegraph.config import check_seconds, check_whole
from weavegraph.errors import (
    BlockingInLoopError,
    ConfigError,
    ForkedHubError,
    HubClosedError,
    RunExistsError,
    RunNotFoundError,
    SinkError,
)
from weavegraph.events import FLAT_BYTES, EventFilter, Predicate, check_id

if TYPE_CHECKING:
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


class EventBusMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The bus at one instant: its hub, its sinks, the runs that are live and those that are kept.

    ``removed``: sums over the sinks that were taken off.
    """

    hub: EventHubMetrics
    sinks: tuple[SinkStats, ...]
    removed: SinkTotals
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
        return (await self._bus._flush((self._worker,), None, timeout)).complete

    async def remove(self, timeout: float | None = None) -> SinkStats:
        """Drain the sink, close it, and take it off the bus; what it had not handled in time is abandoned.

        Idempotent. A sink that hangs is left to its thread after ``timeout``; whatever it still does counts no more.
        """
        self._bus._refuse_after_fork()
        return await self._bus._sinks.remove(self._worker, timeout)


class EventBus:
    """What nodes emit into and everyone watches. Methods may be called from any thread; the async ones from any loop.

    *Sinks* run on threads that the bus owns, started by the first event, subscription or ``listen_for_events``;
    those given here see every event from the first. *Loss*: sinks are bounded by bytes only, unless one has a
    ``capacity``. *After* ``shutdown`` emitting raises ``HubClosedError``. *Dropped* without it, a bus whose sinks are
    at work warns, and they finish what was emitted. *Fork*: an unused bus works in the child, a used one raises
    ``ForkedHubError``.

    Args:
        sinks: any objects with ``handle(batch)`` or ``async run(stream)``, see ``EventSink``; each once.
        capacity: events kept for late watchers of everything. max_bytes: for each hub; bus_max_bytes: for all.
        keep_runs: finished runs that stay readable. sink_timeout: seconds after which a sink's call counts as stalled.
        block_timeout: seconds that ``emit_async`` waits for subscribers with ``overflow="block"``.
        redact_for: gives the redaction hook for a sink's name, or ``None``; see ``RuntimeConfig.redact``.
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
        redact_for: Callable[[str], Any] = lambda name: None,
    ) -> None:
        check_whole("bus_max_bytes", bus_max_bytes, FLAT_BYTES)
        check_whole("keep_runs", keep_runs, 0)
        check_seconds("sink_timeout", sink_timeout)
        if diagnostics is not None and not isinstance(diagnostics, DiagnosticsConfig):
            raise ConfigError(f"diagnostics={diagnostics!r}: give a DiagnosticsConfig, or None")
        self._shut = False
        self._warns = True
        self._hub = EventHub(capacity, max_bytes=max_bytes, block_timeout=block_timeout, name=name, clock=clock)
        self._hub._warns = False
        self._budget = self._hub._budget = Budget(bus_max_bytes)
        self._budget.join(self._hub)
        evict = weakref.WeakMethod(self._evict)  # the hub, which the sinks' threads hold, must not hold the bus
        self._budget.evict = lambda: (call := evict()) is not None and call()
        self._keep_runs = keep_runs
        self._lanes: weakref.WeakValueDictionary[str, Lane] = weakref.WeakValueDictionary()
        self._live: dict[str, Lane] = {}
        self._kept: OrderedDict[str, Lane] = OrderedDict()
        self._over: OrderedDict[str, int] = OrderedDict()  # forgotten runs and their last position, the newest of them
        self._sinks = Sinks(
            self._hub,
            retry=sink_retry or RetryPolicy(),
            timeout=sink_timeout,
            diagnostics=diagnostics or DiagnosticsConfig(),
            clock=self._hub._clock,
            redact_for=redact_for,
        )
        for sink in sinks:
            self._sinks.add(sink, self._hub, 0)

    @classmethod
    def from_config(
        cls, config: EventBusConfig, *, clock: Clock | None = None, redact_for: Callable[[str], Any] = lambda name: None
    ) -> EventBus:
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
            redact_for=redact_for,
        )

    # ── emitting and watching ─────────────────────────────────────────────────────────────────────

    def emitter(self) -> HubEmitter:
        """Emits events of no run to everyone who watches the bus."""
        return HubEmitter(self._hub, owner=self)

    def subscribe(
        self,
        *,
        after: int | None = None,
        capacity: int | None = None,
        overflow: Overflow = "drop_oldest",
        on_lag: OnLag = "notice",
        filter: EventFilter | Predicate | None = None,
        name: str | None = None,
        unbounded: bool = False,
    ) -> EventStream:
        """Watch everything that is emitted into this bus; see ``EventHub.subscribe``. Starts the sinks.

        ``unbounded``: only bytes bound what this reader may leave unread.
        """
        self.listen_for_events()
        if unbounded:
            stream = self._hub._subscribe(after, INFINITE, overflow, on_lag, filter, name)
        else:
            stream = self._hub.subscribe(
                after=after, capacity=capacity, overflow=overflow, on_lag=on_lag, filter=filter, name=name
            )
        stream._owner = self  # who watches the bus keeps it
        return stream

    def listen_for_events(self) -> None:
        """Start the sinks. Idempotent, in any order with ``subscribe``, ``emitter`` and ``add_sink``.

        Not needed: the first event or subscription does it. Nothing is lost by the order (contract R8, S7).

        Raises:
            SinkError: the system has no thread for them. ForkedHubError: the parent process had used this bus.
        """
        self._refuse_after_fork()
        self._sinks.start()

    def _refuse_after_fork(self) -> None:
        if self._hub._forked:
            raise ForkedHubError

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
        self._refuse_after_fork()
        with self._hub._lock:
            if self._shut:
                raise HubClosedError
            lane = self._lanes.get(run_id)
            if run_id in self._live or (attempt == 1 and (run_id in self._over or (lane is not None and lane.head))):
                raise RunExistsError(run_id)
            if lane is None:
                lane = self._lanes[run_id] = Lane(self._hub, run_id, session_id)
            lane.continue_after(max(after, self._over.get(run_id, 0)))  # no position is given away twice
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

    def knows(self, run_id: str) -> bool:
        """Whether a run of that id is or was here."""
        with self._hub._lock:
            lane = self._lanes.get(run_id)
            return run_id in self._over or (lane is not None and lane.head > 0)

    def lane(self, run_id: str) -> Lane | None:
        """The hub of a run that is live, kept, or held by somebody; else ``None``."""
        return self._lanes.get(run_id)

    def _forget_oldest(self) -> Lane:
        run_id, lane = self._kept.popitem(last=False)
        self._over[run_id] = lane.head
        while len(self._over) > 10 * self._keep_runs + 1000:
            self._over.popitem(last=False)
        return lane

    def _evict(self) -> bool:
        if not self._kept:
            return False
        self._budget.settle(self._forget_oldest(), 0)
        return True

    # ── sinks ─────────────────────────────────────────────────────────────────────────────────────

    def add_sink(self, sink: EventSink | Any, *, lane: Lane | None = None) -> SinkGuard:
        """Add a sink, also while runs are live; it sees every event from now on, with ``lane`` those of one run.

        Raises:
            ConfigError: it is no sink, or it is on this bus already. HubClosedError: after ``shutdown``.
        """
        self._refuse_after_fork()
        with self._hub._lock:
            if self._shut:
                raise HubClosedError
            worker = self._sinks.add(sink, lane or self._hub, None)
        return SinkGuard(self, worker)

    @property
    def _workers(self) -> tuple[SinkWorker, ...]:
        return tuple(self._sinks.workers)

    @property
    def sinks(self) -> dict[str, Any]:
        """The sinks by their name on this bus, also those made from configuration."""
        return {worker.name: worker.sink for worker in self._workers}

    def sink_health(self) -> tuple[SinkHealth, ...]:
        """How each sink is; one row a sink, also for two of one type."""
        return tuple(worker.health() for worker in self._workers)

    def guard(self, name: str) -> SinkGuard:
        """The guard of the sink of that name."""
        for worker in self._workers:
            if worker.name == name:
                return SinkGuard(self, worker)
        known = ", ".join(worker.name for worker in self._workers) or "none"
        raise ConfigError(f"no sink of this bus is called {name!r}; there are: {known}")

    def diagnostics(self) -> EventStream:
        """Failures of sinks as events, from the first that is held; empty when diagnostics are not enabled."""
        stream = self._sinks.diagnostics.subscribe(after=0)
        stream._warns = False
        return stream

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """The newest thousand events that a sink could not take; the sinks' stats count all of them."""
        return tuple(self._sinks.dead)

    # ── flushing and ending ───────────────────────────────────────────────────────────────────────

    async def flush(self, upto: int | None = None, timeout: float | None = None) -> FlushReport:
        """Wait until every sink handled and flushed everything up to bus position ``upto`` (default: the head now).

        Dead-lettered and lost events count as handled. Returns who did and who, after ``timeout`` seconds, did not.
        Cancellation: safe; the sinks go on.
        """
        return await self._flush(self._workers, upto, timeout)

    async def _flush(self, workers: tuple[SinkWorker, ...], upto: int | None, timeout: float | None) -> FlushReport:
        upto = self._hub.head if upto is None else upto
        if type(upto) is not int or not 0 <= upto <= self._hub.head:
            raise ConfigError(f"flush(upto={upto!r}): give a bus position from 0 to {self._hub.head}")
        self.listen_for_events()
        return await self._sinks.flush(workers, upto, None if timeout is None else check_timeout(timeout))

    async def shutdown(self, timeout: float | None = 10.0) -> ShutdownReport:
        """Accept nothing more, let every sink finish, flush and close it, and end. Idempotent.

        With healthy sinks nothing is abandoned. After ``timeout`` seconds what is unread is abandoned and counted;
        sinks that were cut off get 0.2 s more to close. Failures of sinks are in the report, not raised.
        *Two at once*: both wait for the one ending, which the earlier deadline bounds. *Cancellation*: it goes on.
        """
        ending = self._shut_down(timeout)
        await wait_for_all([ending], None)
        return ending.result()

    async def aclose(self) -> None:
        """``shutdown`` with its default timeout."""
        await self.shutdown()

    def close(self, timeout: float | None = 10.0) -> ShutdownReport:
        """``shutdown`` for a plain thread; raises ``BlockingInLoopError`` on a thread that runs a loop."""
        if asyncio._get_running_loop() is not None:
            raise BlockingInLoopError
        return self._shut_down(timeout).result()

    def _shut_down(self, timeout: float | None) -> Future[ShutdownReport]:
        self._refuse_after_fork()
        self._stop_accepting()
        return self._sinks.end(None if timeout is None else check_timeout(timeout))

    def _stop_accepting(self) -> None:
        with self._hub._lock:
            if not self._shut and self._hub.head:
                with contextlib.suppress(SinkError):
                    self._sinks.start()  # for what was emitted when no thread could be had
            self._shut = True
            lanes = tuple(self._lanes.values())
        for lane in lanes:
            lane.close()
        self._hub.close()

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
                sinks=tuple(worker.stats() for worker in self._workers),
                removed=msgspec.structs.replace(self._sinks.removed),
                live_runs=len(self._live),
                kept_runs=len(self._kept),
                bytes=self._budget.total,
                dead_letters=self._sinks.dead_count,
            )

    def __repr__(self) -> str:
        return f"<EventBus {self._hub.name!r} head={self._hub.head} sinks={len(self._sinks.workers)}>"

    def __reduce__(self) -> Any:
        raise TypeError("an EventBus lives in one process and cannot be pickled; create one in each process")

    def __del__(self) -> None:
        hub, sinks = getattr(self, "_hub", None), getattr(self, "_sinks", None)
        if sinks is None or hub is None or self._shut or hub._forked or not (hub.head or sinks.started):
            return
        if self._warns:
            text = f"unclosed {self!r}: await shutdown(), or close()"
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)
        # Its sinks finish what there is. A finaliser must not wait long for a lock; else the exit ends them.
        if sinks.started and hub._lock.acquire(timeout=COLLECT_PATIENCE):
            try:
                self._stop_accepting()
            finally:
                hub._lock.release()
