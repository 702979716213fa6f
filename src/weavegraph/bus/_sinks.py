"""The sinks of one bus: their names, their threads, their failures, their end. It knows the hub, not the bus, so that
a bus that is dropped can be collected while its sinks are at work."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from weavegraph.bus._hub import EventHub, check_capacity
from weavegraph.bus._pump import Pump, Watchdog
from weavegraph.bus._retry import DeadLetter, RetryPolicy, describe
from weavegraph.bus._ring import INFINITE
from weavegraph.bus._stats import SinkStats, SinkTotals
from weavegraph.bus._threads import wait_for_all
from weavegraph.bus._worker import LoopWorker, PumpedWorker, SinkStream, SinkWorker
from weavegraph.config import check_sink_name
from weavegraph.errors import ConfigError, EmitterError, SinkError
from weavegraph.events import DiagnosticEvent, Event, Redact, Redactor, freeze_metadata

if TYPE_CHECKING:
    from weavegraph.protocols import Clock

__all__ = ["SINK_ERROR_SCOPE", "DiagnosticsConfig", "FlushReport", "ShutdownReport", "Sinks"]

SINK_ERROR_SCOPE = "weavegraph.sink.error"
KEPT_DEAD_LETTERS = 1000
GRACE = 0.2
"""Seconds that a sink which was cut off gets to close before nobody waits for it any more."""
EXIT_DRAIN = 2.0
"""Seconds that all buses together hold up the interpreter's exit (contract P1), the grace included."""


class DiagnosticsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of sinks as events on a stream of their own.

    ``capacity``: events kept of it; ``None``: the bus's. ``emit_to_events`` mirrors them to the bus, but never to the
    sink they are about, and never a failure to handle such a mirrored event.
    """

    enabled: bool = True
    capacity: int | None = None
    emit_to_events: bool = False

    def __post_init__(self) -> None:
        for field in ("enabled", "emit_to_events"):
            if type(getattr(self, field)) is not bool:
                raise ConfigError(f"diagnostics.{field}={getattr(self, field)!r}: give true or false")
        check_capacity(self.capacity)


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


class Sinks:
    """The supervised sinks on one hub. Any method may be called from any thread."""

    def __init__(
        self,
        hub: EventHub,
        *,
        retry: RetryPolicy,
        timeout: float,
        diagnostics: DiagnosticsConfig,
        clock: Clock,
        redact_for: Callable[[str], Redact | None],
    ) -> None:
        self._hub = hub
        self._redact_for = redact_for
        self._retry, self._timeout, self._clock = retry, timeout, clock
        self._config = diagnostics
        self.diagnostics = self._diagnostics_hub()
        self.workers: list[SinkWorker] = []  # guarded by the hub's lock
        self.removed = SinkTotals()
        self.dead: deque[DeadLetter] = deque(maxlen=KEPT_DEAD_LETTERS)
        self.dead_count = 0
        self.started = False
        self._pump: Pump | None = None  # of the inline sinks
        self._pumping = threading.Lock()
        self._watchdog: Watchdog | None = None
        self._news = threading.Condition()  # a sink ended, or the deadline moved
        self._deadline = float("inf")
        self._ending: Future[ShutdownReport] | None = None
        hub._on_first = self.start
        _all.add(self)

    def _diagnostics_hub(self) -> EventHub:
        hub = EventHub(self._config.capacity or self._hub.capacity, name=f"{self._hub.name}-diagnostics")
        hub._warns = False
        return hub

    # ── who they are ──────────────────────────────────────────────────────────────────────────────

    def add(self, sink: Any, hub: EventHub, after: int | None) -> SinkWorker:
        """A worker for ``sink``, which sees what comes to the hub, the bus's or a lane, after that position."""
        with self._hub._lock:
            worker = self._make(sink, hub, after)
            self.workers.append(worker)
            started = self.started
        if started:
            try:
                self._begin((worker,))
            except SinkError:
                self._take_off(worker)
                raise
        return worker

    def _make(self, sink: Any, hub: EventHub, after: int | None) -> SinkWorker:
        runs_itself = _check_sink(sink)
        if any(worker.sink is sink and worker.stream._hub in (hub, self._hub) for worker in self.workers):
            raise ConfigError(f"{type(sink).__name__} is on this bus already, and would get every event twice")
        name = self._unique(check_sink_name(getattr(sink, "name", None) or type(sink).__name__))
        capacity = getattr(sink, "capacity", None)
        stream = hub._subscribe(
            after,
            INFINITE if capacity is None else capacity,
            "drop_oldest",
            "notice" if runs_itself else "skip",
            _not_about(name) if self._config.emit_to_events else None,
            f"sink {name}",
            SinkStream,
        )
        assert isinstance(stream, SinkStream)
        stream._warns = False
        redact_with = getattr(sink, "redact_with", None)
        if redact_with is None:
            stream.see_as(Redactor(self._redact_for(name), name).view())
        else:  # what it gives away does not come from this stream
            redact_with(self._redact_for(sink.name))
        options: dict[str, Any] = {
            "retry": self._retry,
            "sink_timeout": self._timeout,
            "clock": self._clock,
            "on_failure": self._sink_failed,
            "on_dead": self._sink_gave_up,
        }
        if runs_itself or inspect.iscoroutinefunction(sink.handle):
            worker: SinkWorker = LoopWorker(sink, name, stream, runs_itself=runs_itself, **options)
        else:
            worker = PumpedWorker(sink, name, stream, **options)
        worker.ended.add_done_callback(self._tell)
        return worker

    def _unique(self, name: str) -> str:
        taken = {worker.name for worker in self.workers}
        found, count = name, 1
        while found in taken:
            count += 1
            found = f"{name}#{count}"
        return found

    def _take_off(self, worker: SinkWorker) -> None:
        with self._hub._lock:
            if worker in self.workers:
                self.workers.remove(worker)
                self.removed.add(worker.stats())

    # ── their threads ─────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to feed them. Idempotent.

        Raises:
            SinkError: the system has no thread for them; the next call tries again.
        """
        with self._hub._lock:
            if self.started or self._hub.closed:
                return
            self.started = True
            self._hub._on_first = None
            workers = tuple(self.workers)
        if workers:
            _running.add(self)
            try:
                self._begin(workers)
            except SinkError:
                with self._hub._lock:
                    self.started = False
                    self._hub._on_first = self.start
                    self._hub._replan()
                raise

    def _begin(self, workers: Iterable[SinkWorker]) -> None:
        try:
            for worker in workers:
                if not worker.feeding:
                    self._feed(worker)
                    worker.feeding = True
        except RuntimeError as exc:
            raise SinkError(f"no thread can be started for the sinks: {exc}") from exc
        _running.add(self)

    def _feed(self, worker: SinkWorker) -> None:
        if isinstance(worker, LoopWorker):
            worker.begin()
            return
        assert isinstance(worker, PumpedWorker)
        if not worker.inline or worker.stream._hub is not self._hub:
            Pump(worker.stream._hub, (worker,), f"weavegraph-sink-{worker.name}")
            return
        with self._pumping:
            if self._pump is None or not self._pump.add(worker):
                self._pump = Pump(self._hub, (worker,), "weavegraph-pump")
                self._watchdog = Watchdog(self._pump, self._slow)

    def _slow(self, worker: PumpedWorker, seconds: float, others: list[PumpedWorker]) -> Pump | None:
        """The watchdog left the pump's thread to this sink; the others get a fresh one."""
        with self._pumping:
            self._pump = Pump(self._hub, others, "weavegraph-pump") if others else None
        self._diagnose(worker, f"took {seconds * 1000:.0f} ms in one call; it now has a thread of its own", (), "slow")
        return self._pump

    # ── their failures ────────────────────────────────────────────────────────────────────────────

    def _sink_failed(self, worker: SinkWorker, error: BaseException, batch: Sequence[Event]) -> None:
        self._diagnose(worker, describe(error), batch, "error")

    def _diagnose(self, worker: SinkWorker, text: str, batch: Sequence[Event], kind: str) -> None:
        if not self._config.enabled:
            return
        metadata = freeze_metadata({"sink": worker.name, "error": text, "kind": kind, "occurrence": worker.errors})
        event = DiagnosticEvent(SINK_ERROR_SCOPE, f"sink {worker.name!r}: {text}", metadata)
        with contextlib.suppress(EmitterError):
            self.diagnostics._accept(event, reserved=True)
        # A failure to handle a mirrored failure is not mirrored: two failing sinks would answer each other for ever.
        only_mirrored = bool(batch) and all(event.scope == SINK_ERROR_SCOPE for event in batch)
        if self._config.emit_to_events and not only_mirrored:
            with contextlib.suppress(EmitterError):
                self._hub._accept(event, reserved=True)

    def _sink_gave_up(self, letter: DeadLetter) -> None:
        self.dead.append(letter)
        self.dead_count += 1

    # ── flushing, removing, ending ────────────────────────────────────────────────────────────────

    async def flush(self, workers: Sequence[SinkWorker], upto: int, timeout: float | None) -> FlushReport:
        hubs = [worker.stream._hub for worker in workers]  # of a run's own sink it is the lane, with other positions
        futures = [
            worker.flushed(upto if hub is self._hub else hub.head) for worker, hub in zip(workers, hubs, strict=True)
        ]
        try:
            await wait_for_all(futures, timeout)
        finally:
            for future in futures:
                future.cancel()  # takes those that are late off their worker
        done = {worker.name for worker, future in zip(workers, futures, strict=True) if _is_true(future)}
        names = [worker.name for worker in workers]
        flushed = tuple(name for name in names if name in done)
        return FlushReport(upto, flushed, tuple(name for name in names if name not in done))

    async def remove(self, worker: SinkWorker, timeout: float | None) -> SinkStats:
        if worker.feeding:
            worker.leave()
            if not await wait_for_all([worker.ended], timeout):
                worker.cut()
                await wait_for_all([worker.ended], GRACE)
        else:
            worker.over(well=True)
        self._take_off(worker)
        return worker.stats()

    def end(self, timeout: float | None, *, here: bool = False) -> Future[ShutdownReport]:
        """The hub accepts nothing more: let every sink finish. One ending, whoever asks; the earliest deadline holds.

        ``here``: on this thread, where it is too late to start one.
        """
        with self._news:
            self._deadline = min(self._deadline, float("inf") if timeout is None else time.monotonic() + timeout)
            self._news.notify_all()
            if self._ending is not None:
                return self._ending
            ending = self._ending = Future()
        workers = tuple(self.workers)
        if here or not any(worker.feeding for worker in workers):
            self._drain(workers, ending)
            return ending
        thread = threading.Thread(target=self._drain, args=(workers, ending), name="weavegraph-drain", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had: it holds up the caller instead
            self._drain(workers, ending)
        return ending

    def _drain(self, workers: tuple[SinkWorker, ...], ending: Future[ShutdownReport]) -> None:
        try:
            ending.set_result(self._drained(workers))
        except BaseException as exc:  # whoever waits must not wait for ever
            ending.set_exception(exc)

    def _drained(self, workers: tuple[SinkWorker, ...]) -> ShutdownReport:
        for worker in workers:
            if not worker.feeding:
                worker.over(well=True)
        self._wait_until_ended(workers, lambda: self._deadline)
        late = [worker for worker in workers if not worker.ended.done()]
        for worker in late:
            worker.cut()
        self._wait_until_ended(late, lambda: self._deadline + GRACE)
        health = [worker.health() for worker in workers]
        errors = {row.name: row.last_error for row in health if row.last_error is not None}
        self.diagnostics.close()
        _running.discard(self)
        return ShutdownReport(tuple(row.stats for row in health), tuple(worker.name for worker in late), errors)

    def _wait_until_ended(self, workers: Sequence[SinkWorker], deadline: Callable[[], float]) -> None:
        with self._news:
            while not all(worker.ended.done() for worker in workers):
                left = deadline() - time.monotonic()
                if left <= 0:
                    return
                self._news.wait(None if left == float("inf") else min(left, threading.TIMEOUT_MAX))

    def _tell(self, _: Future[None]) -> None:
        with self._news:
            self._news.notify_all()
        if self._hub.closed and all(worker.ended.done() for worker in tuple(self.workers)):
            _running.discard(self)  # of a bus that was dropped

    # ── fork ──────────────────────────────────────────────────────────────────────────────────────

    def after_fork(self) -> None:
        """In a forked child: of an unused bus the sinks begin anew, for the threads are gone; a used one refuses."""
        _running.discard(self)
        self._pumping, self._news = threading.Lock(), threading.Condition()
        self._pump = self._watchdog = None
        if self._hub._forked:
            return
        old, self.workers = self.workers, []
        for worker in old:
            worker.stream._hub._streams.pop(id(worker.stream), None)
            worker.stream._hub._heed.pop(id(worker.stream), None)
            worker.stream._closed_at = 0
        self.diagnostics = self._diagnostics_hub()
        self.started = False
        self._hub._on_first = self.start
        for worker in old:
            self.workers.append(self._make(worker.sink, worker.stream._hub, 0))
        self._hub._replan()


def _check_sink(sink: Any) -> bool:
    """Whether it owns its loop; refuses what no worker could feed."""
    kind = type(sink).__name__
    if inspect.isclass(sink):
        raise ConfigError(f"{sink.__name__} is a class; give an instance: {sink.__name__}(…)")
    runs_itself = inspect.iscoroutinefunction(getattr(sink, "run", None))
    if not runs_itself and not callable(getattr(sink, "handle", None)):
        raise ConfigError(f"{kind} is no sink: it needs handle(batch) or async run(stream)")
    check_capacity(getattr(sink, "capacity", None))
    max_batch = getattr(sink, "max_batch", 1)
    if type(max_batch) is not int or max_batch < 1:
        raise ConfigError(f"{kind}.max_batch={max_batch!r}: give a whole number of events from 1")
    delivery = getattr(sink, "delivery", "at_least_once")
    if delivery not in ("at_most_once", "at_least_once", "exactly_once"):
        raise ConfigError(f"{kind}.delivery={delivery!r}: choose 'at_most_once', 'at_least_once' or 'exactly_once'")
    if getattr(sink, "inline", False):
        for name in ("run", "handle", "start", "flush", "aclose", "close"):
            if inspect.iscoroutinefunction(getattr(sink, name, None)):
                raise ConfigError(f"{kind} is inline, so {name} must be a plain function; drop inline, or the async")
    return runs_itself


def _not_about(name: str) -> Any:
    return lambda event: not (event.scope == SINK_ERROR_SCOPE and event.metadata.get("sink") == name)


def _is_true(future: Future[bool]) -> bool:
    return not future.cancelled() and future.result()


_all: weakref.WeakSet[Sinks] = weakref.WeakSet()
_running: set[Sinks] = set()
"""Those whose sinks are at work: held until they are drained, by their owner, or at the interpreter's exit."""


def _drain_at_exit() -> None:
    """What nobody shut down gets two seconds in all, so that a script's last events reach its sinks."""
    until = time.monotonic() + EXIT_DRAIN - 2 * GRACE
    left = tuple(_running)
    for sinks in left:
        sinks._hub.close()  # all of them first, so that they finish side by side
    for sinks in left:
        with contextlib.suppress(TimeoutError):
            sinks.end(until - time.monotonic(), here=True).result(max(0.0, until + 2 * GRACE - time.monotonic()))


def _after_fork() -> None:
    for sinks in tuple(_all):
        sinks.after_fork()


atexit.register(_drain_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
