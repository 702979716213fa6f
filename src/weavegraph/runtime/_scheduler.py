"""Walks a graph, superstep by superstep; the only place that starts node tasks. What a step means, `_step` decides."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any

import msgspec

from weavegraph.errors import (
    GraphError,
    NodeCancelledError,
    NodeTimeoutError,
    RunCancelledError,
    StepLimitError,
    WeavegraphError,
)
from weavegraph.graph import CompiledGraph, NodePlan
from weavegraph.runtime._attempt import Attempt, describe
from weavegraph.runtime._context import NodeContext, NodePaused
from weavegraph.runtime._step import Output, frontier_of, output_of, targets_of
from weavegraph.state import Failure, Finished, Goto, OpenQuestion, StateSchema, Task, Values, Writes, mark_failure

__all__ = ["NodePaused", "StepFailed", "StepOutcome", "StepPaused", "Walk"]


_NO_FAILURES = (asyncio.CancelledError, RunCancelledError, NodePaused)


class StepOutcome(msgspec.Struct, frozen=True):
    """What a superstep did."""

    step: int
    ran: tuple[str, ...]
    skipped: tuple[str, ...]
    updated: tuple[str, ...]


class StepFailed(Exception):
    """A node of the step raised: ``error`` is the first that did, ``others`` came with it. Internal."""

    def __init__(self, error: BaseException, others: tuple[BaseException, ...]) -> None:
        self.error, self.others = error, others
        super().__init__(str(error))


class StepPaused(Exception):
    """Nodes of the step asked something; the others have finished. Internal."""

    def __init__(self, questions: tuple[OpenQuestion, ...]) -> None:
        self.questions = questions
        super().__init__(f"{len(questions)} questions")


class Walk:
    """A position in a graph, and the state there: one step at a time, deterministic given what nodes return.

    The state is never changed in place: whoever holds ``values`` keeps what it holds.
    """

    def __init__(
        self,
        graph: CompiledGraph,
        attempt: Attempt,
        values: Values,
        frontier: tuple[Task, ...] = (),
        *,
        path: tuple[str, ...] = (),
        step: int = 0,
        seen: Mapping[str, Mapping[str, int]] | None = None,
        finished: tuple[Finished, ...] = (),
    ) -> None:
        self.graph, self.attempt, self.values, self.frontier = graph, attempt, values, frontier
        self.path, self.step = path, step
        self.base = 0  # the step before which the present input began; the step limit counts from there
        self.seen: dict[str, Mapping[str, int]] = dict(seen or {})
        self.finished: dict[int, Output] = {
            done.index: Output(done.writes, done.goto, done.added) for done in finished
        }
        """Outputs of the present frontier that are known already, by place."""
        self.keep: Callable[[int, Output], Awaitable[None]] | None = None
        """Told of every output of a step of several tasks, before the step is over: keeps it for a resume."""
        self.written: list[tuple[str, Any]] | None = None
        """Every write so far, in order, when somebody wants to know: a parent graph does."""

    async def enter(self, entry: str | None = None) -> None:
        """Stand at the beginning: what START leads to, or one node."""
        if entry is None:
            self.frontier = frontier_of(self.graph, await self._targets(self.graph.start, Output(())))
        else:
            self.frontier = (Task(entry),)

    @property
    def done(self) -> bool:
        return not self.frontier

    async def superstep(self) -> StepOutcome:
        """Run the frontier, merge what it returns, find the next one.

        Raises:
            StepFailed: a node raised. ``finished`` then holds what the others returned; the state is as before.
            StepLimitError, GraphError, StateError: the step itself could not be done.
        """
        attempt, graph, config = self.attempt, self.graph, self.attempt.config
        tasks = self.frontier
        if self.step - self.base >= config.step_limit:
            raise StepLimitError(config.step_limit)
        self.step += 1
        step = self.step
        attempt.step_started(tasks, step, self.path)
        running = tasks
        skipped: tuple[str, ...] = ()
        if config.version_gating:
            running = tuple(task for task in tasks if not self._unchanged(task))
            skipped = tuple(task.node for task in tasks if task not in running)
            for name in skipped:
                attempt.node("skipped", name, step, self.path, 0)
        try:
            # A lone node runs in the run's own task: saves about 20 µs for a task of its own.
            outputs = [await self._run_lone(running[0])] if len(running) == 1 else await self._run_all(running)
        except BaseException:
            self.step -= 1  # whoever goes on from here does this step again
            raise
        schema = graph.schema
        updates = [(f"node {task.node!r}", output.writes) for task, output in zip(running, outputs, strict=True)]
        versions = self.values.versions
        try:
            self.values, updated = schema.merge(self.values, updates)
        except GraphError:
            self.step -= 1
            raise
        if self.written is not None:
            self.written += [pair for _, writes in updates for pair in writes]
        if config.version_gating:
            for task in running:
                self.seen[task.node] = versions
        more = None if config.state_events == "off" else _state_event(config.state_events, schema, updates, self.values)
        attempt.step_finished(tasks, step, self.path, more)
        self.finished = {}
        self.frontier = await self._next(running, outputs)
        return StepOutcome(step, tuple(task.node for task in running), skipped, updated)

    # ── running nodes ─────────────────────────────────────────────────────────────────────────────

    def _unchanged(self, task: Task) -> bool:
        seen = self.seen.get(task.node)
        return seen is not None and not task.sent and seen == self.values.versions

    async def _run_lone(self, task: Task) -> Output:
        if self.finished:
            return self.finished[0]
        try:
            if self.path:
                return await self._run(0, task)
            return await self._try(0, task, self.graph.nodes[task.node], False)
        except (asyncio.CancelledError, GeneratorExit, RunCancelledError):
            raise
        except NodePaused as paused:
            raise StepPaused(paused.questions) from None
        except BaseException as exc:
            raise StepFailed(exc, ()) from exc

    async def _run_all(self, tasks: tuple[Task, ...]) -> list[Output]:
        outputs: dict[int, Output] = dict(self.finished)
        running: dict[asyncio.Task[Output], int] = {
            asyncio.create_task(self._run(index, task)): index
            for index, task in enumerate(tasks)
            if index not in outputs
        }
        errors: list[tuple[int, BaseException]] = []
        when = asyncio.FIRST_COMPLETED if len(running) == 1 else asyncio.FIRST_EXCEPTION
        waiting = set(running)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=when)
                for future in sorted(done, key=running.__getitem__):
                    error = None if future.cancelled() else future.exception()
                    if future.cancelled():
                        error = asyncio.CancelledError()
                    if error is None:
                        outputs[running[future]] = future.result()
                    else:
                        errors.append((running[future], error))
                if self.attempt.config.on_node_error == "cancel" and any(
                    not isinstance(error, NodePaused) for _, error in errors
                ):
                    for future in waiting:
                        future.cancel()
        except BaseException:
            await self._cancel(waiting)
            raise
        finally:
            self.finished = outputs
        if errors:
            # A sibling that we cancelled is no failure of its own, and a question none either.
            real = [error for _, error in errors if not isinstance(error, _NO_FAILURES)]
            if real:
                raise StepFailed(real[0], tuple(real[1:])) from real[0]
            asked = [error.questions for _, error in errors if isinstance(error, NodePaused)]
            if len(asked) == len(errors):
                raise StepPaused(tuple(question for questions in asked for question in questions))
            raise next(error for _, error in errors if not isinstance(error, NodePaused))
        return [outputs[index] for index in range(len(tasks))]

    async def _cancel(self, futures: set[asyncio.Task[Output]]) -> None:
        for future in futures:
            future.cancel()
        if futures:
            await asyncio.wait(futures, timeout=self.attempt.config.cancel_grace)
            for future in futures:
                if future.done() and not future.cancelled():
                    future.exception()

    async def _run(self, index: int, task: Task) -> Output:
        """One task of several that run side by side, when there is a slot for it."""
        plan = self.graph.nodes[task.node]
        if plan.mode == "graph":  # a sub-graph's nodes take slots, so itself it must not hold one
            output = await self._try(index, task, plan, True)
        else:
            async with self.attempt.limit:
                output = await self._try(index, task, plan, True)
        if self.keep is not None:
            await self.keep(index, output)
        return output

    async def _try(self, index: int, task: Task, plan: NodePlan, limited: bool) -> Output:
        """One task, with its tries. ``limited``: siblings have a turn when it is done."""
        attempt, step, path = self.attempt, self.step, self.path
        monotonic = attempt.clock.monotonic
        name, try_no = plan.name, 0
        while True:
            try_no += 1
            context: NodeContext[Any, Any] = NodeContext(attempt, name, step, path, try_no, index)
            attempt.node("started", name, step, path, try_no)
            attempt.flush()
            began = monotonic()
            try:
                state = task.payload if task.sent else self.graph.schema.view(self.values)
                if plan.mode == "async" and plan.timeout is None:
                    value = await (plan.call(state, context) if plan.takes_context else plan.call(state))
                else:
                    value = await self._call(plan, state, context)
                if type(value) is dict:
                    output = Output(tuple(value.items()))
                else:
                    output = output_of(self.graph, plan, value)
                    output = output._replace(writes=tuple(output.writes))
            except NodePaused as paused:
                context.close_streams("cancelled")
                attempt.paused(name, step, path, try_no, paused.questions)
                raise
            except (asyncio.CancelledError, GeneratorExit, RunCancelledError) as exc:
                error = self._uninvited(exc, name)
                if error is None:
                    duration = _since(began, monotonic)
                    context.close_streams("cancelled")
                    attempt.node("failed", name, step, path, try_no, duration, describe(exc), "cancelled")
                    raise
            except BaseException as exc:
                error = exc
            else:
                if context._records is not None:
                    context.close_streams("cancelled")  # those that the node never read to the end
                attempt.node("finished", name, step, path, try_no, _since(began, monotonic))
                if limited:
                    attempt.flush()
                return output
            duration, text = _since(began, monotonic), describe(error)
            context.close_streams("error", text)
            if self._may_retry(plan, error, try_no):
                assert plan.retry is not None
                attempt.node("retried", name, step, path, try_no, duration, text)
                # Jitter from the task's own name: the same graph waits the same on every replay.
                spread = Random(f"{attempt.lane.run_id}:{name}:{step}:{try_no}").uniform(0.0, 1.0)
                limit = min(plan.retry.cap, plan.retry.base * 2 ** min(try_no - 1, 60))
                await self._pause(spread * limit)
                continue
            place = Failure(
                node=name, step=step, attempt=attempt.number, try_no=try_no, run_id=attempt.lane.run_id, path=path
            )
            mark_failure(error, place)
            attempt.node("failed", name, step, path, try_no, duration, text, getattr(error, "code", None))
            raise error

    def _uninvited(self, exc: BaseException, name: str) -> BaseException | None:
        """``None`` for a cancellation that somebody asked for; what to raise for one that a node made up."""
        if isinstance(exc, GeneratorExit) or self.attempt.killed or self.attempt.token.cancelled:
            return None
        task = asyncio.current_task()
        if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
            return None
        error = NodeCancelledError(name)
        error.__cause__ = exc
        return error

    def _may_retry(self, plan: NodePlan, error: BaseException, try_no: int) -> bool:
        retry = plan.retry
        if retry is None or try_no >= retry.tries or self.attempt.token.cancelled:
            return False
        ours = isinstance(error, WeavegraphError) and not isinstance(error, NodeTimeoutError)
        return isinstance(error, retry.on) and not ours

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try; a request to stop ends the wait."""
        token = self.attempt.token
        try:
            async with asyncio.timeout(seconds):
                await token.wait()
        except TimeoutError:
            return
        raise RunCancelledError(self.attempt.lane.run_id, token.reason or "cancelled")

    async def _call(self, plan: NodePlan, state: Any, context: NodeContext[Any, Any]) -> Any:
        if plan.timeout is None:
            return await self._call_once(plan, state, context)
        try:
            async with asyncio.timeout(plan.timeout) as limit:
                return await self._call_once(plan, state, context)
        except TimeoutError as exc:
            if limit.expired():
                raise NodeTimeoutError(plan.name, plan.timeout) from exc
            raise

    async def _call_once(self, plan: NodePlan, state: Any, context: NodeContext[Any, Any]) -> Any:
        arguments = (state, context) if plan.takes_context else (state,)
        if plan.mode == "async":
            return await plan.call(*arguments)
        if plan.mode == "sync":
            value = await self.attempt.threads.call(plan.call, *arguments)
            return await value if inspect.isawaitable(value) else value
        return await self._call_graph(plan, state)

    async def _call_graph(self, plan: NodePlan, state: Any) -> Writes:
        """A sub-graph: it is given the keys that it knows, and what it writes to shared keys goes to the parent."""
        inner, outer = plan.graph, self.graph.schema
        assert inner is not None
        given = state if isinstance(state, dict) else outer.as_update(state, "the state")
        shared = {key: value for key, value in given.items() if key in inner.schema.reducers}
        walk = Walk(inner, self.attempt, inner.schema.initial(shared), path=(*self.path, plan.name))
        walk.written = []
        await walk.enter()
        while not walk.done:
            try:
                await walk.superstep()
            except StepFailed as failed:
                raise failed.error from None
            except StepPaused as paused:
                raise NodePaused(paused.questions) from None
            self.attempt.token.raise_if_cancelled()
        # Keys with a reducer in the parent get each write by itself; of the others only the last value counts.
        last = {key: value for key, value in walk.written if key in outer.reducers}
        return Writes(
            [(key, value) for key, value in walk.written if outer.reducers.get(key) is not None]
            + [(key, value) for key, value in last.items() if outer.reducers[key] is None]
        )

    # ── going on ──────────────────────────────────────────────────────────────────────────────────

    async def _next(self, tasks: tuple[Task, ...], outputs: list[Output]) -> tuple[Task, ...]:
        nodes = self.graph.nodes
        if len(tasks) == 1:
            plan, output = nodes[tasks[0].node], outputs[0]
            if output.goto is None and not output.added and not plan.conditional:
                return plan.following
        targets: list[Goto] = []
        for task, output in zip(tasks, outputs, strict=True):
            targets += await self._targets(nodes[task.node], output)
        return frontier_of(self.graph, targets)

    async def _targets(self, plan: NodePlan, output: Output) -> list[Goto]:
        if output.goto is not None:
            return list(output.goto)
        targets: list[Goto] = [*plan.edges, *output.added]
        for edge in plan.conditional:
            try:
                self.attempt.flush()
                answer = edge.router(self.graph.schema.view(self.values))
                if inspect.isawaitable(answer):
                    answer = await answer
                targets += targets_of(self.graph, edge, answer)
            except Exception as exc:
                exc.add_note(f"in the router after {plan.name!r}, step {self.step} of run {self.attempt.lane.run_id!r}")
                raise
        return targets


def _since(began: float, monotonic: Callable[[], float]) -> float:
    return round(monotonic() - began, 6)


def _state_event(
    what: str, schema: StateSchema, updates: list[tuple[str, Any]], values: Values
) -> dict[str, Any]:
    """What ``state_events`` adds to the end of a step, as far as JSON can say it."""
    if what == "values":
        return {"values": {key: _json(value) for key, value in values.values.items()}}
    return {"updates": [{"by": who, "writes": {key: _json(value) for key, value in pairs}} for who, pairs in updates]}


def _json(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=repr)
    except Exception:
        return repr(value)[:1000]
