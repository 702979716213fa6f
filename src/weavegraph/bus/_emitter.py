"""Emitting: what nodes and other producers hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weavegraph.errors import BackpressureError
from weavegraph.events import Event

if TYPE_CHECKING:
    from weavegraph.bus._hub import EventHub

__all__ = ["HubEmitter"]


class HubEmitter:
    """Emits into one hub. An object, not a context variable: pass it to any thread, task or callback."""

    __slots__ = ("_hub", "_owner")

    def __init__(self, hub: EventHub, *, owner: object = None) -> None:
        self._hub = hub
        self._owner = owner  # the bus of the hub, which stays while somebody may emit

    def emit(self, event: Event) -> Event | None:
        """Accept ``event`` and return it as stamped. Never waits, never fails for want of readers.

        Returns ``None`` when a subscriber with ``overflow="block"`` is full: counted as refused, it reached nobody.

        Raises:
            EventInvalidError, EventTooLargeError: the event breaks a rule. HubClosedError: after the end.
        """
        try:
            return self._hub._accept(event)
        except BackpressureError:
            return None

    async def emit_async(self, event: Event) -> Event:
        """As ``emit``, but waits for full ``block`` subscribers up to the hub's ``block_timeout``.

        *Cancellation*: while it waits the event has reached nobody, and never will.

        Raises:
            BackpressureError: still full after ``block_timeout`` seconds. Otherwise as ``emit``.
        """
        return await self._hub._accept_async(event)
