"""One attempt of a run: what holds its position, saves it, and ends it. Its handle is `_run`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weavegraph.bus import Lane, SinkGuard
from weavegraph.errors import EmitterError, GraphError, LogError, RunCancelledError, SessionBusyError
from weavegraph.events import FrozenDict, LLMStreamingEvent, Redactor
from weavegraph.protocols import Checkpointer
from weavegraph.runtime._attempt import Attempt, code_of, describe
from weavegraph.runtime._cancel import CancelToken
from weavegraph.runtime._latch import Latch
from weavegraph.runtime._recorder import Recorder
from weavegraph.runtime._scheduler import StepFailed, StepOutcome, StepPaused, Walk
from weavegraph.runtime._step import Output
from weavegraph.state import Checkpoint, ErrorRecord, Finished, OpenQuestion, Values, revive

if TYPE_CHECKING:
    from weavegraph.runtime._app import App

__all__ = ["OPEN", "Execution", "RunStatus"]

RunStatus: TypeAlias = Literal["running", "completed", "failed", "cancelled", "paused", "interrupted"]
OPEN: frozenset[str] = frozenset({"running", "paused", "interrupted"})
"""Statuses of a run that its session is busy with."""
SINK_GRACE = 5.0
"""Seconds that sinks of one run, and the log, are given to take its last events."""


class _AtBarrier(Exception):
    """The attempt was asked to stop where its checkpoint stands."""


class Execution:
    """One attempt of a run, driven by a task of an app or by the hands of an ``AppRunner``."""

    def __init__(
        self,
        app: App[Any],
        lane: Lane,
        token: CancelToken,
        *,
        deps: Any,
        tags: tuple[str, ...],
        checkpointer: Checkpointer | None,
        iterative: bool = False,
        died: bool = False,
        cut: Iterable[LLMStreamingEvent] = (),
    ) -> None:
        config = app.config
        self.app, self.lane, self.token = app, lane, token
        self.recorder: Recorder | None = None
        if app.log is not None:
            view = Redactor(config.redact_for("log"), "log").view()
            self.recorder = Recorder(app.log, lane, self._log_failed, view)
        if died:
            # The log takes this and our own start as one batch, of the attempt that comes.
            before = Attempt(lane, config, app._clock, token)
            for chunk in cut:
                before.end_cut_off(chunk)
            before.conclude("interrupted", 0, None, "died")
            lane.reopen(lane.attempt + 1, lane.session_id)
        self.attempt = Attempt(lane, config, app._clock, token, deps=deps, tags=tags, observers=config.observers)
        self.attempt.can_pause = checkpointer is not None and config.durability != "off"
        if self.recorder is not None:
            self.attempt.acknowledge = self.recorder.upto
        self.walk: Walk | None = None
        self.status: RunStatus = "running"
        self.error: BaseException | None = None
        self.errors: tuple[ErrorRecord, ...] = ()
        self.questions: tuple[OpenQuestion, ...] = ()
        self.ended = Latch()
        self.task: asyncio.Task[None] | None = None
        self.stepper: asyncio.Task[Any] | None = None  # who is stepping it by hand just now
        self.loop: asyncio.AbstractEventLoop | None = None
        self.reason = ""
        self.iterative = iterative
        self.entry: str | None = None
        self.guards: list[SinkGuard] = []
        self.checkpointer = checkpointer if config.durability != "off" else None
        self.number: int | None = None  # of the session's latest checkpoint; unknown until it was looked up
        self._saved: RunStatus | None = None  # the status of the checkpoint saved last
        self._saving: asyncio.Future[None] | None = None
        self._fault: BaseException | None = None
        self._stopping = False  # at the next barrier
        self._began = time.monotonic()
        self._timers: list[asyncio.TimerHandle] = []
        self._forget: Callable[[], None] | None = None

    # ── beginning ─────────────────────────────────────────────────────────────────────────────────

    def announce(self, inputs: Iterable[str] = ()) -> None:
        """Write the attempt's first event."""
        graph = self.app.graph
        if self.recorder is not None and self.number is None:
            self.recorder.hold()  # until the log is open, and the input saved: what it knows of can be resumed
        self.attempt.started(graph.name, graph.fingerprint, inputs)

    async def begin(self, given: Any, *, entry: str | None = None, known: bool) -> None:
        """Stand at the graph's beginning, with what the session holds. ``known``: the session may be there."""
        await self._open_stores()
        if self.recorder is not None and self.checkpointer is None:
            self.recorder.let_go()
        before: Values | None = None
        self.number = 0
        if self.checkpointer is not None and known:
            latest = await self.checkpointer.latest(self.lane.session_id)
            if latest is not None:
                if latest.status in OPEN and latest.run_id != self.lane.run_id:
                    raise SessionBusyError(latest.session_id, latest.run_id)
                if latest.run_id != self.lane.run_id:
                    await self.app._end_if_died(latest)
                self.number = latest.number
                latest = revive(self.app.graph.schema, latest)
                before = Values.of(latest.values, latest.versions)
                self.attempt.observe("on_checkpoint_loaded", latest.session_id, latest.number)
        self.walk = Walk(self.app.graph, self.attempt, self.app.graph.schema.initial(given, before))
        self._keep_outputs()
        await self.walk.enter(entry)
        if self.checkpointer is not None:
            await self.save("completed" if self.walk.done and not self.iterative else "running")

    async def _open_stores(self) -> None:
        """Log and checkpointer, before anything runs. One that cannot be opened ends the attempt, and nothing of it is
        written to the other (contract D7)."""
        try:
            await self.app._open_stores(self.lane.run_id)
        except Exception as exc:
            self._fault, self.checkpointer = exc, None
            if self.recorder is not None:
                self.recorder.give_up(exc)
            raise

    def restore(self, checkpoint: Checkpoint, answers: Mapping[str, tuple[Any, ...]]) -> None:
        """Stand where a (revived) checkpoint was taken."""
        self.number = checkpoint.number
        self.attempt.answers = {key: list(given) for key, given in answers.items()}
        self.walk = Walk(
            self.app.graph,
            self.attempt,
            Values.of(checkpoint.values, checkpoint.versions),
            checkpoint.frontier,
            step=checkpoint.step,
            seen=checkpoint.seen,
            finished=checkpoint.finished,
        )
        self._keep_outputs()
        self.errors = checkpoint.errors
        self.iterative = checkpoint.iterative
        self.attempt.observe("on_checkpoint_loaded", checkpoint.session_id, checkpoint.number)

    def _keep_outputs(self) -> None:
        if self.checkpointer is not None and self.app.config.durability == "step":
            assert self.walk is not None
            self.walk.keep = self._keep_output

    async def _keep_output(self, index: int, output: Output) -> None:
        """A task of several is done: should this process die before the others are, a resume need not run it again."""
        assert self.checkpointer is not None
        finished = Finished(index, tuple(output.writes), output.goto, output.added)
        with contextlib.suppress(LogError):  # the step's own checkpoint tells
            await self.checkpointer.add_finished(self.lane.session_id, self.number or 0, finished)

    def launch(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None], timeout: float | None) -> None:
        """Run ``work`` as the attempt's task, stopped by the token and by the deadline."""
        self.loop = loop
        self.task = loop.create_task(self._drive(work), name=f"run {self.lane.run_id}")
        self.task.add_done_callback(lambda task: self._task_ended(work))
        self.watch_token()
        if timeout is not None:
            self._timers.append(loop.call_later(timeout, self.token.cancel, "deadline"))

    def watch_token(self) -> None:
        self._forget = self.token.on_cancel(self._asked_to_stop)

    def _task_ended(self, work: Coroutine[Any, Any, None]) -> None:
        if not self.ended.is_open:  # cancelled before its first step: nobody else writes the terminal event
            work.close()
            self.finish("interrupted", None, "loop_shutdown")

    # ── going on ──────────────────────────────────────────────────────────────────────────────────

    async def step(self) -> StepOutcome:
        """One superstep and its checkpoint."""
        assert self.walk is not None
        self.token.raise_if_cancelled()
        outcome = await self.walk.superstep()
        self.attempt.answers = {}
        if self.attempt.killed and self.walk.done:  # the last node took the cancellation for its own
            raise RunCancelledError(self.lane.run_id, self.token.reason or self.reason or "cancelled")
        if self.app.config.durability == "step" and self.checkpointer is not None:
            await self.save("completed" if self.walk.done and not self.iterative else "running", outcome)
        return outcome

    async def to_the_end(self) -> None:
        """Every step that is left."""
        assert self.walk is not None
        while not self.walk.done:
            if self._stopping:
                raise _AtBarrier
            await self.step()
        self.token.raise_if_cancelled()
        if self.app.graph.schema.kind == "pydantic":
            self.output()  # what its model refuses fails the run, not whoever asks for the result

    async def _drive(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except GeneratorExit:
            work.close()  # the loop was closed under us: nodes first, then the terminal event
            self.finish("interrupted", None, "loop_closed")
            raise
        except BaseException as exc:
            await self._end_whatever_happens(exc)
            if not isinstance(exc, Exception | asyncio.CancelledError):
                raise  # KeyboardInterrupt, SystemExit: the loop's owner decides
        else:
            await self.end("completed")

    async def _end_whatever_happens(self, exc: BaseException) -> None:
        try:
            await self.end_with(exc)
        except BaseException:
            self.finish("failed", exc, None)
            raise

    # ── saving ────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self, status: RunStatus, outcome: StepOutcome | None = None) -> Checkpoint:
        """Where the attempt stands, as a value."""
        walk, lane = self.walk, self.lane
        assert walk is not None
        return Checkpoint(
            session_id=lane.session_id,
            number=(self.number or 0) + 1,
            run_id=lane.run_id,
            attempt=self.attempt.number,
            run_seq=lane.head + 1,  # the event that announces it
            step=walk.step,
            status=status,
            values=walk.values.values,
            versions=walk.values.versions,
            frontier=walk.frontier,
            created_at=self.attempt.clock.now(),
            finished=tuple(
                Finished(index, tuple(output.writes), output.goto, output.added)
                for index, output in sorted(walk.finished.items())
            ),
            questions=self.questions,
            answers={key: tuple(given) for key, given in self.attempt.answers.items()},
            seen=dict(walk.seen),
            ran_nodes=() if outcome is None else outcome.ran,
            skipped_nodes=() if outcome is None else outcome.skipped,
            updated_keys=() if outcome is None else outcome.updated,
            errors=self.errors,
            iterative=self.iterative,
            parent=self.number or None,
            fingerprint=self.app.graph.fingerprint,
        )

    async def save(self, status: RunStatus, outcome: StepOutcome | None = None) -> None:
        """Save a checkpoint, whole or not at all: a cancelled caller does not tear what is under way."""
        if self.checkpointer is None or self.walk is None or not self._current:
            return
        if self.number is not None and self.app._saves_by_operation:
            await self._post(status, outcome)
            return
        self._saving = asyncio.get_running_loop().create_task(self._save(status, outcome))
        await asyncio.shield(self._saving)

    def _post(self, status: RunStatus, outcome: StepOutcome | None) -> asyncio.Future[None]:
        """Hand a checkpoint to the writer of its file, and say so: in one transaction when the log is in the same file
        (contract D3). Without a task, which costs a step three turns of the loop."""
        checkpointer: Any = self.checkpointer
        began, loop = time.monotonic(), asyncio.get_running_loop()
        self.attempt.flush()
        checkpoint = self.snapshot(status, outcome)
        operation = checkpointer.saving(checkpoint)
        together = self.recorder is not None and self.app._one_file
        waiter: asyncio.Future[None] = loop.create_future()
        saved: asyncio.Future[None] = loop.create_future()  # not the same: a cancelled caller cancels the other

        def done(result: Any) -> None:
            if not isinstance(result, BaseException):
                try:
                    if not together:
                        self._announce(checkpoint)
                    self._has_saved(checkpoint, status, began)
                except BaseException as exc:
                    result = exc
            for future in (saved, waiter):
                if future.done():
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(result)
                    saved.exception()  # told
                else:
                    future.set_result(None)

        if together:
            assert self.recorder is not None
            self.recorder.save_with(lambda: self._announce(checkpoint), operation, done)
        else:
            checkpointer.store.post((operation,), done)
        self._saving = saved
        return waiter

    @property
    def _current(self) -> bool:
        """Whether this attempt is still the run's: one that was left behind must not save any more."""
        return self.status == "running" and self.lane.attempt == self.attempt.number and not self.ended.is_open

    async def _save(self, status: RunStatus, outcome: StepOutcome | None) -> None:
        assert self.checkpointer is not None
        if self.number is None:
            latest = await self.checkpointer.latest(self.lane.session_id)
            self.number = 0 if latest is None else latest.number
        if self.app._saves_by_operation:
            await self._post(status, outcome)
            return
        began = time.monotonic()
        self.attempt.flush()
        checkpoint = self.snapshot(status, outcome)
        await self.checkpointer.save(checkpoint)
        self._announce(checkpoint)
        self._has_saved(checkpoint, status, began)

    def _has_saved(self, checkpoint: Checkpoint, status: RunStatus, began: float) -> None:
        if self.recorder is not None:
            self.recorder.let_go()
        self.number, self._saved = checkpoint.number, status
        self.attempt.observe("on_checkpoint_saved", checkpoint.session_id, checkpoint.number, time.monotonic() - began)

    def _announce(self, checkpoint: Checkpoint) -> None:
        metadata = {"session": checkpoint.session_id, "number": checkpoint.number, "step": checkpoint.step}
        text = f"checkpoint {checkpoint.number}"
        self.attempt.note("weavegraph.checkpoint.saved", text, FrozenDict(metadata), None, checkpoint.step, ())
        self.attempt.flush()

    def _log_failed(self, error: BaseException) -> None:
        """The log cannot be written any more: the run must not go on as if it were."""
        self._fault = error
        self.token.cancel(str(code_of(error) or "log"))

    # ── ending ────────────────────────────────────────────────────────────────────────────────────

    async def end_with(self, exc: BaseException) -> None:
        """The attempt could not go on: what that means for the run."""
        asked = self.attempt.killed or self.token.cancelled
        if isinstance(exc, StepPaused):
            self.questions = exc.questions
            await self.end("paused")
        elif isinstance(exc, _AtBarrier):
            await self.end("interrupted", None, "app_closed")
        elif isinstance(exc, StepFailed):
            self.record(exc.error, *exc.others)
            for other in exc.others:
                with contextlib.suppress(Exception):
                    exc.error.add_note(f"also in this step: {describe(other)}")
            await self.end("failed", exc.error)
        elif asked and isinstance(exc, RunCancelledError | asyncio.CancelledError):
            self.reason = self.token.reason or self.reason or "cancelled"
            await self.end("cancelled", RunCancelledError(self.lane.run_id, self.reason), self.reason)
        elif isinstance(exc, asyncio.CancelledError):
            await self.end("interrupted", None, "loop_shutdown")
        else:
            self.record(exc, scope="runner" if isinstance(exc, SessionBusyError) else "scheduler")
            await self.end("failed", exc)

    def record(self, *errors: BaseException, scope: Literal["node", "scheduler", "runner"] = "node") -> None:
        """Put failures into the run's errors, and into the state's own channel where it has one."""
        now = self.attempt.clock.now()
        records = tuple(ErrorRecord.of(error, now, scope) for error in errors)
        self.errors += records
        schema = self.app.graph.schema
        if self.walk is not None and schema.type is None and "errors" in schema.reducers:
            with contextlib.suppress(GraphError):  # a reducer of the user's own that does not take them
                self.walk.values, _ = schema.merge(self.walk.values, [("the runtime", [("errors", list(records))])])

    async def end(self, status: RunStatus, error: BaseException | None = None, code: str | int | None = None) -> None:
        """Save, write the terminal event, let go of everything, and tell who waits.

        A cancellation of the caller meanwhile is raised when all of that is done.
        """
        cancelled: asyncio.CancelledError | None = None
        if self._fault is not None:
            status, error, code = "failed", self._fault, None
        try:
            with contextlib.suppress(Exception):
                if self._saving is not None:
                    await asyncio.shield(self._saving)
            # "step" saved a completed run with its last step, and both one that has no step with its input.
            if self.checkpointer is not None and (status != "completed" or self._saved != "completed"):
                await self.save(status)
        except asyncio.CancelledError as exc:
            cancelled = exc
            with contextlib.suppress(Exception, asyncio.CancelledError):
                if self._saving is not None:
                    await asyncio.wait([self._saving])
        except Exception as exc:
            if error is None:
                status, error, code = "failed", exc, None
            else:
                with contextlib.suppress(Exception):
                    error.add_note(f"and its checkpoint could not be saved: {describe(exc)}")
        self.conclude(status, error, code)
        try:
            await self._hand_over()
        except asyncio.CancelledError as exc:
            cancelled = exc
        finally:
            self.release()
        if cancelled is not None and self.task is None:
            raise cancelled

    async def _hand_over(self) -> None:
        """Let the log and the run's own sinks take its last events. Who is late goes on by itself."""
        if self.recorder is not None:
            self.recorder.let_go()  # what ended without a checkpoint is told all the same
        waits: list[Any] = [guard.remove(SINK_GRACE) for guard in self.guards]
        if self.recorder is not None and self._fault is None:
            waits.append(asyncio.wait_for(self.recorder.upto(self.lane.head), SINK_GRACE))
        if waits:
            await asyncio.gather(*waits, return_exceptions=True)

    def finish(self, status: RunStatus, error: BaseException | None, code: str | int | None) -> None:
        """As ``end``, where nothing can be awaited."""
        self.conclude(status, error, code)
        self.release()

    def conclude(self, status: RunStatus, error: BaseException | None, code: str | int | None) -> None:
        """The terminal event, and the lane's rest; the session is free for what comes next."""
        if self.status != "running":
            return
        self.status, self.error = status, error
        step = 0 if self.walk is None else self.walk.step
        try:
            with contextlib.suppress(EmitterError):  # the bus was closed under the run
                self.attempt.conclude(status, step, error if status == "failed" else None, code)
        finally:
            self.app.event_bus.end_attempt(self.lane, status)
            self.app._ended(self)
        self.attempt.observe("on_run_finished", self.lane.run_id, status, time.monotonic() - self._began, error)

    def release(self) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._forget is not None:
            self._forget()
        if self.recorder is not None:
            self.recorder.finish(self.lane.head)
        self.attempt.close()
        self.ended.open()

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────

    def stop_at_barrier(self) -> bool:
        """End as ``interrupted`` before the next step, where that can be gone on from. From any thread."""
        self._stopping = self.task is not None and self.checkpointer is not None
        return self._stopping

    def _asked_to_stop(self, reason: str) -> None:
        """Somebody cancelled the token, in whatever thread: after the grace, cancel the nodes."""
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the run with it
                self.loop.call_soon_threadsafe(self._begin_grace)

    def _begin_grace(self) -> None:
        assert self.loop is not None
        if not self.ended.is_open:
            self._timers.append(self.loop.call_later(self.app.config.cancel_grace, self.kill))

    def kill(self) -> None:
        """Cancel the nodes now; one that will not end is left behind after another grace. In the run's loop."""
        task = self.task or self.stepper
        if task is None or task.done() or self.attempt.killed:
            return
        self.attempt.killed = True
        task.cancel()
        assert self.loop is not None
        grace = max(self.app.config.cancel_grace, 0.05)
        self._timers.append(self.loop.call_later(grace, self._abandon))

    def _abandon(self) -> None:
        if self.ended.is_open:
            return
        self.reason = self.token.reason or self.reason or "cancelled"
        if self._saving is not None and not self._saving.done():  # not the nodes, the checkpointer is slow: wait for it
            self._saving.add_done_callback(lambda _: self._abandon())
            return
        assert self.loop is not None
        self.loop.create_task(self._leave_behind())

    async def _leave_behind(self) -> None:
        with contextlib.suppress(Exception):
            await self.save("cancelled")
        if not self.ended.is_open:
            self.finish("cancelled", RunCancelledError(self.lane.run_id, self.reason), self.reason)

    def abort(self, reason: str) -> None:
        """From any thread."""
        self.reason = self.reason or reason
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.kill)

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    def output(self) -> Any:
        """The state so far, as ``invoke`` returns it; ``None`` before the first state is known."""
        return None if self.walk is None else self.app.graph.schema.output(self.walk.values)
