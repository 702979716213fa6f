"""An app: a compiled graph, its configuration, and the bus that all its runs share."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Mapping
from typing import Any

from weavegraph.bus import EventBus, EventStream
from weavegraph.clock import SystemClock
from weavegraph.config import RuntimeConfig
from weavegraph.errors import NoRunningLoopError, RunNotFoundError
from weavegraph.events import EventFilter, Predicate
from weavegraph.graph import CompiledGraph
from weavegraph.protocols import Clock
from weavegraph.runtime._run import InvocationHandle
from weavegraph.runtime._scheduler import Scheduler

__all__ = ["App"]


class App:
    """Starts runs, any number at once. The bus is made on first use; ``async with app`` drains its sinks at the end."""

    def __init__(self, graph: CompiledGraph, config: RuntimeConfig) -> None:
        self.graph, self.config = graph, config
        self._clock: Clock = config.run_clock or SystemClock()
        self._new_id = config.ids or (lambda: secrets.token_hex(16))
        self._lock = threading.Lock()
        self._bus: EventBus | None = None
        self._tasks: set[asyncio.Task[dict[str, Any]]] = set()  # the loop holds tasks weakly; a run outlives its handle

    @property
    def event_bus(self) -> EventBus:
        """The bus of all runs of this app."""
        with self._lock:
            if self._bus is None:
                self._bus = EventBus.from_config(self.config.event_bus, clock=self._clock)
                self._bus._warns = False
            return self._bus

    def start(
        self, state: Mapping[str, Any], *, run_id: str | None = None, session_id: str | None = None
    ) -> InvocationHandle:
        """Start a run in the running loop; returns at once.

        Raises:
            NoRunningLoopError: there is no loop. StateError: ``state`` has unknown keys.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise NoRunningLoopError from None
        given = self.graph.schema.initial(state)
        bus = self.event_bus
        lane = bus.open_lane(run_id or self._new_id(), session_id or self._new_id())
        run = InvocationHandle(lane)
        scheduler = Scheduler(self.graph, self.config, lane, self._clock)
        scheduler.announce(given)
        run._task = loop.create_task(_attempt(bus, run, scheduler, given), name=f"run {lane.run_id}")
        self._tasks.add(run._task)
        run._task.add_done_callback(self._tasks.discard)
        return run

    async def invoke(
        self, state: Mapping[str, Any], *, run_id: str | None = None, session_id: str | None = None
    ) -> dict[str, Any]:
        """Run to the end and return the final state; raises the failing node's own exception.

        *Cancellation*: cancelling this call cancels the run.
        """
        async with self.start(state, run_id=run_id, session_id=session_id) as run:
            return await run

    def event_stream(
        self,
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        after: int | None = None,
        filter: EventFilter | Predicate | None = None,
    ) -> EventStream:
        """Watch all runs of this app, or one; before, during and after.

        Args:
            after: a bus position, or with ``run_id`` a ``run_seq``; ``None``: live from now.
            session_id: only events of that session.

        Raises:
            RunNotFoundError: no such run is live or kept.
        """
        if run_id is not None:
            lane = self.event_bus.lane(run_id)
            if lane is None:
                raise RunNotFoundError(run_id)
            return lane.subscribe(after=after, filter=filter)
        if session_id is not None:
            wanted, inner = EventFilter(session_id=session_id), filter
            filter = wanted if inner is None else (lambda event: wanted(event) and inner(event))
        return self.event_bus.subscribe(after=after, filter=filter)

    async def aclose(self) -> None:
        """Cancel live runs, drain the sinks, end the app's streams."""
        for task in tuple(self._tasks):
            task.cancel("app_closed")
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        if self._bus is not None:
            await self._bus.shutdown()

    async def __aenter__(self) -> App:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


async def _attempt(bus: EventBus, run: InvocationHandle, scheduler: Scheduler, given: dict[str, Any]) -> dict[str, Any]:
    """One attempt: whatever happens, its last event is the terminal one, and its lane closes after it."""
    try:
        state = await scheduler.run(given)
        run.status = "completed"
        scheduler.conclude("completed")
        return state
    except asyncio.CancelledError as exc:
        run.status = "cancelled"
        scheduler.conclude("cancelled", code=str(exc.args[0]) if exc.args else run._reason)
        raise
    except BaseException as exc:
        run.status = "failed"
        scheduler.conclude("failed", exc, getattr(exc, "code", None))
        raise
    finally:
        bus.end_attempt(run._lane, run.status)
