"""The books at the end: for every reader and sink, where each event went, and what is left unexplained."""

from __future__ import annotations

from collections.abc import Iterable

from weavegraph.bus import SinkStats, SubscriberStats

__all__ = ["ledger", "unaccounted"]

_COLUMNS = ("emitted", "delivered", "filtered", "lost", "dead", "left", "unaccounted")


def unaccounted(readers: Iterable[SubscriberStats], sinks: Iterable[SinkStats]) -> int:
    """The sum of what the books cannot explain: 0, or there is a bug."""
    return sum(abs(stats.unaccounted) for stats in readers) + sum(abs(stats.unaccounted) for stats in sinks)


def ledger(readers: Iterable[SubscriberStats], sinks: Iterable[SinkStats]) -> str:
    """A table: ``emitted`` is what each could see, ``left`` what it had not read when it ended."""
    rows = [
        (s.name, s.head - s.s0, s.delivered, s.filtered, s.dropped, 0, s.buffered + s.abandoned, s.unaccounted)
        for s in readers
    ]
    rows += [
        (
            f"sink {s.name}",
            s.head - s.s0,
            s.delivered,
            s.filtered,
            s.dropped,
            s.dead_lettered,
            s.buffered + s.abandoned,
            s.unaccounted,
        )
        for s in sinks
    ]
    width = max(len(row[0]) for row in rows)
    lines = [f"  {'':<{width}}" + "".join(f"{column:>{len(column) + 2}}" for column in _COLUMNS)]
    for name, *numbers in rows:
        cells = "".join(f"{n:>{len(column) + 2}}" for n, column in zip(numbers, _COLUMNS, strict=True))
        lines.append(f"  {name:<{width}}{cells}")
    return "\n".join(lines)
