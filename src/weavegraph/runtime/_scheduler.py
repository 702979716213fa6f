"""Walks a graph, superstep by superstep; the only place that starts node tasks. What a step means, `_step` decides."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import copy_context
from typing import Any

import msgspec

from weavegraph.errors import (
    NodeCancelledError,
    NodeTimeoutError,
    RunCancelledError,
    StepLimitError,
    WeavegraphError,
)
from weavegraph.graph import CompiledGraph, NodePlan
from weavegraph.runtime._attempt import Attempt, code_of, describe, plain
from weavegraph.runtime._context import NodeContext, NodePaused
from weavegraph.runtime._step import Output, frontier_of, output_of, targets_of
from weavegraph.state import (
    Failure,
    Finished,
    Goto,
    OpenQuestion,
    Task,
    Values,
    Writes,
    isolate,
    mark_failure,
    weigh,
)

__all__ = ["NodePaused", "StepFailed", "StepOutcome", "StepPaused", "Walk"]


_STOPS = (asyncio.CancelledError, RunCancelledError, GeneratorExit)
_MIN_GRACE = 0.05
"""Seconds that a cancelled task has at least: with less, one that ends at once would count as one that does not."""


class StepOutcome(msgspec.Struct, frozen=True):
    """What a superstep did."""

    step: int
    ran: tuple[str, ...]
    skipped: tuple[str, ...]
    updated: tuple[str, ...]


class StepFailed(Exception):
    """A node of the step raised: ``error`` is the first that did, ``others`` came with it. Internal."""

    def __init__(self, error: BaseException, others: tuple[BaseException, ...] = ()) -> None:
        self.error, self.others = error, others
        super().__init__()  # no text: that of somebody's exception may raise


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
        place: str = "",
        step: int = 0,
        seen: Mapping[str, Mapping[str, int]] | None = None,
        finished: tuple[Finished, ...] = (),
    ) -> None:
        self.graph, self.attempt, self.values, self.frontier = graph, attempt, values, frontier
        self.path, self.step = path, step
        self.place = place
        """As the path, but unlike for each of several sends of one sub-graph; a prefix of question keys."""
        self.base = 0  # the step before which the present input began; the step limit counts from there
        self.seen: dict[str, Mapping[str, int]] = dict(seen or {})
        self.finished: dict[int, Output] = {done.index: Output(done.writes, done.goto, done.added) for done in finished}
        """Outputs of the present frontier that are known already, by place."""
        self.keep: Callable[[int, Output], Awaitable[None]] | None = None
        """Told of every output of a step of several tasks, before the step is over: keeps it for a resume."""
        self.written: list[tuple[str, Any]] | None = None
        """Every write so far, in order, when somebody wants to know: a parent graph does."""
        self._all_fit = False  # the tasks of this step are all that runs, and are not more than there are slots
        self._contexts: dict[int, NodeContext[Any, Any]] = {}
        """Of tasks of the present step that run side by side or in a sub-graph: they may have to be left behind."""

    async def enter(self, entry: str | None = None) -> None:
        """Stand at the beginning: what START leads to, or one node."""
        if entry is None:
            self.frontier = frontier_of(self.graph, await self._targets(self.graph.start, Output(()), self.values))
        else:
            self.frontier = (Task(entry),)

    @property
    def done(self) -> bool:
        return not self.frontier

    async def superstep(self) -> StepOutcome:
        """Run the frontier, merge what it returns, find the next one.

        All of it or nothing: when it raises, the state and the frontier are as before, and ``finished`` holds the
        outputs that need not be found again; also when a router raised, or the step was cancelled.

        Raises:
            StepFailed: a node raised. StepPaused: a node asked. RunCancelledError, asyncio.CancelledError: somebody
                asked the run to stop. StepLimitError, GraphError, or what a router raised: the step itself could not be
                done.
        """
        attempt, graph, config = self.attempt, self.graph, self.attempt.config
        tasks = self.frontier
        if self.step - self.base >= config.step_limit:
            raise StepLimitError(config.step_limit)
        if attempt.killed or attempt.over:
            raise asyncio.CancelledError  # a node of the step before took the cancellation for its own
        self.step += 1
        step = self.step
        facts = attempt.step_started(tasks, step, self.path)
        places: Sequence[int] = range(len(tasks))
        running: tuple[Task, ...] = tasks
        skipped: tuple[str, ...] = ()
        if config.version_gating:
            places = [place for place, task in enumerate(tasks) if not self._unchanged(task)]
            if len(places) < len(tasks):
                running, skipped = self._skip(tasks, places)
        schema = graph.schema
        try:
            if len(running) == 1:
                outputs = [await self._run_lone(places[0], running[0])]
                updates = [(running[0].node, outputs[0].writes)]
            else:
                outputs = await self._run_all(places, running)
                updates = [(task.node, output.writes) for task, output in zip(running, outputs, strict=True)]
            try:
                values, updated = schema.merge(self.values, updates, "node {!r}")
            except BaseException:
                self.finished = {}  # what cannot be merged is no output: the nodes have to run again
                raise
            try:
                frontier = self._straight_on(running, outputs)
                if frontier is None:
                    frontier = await self._next(running, outputs, values)
            except BaseException:
                self.finished = dict(zip(places, outputs, strict=True))
                raise
        except BaseException:
            self.step -= 1  # whoever goes on from here does this step again
            raise
        if self.written is not None:
            self.written += [(key, _own(value)) for _, writes in updates for key, value in writes]
        if config.version_gating:
            for task in running:
                if not task.sent:
                    self.seen[task.node] = self.values.versions
        self.values, self.frontier, self.finished = values, frontier, {}
        if self._contexts:
            self._contexts.clear()
        more = None if config.state_events == "off" else _state_event(config.state_events, updates, values)
        attempt.step_finished(facts, step, self.path, more)
        return StepOutcome(step, tuple([task.node for task in running]), skipped, updated)

    # ── running nodes ─────────────────────────────────────────────────────────────────────────────

    def _unchanged(self, task: Task) -> bool:
        seen = self.seen.get(task.node)
        return seen is not None and not task.sent and seen == self.values.versions

    def _skip(self, tasks: tuple[Task, ...], places: Sequence[int]) -> tuple[tuple[Task, ...], tuple[str, ...]]:
        """The tasks that run, and the names of those that do not."""
        run = frozenset(places)
        skipped = tuple(task.node for place, task in enumerate(tasks) if place not in run)
        for name in skipped:
            self.attempt.node("skipped", name, self.step, self.path, 0)
        return tuple(tasks[place] for place in places), skipped

    async def _run_lone(self, index: int, task: Task) -> Output:
        """The only task of a step, in the run's own task: saves about 20 µs for a task of its own."""
        if self.finished and index in self.finished:
            return self.finished[index]
        try:
            if self.path:
                return await self._run(index, task)
            return await self._try(index, task, self.graph.nodes[task.node], False)
        except NodePaused as paused:
            raise StepPaused(paused.questions) from None

    async def _run_all(self, places: Sequence[int], tasks: tuple[Task, ...]) -> list[Output]:
        outputs = self.finished
        todo = deque([pair for pair in zip(places, tasks, strict=True) if pair[0] not in outputs])
        running: dict[asyncio.Task[Any], int] = {}  # in the order of the step: all is done to them in that order
        errors: list[tuple[int, BaseException]] = []
        config, loop, deadline = self.attempt.config, asyncio.get_running_loop(), None
        self._all_fit = len(todo) <= config.concurrency_limit and not self.path and not self.graph.nested
        try:
            if todo:
                front = loop.create_task(self._in_turn(todo, running))
                if todo:  # an eager task has begun
                    running.setdefault(front, todo[0][0])
                while todo and not front.done():
                    await asyncio.sleep(0)
            waiting = {future for future in running if not future.done() or _error_of(future) is not None}
            while waiting:
                left = None if deadline is None else max(deadline - loop.time(), 0.0)
                until_first = deadline is None and config.on_node_error == "cancel"
                when = asyncio.FIRST_EXCEPTION if until_first else asyncio.ALL_COMPLETED
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=when)
                for future in sorted(done, key=running.__getitem__):
                    error = _error_of(future)
                    if error is not None:
                        errors.append((running[future], error))
                if not until_first and waiting:
                    break  # they have had their time
                if until_first and any(isinstance(error, StepFailed) for _, error in errors):
                    deadline = loop.time() + max(config.cancel_grace, _MIN_GRACE)
                    for future in running:
                        if future in waiting:
                            future.cancel()
        except GeneratorExit:  # the loop was closed under us: nothing can be awaited
            for future in running:
                _shut(future)
            raise
        except BaseException:
            await self._cancel([future for future in running if not future.done()])
            raise
        finally:
            for future, index in running.items():
                if future.done():
                    _error_of(future)
                else:
                    self._leave(future, index)
        if errors:
            # A sibling that we cancelled is no failure of its own, and a question none either.
            failed = [error for _, error in errors if isinstance(error, StepFailed)]
            if failed:
                first, *rest = (each for failure in failed for each in (failure.error, *failure.others))
                raise StepFailed(first, tuple(each for each in rest if each is not first)) from first
            errors.sort(key=lambda each: each[0])
            for _, error in errors:
                if not isinstance(error, NodePaused):
                    raise error
            raise StepPaused(tuple(each for _, error in errors for each in error.questions))  # type: ignore[attr-defined]
        return [outputs[index] for index in places]

    async def _in_turn(self, todo: deque[tuple[int, Task]], running: dict[asyncio.Task[Any], int]) -> None:
        """Run tasks one after the other in this task of asyncio, as long as each ends well without waiting; one that
        waits keeps it, and those that are left get one each.

        A task of asyncio for each of 100 nodes that return at once makes a quarter of what the step costs. No node can
        tell: none shares its task with another that still runs, and each begins with the run's context variables.
        """
        me, context = asyncio.current_task(), copy_context()
        assert me is not None

        def part() -> None:
            self.attempt.flush()
            while todo:
                index, task = todo.popleft()
                running[asyncio.create_task(self._run(index, task), context=context.copy())] = index

        try:
            while todo:
                running[me], task = todo.popleft()
                await _until_it_waits(self._run(running[me], task, todo), part)
                if me.cancelling() or copy_context() != context:
                    break
        finally:
            part()

    async def _cancel(self, futures: list[asyncio.Task[Any]]) -> None:
        for future in futures:
            future.cancel()
        if futures:
            await asyncio.wait(futures, timeout=self.attempt.config.cancel_grace)

    def _leave(self, future: asyncio.Task[Any], index: int) -> None:
        """Go on without a task that does not end."""
        future.add_done_callback(_error_of)
        context = self._contexts.get(index)
        if context is not None:
            context.leave()

    async def _run(self, index: int, task: Task, more: Sized = ()) -> Output:
        """One task of several that run side by side, when there is a slot for it. ``more``: those that follow at once,
        in this task of asyncio; the events of its end are written with those of their beginning."""
        plan = self.graph.nodes[task.node]
        if self._all_fit or plan.mode == "graph":  # a sub-graph's nodes take slots, so itself it must not hold one
            output = await self._try(index, task, plan, True)
        else:
            async with self.attempt.limit:
                output = await self._try(index, task, plan, True)
        self.finished[index] = output  # from here on it is not lost, whatever happens to the step
        if not more or self.keep is not None:
            self.attempt.flush()  # siblings have a turn
        if self.keep is not None:
            await self.keep(index, output)
        return output

    async def _try(self, index: int, task: Task, plan: NodePlan, limited: bool) -> Output:
        """One task, with its tries. ``limited``: it may have to be left behind.

        Raises:
            StepFailed: it failed. NodePaused: it asked. RunCancelledError, asyncio.CancelledError, GeneratorExit:
                somebody asked it to stop.
        """
        attempt, step, path = self.attempt, self.step, self.path
        monotonic = attempt.clock.monotonic
        name, try_no = plan.name, 0
        while True:
            try_no += 1
            context: NodeContext[Any, Any] = NodeContext(attempt, name, step, path, try_no, index, self.place)
            if limited:
                self._contexts[index] = context
            attempt.node_started(name, step, path, try_no)
            began = monotonic()
            others: tuple[BaseException, ...] = ()
            try:
                state = _own(task.payload) if task.sent else self.graph.schema.view(self.values)
                if plan.mode == "async" and plan.timeout is None:
                    value = await (plan.call(state, context) if plan.takes_context else plan.call(state))
                else:
                    value = await self._call(task, plan, state, context)
                if type(value) is dict:
                    output = Output(tuple(value.items()))
                else:
                    output = output_of(self.graph, plan, value)
                    output = Output(tuple(output.writes), output.goto, output.added)
            except StepFailed as failed:  # of a sub-graph
                error, others = failed.error, failed.others
                failure: BaseException | None = error
            except BaseException as exc:
                error = _sole(exc)
                failure = self._failure(error, name)
            else:
                if context._over or attempt.over:
                    raise asyncio.CancelledError  # it was left behind: nobody waits for its output
                context._over = True
                if context._records is not None:
                    context.close_streams("cancelled")  # those that the node never read to the end
                attempt.node_finished(name, step, path, try_no, _since(began, monotonic))
                return output
            if context._over or attempt.over:
                raise error
            duration, text = _since(began, monotonic), describe(error if failure is None else failure)
            if isinstance(error, NodePaused):
                context.close_streams("cancelled")
                attempt.paused(name, step, path, try_no, error.questions)
                raise error
            if failure is None:
                context.close_streams("cancelled")
                attempt.node("failed", name, step, path, try_no, duration, text, "cancelled")
                raise error
            context.close_streams("error", text)
            if self._may_retry(plan, failure, try_no):
                assert plan.retry is not None
                attempt.node("retried", name, step, path, try_no, duration, text)
                # Jitter from the task's own name: the same graph waits the same on every replay.
                spread = _spread(f"{attempt.lane.run_id}:{name}:{step}:{try_no}")
                limit = min(plan.retry.cap, plan.retry.base * 2 ** min(try_no - 1, 60))
                await self._pause(spread * limit)
                continue
            place = Failure(
                node=name, step=step, attempt=attempt.number, try_no=try_no, run_id=attempt.lane.run_id, path=path
            )
            mark_failure(failure, place)
            attempt.node("failed", name, step, path, try_no, duration, text, code_of(failure))
            raise StepFailed(failure, others) from failure

    def _failure(self, exc: BaseException, node: str, *, router: bool = False) -> BaseException | None:
        """What a node, or the router after it, failed with; ``None``: it did not, the run was asked to stop.

        A cancellation that nobody asked for is a failure: one that was made up, or that of another run.
        """
        if not isinstance(exc, _STOPS):
            return exc
        if isinstance(exc, GeneratorExit) or self.attempt.killed or self.attempt.token.cancelled:
            return None
        if isinstance(exc, RunCancelledError):
            return exc
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return None
        error = NodeCancelledError(node, router=router)
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

    async def _call(self, task: Task, plan: NodePlan, state: Any, context: NodeContext[Any, Any]) -> Any:
        if plan.timeout is None:
            return await self._call_once(task, plan, state, context)
        try:
            async with asyncio.timeout(plan.timeout) as limit:
                return await self._call_once(task, plan, state, context)
        except TimeoutError as exc:
            if limit.expired():
                raise NodeTimeoutError(plan.name, plan.timeout) from exc
            raise

    async def _call_once(self, task: Task, plan: NodePlan, state: Any, context: NodeContext[Any, Any]) -> Any:
        arguments = (state, context) if plan.takes_context else (state,)
        if plan.mode == "async":
            return await plan.call(*arguments)
        if plan.mode == "sync":
            value = await self.attempt.threads.call(plan.call, *arguments)
            return await value if inspect.isawaitable(value) else value
        return await self._call_graph(task, plan, state, context)

    async def _call_graph(self, task: Task, plan: NodePlan, state: Any, context: NodeContext[Any, Any]) -> Writes:
        """A sub-graph: it is given the keys that it knows, and what it writes to shared keys goes to the parent."""
        inner, outer = plan.graph, self.graph.schema
        assert inner is not None
        given = state
        if not isinstance(state, Mapping):
            given = (inner.schema if inner.schema.is_state(state) else outer).as_update(state, "the state")
        shared = {key: given[key] for key in inner.schema.reducers if key in given}
        values = inner.schema.initial(shared) if task.sent else inner.schema.entered(shared)
        path, place = (*self.path, plan.name), f"{self.place}{plan.name}[{self.step}:{context._index}]/"
        walk = Walk(inner, self.attempt, values, path=path, place=place)
        walk.written, context._inner = [], walk._contexts
        me = asyncio.current_task()
        asked = 0 if me is None else me.cancelling()
        await walk.enter()
        while not walk.done:
            try:
                await walk.superstep()
            except StepPaused as paused:
                raise NodePaused(paused.questions) from None
            self.attempt.token.raise_if_cancelled()
            if context._over or (me is not None and me.cancelling() > asked):
                raise asyncio.CancelledError  # it was left behind, or its node took the cancellation for its own
        # Keys with a reducer in the parent get each write by itself; of the others only the last value counts.
        last = {key: value for key, value in walk.written if key in outer.reducers}
        return Writes(
            [(key, value) for key, value in walk.written if outer.reducers.get(key) is not None]
            + [(key, value) for key, value in last.items() if outer.reducers[key] is None]
        )

    # ── going on ──────────────────────────────────────────────────────────────────────────────────

    def _straight_on(self, tasks: tuple[Task, ...], outputs: list[Output]) -> tuple[Task, ...] | None:
        """The next frontier, if it is that of one node's plain edges."""
        if len(tasks) != 1:
            return None
        plan, output = self.graph.nodes[tasks[0].node], outputs[0]
        straight = output.goto is None and not output.added and not plan.conditional
        return plan.following if straight else None

    async def _next(self, tasks: tuple[Task, ...], outputs: list[Output], values: Values) -> tuple[Task, ...]:
        nodes = self.graph.nodes
        targets: list[Goto] = []
        for task, output in zip(tasks, outputs, strict=True):
            plan = nodes[task.node]
            if output.goto is None and not output.added and not plan.conditional:
                targets += plan.edges
            else:
                targets += await self._targets(plan, output, values)
        return frontier_of(self.graph, targets)

    async def _targets(self, plan: NodePlan, output: Output, values: Values) -> list[Goto]:
        if output.goto is not None:
            return list(output.goto)
        targets: list[Goto] = [*plan.edges, *output.added]
        for edge in plan.conditional:
            try:
                self.attempt.flush()
                answer = edge.router(self.graph.schema.view(values))
                if inspect.isawaitable(answer):
                    answer = await answer
                targets += targets_of(self.graph, edge, answer)
            except BaseException as exc:
                error = _sole(exc)
                failure = self._failure(error, plan.name, router=True)
                if failure is None:
                    raise error from None
                with contextlib.suppress(Exception):  # one that takes no notes
                    run = self.attempt.lane.run_id
                    failure.add_note(f"in the router after {plan.name!r}, step {self.step} of run {run!r}")
                if isinstance(failure, RunCancelledError):
                    raise StepFailed(failure) from failure  # by itself it would say that this run was cancelled
                if failure is exc:
                    raise
                raise failure from exc
        return targets


def _own(value: Any) -> Any:
    return isolate(value, weigh(value))


def _sole(exc: BaseException) -> BaseException:
    """A group of nothing but cancellations or questions as one of these: a ``TaskGroup`` wraps what its tasks raise."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = list(_leaves(exc))
    stop = next((leaf for leaf in leaves if isinstance(leaf, _STOPS)), None)
    if not all(isinstance(leaf, (*_STOPS, NodePaused)) for leaf in leaves):
        return exc
    if stop is not None:
        return stop
    return NodePaused(tuple(each for leaf in leaves for each in leaf.questions))  # type: ignore[attr-defined]


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


@types.coroutine
def _until_it_waits(work: Coroutine[Any, Any, Any], then: Callable[[], None]) -> Generator[Any, Any, Any]:
    """``await work``; when it waits for the first time, ``then()``, before anybody else has a turn."""
    try:
        waits_for = work.send(None)
        then()
        while True:
            try:
                answer = yield waits_for
            except GeneratorExit:
                work.close()
                raise
            except BaseException as exc:
                waits_for = work.throw(exc)
            else:
                waits_for = work.send(answer)
    except StopIteration as done:
        return done.value


def _error_of(future: asyncio.Task[Any]) -> BaseException | None:
    """What a task that is done raised; asyncio then knows that somebody looked."""
    return asyncio.CancelledError() if future.cancelled() else future.exception()


def _shut(future: asyncio.Task[Any]) -> None:
    """End a task whose loop is closed, as far as that goes."""
    future._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine = future.get_coro()
    with contextlib.suppress(Exception):  # it awaits something while it is closed, or wakes somebody in that loop
        if coroutine is not None and not future.done():
            coroutine.close()


def _since(began: float, monotonic: Callable[[], float]) -> float:
    return int((monotonic() - began) * 1e6 + 0.5) / 1e6  # as round(…, 6), which takes 0.6 µs more


def _state_event(what: str, updates: list[tuple[str, Iterable[tuple[str, Any]]]], values: Values) -> dict[str, Any]:
    """What ``state_events`` adds to the end of a step, as far as JSON can say it."""
    if what == "values":
        return {"values": {key: plain(value) for key, value in values.values.items()}}
    writes = [(f"node {node!r}", {key: plain(value) for key, value in pairs}) for node, pairs in updates]
    return {"updates": [{"by": who, "writes": written} for who, written in writes]}


def _spread(seed: str) -> float:
    """A number from 0 to 1 that follows from ``seed``."""
    from random import Random

    return Random(seed).uniform(0.0, 1.0)
