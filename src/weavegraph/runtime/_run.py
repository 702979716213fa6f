"""The handle of one run: its streams, its end, its cancellation. From any thread and any loop."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Generator
from typing import Any, Generic, TypeVar, cast

from weavegraph.bus import BlockingEvents, EventStream, OnLag, Overflow
from weavegraph.errors import BlockingInLoopError, RunCancelledError
from weavegraph.events import Event, EventFilter, Predicate
from weavegraph.runtime._execution import Execution, RunStatus
from weavegraph.state import ErrorRecord, OpenQuestion

__all__ = ["InvocationHandle"]

S = TypeVar("S")


class InvocationHandle(Generic[S]):
    """One attempt of one run, made by ``app.start``, ``stream``, ``stream_sync`` or ``resume``.

    ``await run`` gives the final state, ``async for event in run`` every event of the run from its first to its last.

    *Dropping the handle* changes nothing: the run goes on (``ResourceWarning`` if nobody asked for its result).
    *Dropping a stream* changes nothing either. *Leaving* ``async with run`` unfinished cancels the run and waits
    for it. *Cancelling* ``await run`` cancels that wait, not the run.
    """

    def __init__(self, execution: Execution, *, asked: bool = False) -> None:
        self._execution = execution
        # The app's own loop, when the run runs there: then blocking is safe from any thread but that one.
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._asked = asked

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._execution.lane.run_id

    @property
    def session_id(self) -> str:
        """The id of the session that the run belongs to."""
        return self._execution.lane.session_id

    @property
    def position(self) -> int:
        """The ``run_seq`` of the run's last event so far."""
        return self._execution.lane.head

    @property
    def attempt(self) -> int:
        """1, or more after resumes."""
        return self._execution.attempt.number

    @property
    def status(self) -> RunStatus:
        """``running``, or how the attempt ended: ``completed``, ``failed``, ``cancelled``, ``paused``,
        ``interrupted``."""
        return self._execution.status

    @property
    def state(self) -> S | None:
        """The state after the last finished step, as a copy; ``None`` before the first is known."""
        return cast("S | None", self._execution.output())

    @property
    def errors(self) -> tuple[ErrorRecord, ...]:
        """What failed in this run, retried tries left out."""
        return self._execution.errors

    @property
    def questions(self) -> tuple[OpenQuestion, ...]:
        """What a paused run waits for; answer with ``app.resume(session_id, answer)``."""
        return self._execution.questions

    def is_finished(self) -> bool:
        """Whether the attempt's terminal event is written."""
        return self._execution.status != "running"

    # ── watching ──────────────────────────────────────────────────────────────────────────────────

    def events(
        self,
        *,
        after: int | None = 0,
        filter: EventFilter | Predicate | None = None,
        capacity: int | None = None,
        overflow: Overflow = "drop_oldest",
        on_lag: OnLag = "notice",
        name: str | None = None,
        follow: bool = False,
    ) -> EventStream:
        """A stream of this run's events; any number, at any time, also after its end.

        It costs nothing for other runs' events, and loses events only to the run's own byte bound or ``capacity``.

        Args:
            after: a ``run_seq``; 0 from the start, ``None`` live from now.
            follow: go on when the run pauses or is interrupted, through its next attempts.
        """
        return self._execution.lane.subscribe(
            after=after, filter=filter, capacity=capacity, overflow=overflow, on_lag=on_lag, name=name, follow=follow
        )

    def __aiter__(self) -> AsyncIterator[Event]:
        return self.events().__aiter__()

    def blocking(self, **options: Any) -> BlockingEvents:
        """The run's events for a plain thread; takes the options of ``events``."""
        view = self.events(**options).blocking()
        view.anywhere = self._may_block()
        return view

    # ── its end ───────────────────────────────────────────────────────────────────────────────────

    async def join(self) -> S:
        """The final state; of a paused or interrupted run its state so far, see ``status``. Same as ``await run``.

        Raises:
            RunCancelledError: the run was cancelled. Otherwise the first failing node's own exception;
                ``weavegraph.failure_of`` tells where it came from.
        """
        self._asked = True
        await self._execution.ended.wait()
        return self._result()

    def __await__(self) -> Generator[Any, None, S]:
        return self.join().__await__()

    def result(self, timeout: float | None = None) -> S:
        """As ``join``, for a plain thread; ``TimeoutError`` after ``timeout`` seconds. Ctrl-C interrupts the wait."""
        if not self._may_block():
            raise BlockingInLoopError
        self._asked = True
        if not self._execution.ended.wait_blocking(timeout):
            raise TimeoutError(f"run {self.run_id!r} did not end within {timeout} s; it goes on")
        return self._result()

    def _may_block(self) -> bool:
        here = asyncio._get_running_loop()
        return here is None or (self._own_loop is not None and here is not self._own_loop)

    def _result(self) -> S:
        execution = self._execution
        if execution.error is not None:
            raise execution.error
        return cast(S, execution.output())

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────

    def cancel(self, reason: str = "cancelled") -> None:
        """Ask the run to stop: its nodes see it, are given ``cancel_grace`` seconds, and are then cancelled.

        Its events stay; its outcome is ``cancelled``. From any thread; also before its first step.
        """
        self._execution.token.cancel(reason)

    def abort(self, reason: str = "aborted") -> None:
        """Cancel the run's nodes at once, without a grace. From any thread."""
        self._execution.abort(reason)

    async def __aenter__(self) -> InvocationHandle[S]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._asked = True
        if not self.is_finished():
            self.cancel("left")
        await self._execution.ended.wait()

    def __enter__(self) -> InvocationHandle[S]:
        return self

    def __exit__(self, *exc: object) -> None:
        self._asked = True
        if not self.is_finished():
            self.cancel("left")
        self._execution.ended.wait_blocking()

    def __del__(self) -> None:
        if not getattr(self, "_asked", True) and not isinstance(self._execution.error, RunCancelledError):
            warnings.warn(f"the result of run {self.run_id!r} was never asked for", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<InvocationHandle {self.run_id!r} {self.status}>"
