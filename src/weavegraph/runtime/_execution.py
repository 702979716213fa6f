"""One run, attempt after attempt: what holds its position, saves it, and ends it. Its handle is `_run`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weavegraph.bus import Lane, SinkGuard
from weavegraph.errors import (
    EmitterError,
    RunCancelledError,
    SessionBusyError,
    WeavegraphError,
)
from weavegraph.protocols import Checkpointer
from weavegraph.runtime._attempt import Attempt
from weavegraph.runtime._cancel import CancelToken
from weavegraph.runtime._latch import Latch
from weavegraph.runtime._scheduler import StepFailed, StepOutcome, StepPaused, Walk
from weavegraph.state import Checkpoint, ErrorRecord, Finished, OpenQuestion, Values

if TYPE_CHECKING:
    from weavegraph.runtime._app import App

__all__ = ["OPEN", "Execution", "RunStatus"]

RunStatus: TypeAlias = Literal["running", "completed", "failed", "cancelled", "paused", "interrupted"]
OPEN: frozenset[str] = frozenset({"running", "paused", "interrupted"})
"""Statuses of a run that its session is busy with."""
SINK_GRACE = 5.0
"""Seconds that sinks of one run are given to take its last events."""


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
    ) -> None:
        config = app.config
        self.app, self.lane, self.token = app, lane, token
        self.attempt = Attempt(
            lane, config, app._clock, token, deps=deps, tags=tags, observers=config.observers
        )
        self.walk: Walk | None = None
        self.status: RunStatus = "running"
        self.error: BaseException | None = None
        self.errors: tuple[ErrorRecord, ...] = ()
        self.questions: tuple[OpenQuestion, ...] = ()
        self.ended = Latch()
        self.task: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.reason = ""
        self.iterative = iterative
        self.guards: list[SinkGuard] = []
        self.checkpointer = checkpointer if config.durability != "off" else None
        self.number: int | None = None  # of the session's latest checkpoint; unknown until it was looked up
        self.forked_from: str | None = None
        self._began = time.monotonic()
        self._timers: list[asyncio.TimerHandle] = []
        self._forget: Callable[[], None] | None = None

    # ── beginning ─────────────────────────────────────────────────────────────────────────────────

    def announce(self, inputs: Iterable[str] = ()) -> None:
        """Write the attempt's first event."""
        graph = self.app.graph
        self.attempt.started(graph.name, graph.fingerprint, inputs)

    async def begin(self, given: Any, *, entry: str | None = None, known: bool) -> None:
        """Stand at the graph's beginning, with what the session holds. ``known``: the session may be there."""
        before: Values | None = None
        self.number = 0
        if self.checkpointer is not None and known:
            latest = await self.checkpointer.latest(self.lane.session_id)
            if latest is not None:
                if latest.status in OPEN and latest.run_id != self.lane.run_id:
                    raise SessionBusyError(latest.session_id, latest.run_id)
                self.number = latest.number
                before = Values.of(latest.values, latest.versions)
                self.attempt.observe("on_checkpoint_loaded", latest.session_id, latest.number)
        self.walk = Walk(self.app.graph, self.attempt, self.app.graph.schema.initial(given, before))
        await self.walk.enter(entry)
        if self.app.config.durability == "step":
            await self.save("completed" if self.walk.done else "running")

    def restore(self, checkpoint: Checkpoint, answers: Mapping[str, tuple[Any, ...]]) -> None:
        """Stand where a checkpoint was taken."""
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
        self.errors = checkpoint.errors
        self.iterative = checkpoint.iterative
        self.attempt.observe("on_checkpoint_loaded", checkpoint.session_id, checkpoint.number)

    def launch(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None], timeout: float | None) -> None:
        """Run ``work`` as the attempt's task, stopped by the token and by the deadline."""
        self.loop = loop
        self.task = loop.create_task(self._drive(work), name=f"run {self.lane.run_id}")
        self._forget = self.token.on_cancel(self._asked_to_stop)
        if timeout is not None:
            self._timers.append(loop.call_later(timeout, self.token.cancel, "deadline"))

    # ── going on ──────────────────────────────────────────────────────────────────────────────────

    async def step(self) -> StepOutcome:
        """One superstep and its checkpoint."""
        assert self.walk is not None
        self.token.raise_if_cancelled()
        outcome = await self.walk.superstep()
        self.attempt.answers = {}
        if self.app.config.durability == "step":
            await self.save("completed" if self.walk.done and not self.iterative else "running", outcome)
        return outcome

    async def to_the_end(self) -> None:
        """Every step that is left."""
        assert self.walk is not None
        while not self.walk.done:
            await self.step()
        self.token.raise_if_cancelled()

    async def _drive(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except GeneratorExit:
            work.close()  # the loop was closed under us: nodes first, then the terminal event
            self.finish("interrupted", None, "loop_closed")
            raise
        except BaseException as exc:
            await self.end_with(exc)
            if not isinstance(exc, Exception | asyncio.CancelledError):
                raise  # KeyboardInterrupt, SystemExit: the loop's owner decides
        else:
            await self.end("completed")

    # ── saving ────────────────────────────────────────────────────────────────────────────────────

    async def save(self, status: RunStatus, outcome: StepOutcome | None = None) -> None:
        if self.checkpointer is None or self.walk is None:
            return
        if self.number is None:
            latest = await self.checkpointer.latest(self.lane.session_id)
            self.number = 0 if latest is None else latest.number
        walk, lane = self.walk, self.lane
        checkpoint = Checkpoint(
            session_id=lane.session_id,
            number=self.number + 1,
            run_id=lane.run_id,
            attempt=self.attempt.number,
            run_seq=lane.head,
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
            forked_from=self.forked_from,
            fingerprint=self.app.graph.fingerprint,
        )
        began = time.monotonic()
        self.attempt.flush()
        await self.checkpointer.save(checkpoint)
        self.number = checkpoint.number
        metadata = {"session": lane.session_id, "number": checkpoint.number, "step": walk.step}
        self.attempt.say("weavegraph.checkpoint.saved", f"checkpoint {checkpoint.number}", metadata, step=walk.step)
        self.attempt.observe(
            "on_checkpoint_saved", lane.session_id, checkpoint.number, time.monotonic() - began
        )

    # ── ending ────────────────────────────────────────────────────────────────────────────────────

    async def end_with(self, exc: BaseException) -> None:
        """The attempt could not go on: what that means for the run."""
        run_id = self.lane.run_id
        if isinstance(exc, StepPaused):
            self.questions = exc.questions
            await self.end("paused")
        elif isinstance(exc, StepFailed):
            self.record(exc.error, *exc.others)
            for other in exc.others:
                exc.error.add_note(f"also in this step: {type(other).__name__}: {other}")
            await self.end("failed", exc.error)
        elif isinstance(exc, RunCancelledError) or self.attempt.killed or self.token.cancelled:
            self.reason = self.token.reason or self.reason or getattr(exc, "reason", "") or "cancelled"
            await self.end("cancelled", RunCancelledError(run_id, self.reason), self.reason)
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
            self.walk.values, _ = schema.merge(self.walk.values, [("the runtime", [("errors", list(records))])])

    async def end(self, status: RunStatus, error: BaseException | None = None, code: str | None = None) -> None:
        """Save, write the terminal event, let go of everything, and tell who waits."""
        durable = self.app.config.durability == "end" or status != "completed"
        if self.checkpointer is not None and durable:
            try:
                await asyncio.shield(asyncio.ensure_future(self.save(status)))
            except (Exception, asyncio.CancelledError) as exc:
                if error is None and isinstance(exc, WeavegraphError):
                    status, error, code = "failed", exc, None
                elif error is not None:
                    error.add_note(f"and its checkpoint could not be saved: {exc!r}")
        self.conclude(status, error, code)
        if self.guards:
            await asyncio.gather(*(guard.remove(SINK_GRACE) for guard in self.guards), return_exceptions=True)
        self.release()

    def finish(self, status: RunStatus, error: BaseException | None, code: str | None) -> None:
        """As ``end``, where nothing can be awaited."""
        self.conclude(status, error, code)
        self.release()

    def conclude(self, status: RunStatus, error: BaseException | None, code: str | None) -> None:
        """The terminal event, and the lane's rest."""
        if self.status != "running":
            return
        self.status, self.error = status, error
        if code is None and error is not None:
            code = getattr(error, "code", None)
        step = 0 if self.walk is None else self.walk.step
        with contextlib.suppress(EmitterError):  # the bus was closed under the run
            self.attempt.conclude(status, step, error if status == "failed" else None, code)
        self.app.event_bus.end_attempt(self.lane, status)
        self.attempt.observe(
            "on_run_finished", self.lane.run_id, status, time.monotonic() - self._began, error
        )

    def release(self) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._forget is not None:
            self._forget()
        self.attempt.close()
        self.app._ended(self)
        self.ended.open()

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────

    def _asked_to_stop(self, reason: str) -> None:
        """Somebody cancelled the token, in whatever thread: after the grace, cancel the nodes."""
        assert self.loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the run with it
            self.loop.call_soon_threadsafe(self._begin_grace)

    def _begin_grace(self) -> None:
        assert self.loop is not None
        if not self.ended.is_open:
            self._timers.append(self.loop.call_later(self.app.config.cancel_grace, self.kill))

    def kill(self) -> None:
        """Cancel the nodes now; one that will not end is left behind after another grace. In the run's loop."""
        if self.task is None or self.task.done() or self.attempt.killed:
            return
        self.attempt.killed = True
        self.task.cancel()
        assert self.loop is not None
        grace = max(self.app.config.cancel_grace, 0.05)
        self._timers.append(self.loop.call_later(grace, self._abandon))

    def _abandon(self) -> None:
        if not self.ended.is_open:
            reason = self.token.reason or self.reason or "cancelled"
            self.reason = reason
            self.finish("cancelled", RunCancelledError(self.lane.run_id, reason), reason)

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
