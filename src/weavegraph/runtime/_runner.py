"""Sessions driven by hand: one step at a time, until complete, or input after input."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from weavegraph.bus import EventStream
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.errors import GraphError, SessionBusyError, SessionError, SessionNotFoundError
from weavegraph.events import INVOCATION_END_SCOPE
from weavegraph.graph import END, START
from weavegraph.protocols import Checkpointer, CheckpointPage
from weavegraph.runtime._app import App, answered, checked_options
from weavegraph.runtime._attempt import describe
from weavegraph.runtime._cancel import CancelToken
from weavegraph.runtime._execution import Execution
from weavegraph.runtime._scheduler import StepFailed, StepPaused
from weavegraph.runtime._step import output_of
from weavegraph.state import Checkpoint, Values, revive

__all__ = ["AppRunner", "PausedReport", "RunMetadata", "Session", "StepOptions", "StepReport"]

S = TypeVar("S")
PauseReason: TypeAlias = Literal["before_node", "after_node", "after_step", "question"]


class StepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where ``run_step`` stops: before or after some nodes, or after this step whatever it ran."""

    interrupt_before: tuple[str, ...] = ()
    interrupt_after: tuple[str, ...] = ()
    interrupt_each_step: bool = False


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What ``create_session`` found: a fresh session, or one that was resumed at a step."""

    session_id: str
    run_id: str
    resumed: bool
    step: int


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """One superstep. A session that is complete reports ``completed`` with nothing run."""

    step: int
    ran_nodes: tuple[str, ...]
    skipped_nodes: tuple[str, ...]
    updated_keys: tuple[str, ...]
    next_nodes: tuple[str, ...]
    versions: Mapping[str, int]
    completed: bool


class PausedReport(msgspec.Struct, frozen=True, kw_only=True):
    """The session stopped where ``StepOptions`` said, or at a question; ``run_step`` goes on from there.

    ``report`` is the step that had run, if one had.
    """

    reason: PauseReason
    nodes: tuple[str, ...]
    state: Any
    next_nodes: tuple[str, ...]
    report: StepReport | None = None


class RunMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What to write beside results, to know later what made them."""

    version: str
    graph_fingerprint: str
    config_fingerprint: str
    checkpointer: str
    clock: str


class AppRunner(Generic[S]):
    """Steps sessions of one app by hand. Any number of sessions; each is stepped by one caller at a time.

    Sessions are remembered by the app's checkpointer, else in memory. Streams may be taken at any time, any number,
    also before the session exists (``event_stream``). A pause by ``StepOptions`` ends the attempt as ``interrupted``;
    the next ``run_step`` opens the next one. Cancelling a ``run_step`` loses nothing: the next one does the step again.
    """

    def __init__(self, app: App[S]) -> None:
        self.app = app
        self._checkpointer: Checkpointer = app.checkpointer or MemoryCheckpointer()
        self._open: dict[str, Execution] = {}
        self._stepping: set[str] = set()
        self._passed: dict[str, tuple[str, ...]] = {}  # nodes before which a session has stopped already
        self._kept: dict[str, Checkpoint] = {}  # where sessions stand that are not saved (durability "off")

    # ── sessions ──────────────────────────────────────────────────────────────────────────────────

    async def create_session(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        session_id: str | None = None,
        run_id: str | None = None,
        deps: Any = None,
        cancel: CancelToken | None = None,
        tags: Iterable[str] = (),
    ) -> Session:
        """Begin a session, or go on with one that the checkpointer knows and that has steps left: then ``state`` is
        not used.

        Raises:
            SessionBusyError: it is open already. StateError: ``state`` does not fit.
        """
        return await self._create(state, session_id, run_id, deps, cancel, tags, None, iterative=False)

    async def create_iterative_session(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        session_id: str | None = None,
        entry: str = START,
        deps: Any = None,
        cancel: CancelToken | None = None,
        tags: Iterable[str] = (),
    ) -> Session:
        """Begin a session that takes one input after the other (``invoke_next``) in one run whose stream stays open.

        ``entry``: where each input starts, START or a node.
        """
        self._check_entry(entry)
        return await self._create(state, session_id, None, deps, cancel, tags, entry, iterative=True)

    async def _create(
        self,
        state: Any,
        session_id: str | None,
        run_id: str | None,
        deps: Any,
        cancel: CancelToken | None,
        tags: Iterable[str],
        entry: str | None,
        *,
        iterative: bool,
    ) -> Session:
        app, schema = self.app, self.app.graph.schema
        wanted = checked_options(cancel, None, tags, ())
        latest = None if session_id is None else await self._checkpointer.latest(session_id)
        resumed = latest is not None and (bool(latest.frontier) or latest.iterative) and latest.status != "completed"
        if latest is not None and resumed:
            execution = await self._reopen(latest.session_id, deps, cancel, wanted)
        else:
            given = schema.as_update(state, "the input")
            if latest is None:
                schema.initial(given)
            else:
                schema.check_keys(given, "the input")
            execution = app._open(
                session_id, run_id, attempt=1, deps=deps, cancel=cancel, tags=wanted,
                checkpointer=self._checkpointer, iterative=iterative,
            )  # fmt: skip
            app._begin(execution, (), given)
            self._watch(execution)
            try:
                await execution.begin(given, entry=None if entry in (None, START) else entry, known=latest is not None)
            except BaseException as exc:
                await execution.end_with(exc)
                raise
            if iterative:
                assert execution.walk is not None
                execution.walk.frontier = ()  # inputs come by invoke_next
        execution.entry = entry
        lane = execution.lane
        self._open[lane.session_id] = execution
        return Session(
            session_id=lane.session_id, run_id=lane.run_id, resumed=resumed,
            step=0 if execution.walk is None else execution.walk.step,
        )  # fmt: skip

    async def _reopen(
        self, session_id: str, deps: Any, cancel: CancelToken | None, tags: tuple[str, ...], answer: Any = None
    ) -> Execution:
        """The next attempt of a session's run."""
        known = await self.app._last_known(self._checkpointer, session_id)
        answers = answered(known.checkpoint, answer)
        execution = self.app._reopen(known, deps, cancel, tags, self._checkpointer)
        execution.restore(known.checkpoint, answers)
        self.app._begin(execution, (), ())
        self._watch(execution)
        return execution

    @staticmethod
    def _watch(execution: Execution) -> None:
        execution.loop = asyncio.get_running_loop()
        execution.watch_token()

    # ── stepping ──────────────────────────────────────────────────────────────────────────────────

    async def run_step(self, session_id: str, options: StepOptions | None = None) -> StepReport | PausedReport:
        """One superstep of the session.

        With ``interrupt_before`` it stops before anything of the step runs; called again it goes on, with the same
        options too. With ``interrupt_after`` and ``interrupt_each_step`` the step is saved first.

        Raises:
            SessionNotFoundError: create it first. SessionBusyError: somebody is stepping it.
            The failing node's own exception; the session then has failed, and ``create_session`` resumes it.
        """
        options = options or StepOptions()
        with self._alone(session_id):
            execution = await self._live(session_id)
            if execution is None:
                return await self._complete(session_id)
            walk = execution.walk
            assert walk is not None
            execution.loop, execution.stepper = asyncio.get_running_loop(), asyncio.current_task()
            waiting = tuple(task.node for task in walk.frontier)
            before = tuple(node for node in waiting if node in options.interrupt_before)
            if before and self._passed.get(session_id) != waiting:
                self._passed[session_id] = waiting
                await self._interrupt(execution, "before_node")
                return PausedReport(reason="before_node", nodes=before, state=execution.output(), next_nodes=waiting)
            self._passed.pop(session_id, None)
            report = await self._step(session_id, execution)
            if isinstance(report, PausedReport):
                return report
            after = tuple(node for node in report.ran_nodes if node in options.interrupt_after)
            if report.completed:
                if not execution.iterative:
                    await self._end(session_id, execution)
            elif after or options.interrupt_each_step:
                reason: PauseReason = "after_node" if after else "after_step"
                await self._interrupt(execution, reason)
                return PausedReport(
                    reason=reason, nodes=after, state=execution.output(), next_nodes=report.next_nodes, report=report
                )
            return report

    async def _interrupt(self, execution: Execution, reason: str) -> None:
        if execution.checkpointer is None:  # nothing is saved: the session goes on from what is in memory
            self._kept[execution.lane.session_id] = execution.snapshot("interrupted")
        await execution.end("interrupted", None, reason)
        if execution.error is not None:  # it could not be saved
            raise execution.error

    async def resume(self, session_id: str, answer: Any = None) -> Session:
        """Answer what a session's run asked (``PausedReport`` with reason ``question``); then step on.

        Raises:
            SessionError: it has asked nothing, or the answer does not fit; as ``app.resume``.
        """
        with self._alone(session_id):
            before = self._open.get(session_id)
            if before is not None and before.status == "running":
                raise SessionBusyError(session_id, before.lane.run_id)
            deps, tags = (None, ()) if before is None else (before.attempt.deps, before.attempt.tags)
            execution = self._open[session_id] = await self._reopen(session_id, deps, None, tags, answer)
            assert execution.walk is not None
            return Session(session_id=session_id, run_id=execution.lane.run_id, resumed=True, step=execution.walk.step)

    async def run_until_complete(self, session_id: str) -> S:
        """Every step that is left; the final state.

        Raises:
            SessionError: the session stopped at a question. Otherwise as ``run_step``.
        """
        while True:
            report = await self.run_step(session_id)
            if isinstance(report, PausedReport):
                raise SessionError(f"session {session_id!r} waits for an answer: runner.resume(session_id, answer)")
            if report.completed:
                return await self.state(session_id)

    async def _step(self, session_id: str, execution: Execution) -> StepReport | PausedReport:
        walk = execution.walk
        assert walk is not None
        try:
            outcome = await execution.step()
            execution.attempt.flush()
        except StepPaused as paused:
            await execution.end_with(paused)
            nodes = tuple(question.node for question in paused.questions)
            waiting = tuple(task.node for task in walk.frontier)
            return PausedReport(reason="question", nodes=nodes, state=execution.output(), next_nodes=waiting)
        except StepFailed as failed:
            await execution.end_with(failed)
            raise failed.error from None
        except Exception as exc:
            await execution.end_with(exc)
            raise
        return StepReport(
            step=outcome.step,
            ran_nodes=outcome.ran,
            skipped_nodes=outcome.skipped,
            updated_keys=outcome.updated,
            next_nodes=tuple(task.node for task in walk.frontier),
            versions=dict(walk.values.versions),
            completed=walk.done,
        )

    async def _end(self, session_id: str, execution: Execution) -> None:
        if execution.checkpointer is None:
            self._kept[session_id] = execution.snapshot("completed")
        await execution.end("completed")
        self._open.pop(session_id, None)
        if execution.error is not None:
            raise execution.error

    async def _live(self, session_id: str) -> Execution | None:
        """The session's open attempt; a new one where the last was interrupted; ``None`` when all is done."""
        execution = self._open.get(session_id)
        if execution is not None and execution.status == "running":
            return execution
        latest = await self._latest(session_id)
        if not latest.frontier and not latest.iterative:
            return None
        if execution is None:
            raise SessionNotFoundError(session_id)
        deps, tags = execution.attempt.deps, execution.attempt.tags
        if execution.checkpointer is None:
            opened = self.app._open(
                session_id, execution.lane.run_id, attempt=execution.attempt.number + 1, deps=deps, cancel=None,
                tags=tags, checkpointer=None,
            )  # fmt: skip
            opened.restore(self._kept[session_id], {})
            self.app._begin(opened, (), ())
            self._watch(opened)
        else:
            opened = await self._reopen(session_id, deps, None, tags)
        self._open[session_id] = opened
        return opened

    async def _latest(self, session_id: str) -> Checkpoint:
        found = self._kept.get(session_id) or await self._checkpointer.latest(session_id)
        if found is None:
            raise SessionNotFoundError(session_id)
        return revive(self.app.graph.schema, found)

    async def _complete(self, session_id: str) -> StepReport:
        latest = await self._latest(session_id)
        return StepReport(
            step=latest.step, ran_nodes=(), skipped_nodes=(), updated_keys=(), next_nodes=(),
            versions=dict(latest.versions), completed=True,
        )  # fmt: skip

    @contextlib.contextmanager
    def _alone(self, session_id: str) -> Any:
        if session_id in self._stepping:
            execution = self._open.get(session_id)
            raise SessionBusyError(session_id, session_id if execution is None else execution.lane.run_id)
        self._stepping.add(session_id)
        try:
            yield
        finally:
            self._stepping.discard(session_id)

    # ── input after input ─────────────────────────────────────────────────────────────────────────

    async def invoke_next(self, session_id: str, update: Any = None, *, entry: str | None = None) -> S:
        """Merge an input into an iterative session and run until nothing is left; the state then.

        Steps go on counting; the input ends with an event of scope ``INVOCATION_END_SCOPE``, also when it failed, and
        the stream stays open. ``update``: a mapping, or a ``NodePartial``. ``entry``: START, or a node.

        Raises:
            SessionError: it is no iterative session, or is finished. Otherwise as ``run_step``.
        """
        if entry is not None:
            self._check_entry(entry)
        with self._alone(session_id):
            execution = await self._live_iterative(session_id)
            walk, schema = execution.walk, self.app.graph.schema
            assert walk is not None
            entry = entry or execution.entry or START
            execution.loop, execution.stepper = asyncio.get_running_loop(), asyncio.current_task()
            try:
                if isinstance(update, Mapping) or update is None:
                    given = schema.as_update(update, "the input")
                else:
                    given = dict(output_of(self.app.graph, self.app.graph.start, update).writes)
                walk.values = schema.initial(given, walk.values)
                walk.seen, walk.finished, walk.base = {}, {}, walk.step
                await walk.enter(None if entry == START else entry)
                while not walk.done:
                    await execution.step()
            except asyncio.CancelledError:
                walk.frontier = ()
                self._invocation_ended(execution, "cancelled", None)
                raise
            except BaseException as exc:
                error: BaseException = exc
                if isinstance(exc, StepFailed):
                    error = exc.error
                elif isinstance(exc, StepPaused):
                    nodes = ", ".join(repr(question.node) for question in exc.questions)
                    error = SessionError(f"{nodes} asked; in an iterative session let the next input bring the answer")
                execution.record(error)
                walk.frontier = ()
                self._invocation_ended(execution, "failed", error)
                if error is not exc:
                    raise error from None
                raise
            self._invocation_ended(execution, "completed", None)
            if self.app.config.durability != "off":
                await execution.save("running")
            output: S = execution.output()
            return output

    async def finish_iterative_session(self, session_id: str) -> S:
        """No more inputs: the run ends as completed, and its stream with it. The final state."""
        with self._alone(session_id):
            execution = await self._live_iterative(session_id)
            execution.iterative = False
            if self.app.config.durability == "step":
                await execution.save("completed")
            await self._end(session_id, execution)
            output: S = execution.output()
            return output

    async def _live_iterative(self, session_id: str) -> Execution:
        execution = self._open.get(session_id)
        if execution is None:
            raise SessionNotFoundError(session_id)
        if not execution.iterative or execution.status != "running":
            raise SessionError(f"session {session_id!r} takes no further inputs: create_iterative_session begins one")
        return execution

    def _invocation_ended(self, execution: Execution, outcome: str, error: BaseException | None) -> None:
        step = 0 if execution.walk is None else execution.walk.step
        metadata: dict[str, Any] = {"outcome": outcome, "step": step}
        if error is not None:
            metadata["error"] = describe(error)
        execution.attempt.say(INVOCATION_END_SCOPE, outcome, metadata)

    def _check_entry(self, entry: str) -> None:
        if entry == END or (entry != START and entry not in self.app.graph.nodes):
            known = ", ".join((START, *self.app.graph.nodes))
            raise GraphError(f"entry={entry!r} is no place to start at; there are: {known}")

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    def event_stream(
        self, session_id: str | None = None, *, run_id: str | None = None, after: int | None = None
    ) -> EventStream:
        """Events of a session, of a run, or of everything; any number of streams, also before the session exists.

        A stream that is taken before and read only after the run still begins with its first event.
        """
        return self.app.event_stream(session_id=session_id, run_id=run_id, after=after)

    async def state(self, session_id: str) -> S:
        """The session's state as it is now; a copy."""
        execution = self._open.get(session_id)
        if execution is not None and execution.walk is not None:
            output: S = execution.output()
            return output
        latest = await self._latest(session_id)
        found: S = self.app.graph.schema.output(Values.of(latest.values, latest.versions))
        return found

    async def sessions(self) -> tuple[str, ...]:
        """Ids of the sessions that the checkpointer knows, in order."""
        return tuple(await self._checkpointer.sessions(limit=1_000_000))

    async def history(self, session_id: str, **query: Any) -> CheckpointPage:
        """The session's checkpoints, newest first; takes the query of ``Checkpointer.history``."""
        page = await self._checkpointer.history(session_id, **query)
        return CheckpointPage(tuple(revive(self.app.graph.schema, each) for each in page.checkpoints), page.next_before)

    async def fork(self, session_id: str, new_session_id: str | None = None, *, number: int | None = None) -> str:
        """A new session that stands where this one stood at a checkpoint; ``create_session`` goes on with it."""
        return await self.app._fork(self._checkpointer, session_id, new_session_id, number)

    def run_metadata(self) -> RunMetadata:
        """Version, fingerprints of graph and configuration, checkpointer and clock."""
        metadata = self.app.metadata()
        return RunMetadata(
            version=metadata.version,
            graph_fingerprint=metadata.fingerprint,
            config_fingerprint=self.app.config.fingerprint,
            checkpointer=type(self._checkpointer).__name__,
            clock=type(self.app._clock).__name__,
        )
