"""The seams, one page: implement one of these to extend weavegraph. Nobody has to inherit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from weavegraph.events import Event
from weavegraph.state import Checkpoint, Finished

__all__ = [
    "CheckpointPage",
    "Checkpointer",
    "Clock",
    "Delivery",
    "EventEmitter",
    "EventLog",
    "EventSink",
    "LoggedRun",
    "Node",
    "Observer",
    "Reducer",
]

Delivery: TypeAlias = Literal["at_most_once", "at_least_once", "exactly_once"]


@runtime_checkable
class EventEmitter(Protocol):
    """Accepts events from any thread. ``emit`` never waits; ``emit_async`` may wait for room."""

    def emit(self, event: Event) -> Event | None: ...

    async def emit_async(self, event: Event) -> Event: ...


@runtime_checkable
class EventSink(Protocol):
    """Takes every event of a bus, in batches, in order. ``handle`` may be sync (own thread) or async (bus's loop).

    Optional attributes, looked up by name: ``name`` (str), ``inline`` (bool: quick and in memory, shares the bus's
    pump), ``delivery`` (``Delivery``, default ``"at_least_once"``), ``capacity`` (events; default: bytes decide),
    ``max_batch`` (events), ``remote`` (bool: what takes its events can be away for long, so an app whose log lasts
    ships to it from there). Optional methods, sync or async: ``start()`` before the first batch, ``flush()`` makes
    what was handled lasting, ``aclose()`` or ``close()`` after the last. Instead of ``handle`` a sink may have
    ``async run(stream)`` and own its loop.
    """

    def handle(self, batch: Sequence[Event], /) -> Any: ...


class LoggedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run in a log. ``outcome`` is that of its last terminal event; ``None`` while an attempt is open."""

    run_id: str
    session_id: str
    attempt: int
    first_position: int
    """The oldest position still held; 1 unless it was trimmed."""
    last_position: int
    outcome: str | None
    started_at: datetime
    updated_at: datetime


@runtime_checkable
class EventLog(Protocol):
    """Keeps the events of runs after memory forgot them. Positions are ``run_seq``: 1, 2, 3 … of each run.

    *Writers*: one a run. A writer is known by the attempt and the epoch in its events: a later attempt takes over, any
    other stranger is refused with ``LogFencedError``, and a position that would leave a hole with ``LogHoleError``.
    """

    async def append(self, run_id: str, events: Sequence[Event], /) -> int:
        """Keep ``events``, of one run and in order; returns the run's last position once they are acknowledged.

        Events that are there already are passed over, so a batch may be given again. *Cancellation*: whether they are
        kept is then unknown; give them again.
        """
        ...

    def read(self, run_id: str, /, after: int = 0) -> AsyncIterator[Event]:
        """What is held after that position, then the end. A trimmed beginning shows as one gap notice."""
        ...

    def follow(self, run_id: str, /, after: int = 0) -> AsyncIterator[Event]:
        """As ``read``, then what comes, from whatever process writes it; ends with completed, failed or cancelled."""
        ...

    def read_session(self, session_id: str, /) -> AsyncIterator[Event]:
        """The events of all runs of a session, run after run."""
        ...

    async def last_position(self, run_id: str, /) -> int:
        """0 for a run that is not there."""
        ...

    async def runs(self, *, limit: int = 100, before: str | None = None) -> Sequence[LoggedRun]:
        """The newest runs first; ``before``: only those that started before that run, for the next page."""
        ...

    async def trim(self, run_id: str, /, upto: int | None = None) -> int:
        """Forget the run's events up to a position (``None``: all of it); returns how many went."""
        ...

    async def aclose(self) -> None: ...


class CheckpointPage(msgspec.Struct, frozen=True):
    """Some of a session's checkpoints, newest first; ``next_before`` continues, ``None`` when these were the last."""

    checkpoints: tuple[Checkpoint, ...]
    next_before: int | None


@runtime_checkable
class Checkpointer(Protocol):
    """Remembers sessions: every checkpoint of each, numbered 1, 2, 3 …."""

    async def save(self, checkpoint: Checkpoint, /) -> None:
        """Keep it. Its number must follow the session's latest one.

        Raises:
            CheckpointConflictError: somebody saved the session meanwhile; nothing was written.
        """
        ...

    async def add_finished(self, session_id: str, number: int, finished: Finished, /) -> None:
        """Keep the output of a task of the step after checkpoint ``number``, before that step is over.

        Whoever reads the checkpoint from then on finds it in ``finished``; the next checkpoint may forget it.
        """
        ...

    async def latest(self, session_id: str, /) -> Checkpoint | None: ...

    async def get(self, session_id: str, number: int, /) -> Checkpoint | None: ...

    async def history(
        self,
        session_id: str,
        /,
        *,
        limit: int = 100,
        before: int | None = None,
        min_step: int | None = None,
        max_step: int | None = None,
        ran_node: str | None = None,
        skipped_node: str | None = None,
        run_id: str | None = None,
    ) -> CheckpointPage:
        """The session's checkpoints that fit, newest first; ``before`` a number, for the next page."""
        ...

    async def sessions(self, *, limit: int = 100, after: str = "") -> Sequence[str]:
        """Ids of sessions in order, those after ``after``."""
        ...

    async def delete(self, session_id: str, /) -> int:
        """Forget a session; returns how many checkpoints went."""
        ...

    async def trim(self, session_id: str, /, *, keep: int) -> int:
        """Forget all but the newest ``keep`` (at least 1) checkpoints; returns how many went."""
        ...

    async def aclose(self) -> None: ...


class Observer(Protocol):
    """Hooks of the runtime; every one may be left out. Called where it happens, so be quick; failures are logged.

    To see events, subscribe or add a sink.
    """

    def on_run_started(self, run_id: str, session_id: str, attempt: int, /) -> None: ...

    def on_run_finished(self, run_id: str, outcome: str, seconds: float, error: BaseException | None, /) -> None: ...

    def on_node_finished(self, run_id: str, node: str, step: int, outcome: str, seconds: float, /) -> None:
        """``outcome``: ``finished``, ``failed``, ``retried`` or ``skipped``."""
        ...

    def on_checkpoint_saved(self, session_id: str, number: int, seconds: float, /) -> None: ...

    def on_checkpoint_loaded(self, session_id: str, number: int, /) -> None: ...


class Clock(Protocol):
    """``now()``: aware UTC, for stamps. ``monotonic()``: seconds, for durations."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...


class Reducer(Protocol):
    """Merges an update into the current value of one state key; must not change either."""

    def __call__(self, current: Any, update: Any, /) -> Any: ...


class Node(Protocol):
    """A node as an object: ``run(state, ctx)``, sync or async, returns an update. A plain function does as well."""

    def run(self, state: Any, ctx: Any, /) -> Any: ...
