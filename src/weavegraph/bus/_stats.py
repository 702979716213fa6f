"""The books: what became of every event, for a subscriber, for a hub, for a sink. Plain values (contract section 3)."""

from __future__ import annotations

import msgspec

__all__ = ["EventHubMetrics", "ProducerStats", "SinkStats", "SinkTotals", "SubscriberStats", "SubscriberTotals"]


class SubscriberStats(msgspec.Struct, frozen=True, kw_only=True):
    """One subscriber at one instant: ``head - s0 == delivered + filtered + dropped + buffered + abandoned``.

    ``reported + pending_report == dropped``. ``lag_seconds`` is the age of the oldest unread event by the wall
    clock, informative. ``distance_to_loss``: how many more small events fit before this reader loses one, by its own
    capacity or its hub's bytes; ``None`` when it is closed.
    """

    name: str
    s0: int
    head: int
    position: int
    delivered: int
    filtered: int
    dropped: int
    reported: int
    pending_report: int
    buffered: int
    abandoned: int
    filter_errors: int
    lag_seconds: float
    distance_to_loss: int | None
    closed: bool

    @property
    def lag(self) -> int:
        """Events accepted and not yet received: ``buffered``."""
        return self.buffered

    @property
    def unaccounted(self) -> int:
        """0, or the books are wrong."""
        accounted = self.delivered + self.filtered + self.dropped + self.buffered + self.abandoned
        return self.head - self.s0 - accounted


class SubscriberTotals(msgspec.Struct):
    """Sums over subscribers that are closed; owned by the hub, changed under its lock."""

    delivered: int = 0
    filtered: int = 0
    dropped: int = 0
    buffered: int = 0
    abandoned: int = 0

    def add(self, stats: SubscriberStats | SubscriberTotals) -> None:
        self.delivered += stats.delivered
        self.filtered += stats.filtered
        self.dropped += stats.dropped
        self.buffered += stats.buffered
        self.abandoned += stats.abandoned


class ProducerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Every attempt to emit ends in exactly one of these; ``attempts`` is their sum."""

    accepted: int
    refused_closed: int
    refused_full: int
    refused_invalid: int
    cancelled: int
    waiting: int

    @property
    def attempts(self) -> int:
        return (
            self.accepted
            + self.refused_closed
            + self.refused_full
            + self.refused_invalid
            + self.cancelled
            + self.waiting
        )


class EventHubMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """A hub at one instant. Totals are over living and closed subscribers, and reading resets none.

    ``accepted``, ``delivered``, ``filtered``, and the sum ``delivered + filtered + dropped + abandoned`` never fall. An
    event may go from ``dropped`` or ``abandoned`` to ``delivered``, when a reader in another thread takes it just as it
    is called lost; and from ``dropped`` to ``abandoned``, when ``overflow="disconnect"`` closes a reader that had not
    been told yet.
    """

    capacity: int | None
    head: int
    oldest: int
    epoch: str
    bytes: int
    lag: int
    delivered: int
    filtered: int
    dropped: int
    buffered: int
    abandoned: int
    attempts: int
    accepted: int
    refused_closed: int
    refused_full: int
    refused_invalid: int
    cancelled: int
    waiting: int
    subscribers: tuple[SubscriberStats, ...]


class SinkStats(msgspec.Struct, frozen=True, kw_only=True):
    """One sink at one instant.

    ``delivered + filtered + dead_lettered + dropped + buffered + abandoned == head - s0``; a batch in the sink's
    hands or in retry is buffered. ``lag_seconds``: the age of the oldest event that is not handled, by the wall
    clock. ``distance_to_loss``: how many more small events fit before one is lost to this sink.
    """

    name: str
    s0: int
    head: int
    position: int
    delivered: int
    filtered: int
    dead_lettered: int
    dropped: int
    buffered: int
    abandoned: int
    lag_seconds: float
    distance_to_loss: int | None

    @property
    def lag(self) -> int:
        """Events accepted and not yet handled: ``buffered``."""
        return self.buffered

    @property
    def unaccounted(self) -> int:
        """0, or the books are wrong."""
        accounted = self.delivered + self.filtered + self.dead_lettered + self.dropped + self.buffered + self.abandoned
        return self.head - self.s0 - accounted


class SinkTotals(msgspec.Struct):
    """Sums over the sinks that were removed."""

    sinks: int = 0
    delivered: int = 0
    filtered: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    abandoned: int = 0

    def add(self, stats: SinkStats) -> None:
        self.sinks += 1
        for name in ("delivered", "filtered", "dead_lettered", "dropped", "abandoned"):
            setattr(self, name, getattr(self, name) + getattr(stats, name))
