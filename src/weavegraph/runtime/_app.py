"""An app: a compiled graph, its configuration, and the bus that all its runs share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec

from weavegraph.bus import EventBus, EventStream, LoopThread, OnLag, Overflow, ReplayHub
from weavegraph.checkpoint import open_checkpointer
from weavegraph.clock import SystemClock
from weavegraph.config import EventBusConfig, RuntimeConfig
from weavegraph.errors import (
    AppClosedError,
    BlockingInLoopError,
    CheckpointConflictError,
    ConfigError,
    InvalidPositionError,
    NoRunningLoopError,
    RunNotFoundError,
    SessionBusyError,
    SessionError,
    SessionNotFoundError,
    TooManyRunsError,
)
from weavegraph.events import STREAM_END_SCOPE, EventFilter, LLMStreamingEvent, Predicate, check_id, clean_text
from weavegraph.graph import CompiledGraph, GraphMetadata
from weavegraph.protocols import Checkpointer, CheckpointPage, Clock, EventLog
from weavegraph.runtime._cancel import CancelToken
from weavegraph.runtime._execution import OPEN, SINK_GRACE, Execution
from weavegraph.runtime._run import InvocationHandle
from weavegraph.sinks import make_sink
from weavegraph.state import Checkpoint, Values, isolate, revive, weigh

__all__ = ["App", "StateSnapshot", "answered", "checked_options"]

S = TypeVar("S")
T = TypeVar("T")


class StateSnapshot(msgspec.Struct, Generic[S], frozen=True):
    """A session's state at a checkpoint."""

    values: S
    checkpoint: Checkpoint

    @property
    def next(self) -> tuple[str, ...]:
        """Nodes that run next; empty when the run is over."""
        return tuple(task.node for task in self.checkpoint.frontier)


class App(Generic[S]):
    """Starts runs, any number at once, each watchable alone or all together. Made by ``GraphBuilder.compile``.

    The bus is made on first use and shared by all runs. ``async with app`` (or ``await app.aclose()``) drains its
    sinks at the end; without it the library drains at interpreter exit, for at most two seconds. Async methods may be
    called from several loops at once, the ``_sync`` ones from any thread.
    """

    def __init__(self, graph: CompiledGraph, config: RuntimeConfig) -> None:
        self.graph, self.config = graph, config
        self._clock: Clock = config.run_clock or SystemClock()
        self._lock = threading.Lock()
        self._bus: EventBus | None = None
        self._live: dict[str, Execution] = {}  # by run id
        self._sessions: dict[str, Execution] = {}  # those that have an open run, by session id
        self._resuming: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()  # by loop, session
        self._thread = LoopThread("weavegraph-runs")  # runs of the _sync calls, recorders, readers of the log
        self._loads = LoopThread("weavegraph-loads")  # checkpoints that are needed where nothing can be awaited
        self._log: EventLog | None = opened_log(config.log)
        self._checkpointer: Checkpointer | None = open_checkpointer(config.checkpointer)
        self._saves_by_operation = saves_by_operation(self._checkpointer)
        self._one_file = self._saves_by_operation and share_a_file(self._log, self._checkpointer)
        self._is_open = False  # log and checkpointer
        self._closed = False

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    @property
    def event_bus(self) -> EventBus:
        """The bus of all runs of this app."""
        with self._lock:
            if self._bus is None:
                self._bus = EventBus.from_config(
                    self._bus_config(), clock=self._clock, redact_for=self.config.redact_for
                )
                self._bus._warns = False
                if self.config.ids is not None:
                    self._bus._hub._epoch = self._new_id("epoch")
            return self._bus

    def _bus_config(self) -> EventBusConfig:
        """With the sinks made, and the remote ones behind outboxes where the log lasts."""
        config = self.config.event_bus
        sinks = [make_sink(sink) for sink in config.sinks]
        if self._log is not None:
            from weavegraph.log import with_outboxes

            sinks = with_outboxes(self._log, sinks)
        return msgspec.structs.replace(config, sinks=tuple(sinks))

    @property
    def checkpointer(self) -> Checkpointer | None:
        """What remembers this app's sessions, if anything does."""
        return self._checkpointer

    @property
    def log(self) -> EventLog | None:
        """What keeps the events of this app's runs, if anything does."""
        return self._log

    def metadata(self) -> GraphMetadata:
        """What identifies the graph; ``app.config.fingerprint`` identifies the configuration."""
        return self.graph.metadata()

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        return self.graph.to_mermaid()

    def to_dot(self) -> str:
        """The graph in the DOT language."""
        return self.graph.to_dot()

    def to_ascii(self) -> str:
        """The graph as lines of ASCII, one an edge, for terminals."""
        return self.graph.to_ascii()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Notebooks show the graph: as Mermaid where they can draw it, else as text."""
        drawing = self.to_mermaid()
        return {"text/plain": repr(self), "text/markdown": f"```mermaid\n{drawing}```", "text/vnd.mermaid": drawing}

    def __repr__(self) -> str:
        return f"<App {self.graph.name!r} nodes={len(self.graph.nodes)} live={len(self._live)}>"

    # ── starting ──────────────────────────────────────────────────────────────────────────────────

    def start(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        session_id: str | None = None,
        run_id: str | None = None,
        deps: Any = None,
        sinks: Sequence[Any] = (),
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        tags: Iterable[str] = (),
    ) -> InvocationHandle[S]:
        """Start a run in the running loop; returns its handle at once.

        Args:
            state: the input: a mapping of state keys, or an instance of the state's type. In a session that exists it
                is merged into what the session holds.
            session_id: the lineage of state to go on with. A checkpointer keeps it; without one it is a name for
                watchers only, and nothing of the state is kept.
            run_id: its id, 1 to 128 of ``A-Z a-z 0-9 _ . : -``; random when not given.
            deps: whatever nodes need that is no state: clients, pools, settings; ``ctx.deps``.
            sinks: of this run only; they are drained when it ends.
            cancel: a token that stops the run; a child of it is what nodes see.
            timeout: seconds that the run may take; then it is cancelled with the reason ``deadline``.
            tags: words for whoever watches, in the run's first event and ``ctx.tags``.

        Raises:
            NoRunningLoopError: there is no loop here. StateError: ``state`` has unknown keys, or lacks some.
            SessionBusyError, TooManyRunsError, RunExistsError, AppClosedError.

        A log or checkpointer that cannot be opened fails the run before any node: ``join`` raises what it says.
        """
        loop = _running_loop()
        graph, known = self.graph, session_id is not None
        wanted = checked_options(cancel, timeout, tags, sinks)
        given = graph.schema.as_update(state, "the input")
        if not known or self.checkpointer is None:
            graph.schema.initial(given)  # what is wrong with it is told here, before anything started
        else:
            graph.schema.check_keys(given, "the input")
        execution = self._open(
            session_id, run_id, attempt=1, deps=deps, cancel=cancel, tags=wanted, checkpointer=self.checkpointer
        )
        self._begin(execution, sinks, given)

        async def work() -> None:
            await execution.begin(given, known=known)
            await execution.to_the_end()

        execution.launch(loop, work(), self.config.timeout if timeout is None else timeout)
        return InvocationHandle(execution)

    def resume(
        self,
        session_id: str,
        answer: Any = None,
        *,
        deps: Any = None,
        sinks: Sequence[Any] = (),
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        tags: Iterable[str] = (),
    ) -> InvocationHandle[S]:
        """Go on with a session's run where it stopped: paused with a question, interrupted, failed, or cut by a crash.

        The run's next attempt re-runs only what had not finished in its open step. ``answer`` goes to the question
        that it waits for; of several open questions, give a mapping from their ids to answers.

        Raises:
            SessionNotFoundError: the checkpointer knows no such session. SessionError: its run is over, there is no
                checkpointer, or the answer does not fit. SessionBusyError: it is running here. LogError: log or
                checkpointer cannot be opened; the session stays as it is.
        """
        _running_loop()
        checked_options(cancel, timeout, tags, sinks)
        check_id("session_id", session_id)
        known = self._wait(self._last_known(self._needs_checkpointer(), session_id))
        return self._go_on(known, answer, deps=deps, sinks=sinks, cancel=cancel, timeout=timeout, tags=tags)

    async def resume_async(self, session_id: str, answer: Any = None, **options: Any) -> InvocationHandle[S]:
        """``resume`` that lets the loop turn while the checkpoint is read; for servers. Takes the same options.

        Of two at once for one session, the second waits for the first, and is then told that the session is busy.

        *Cancellation*: a call that is cancelled has started nothing.
        """
        key = id(_running_loop()), check_id("session_id", session_id)
        held = self._resuming.setdefault(key, asyncio.Lock())
        async with held:
            known = await self._last_known(self._needs_checkpointer(), session_id)
            return self._go_on(known, answer, **options)

    def _go_on(
        self,
        known: Known,
        answer: Any,
        *,
        deps: Any = None,
        sinks: Sequence[Any] = (),
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        tags: Iterable[str] = (),
    ) -> InvocationHandle[S]:
        """Start the next attempt of a run that stands there."""
        loop, wanted = _running_loop(), checked_options(cancel, timeout, tags, sinks)
        checkpoint = known.checkpoint
        over = not checkpoint.frontier and checkpoint.status not in ("running", "cancelled", "failed")
        if over and not known.died:  # else: killed after its last checkpoint, before its terminal event
            raise SessionError(f"session {checkpoint.session_id!r} has no run to resume: start one with app.start(…)")
        answers = answered(checkpoint, answer)
        execution = self._reopen(known, deps, cancel, wanted, self.checkpointer)
        execution.restore(checkpoint, answers)
        self._begin(execution, sinks, ())
        execution.launch(loop, execution.to_the_end(), self.config.timeout if timeout is None else timeout)
        return InvocationHandle(execution)

    def _reopen(
        self, known: Known, deps: Any, cancel: CancelToken | None, tags: tuple[str, ...],
        checkpointer: Checkpointer | None, *, aside: bool = False,
    ) -> Execution:  # fmt: skip
        """The next attempt of a run; one that died without a word is given its end first."""
        checkpoint = known.checkpoint
        gone = [task.node for task in checkpoint.frontier if task.node not in self.graph.nodes]
        if gone:
            names = ", ".join(map(repr, gone))
            raise SessionError(
                f"session {checkpoint.session_id!r} stands before {names}, which this graph lacks: "
                f"another graph saved it (fingerprint {checkpoint.fingerprint}); add the nodes, or begin anew"
            )
        return self._open(
            checkpoint.session_id, checkpoint.run_id, attempt=known.attempt + 1, after=known.position, died=known.died,
            cut=known.cut, deps=deps, cancel=cancel, tags=tags, checkpointer=checkpointer,
            iterative=checkpoint.iterative, aside=aside,
        )  # fmt: skip

    async def _end_if_died(self, checkpoint: Checkpoint) -> None:
        """A run that was killed between its last checkpoint and its terminal event gets that from an attempt that runs
        nothing, before the session's next run begins (contract O3)."""
        if self._log is None or self.event_bus.knows(checkpoint.run_id):
            return
        known = await self._last_known(self._needs_checkpointer(), checkpoint.session_id)
        if known.died:
            execution = self._reopen(known, None, None, (), None, aside=True)
            execution.restore(known.checkpoint, {})
            self._begin(execution, (), ())
            await execution.end(known.checkpoint.status)

    def _open(
        self,
        session_id: str | None,
        run_id: str | None,
        *,
        attempt: int,
        after: int = 0,
        deps: Any,
        cancel: CancelToken | None,
        tags: tuple[str, ...],
        checkpointer: Checkpointer | None,
        died: bool = False,
        cut: Iterable[LLMStreamingEvent] = (),
        iterative: bool = False,
        aside: bool = False,
    ) -> Execution:
        """An attempt that is known to everybody, and has not begun; ``aside``: its session and slot are another's."""
        bus = self.event_bus
        session = check_id("session_id", session_id) if session_id is not None else self._new_id("session")
        run = check_id("run_id", run_id) if run_id is not None else self._new_id("run")
        with self._lock:
            if self._closed:
                raise AppClosedError
            if not aside and self.config.max_runs is not None and len(self._live) >= self.config.max_runs:
                raise TooManyRunsError(self.config.max_runs)
            held = self._sessions.get(session)
            if not aside and held is not None and (attempt == 1 or held.status == "running"):
                raise SessionBusyError(session, held.lane.run_id)
            lane = bus.open_lane(run, session, attempt=attempt - 1 if died else attempt, after=after)
            token = CancelToken() if cancel is None else cancel.child()
            execution = Execution(
                self, lane, token, deps=deps, tags=tags, checkpointer=checkpointer, iterative=iterative, died=died,
                cut=cut,
            )  # fmt: skip
            self._live[run] = execution
            if not aside:
                self._sessions[session] = execution
        return execution

    def _begin(self, execution: Execution, sinks: Sequence[Any], inputs: Iterable[str]) -> None:
        """Write the first event, with whoever is to see it in place."""
        try:
            for sink in sinks:
                execution.guards.append(self.event_bus.add_sink(sink, lane=execution.lane))
            execution.announce(inputs)
        except BaseException as exc:
            execution.finish("failed", exc, None)
            for guard in execution.guards:
                self._thread.submit(guard.remove(1.0))
            raise
        if execution.recorder is not None:
            self._thread.submit(execution.recorder.run())

    def _ended(self, execution: Execution) -> None:
        """Its attempt is over: a paused run keeps its session busy while it can be resumed."""
        with self._lock:
            if self._live.get(execution.lane.run_id) is execution:
                del self._live[execution.lane.run_id]
            session = execution.lane.session_id
            waits = execution.status in OPEN and execution.checkpointer is not None
            if not waits and self._sessions.get(session) is execution:
                del self._sessions[session]

    def _leave(self, execution: Execution) -> None:
        """Its session is free for the next attempt."""
        with self._lock:
            if self._sessions.get(execution.lane.session_id) is execution:
                del self._sessions[execution.lane.session_id]

    def _new_id(self, kind: str) -> str:
        if self.config.ids is None:
            return os.urandom(16).hex()
        return check_id(f"{kind} id", self.config.ids(kind))

    # ── the invoke family: all of it is start, watched and waited for in different ways ──────────────

    async def invoke(self, state: S | Mapping[str, Any] | None = None, **options: Any) -> S:
        """Run to the end and return the final state; takes the options of ``start``.

        A run that pauses with a question returns its state so far; who expects questions looks at ``run.status``
        (``run = app.start(…)``).

        *Cancellation*: cancelling this call cancels the run, and waits for it.

        Raises:
            The failing node's own exception; otherwise as ``start`` and ``run.join``.
        """
        async with self.start(state, **options) as run:
            return await run

    def invoke_sync(self, state: S | Mapping[str, Any] | None = None, **options: Any) -> S:
        """``invoke`` for scripts and notebooks: runs on a background loop of the app, also where a loop is running.

        Ctrl-C cancels the run and is raised.
        """
        with self.stream_sync(state, **options) as run:
            return run.result()

    async def invoke_streaming(
        self, state: S | Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[InvocationHandle[S], EventStream]:
        """Start a run, and a stream of its events from the first: ``run, events = await app.invoke_streaming(state)``.

        ::

            run, events = await app.invoke_streaming({"topic": "tea"})
            async for event in events:
                print(event)
            state = await run

        Dropping the handle or the stream leaves the run alone; ``run.cancel()`` stops it. For threads: ``stream_sync``.
        """
        run = self.start(state, **options)
        return run, run.events()

    def stream(self, state: S | Mapping[str, Any] | None = None, **options: Any) -> InvocationHandle[S]:
        """``async with app.stream(state) as run``: a run that does not outlive its block; cancelled if left early."""
        return self.start(state, **options)

    def stream_sync(self, state: S | Mapping[str, Any] | None = None, **options: Any) -> InvocationHandle[S]:
        """``with app.stream_sync(state) as run``: the same for plain threads; iterate ``run.blocking()``.

        ::

            with app.stream_sync({"topic": "tea"}) as run:
                for event in run.blocking():
                    print(event)
                state = run.result()
        """
        return self._on_thread(functools.partial(self.start, state, **options))

    def resume_sync(self, session_id: str, answer: Any = None, **options: Any) -> InvocationHandle[S]:
        """``resume`` for plain threads; use it like ``stream_sync``."""
        return self._on_thread(functools.partial(self.resume, session_id, answer, **options))

    def _on_thread(self, start: Callable[[], InvocationHandle[S]]) -> InvocationHandle[S]:
        async def begin() -> InvocationHandle[S]:
            return start()

        if asyncio._get_running_loop() is not None and asyncio._get_running_loop() is self._thread.loop:
            raise BlockingInLoopError  # a node of a run that was started so: it would wait for itself
        run = self._thread.submit(begin()).result()
        run._own_loop = self._thread.loop
        return run

    async def invoke_with_channel(
        self, state: S | Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[S, EventStream]:
        """Run to the end; the final state, and a stream that replays the run's events. The blueprint's older style."""
        run = self.start(state, **options)
        events = run.events()
        async with run:
            return await run, events

    async def invoke_with_sinks(self, state: S | Mapping[str, Any] | None, sinks: Sequence[Any], **options: Any) -> S:
        """Run to the end with sinks that get this run's events only; they have taken them all when this returns."""
        return await self.invoke(state, sinks=sinks, **options)

    def event_stream(
        self,
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        after: int | None = None,
        filter: EventFilter | Predicate | None = None,
        capacity: int | None = None,
        overflow: Overflow = "drop_oldest",
        on_lag: OnLag = "notice",
        name: str | None = None,
        follow: bool = False,
    ) -> EventStream:
        """Watch all runs of this app, one session, or one run; before, during and after.

        ::

            events = app.event_stream()              # in a coroutine
            async for event in events: ...

            for event in app.event_stream(run_id="r1").blocking():   # in a thread
                print(event)

        Args:
            run_id: one run; if it has not started, the stream waits for it.
            after: a bus position, or with ``run_id`` a ``run_seq``; 0 from the first that is held. ``None``: live
                from now; with ``run_id`` from the run's start. With a log, what memory forgot comes from there, also
                of runs of other processes and earlier ones.
            filter, capacity, overflow, on_lag, name: as of ``EventHub.subscribe``. What is read from a log is never
                lost to a slow reader, so there ``capacity`` and ``overflow`` have nothing to decide.
            follow: with ``run_id``, go on when the run pauses or is interrupted.

        A stream of everything or of a session ends when the app closes.

        Raises:
            RunNotFoundError: the run is over, and its events are no longer kept.
            InvalidPositionError: ``after`` is no position here.
        """
        bus = self.event_bus
        if run_id is not None:
            position = 0 if after is None else after
            lane = bus.lane(run_id)
            if self._log is not None and (lane is None or not lane.holds(position)):
                return self._from_log(self._log, run_id, position, filter, on_lag, name, follow)
            return bus.awaited_lane(run_id).subscribe(
                after=position, filter=filter, capacity=capacity, overflow=overflow, on_lag=on_lag, name=name,
                follow=follow,
            )  # fmt: skip
        if session_id is not None:
            wanted, inner = EventFilter(session_id=session_id), filter
            filter = wanted if inner is None else (lambda event: wanted(event) and inner(event))
        return bus.subscribe(
            after=after, filter=filter, capacity=capacity, overflow=overflow, on_lag=on_lag, name=name,
            unbounded=session_id is not None and capacity is None,
        )  # fmt: skip

    def run(self, run_id: str) -> InvocationHandle[S]:
        """Another handle of a run that is live here, by its id.

        Raises:
            RunNotFoundError: no such run is live in this app. ``event_stream(run_id=…)`` watches any.
        """
        with self._lock:
            execution = self._live.get(run_id)
        if execution is None:
            raise RunNotFoundError(run_id)
        return InvocationHandle(execution, asked=True)

    def runs(self) -> tuple[InvocationHandle[S], ...]:
        """Handles of the runs that are live here."""
        with self._lock:
            live = tuple(self._live.values())
        return tuple(InvocationHandle(execution, asked=True) for execution in live)

    def _from_log(
        self,
        log: EventLog,
        run_id: str,
        after: int,
        filter: EventFilter | Predicate | None,
        on_lag: OnLag,
        name: str | None,
        follow: bool,
    ) -> EventStream:
        """A run's past from the log, and then its present: of this process or another, also after that one died."""
        check_id("run_id", run_id)
        if type(after) is not int or after < 0:
            raise InvalidPositionError(after, 0)
        hub = ReplayHub(run_id, after)
        stream = hub.stream(filter, on_lag, name or f"log of {run_id}")

        async def last() -> int:
            return await log.last_position(run_id)

        self._thread.submit(hub.feed(log.follow(run_id, after), follow=follow, last=last))
        return stream

    # ── sessions ──────────────────────────────────────────────────────────────────────────────────

    async def get_state(self, session_id: str, number: int | None = None) -> StateSnapshot[S]:
        """A session's state at its latest checkpoint, or at that number; a copy."""
        checkpointer = self._needs_checkpointer()
        found = await (checkpointer.latest(session_id) if number is None else checkpointer.get(session_id, number))
        if found is None:
            raise SessionNotFoundError(session_id)
        found = revive(self.graph.schema, found)
        values: S = self.graph.schema.output(Values.of(found.values, found.versions))
        return StateSnapshot(values, found)

    async def history(self, session_id: str, **query: Any) -> CheckpointPage:
        """A session's checkpoints, newest first; takes the query of ``Checkpointer.history``. Do not change them."""
        page = await self._needs_checkpointer().history(session_id, **query)
        return CheckpointPage(tuple(revive(self.graph.schema, each) for each in page.checkpoints), page.next_before)

    async def update_state(
        self, session_id: str, update: Mapping[str, Any], *, expected: int | None = None
    ) -> StateSnapshot[S]:
        """Merge ``update`` into a session's state, by the reducers, as a checkpoint of its own.

        Args:
            expected: the number of the checkpoint that the update is based on.

        Raises:
            CheckpointConflictError: the session is at another number. SessionBusyError: it is running here.
        """
        checkpointer = self._needs_checkpointer()
        with self._lock:
            held = self._sessions.get(session_id)
        if held is not None and held.status == "running":
            raise SessionBusyError(session_id, held.lane.run_id)
        latest = await checkpointer.latest(session_id)
        if latest is None:
            raise SessionNotFoundError(session_id)
        if expected is not None and expected != latest.number:
            raise CheckpointConflictError(session_id, expected, latest.number)
        schema = self.graph.schema
        latest = revive(schema, latest)
        given = schema.as_update(update, "the update")
        values, changed = schema.merge(Values.of(latest.values, latest.versions), [("update_state", given.items())])
        output: S = schema.output(values)  # what the state's type refuses is not saved
        saved = msgspec.structs.replace(
            latest,
            number=latest.number + 1,
            values=values.values,
            versions=values.versions,
            created_at=self._clock.now(),
            ran_nodes=(),
            skipped_nodes=(),
            updated_keys=changed,
            parent=latest.number,
        )
        await checkpointer.save(saved)
        return StateSnapshot(output, saved)

    async def fork(self, session_id: str, new_session_id: str | None = None, *, number: int | None = None) -> str:
        """A new session that stands where this one stood at ``number`` (default: the latest); returns its id.

        ``app.resume(new_id)`` goes on from there if steps were left, as a run of its own.
        """
        return await self._fork(self._needs_checkpointer(), session_id, new_session_id, number)

    async def _fork(
        self, checkpointer: Checkpointer, session_id: str, new_session_id: str | None, number: int | None
    ) -> str:
        origin = await (checkpointer.latest(session_id) if number is None else checkpointer.get(session_id, number))
        if origin is None:
            raise SessionNotFoundError(session_id)
        new = check_id("session_id", new_session_id) if new_session_id is not None else self._new_id("session")
        await checkpointer.save(
            msgspec.structs.replace(
                origin,
                session_id=new,
                number=1,
                run_id=self._new_id("run"),
                attempt=0,
                run_seq=0,
                status="interrupted" if origin.frontier else "completed",
                created_at=self._clock.now(),
                parent=origin.number,
                forked_from=session_id,
            )
        )
        return new

    async def delete_session(self, session_id: str) -> int:
        """Forget a session; returns how many checkpoints went. SessionBusyError while it runs here."""
        with self._lock:
            held = self._sessions.get(session_id)
            if held is not None and held.status == "running":
                raise SessionBusyError(session_id, held.lane.run_id)
            self._sessions.pop(session_id, None)
        return await self._needs_checkpointer().delete(session_id)

    def _needs_checkpointer(self) -> Checkpointer:
        if self.checkpointer is None:
            raise SessionError("this app remembers no sessions: compile(RuntimeConfig(checkpointer=…))")
        return self.checkpointer

    async def _last_known(self, checkpointer: Checkpointer, session_id: str) -> Known:
        """Where a session's run stands: its checkpoint, and what its log says beyond that."""
        found = await checkpointer.latest(session_id)
        if found is None:
            raise SessionNotFoundError(session_id)
        await self._open_stores(found.run_id)
        checkpoint = revive(self.graph.schema, found)
        here = self._bus is not None and self._bus.knows(checkpoint.run_id)
        position = checkpoint.run_seq + (0 if checkpoint.status == "running" else 1)  # its terminal event
        attempt, over = checkpoint.attempt, checkpoint.status != "running"
        cut: dict[str | None, LLMStreamingEvent] = {}
        if self._log is not None:
            last = await self._log.last_position(checkpoint.run_id)
            if last:
                position = last
                # Its last event, and what was cut off: of streams that began before the checkpoint, all have ended.
                async for event in self._log.read(checkpoint.run_id, min(checkpoint.run_seq, last - 1)):
                    attempt, over = max(attempt, event.attempt or 0), event.scope == STREAM_END_SCOPE
                    if isinstance(event, LLMStreamingEvent):
                        cut.pop(event.stream_id, None)
                        if not event.is_final:
                            cut[event.stream_id] = event
            elif not over and not here:  # killed before the log had anything of it
                position, over = 0, True
        died = not over and checkpoint.attempt > 0 and not here
        return Known(checkpoint, position if checkpoint.run_seq else 0, attempt, died, tuple(cut.values()))

    async def _open_stores(self, run_id: str) -> None:
        """Open the log and the checkpointer, unless they have been opened."""
        if self._is_open:
            return
        for used in (self._log, self._checkpointer if self.config.durability != "off" else None):
            start = getattr(used, "start", None)
            if start is not None:
                await start()
            elif used is not None and used is self._log:
                await used.last_position(run_id)
        self._is_open = True

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a short piece of work, where nothing can be awaited."""
        return self._loads.submit(work).result()

    # ── ending ────────────────────────────────────────────────────────────────────────────────────

    async def aclose(self, *, grace: float = 0.0) -> None:
        """No new runs; live ones are cancelled with ``cancel_grace`` (reason ``app_closed``), then the sinks drained.

        Args:
            grace: seconds that runs which a checkpointer keeps are given before that, to reach the end of their step:
                they end there as ``interrupted``, nothing of them was cut, and ``resume`` goes on with the next step.

        Streams of this app end. Idempotent.
        """
        with self._lock:
            self._closed = True
            live = tuple(self._live.values())
        if grace > 0:
            stopping = [execution.ended.wait() for execution in live if execution.stop_at_barrier()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*stopping)
        for execution in live:
            if not execution.ended.is_open:
                execution.token.cancel("app_closed")
        for execution in live:
            await self._see_it_end(execution)
        if self._bus is not None:
            await self._bus.shutdown()
        for thread in (self._thread, self._loads):
            await asyncio.to_thread(thread.stop, 1.0)

    async def _see_it_end(self, execution: Execution) -> None:
        if execution.task is None and execution.stepper is None:  # stepped by hand, and nobody is stepping
            execution.finish("interrupted", None, "app_closed")
            return
        patience = 2 * max(self.config.cancel_grace, 0.05) + SINK_GRACE + 5.0
        if execution.loop is not None and not execution.loop.is_closed():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(execution.ended.wait(), patience)
        if not execution.ended.is_open:
            execution.finish("interrupted", None, "loop_closed")

    def close(self) -> None:
        """``aclose`` for a plain thread."""
        if asyncio._get_running_loop() is not None:
            raise BlockingInLoopError
        asyncio.run(self.aclose())

    async def __aenter__(self) -> App[S]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __enter__(self) -> App[S]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise NoRunningLoopError from None


def opened_log(value: Any) -> EventLog | None:
    """The log that a configuration names. Without one nothing of logs, files and SQLite is imported."""
    if value is None:
        return None
    from weavegraph.log import open_log

    return open_log(value)


def share_a_file(log: Any, checkpointer: Any) -> bool:
    """Whether they are in one store, so that an event and a checkpoint can be committed together; prepares that."""
    ours, theirs = getattr(log, "store", None), getattr(checkpointer, "store", None)
    if ours is None or theirs is None or ours.path != theirs.path:
        return False
    ours.require_those_of(theirs)
    return True


def saves_by_operation(checkpointer: Any) -> bool:
    """Whether it can save by an operation of a store, and nobody has put a ``save`` of their own over it."""
    if not hasattr(getattr(checkpointer, "store", None), "post") or "save" in vars(checkpointer):
        return False
    kinds = type(checkpointer).__mro__
    return "saving" in next((vars(kind) for kind in kinds if "save" in vars(kind) or "saving" in vars(kind)), ())


class Known(NamedTuple):
    """Where a session's run stands: the last position given away, the last attempt, whether it died, and what the LLM
    streams that were then open had come to."""

    checkpoint: Checkpoint
    position: int
    attempt: int
    died: bool
    cut: tuple[LLMStreamingEvent, ...]


def checked_options(cancel: Any, timeout: Any, tags: Any, sinks: Any) -> tuple[str, ...]:
    """What a run is started with, checked before anything happens; the tags."""
    if cancel is not None and not isinstance(cancel, CancelToken):
        raise ConfigError(f"cancel={cancel!r}: give a CancelToken")
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < 1e9
    ):
        raise ConfigError(f"timeout={timeout!r}: give seconds, 0 or more, or None")
    wanted = (tags,) if isinstance(tags, str) else tuple(tags)
    if not all(isinstance(tag, str) for tag in wanted):
        raise ConfigError(f"tags={tags!r}: give words")
    if isinstance(sinks, str) or not isinstance(sinks, Sequence):
        raise ConfigError(f"sinks={sinks!r}: give a list of sinks")
    return tuple(clean_text("tags", tag) for tag in wanted)


def answered(checkpoint: Checkpoint, answer: Any) -> dict[str, tuple[Any, ...]]:
    """The checkpoint's answers with this one added, by task and in call order."""
    answers = {key: tuple(given) for key, given in checkpoint.answers.items()}
    open_ids = [question.id for question in checkpoint.questions]
    if not open_ids:
        if answer is not None:
            raise SessionError(f"session {checkpoint.session_id!r} has asked nothing: resume it without an answer")
        return answers
    if isinstance(answer, Mapping) and answer and set(answer) <= set(open_ids):
        given = dict(answer)
    elif len(open_ids) == 1:
        given = {} if answer is None else {open_ids[0]: answer}
    elif answer is None:
        given = {}
    else:
        raise SessionError(f"several questions are open: give a mapping from their ids to answers: {open_ids}")
    for question_id, each in given.items():
        key = question_id.rpartition(":")[0]
        answers[key] = (*answers.get(key, ()), isolate(each, weigh(each)))
    return answers
