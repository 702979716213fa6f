"""One sink, supervised: its own cursor, its own books, retry and dead letters.

What a sink does, slow, hung or raising, changes neither ``emit`` nor another sink nor a run (contract S1). All that
happens to one is written once, as steps (``SinkWorker.life``); two shells carry them out: ``PumpedWorker`` for sync
sinks on a pump's thread, ``LoopWorker`` for async ones in a loop and thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from weavegraph.bus._retry import DeadLetter, RetryPolicy, as_error, describe
from weavegraph.bus._ring import INFINITE
from weavegraph.bus._stats import SinkStats
from weavegraph.bus._stream import YIELD_AFTER, EventStream
from weavegraph.bus._threads import LoopThread
from weavegraph.errors import EndOfStream, PermanentSinkError
from weavegraph.events import Event, View
from weavegraph.protocols import Clock, Delivery

__all__ = ["Cohort", "LoopWorker", "PumpedWorker", "SinkHealth", "SinkState", "SinkStream", "SinkWorker"]

SinkState: TypeAlias = Literal["waiting", "idle", "busy", "retrying", "stalled", "failed", "closed"]
MAX_BATCH = 1024


class Call(NamedTuple):
    """A step of a sink's life: call this."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


class Cut(Exception):
    """Sent into a life instead of a step's outcome: nobody waits for this sink any more."""


Step: TypeAlias = Call | float
"""A call, or seconds to wait; infinite: until something happens."""
Life: TypeAlias = Generator[Step, Exception | None, None]
Outcome: TypeAlias = Generator[Step, Exception | None, Exception | None]


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


class Cohort:
    """Sinks at one position that are fed together: a slice is read once, and the books of all follow from it."""

    __slots__ = ("handled_at", "handles", "position", "workers")

    def __init__(self, position: int) -> None:
        self.position = position
        """What all of them have handled; moved under the hub's lock."""
        self.handled_at: datetime | None = None
        self.workers: list[PumpedWorker] = []
        self.handles: list[Callable[[tuple[Event, ...]], Any]] = []  # of the sinks, in the same order

    def stop(self) -> int:
        return self.position


class SinkStream(EventStream):
    """A sink's cursor. Asking for more acknowledges what was taken before."""

    view: View | None = None  # what the sink may see, where that is less than all
    _viewed: tuple[Event, ...] | None = None  # the slice that was seen through it: each event once
    handed = 0  # events that the sink handled in cohorts which it has left
    _joined_at = 0
    acknowledged = 0
    asked_at: float | None = None
    on_ask: Callable[[], None] | None = None
    """For sinks that own their loop; the others tell themselves when they are done."""

    def join(self, cohort: Cohort) -> None:
        """Be fed with others from here on. Under the hub's lock."""
        self._joined_at, self._run = self._base, cohort

    def handed_together(self) -> int:
        """Events that the sink handled in cohorts, the present one included. Under the hub's lock."""
        return self.handed + (self._run.position - self._joined_at if isinstance(self._run, Cohort) else 0)

    def _settle(self) -> int:
        with self._hub._lock:
            self.handed = self.handed_together()
            return super()._settle()

    def _look_at_yourself(self) -> None:
        super()._look_at_yourself()
        self._special |= self.on_ask is not None or self.view is not None  # then every question for more is to be heard

    def see_as(self, view: View | None) -> None:
        """Hand out what ``view`` makes of events. Before the first is taken."""
        self.view = view
        self._look_at_yourself()

    def _poll(self) -> tuple[Event, ...] | Any:
        if self.on_ask is not None:
            self.acknowledged, self.asked_at = self._position, time.monotonic()
            self.on_ask()
        ready = super()._poll()
        if self.view is not None and type(ready) is tuple and self._slice is not self._viewed:
            self._slice = self._viewed = ready = tuple(map(self.view.see, self._slice))
        return ready


class SinkWorker:
    """What becomes of one sink. Each count has one writer, the thread that feeds the sink."""

    def __init__(
        self,
        sink: Any,
        name: str,
        stream: SinkStream,
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
        self._max_batch: int = min(getattr(sink, "max_batch", MAX_BATCH), MAX_BATCH)
        # Of the events that the stream handed out: how many are done with, and how. The rest is in the sink's hands.
        self._delivered = self.dead_lettered = 0
        self._abandoned = 0  # with the sink when it was cut off: whatever it did with them
        self._batch: tuple[Event, ...] = ()  # in the sink's hands
        self.errors = 0
        self._last_error: str | None = None
        self._last_error_at: datetime | None = None
        self._last_success_at: datetime | None = None
        self.called_at: float | None = None
        self._retrying = False
        self._begun = self._gave_up = False
        self._lock = threading.Lock()  # guards the requests, and how the worker ended
        self._requests: list[tuple[int, Future[bool]]] = []
        self.ended: Future[None] = Future()
        self._is_cut = self._tell_cut = False
        self._ended_well = False
        self.feeding = False  # a thread feeds it
        self.failed: tuple[tuple[Event, ...], Exception] | None = None  # a batch, and what it raised in the cohort

    # ── what happens to a sink, step by step ──────────────────────────────────────────────────────

    def life(self) -> Life:
        """Everything from ``start`` to ``close``; each step is answered with what it raised, or with ``None``."""
        try:
            yield from self._start()
            yield from self._feed()
        except (EndOfStream, Cut):
            pass
        yield from self._end()

    def _start(self) -> Life:
        self._begun = True
        start, failures = getattr(self.sink, "start", None), 0
        while start is not None and (error := (yield from self._do(Call(start)))) is not None:
            failures += 1
            self._failed(error, ())
            if isinstance(error, PermanentSinkError) or failures >= self._retry.tries:
                return  # its batches will tell, one dead letter each
            yield from self._pause(failures)

    def _feed(self) -> Life:
        while True:
            failed, self.failed = self.failed, None
            batch = self._take() if failed is None else failed[0]
            if batch:
                yield from self._deliver(batch, None if failed is None else failed[1])
            yield from self._answer(self.stream._position)
            if not batch and (self._waits_for_others() or not self._wanted()):
                yield math.inf

    def _take(self) -> tuple[Event, ...]:
        return self.stream._take_many(self._max_batch)

    def _waits_for_others(self) -> bool:
        """Whether it takes nothing more now though there is more."""
        return False

    def _deliver(self, batch: tuple[Event, ...], error: Exception | None = None) -> Life:
        """Hand the batch over; ``error``: what the sink raised when it was given the batch in its cohort."""
        self._batch = batch
        try:
            first_at, failures = self._clock.now(), 0
            if error is None:
                error = yield from self._do(Call(self.sink.handle, (batch,)))
            while error is not None:
                failures += 1
                self._failed(error, batch)
                if self.delivery == "at_most_once":
                    self._bury(batch, error, failures, first_at)  # which of them arrived is unknown: no retry
                    return
                if isinstance(error, PermanentSinkError) or failures >= self._retry.tries:
                    yield from self._give_up(batch, error, failures, first_at)
                    return
                yield from self._pause(failures)
                error = yield from self._do(Call(self.sink.handle, (batch,)))
            self._success(len(batch))
        finally:
            self._abandoned += len(self._batch)  # none, unless this delivery was cut
            self._batch = ()

    def _give_up(self, batch: tuple[Event, ...], error: Exception, failures: int, first_at: datetime) -> Life:
        """The last try failed: one event at a time, so that only the failing ones are dead-lettered."""
        if len(batch) == 1:
            self._bury(batch, error, failures, first_at)
            return
        for event in batch:
            again = yield from self._do(Call(self.sink.handle, ((event,),)))
            if again is None:
                self._success(1)
            else:
                self._failed(again, (event,))
                self._bury((event,), again, failures + 1, first_at)

    def _answer(self, upto: int) -> Life:
        """Tell those who wait until everything up to there is handled and flushed."""
        if not self._requests:
            return
        with self._lock:
            due = [future for wanted, future in self._requests if wanted <= upto]
        if due:
            error = yield from self._flush()
            self._resolve(due, error is None)

    def _flush(self) -> Outcome:
        flush = getattr(self.sink, "flush", None)
        error = None if flush is None else (yield from self._do(Call(flush)))
        if error is not None:
            self._failed(error, ())
        return error

    def _end(self) -> Life:
        """Flush and close, also what was cut off. A cut from here on ends a call that hangs, and no more."""
        self._take_cut()
        self.stream.close()
        error = None
        for name in ("flush", "aclose" if hasattr(self.sink, "aclose") else "close"):
            if (function := getattr(self.sink, name, None)) is not None:
                failed = yield Call(function)
                if failed is not None and not isinstance(failed, Cut):
                    self._failed(failed, ())
                    error = error or failed
        self.over(well=error is None and not self._gave_up)

    def over(self, *, well: bool) -> None:
        """Nothing more happens to this sink; whoever waits for it is told."""
        self.stream.close()
        with self._lock:
            self._ended_well = well and not self._is_cut
            requests, self._requests = self._requests, []
        for upto, future in requests:
            _settle(future, self._ended_well and upto <= self.stream._position)
        with contextlib.suppress(InvalidStateError):
            self.ended.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Feeding it is at an end by a fault that is not the sink's."""
        self._gave_up, self._last_error, self._last_error_at = True, describe(error), None
        self.over(well=False)

    def _pause(self, failures: int) -> Life:
        self._retrying = True
        try:
            yield from self._do(self._retry.delay(failures))
        finally:
            self._retrying = False

    def _do(self, step: Step) -> Outcome:
        outcome = yield step
        if isinstance(outcome, Cut):
            raise outcome
        return outcome

    def _wanted(self) -> bool:
        """Whether there is anything to do but wait."""
        return bool(self._requests) or self._tell_cut or self.failed is not None or self.stream._changed()

    # ── from other threads ────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Let the feeding thread look whether it is wanted."""
        raise NotImplementedError

    def flushed(self, upto: int) -> Future[bool]:
        """Becomes true when everything up to there is handled and flushed, false when it will not be."""
        future: Future[bool] = Future()
        with self._lock:
            if self.ended.done() or self._is_cut:
                future.set_result(self._ended_well and upto <= self.stream._position)
                return future
            self._requests.append((upto, future))
        future.add_done_callback(self._forget)
        self.wake()
        return future

    def _forget(self, future: Future[bool]) -> None:
        with self._lock:
            self._requests = [request for request in self._requests if request[1] is not future]

    def leave(self) -> None:
        """Take nothing that is emitted from now on, handle what is there, and end."""
        stream = self.stream
        with stream._hub._lock:
            stream._end_at(min(stream._stop_at, stream._ring.head))
        self.wake()

    def cut(self) -> None:
        """End at once; what is not handled is abandoned, and what a call of the sink still does no longer counts."""
        with self._lock:
            if self._is_cut or self.ended.done():
                return
            self._is_cut = self._tell_cut = True
            requests, self._requests = self._requests, []
        self.stream.close()
        for _, future in requests:
            _settle(future, False)
        self.wake()

    def _take_cut(self) -> bool:
        told, self._tell_cut = self._tell_cut, False
        return told

    # ── the books ─────────────────────────────────────────────────────────────────────────────────

    def _success(self, count: int) -> None:
        self._last_success_at = self._clock.now()
        if self._is_cut:
            self._abandoned += count
        else:
            self._delivered += count
        self._batch = self._batch[count:]

    def _bury(self, batch: Sequence[Event], error: BaseException, tries: int, first_at: datetime) -> None:
        self.dead_lettered += len(batch)
        self._batch = self._batch[len(batch) :]
        text, now = describe(error), self._clock.now()
        for event in batch:
            self._on_dead(
                DeadLetter(event=event, sink=self.name, error=text, tries=tries, first_at=first_at, last_at=now)
            )

    def _failed(self, error: BaseException, batch: Sequence[Event]) -> None:
        self.errors += 1
        self._last_error, self._last_error_at = describe(error), self._clock.now()
        self._on_failure(self, error, batch)

    def _resolve(self, futures: Sequence[Future[bool]], well: bool) -> None:
        for future in futures:
            _settle(future, well)  # which takes it off the requests

    def stats(self) -> SinkStats:
        # First what is done, then what was handed out: what happens in between shows as still in hand.
        delivered, dead, cut, batch = self._delivered, self.dead_lettered, self._abandoned, self._batch
        with self.stream._hub._lock:
            stream = self.stream._stats()
            delivered += self.stream.handed_together()
        if self._runs_itself():
            delivered, batch = stream.delivered, ()
        in_hand = stream.delivered - delivered - dead - cut
        lag_seconds = stream.lag_seconds
        if in_hand and batch and not stream.closed:
            lag_seconds = max(0.0, (self._clock.now() - batch[0].timestamp).total_seconds())
        return SinkStats(
            name=self.name,
            s0=stream.s0,
            head=stream.head,
            position=stream.position - in_hand,
            delivered=delivered,
            filtered=stream.filtered,
            dead_lettered=dead,
            dropped=stream.dropped,
            buffered=stream.buffered + (0 if stream.closed and self._is_cut else in_hand),
            abandoned=stream.abandoned + cut + (in_hand if stream.closed and self._is_cut else 0),
            lag_seconds=lag_seconds,
            distance_to_loss=stream.distance_to_loss,
        )

    def _runs_itself(self) -> bool:
        return False

    def _call_began(self) -> float | None:
        return self.called_at

    def _succeeded_at(self) -> datetime | None:
        run = self.stream._run
        return run.handled_at or self._last_success_at if isinstance(run, Cohort) else self._last_success_at

    def _state(self, busy: float) -> SinkState:
        if self._gave_up:
            return "failed"
        if self.ended.done():
            return "closed"
        if busy:
            return "stalled" if busy > self._sink_timeout else "busy"
        if self._retrying:
            return "retrying"
        return "idle" if self._begun else "waiting"

    def health(self) -> SinkHealth:
        began = self._call_began()
        busy = 0.0 if began is None else max(time.monotonic() - began, 1e-9)
        return SinkHealth(
            name=self.name,
            delivery=self.delivery,
            state=self._state(busy),
            stats=self.stats(),
            errors=self.errors,
            last_error=self._last_error,
            last_error_at=self._last_error_at,
            last_success_at=self._succeeded_at(),
            call_seconds=busy,
        )


class PumpedWorker(SinkWorker):
    """A sync sink. A pump's thread carries out its steps; a call that hangs holds that thread only."""

    pump: Any = None  # the Pump that feeds it, set by it
    _goal: int | None = None  # where the pump lets it meet others, to be fed with them from there
    _due = 0.0
    _at: Step = 0.0
    _life: Life | None = None
    _runner: asyncio.Runner | None = None

    def wake(self) -> None:
        if self.pump is not None:
            self.pump.wake()

    def _call_began(self) -> float | None:
        if self.called_at is not None or self.pump is None:
            return self.called_at
        began: float | None = self.pump.call_began(self)
        return began

    def _take(self) -> tuple[Event, ...]:
        most = self._max_batch if self._goal is None else min(self._max_batch, self._goal - self.stream._position)
        return self.stream._take_many(most) if most > 0 else ()

    def _waits_for_others(self) -> bool:
        return self._goal is not None and self.stream._position >= self._goal and not self._tell_cut

    def may_join(self) -> bool:
        """Whether it can be fed with others: nothing about it is special, and nobody wants anything of it."""
        stream = self.stream
        usual = not stream._special and stream._limit >= INFINITE and self._max_batch == MAX_BATCH
        return usual and not (self._requests or self._tell_cut or self.failed)

    def is_ready(self, position: int) -> bool:
        """Whether it waits at that position to be fed with others. Under the hub's lock."""
        return self._at == math.inf and self.stream._base == position and self.may_join()

    def leave_cohort(self, count: int = 0, failed: tuple[tuple[Event, ...], Exception] | None = None) -> None:
        """Go on alone: with ``count`` events handled beyond the cohort's position, or with a batch that failed."""
        stream = self.stream
        with stream._hub._lock:
            if isinstance(stream._run, Cohort):  # else it was closed meanwhile, and its books with it
                self._last_success_at = self._succeeded_at()
                stream._settle()
                stream.handed += count
                stream._base += count + (len(failed[0]) if failed else 0)
                self.failed = failed

    def step(self, goal: int | None = None) -> float:
        """Carry out a step; how many seconds the next can wait. Ends with ``EndOfStream``.

        ``goal``: take nothing beyond that position, where others are, or will be.
        """
        self._goal = goal if goal is not None and self.may_join() else None
        if self._life is None:
            self._life, outcome = self.life(), None
        elif isinstance(self._at, Call):
            outcome = self._call(self._at)
        elif self._at == math.inf and not self._wanted():
            return math.inf
        elif not self._tell_cut and self._at != math.inf and (left := self._due - time.monotonic()) > 0:
            return left
        else:
            outcome = None
        if self._take_cut():
            outcome = Cut()
        try:
            self._at = self._life.send(outcome)
        except StopIteration:
            if self._runner is not None:
                self._runner.close()
            raise EndOfStream from None
        if isinstance(self._at, Call) or self._at == math.inf:
            return 0.0
        self._due = time.monotonic() + self._at
        return self._at

    def _call(self, step: Call) -> Exception | None:
        self.called_at = time.monotonic()
        try:
            result = step.function(*step.arguments)
            if result is not None:
                self.returned(result)
            return None
        except BaseException as raised:
            return as_error(raised)
        finally:
            self.called_at = None

    def returned(self, result: Any) -> None:
        """What a plain function gave to await is run on this thread, unless others wait for the thread."""
        if not inspect.isawaitable(result):
            return
        if self.inline:
            if inspect.iscoroutine(result):
                result.close()
            raise PermanentSinkError("an inline sink's methods must be plain functions; drop inline = True")
        if self._runner is None:
            self._runner = asyncio.Runner()
        self._runner.run(_completed(result))


class LoopWorker(SinkWorker):
    """An async sink, in an event loop on a thread of its own, so that one that blocks its thread blocks no other."""

    def __init__(self, *arguments: Any, runs_itself: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._own_loop = runs_itself
        self._thread = LoopThread(f"weavegraph-sink-{self.name}")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked: asyncio.Event | None = None

    def begin(self) -> None:
        self._thread.submit(self._live())

    def wake(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended
                loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """In the sink's loop: somebody asks something."""
        if self._tell_cut and self._task is not None:
            self._task.cancel()
        if self._asked is not None:
            self._asked.set()
        self.stream._unpark()

    async def _live(self) -> None:
        self._loop, self._task = self.stream._here(), asyncio.current_task()
        beside: asyncio.Task[None] | None = None
        if self._own_loop:
            self._asked = asyncio.Event()
            self.stream.on_ask = self._asked.set
            self.stream._look_at_yourself()
            beside = asyncio.ensure_future(self._answer_beside())
        try:
            await self._carry_out(self.life())
        except Exception as exc:
            self.fail(exc)
        finally:
            if beside is not None:
                beside.cancel()
            self._thread.stop(0.0)

    async def _carry_out(self, life: Life, *, beside: bool = False) -> None:
        outcome: Exception | None = None
        while True:
            try:
                step = life.send(outcome)
            except StopIteration:
                return
            outcome = await self._step(step, beside)

    async def _step(self, step: Step, beside: bool) -> Exception | None:
        try:
            if not beside and self._take_cut():
                return Cut()
            if isinstance(step, Call):
                await self._call(step)
                if time.monotonic() - self.stream._turn_at > YIELD_AFTER:
                    await self.stream._yield()  # let those who ask be heard (contract R7)
            elif step < math.inf:
                await asyncio.sleep(step)
            elif not self._wanted():
                await self.stream._park()
            return None
        except GeneratorExit:
            raise
        except BaseException as raised:
            task = asyncio.current_task()
            if isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling():
                if beside:
                    raise
                while task.uncancel():
                    pass
                self._take_cut()
                return Cut()
            return as_error(raised)

    async def _call(self, step: Call) -> None:
        self.called_at = time.monotonic()
        try:
            result = step.function(*step.arguments)
            if inspect.isawaitable(result):
                await result
        finally:
            self.called_at = None

    # ── sinks with run(stream) ────────────────────────────────────────────────────────────────────

    def _feed(self) -> Life:
        if not self._own_loop:
            yield from super()._feed()
        failures = 0
        while True:
            error = yield from self._do(Call(self.sink.run, (self.stream,)))
            if isinstance(error, EndOfStream) or (error is None and self.stream.closed):
                return
            failures += 1
            error = error or PermanentSinkError("run(stream) returned before the stream ended")
            self._failed(error, ())
            if self.stream.closed or isinstance(error, PermanentSinkError) or failures >= self._retry.tries:
                self._gave_up = True
                return
            yield from self._pause(failures)

    async def _answer_beside(self) -> None:
        """While the sink runs its own loop, its questions for more are what it has acknowledged."""
        assert self._asked is not None
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self._carry_out(self._answer(self.stream.acknowledged), beside=True)

    def _runs_itself(self) -> bool:
        return self._own_loop

    def _call_began(self) -> float | None:
        if not self._own_loop:
            return self.called_at
        return None if self.stream._waiting or not self.stream.lag else self.stream.asked_at


async def _completed(result: Any) -> Any:
    return await result


def _settle(future: Future[bool], result: bool) -> None:
    with contextlib.suppress(InvalidStateError):  # whoever waited gave up
        future.set_result(result)
