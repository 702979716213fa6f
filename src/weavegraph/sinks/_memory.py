"""Events in a list."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from weavegraph.errors import ConfigError
from weavegraph.events import Event
from weavegraph.protocols import Delivery

__all__ = ["MemorySink"]


class MemorySink:
    """Keeps every event, or the newest ``limit``; for tests, notebooks and small tools. Inline, at most once.

    One made from configuration is found through the bus: ``bus.sinks["memory"].snapshot()``. Call
    ``await bus.flush()`` first to be sure that everything emitted so far is in it.
    """

    name = "memory"
    inline = True
    delivery: Delivery = "at_most_once"

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ConfigError(f"MemorySink(limit={limit!r}): give a whole number from 1, or None")
        self._events: deque[Event] = deque(maxlen=limit)

    def handle(self, batch: Sequence[Event]) -> None:
        self._events.extend(batch)

    def snapshot(self) -> tuple[Event, ...]:
        """What was handled so far, oldest first."""
        return tuple(self._events)

    def clear(self) -> None:
        """Forget what was handled so far."""
        self._events.clear()
