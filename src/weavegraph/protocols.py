"""The seams, one page: implement one of these to extend weavegraph. Nobody has to inherit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from weavegraph.events import Event

__all__ = ["Clock", "Delivery", "EventEmitter", "EventSink", "Node", "Reducer"]

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
    ``max_batch`` (events). Optional methods, sync or async: ``start()`` before the first batch, ``flush()`` makes
    what was handled lasting, ``aclose()`` or ``close()`` after the last. Instead of ``handle`` a sink may have
    ``async run(stream)`` and own its loop.
    """

    def handle(self, batch: Sequence[Event], /) -> Any: ...


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
