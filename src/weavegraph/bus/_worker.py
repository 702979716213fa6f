"""One sink, supervised: its own cursor, its own books, retry and dead letters.

What a sink does, slow, hung or raising, changes neither ``emit`` nor another sink nor a run (contract S1).
"""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from weavegraph.bus._stats import SinkStats
from weavegraph.bus._stream import EventStream
from weavegraph.bus._threads import SinkThread
from weavegraph.errors import EndOfStream, PermanentSinkError
from weavegraph.events import Event
from weavegraph.protocols import Clock, Delivery

__all__ = ["DeadLetter", "RetryPolicy", "SinkHealth", "SinkState", "SinkWorker"]

SinkState: TypeAlias = Literal["waiting", "idle", "busy", "retrying", "stalled", "failed", "closed"]
MAX_BATCH = 1024


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``tries`` in all; between them ``base`` seconds doubled each time up to ``cap``, with full jitter.

    Source of the jitter: M. Brooker, "Exponential Backoff And Jitter", 2015.
    """

    tries: int = 5
    base: float = 0.1
    cap: float = 5.0

    def delay(self, failures: int) -> float:
        return random.uniform(0.0, min(self.cap, self.base * 2 ** (failures - 1)))


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a sink could not take, with why and when."""

    event: Event
    sink: str
    error: str
    tries: int
    first_at: datetime
    last_at: datetime


class SinkHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How a sink is: its books, its failures, and whether a call of it hangs."""

    name: str
    delivery: Delivery
    state: SinkState
    stats: SinkStats
    errors: int
    last_error: str | None
    last_error_at: datetime | None
    last_success_at: datetime | None
    call_seconds: float
    """How long the present call has taken so far; 0 between calls."""


class SinkWorker:
    """Feeds one sink. The books are guarded by the GIL: each number has one writer, the thread that feeds it."""

    def __init__(
        self,
        sink: Any,
        name: str,
        stream: EventStream,
        *,
        retry: RetryPolicy,
        sink_timeout: float,
        clock: Clock,
        on_failure: Callable[[SinkWorker, BaseException, Sequence[Event]], None],
        on_dead: Callable[[DeadLetter], None],
    ) -> None:
        self.sink, self.name, self.stream = sink, name, stream
        self.delivery: Delivery = getattr(sink, "delivery", "at_least_once")
        self.inline = bool(getattr(sink, "inline", False))
        self._retry, self._sink_timeout, self._clock = retry, sink_timeout, clock
        self._on_failure, self._on_dead = on_failure, on_dead
        self._max_batch = min(getattr(sink, "max_batch", MAX_BATCH), MAX_BATCH)
        self._thread: SinkThread | None = None
        self._in_hand = 0  # events of the batch that is with the sink
        self.dead_lettered = 0
        self._cut = 0  # events that were with the sink when it was cut off: abandoned, whatever it did with them
        self._errors = 0
        self._last_error: str | None = None
        self._last_error_at: datetime | None = None
        self._last_success_at: datetime | None = None
        self.called_at: float | None = None
        self._state: SinkState = "waiting"
        self._waiters: list[tuple[int, asyncio.Event, asyncio.AbstractEventLoop]] = []
        self.task: asyncio.Task[None] | None = None
        self.started = False

    # ── the supervised shell: async, on the bus's loop ────────────────────────────────────────────

    async def run(self) -> None:
        """Feed the sink until the stream ends; returns when all is handled, flushed and closed."""
        try:
            await self.prepare()
            if hasattr(self.sink, "run"):
                await self._run_own_loop()
            elif not self.inline:
                while True:
                    batch = await self.stream.recv_many(self._max_batch)
                    await self._deliver(batch)
        except EndOfStream:
            pass
        finally:
            if not self.inline:
                await asyncio.shield(asyncio.ensure_future(self.finish()))

    async def prepare(self) -> None:
        self.started = True
        while (start := getattr(self.sink, "start", None)) is not None:
            try:
                await self._call(start)
                break
            except Exception as exc:
                self._failed(exc, ())
                if isinstance(exc, PermanentSinkError) or self._errors >= self._retry.tries:
                    break  # its batches will tell, one dead letter each
                await asyncio.sleep(self._retry.delay(self._errors))
        self._state = "idle"

    async def finish(self) -> None:
        """Flush and close the sink, once."""
        if self._state == "closed":
            return
        try:
            if self.started:
                await self.flush()
                close = getattr(self.sink, "aclose", None) or getattr(self.sink, "close", None)
                if close is not None:
                    await self._call(close)
        except Exception as exc:
            self._failed(exc, ())
        finally:
            self._state = "closed"
            self.stream.close()
            self.settled()
            if self._thread is not None:
                self._thread.stop()

    async def flush(self) -> None:
        flush = getattr(self.sink, "flush", None)
        if flush is not None:
            await self._call(flush)

    async def _run_own_loop(self) -> None:
        failures = 0
        while True:
            try:
                self._state = "busy"
                await self.sink.run(self.stream)
                if self.stream.closed:
                    return
                raise PermanentSinkError("run(stream) returned before the stream ended")
            except EndOfStream:
                return
            except Exception as exc:
                failures += 1
                self._failed(exc, ())
                if self.stream.closed or isinstance(exc, PermanentSinkError) or failures >= self._retry.tries:
                    self._state = "failed"
                    return
                await asyncio.sleep(self._retry.delay(failures))

    async def _deliver(self, batch: tuple[Event, ...]) -> None:
        self._in_hand = len(batch)
        try:
            first_at, failures = self._clock.now(), 0
            while True:
                try:
                    await self._call(self.sink.handle, batch)
                    self._success(len(batch))
                    return
                except Exception as exc:
                    failures += 1
                    self._failed(exc, batch)
                    if self.delivery == "at_most_once":
                        self._bury(batch, exc, failures, first_at)  # which of them arrived is unknown: no retry
                        return
                    if isinstance(exc, PermanentSinkError) or failures >= self._retry.tries:
                        if len(batch) == 1:
                            self._bury(batch, exc, failures, first_at)
                        else:
                            await self._one_by_one(batch, failures, first_at)
                        return
                    self._state = "retrying"
                    await asyncio.sleep(self._retry.delay(failures))
        finally:
            self._cut += self._in_hand  # 0, unless this delivery was cancelled
            self._in_hand = 0
            self._state = "idle"
            self.settled()

    async def _one_by_one(self, batch: tuple[Event, ...], failures: int, first_at: datetime) -> None:
        for event in batch:
            try:
                await self._call(self.sink.handle, (event,))
                self._success(1)
            except Exception as exc:
                self._failed(exc, (event,))
                self._bury((event,), exc, failures + 1, first_at)

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called_at = time.monotonic()
        self._state = "busy"
        try:
            if inspect.iscoroutinefunction(function):
                await function(*arguments)
            else:
                if self._thread is None:
                    self._thread = SinkThread(f"weavegraph-sink-{self.name}")
                result = await self._thread.call(function, *arguments)
                if inspect.isawaitable(result):
                    await result
        finally:
            self.called_at = None

    # ── the inline shell: sync, on the pump's thread ──────────────────────────────────────────────

    def pump(self) -> bool:
        """Hand what is ready to an inline sink; ``False`` if nothing was. Ends with ``EndOfStream``."""
        batch = self.stream._take_many(self._max_batch)
        if not batch:
            return False
        self._in_hand = len(batch)
        self.called_at = time.monotonic()
        try:
            self.sink.handle(batch)
            self._success(len(batch))
        except Exception as exc:
            now = self._clock.now()
            self._failed(exc, batch)
            self._bury(batch, exc, 1, now)
        finally:
            self.called_at = None
            self._in_hand = 0
            if self._state != "closed":
                self._state = "idle"
            self.settled()
        return True

    # ── the books ─────────────────────────────────────────────────────────────────────────────────

    def _success(self, count: int) -> None:
        self._last_success_at = self._clock.now()
        self._in_hand -= count

    def _bury(self, batch: Sequence[Event], error: BaseException, tries: int, first_at: datetime) -> None:
        self.dead_lettered += len(batch)
        self._in_hand -= len(batch)
        text, now = f"{type(error).__name__}: {error}", self._clock.now()
        for event in batch:
            self._on_dead(
                DeadLetter(event=event, sink=self.name, error=text, tries=tries, first_at=first_at, last_at=now)
            )

    def _failed(self, error: BaseException, batch: Sequence[Event]) -> None:
        self._errors += 1
        self._last_error = f"{type(error).__name__}: {error}"
        self._last_error_at = self._clock.now()
        self._on_failure(self, error, batch)

    @property
    def errors(self) -> int:
        return self._errors

    @property
    def position(self) -> int:
        """Everything up to here is handled, dead-lettered, filtered or lost."""
        return self.stream._position - self._in_hand

    def settled(self) -> None:
        """Tell those who wait for a position; from any thread."""
        position, closed = self.position, self._state in ("closed", "failed")
        for entry in tuple(self._waiters):
            upto, event, loop = entry
            if position >= upto or closed:
                self._waiters.remove(entry)
                loop.call_soon_threadsafe(event.set)

    async def wait_settled(self, upto: int) -> bool:
        """Wait until everything up to ``upto`` is settled; ``False`` if the sink ended before."""
        event = asyncio.Event()
        self._waiters.append((upto, event, asyncio.get_running_loop()))
        self.settled()
        await event.wait()
        return self.position >= upto

    def stats(self) -> SinkStats:
        with self.stream._hub._lock:
            stream, in_hand, dead, cut = self.stream._stats(), self._in_hand, self.dead_lettered, self._cut
        return SinkStats(
            name=self.name,
            s0=stream.s0,
            head=stream.head,
            position=stream.position - in_hand,
            delivered=stream.delivered - in_hand - dead - cut,
            filtered=stream.filtered,
            dead_lettered=dead,
            dropped=stream.dropped,
            buffered=stream.buffered + (0 if stream.closed else in_hand),
            abandoned=stream.abandoned + cut + (in_hand if stream.closed else 0),
            lag_seconds=stream.lag_seconds,
            distance_to_loss=stream.distance_to_loss,
        )

    def health(self) -> SinkHealth:
        called_at, state = self.called_at, self._state
        busy = 0.0 if called_at is None else time.monotonic() - called_at
        if called_at is not None and busy > self._sink_timeout:
            state = "stalled"
        return SinkHealth(
            name=self.name,
            delivery=self.delivery,
            state=state,
            stats=self.stats(),
            errors=self._errors,
            last_error=self._last_error,
            last_error_at=self._last_error_at,
            last_success_at=self._last_success_at,
            call_seconds=busy,
        )
