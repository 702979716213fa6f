"""The handle of one run: its stream, its end, its cancellation."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Generator
from typing import Any, Literal, TypeAlias

from weavegraph.bus import BlockingEvents, EventStream, Lane, OnLag, Overflow
from weavegraph.errors import RunCancelledError
from weavegraph.events import EventFilter, Predicate

__all__ = ["InvocationHandle", "RunStatus"]

RunStatus: TypeAlias = Literal["running", "completed", "failed", "cancelled"]


class InvocationHandle:
    """One run, made by ``app.start``. Dropping it changes nothing for the run; leaving ``async with`` cancels it.

    ``await run`` gives the final state or raises the failing node's own exception; ``async for event in run`` gives
    the run's events from its first to its last.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._task: asyncio.Task[dict[str, Any]] | None = None
        self._reason = "cancelled"
        self._asked = False
        self.status: RunStatus = "running"

    @property
    def run_id(self) -> str:
        return self._lane.run_id

    @property
    def session_id(self) -> str:
        return self._lane.session_id

    def events(
        self,
        *,
        after: int | None = 0,
        filter: EventFilter | Predicate | None = None,
        capacity: int | None = None,
        overflow: Overflow = "drop_oldest",
        on_lag: OnLag = "notice",
        name: str | None = None,
    ) -> EventStream:
        """A stream of this run's events; any number, at any time. ``after`` is a ``run_seq``; 0: from the start.

        Costs nothing for other runs' events, and loses events only to the run's own byte bound or ``capacity``.
        """
        return self._lane.subscribe(
            after=after, filter=filter, capacity=capacity, overflow=overflow, on_lag=on_lag, name=name
        )

    async def __aiter__(self) -> AsyncIterator[Any]:
        async with self.events() as stream:
            async for event in stream:
                yield event

    def blocking(self) -> BlockingEvents:
        """The run's events for a plain thread."""
        return self.events().blocking()

    async def join(self) -> dict[str, Any]:
        """The final state. Cancelling this wait leaves the run alone.

        Raises:
            RunCancelledError: the run was cancelled. Otherwise the failing node's own exception.
        """
        assert self._task is not None
        self._asked = True
        await asyncio.wait([self._task])
        if self._task.cancelled() or self.status == "cancelled":
            raise RunCancelledError(self.run_id, self._reason)
        return self._task.result()

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return self.join().__await__()

    def cancel(self, reason: str = "cancelled") -> None:
        """End the run; its events stay. From the loop's thread."""
        if self._task is not None and not self._task.done():
            self._reason = reason
            self._task.cancel(reason)

    def abort(self) -> None:
        """End the run at once."""
        self.cancel("aborted")

    def is_finished(self) -> bool:
        """Whether the terminal event is written."""
        return self.status != "running"

    async def __aenter__(self) -> InvocationHandle:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self.is_finished():
            self.cancel("left")
        if self._task is not None:
            self._asked = True
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # it was told by the stream, or nobody wanted it

    def __del__(self) -> None:
        if not self._asked and self._task is not None:
            warnings.warn(f"the result of run {self.run_id!r} was never asked for", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<InvocationHandle {self.run_id!r} {self.status}>"
