"""Runs one attempt of one run, step by step; the only place that starts node tasks."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from weavegraph.bus import Lane
from weavegraph.config import RuntimeConfig
from weavegraph.errors import StepLimitError
from weavegraph.events import STREAM_END_SCOPE, DiagnosticEvent, clean_text, freeze_metadata
from weavegraph.graph import START, CompiledGraph
from weavegraph.protocols import Clock
from weavegraph.runtime._context import NodeContext
from weavegraph.runtime._step import frontier, targets_of, update_of

__all__ = ["Scheduler"]


class Scheduler:
    """One attempt: supersteps until nothing is left to run. Reports itself on the run's lane (contract section 9)."""

    def __init__(self, graph: CompiledGraph, config: RuntimeConfig, lane: Lane, clock: Clock) -> None:
        self._graph, self._config, self._lane, self._clock = graph, config, lane, clock
        self._limit = asyncio.Semaphore(config.concurrency_limit)
        self._pool: ThreadPoolExecutor | None = None
        self.step = 0

    def announce(self, given: Mapping[str, Any]) -> None:
        self._say(
            "weavegraph.run.started",
            self._graph.name,
            graph=self._graph.name,
            session=self._lane.session_id,
            input=sorted(given),
        )

    def conclude(self, outcome: str, error: BaseException | None = None, code: str | None = None) -> None:
        """The attempt's terminal event, always its last."""
        text = None if error is None else f"{type(error).__name__}: {error}"
        self._say(STREAM_END_SCOPE, outcome, outcome=outcome, step=self.step, error=text, code=code)

    async def run(self, state: dict[str, Any]) -> dict[str, Any]:
        graph = self._graph
        try:
            nodes = frontier(graph, await self._successors(START, state))
            while nodes:
                if self.step >= self._config.step_limit:
                    raise StepLimitError(self._config.step_limit)
                self.step += 1
                self._say(
                    "weavegraph.step.started",
                    f"step {self.step}: {', '.join(nodes)}",
                    step=self.step,
                    nodes=list(nodes),
                )
                updates = await self._superstep(nodes, state)
                state = graph.schema.merge(state, updates)
                self._say("weavegraph.step.finished", f"step {self.step}", step=self.step, nodes=list(nodes))
                targets = [target for node in nodes for target in await self._successors(node, state)]
                nodes = frontier(graph, targets)
            return state
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=False)

    async def _superstep(self, nodes: tuple[str, ...], state: dict[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
        if len(nodes) == 1:  # a lone node runs in the run's own task: saves 20 µs for a task
            return [(nodes[0], await self._node(nodes[0], state))]
        tasks = [asyncio.ensure_future(self._node(node, state)) for node in nodes]
        try:
            outputs = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return list(zip(nodes, outputs, strict=True))

    async def _node(self, name: str, state: dict[str, Any]) -> Mapping[str, Any]:
        context = NodeContext(self._lane, name, self.step)
        async with self._limit:
            started = self._clock.monotonic()
            self._say("weavegraph.node.started", name, node=name, step=self.step)
            try:
                update = update_of(name, await self._call(self._graph.nodes[name], dict(state), context))
            except asyncio.CancelledError:
                context.close_streams("cancelled")
                raise
            except BaseException as exc:
                context.close_streams("error", f"{type(exc).__name__}: {exc}")
                exc.add_note(f"in node {name!r}, step {self.step} of run {self._lane.run_id!r}")
                self._say(
                    "weavegraph.node.failed",
                    f"{type(exc).__name__}: {exc}",
                    node=name,
                    step=self.step,
                    error=f"{type(exc).__name__}: {exc}",
                )
                raise
            context.close_streams("cancelled")  # those that the node never read to the end
            duration = round(self._clock.monotonic() - started, 6)
            self._say("weavegraph.node.finished", name, node=name, step=self.step, duration=duration)
            return update

    async def _call(self, node: Any, state: dict[str, Any], context: NodeContext) -> Any:
        function = node if callable(node) else node.run
        arguments = (state, context) if _takes_context(function) else (state,)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            return await function(*arguments)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._config.concurrency_limit, thread_name_prefix="weavegraph-node")
        loop = asyncio.get_running_loop()
        call = functools.partial(contextvars.copy_context().run, function, *arguments)
        output = await loop.run_in_executor(self._pool, call)
        return await output if inspect.isawaitable(output) else output

    async def _successors(self, node: str, state: dict[str, Any]) -> list[str]:
        targets = list(self._graph.edges.get(node, ()))
        for edge in self._graph.conditional.get(node, ()):
            answer = edge.router(dict(state))
            if inspect.isawaitable(answer):
                answer = await answer
            targets.extend(targets_of(self._graph, edge, answer))
        return targets

    def _say(self, scope: str, message: str = "", /, **metadata: Any) -> None:
        known = {key: value for key, value in metadata.items() if value is not None}
        event = DiagnosticEvent(
            scope,
            clean_text("message", message[:100_000]),
            freeze_metadata(known),
            node_id=metadata.get("node"),
            step=metadata.get("step"),
        )
        self._lane._accept(event, reserved=True)


@functools.lru_cache(maxsize=4096)
def _takes_context(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
