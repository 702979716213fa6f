"""How much a log keeps, and what goes first: whole finished runs, then the oldest events of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

import msgspec

from weavegraph.errors import ConfigError
from weavegraph.log._rules import RunRecord

__all__ = ["Retention", "Rows", "cuts"]


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds over the whole log; ``None``: no bound. The default keeps everything.

    ``max_age``: seconds since an event's timestamp. ``max_events``: events held. ``max_bytes``: bytes of their JSON
    (an SQLite file keeps its size and uses freed room again). What goes first: finished runs, whole, the one that
    ended first before others; then the oldest events of the largest run. A run whose events went is still listed by
    ``runs()``, with its outcome; readers get an exact gap.
    """

    max_age: float | None = None
    max_events: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for field in ("max_events", "max_bytes"):
            value = getattr(self, field)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"Retention({field}={value!r}): give a whole number from 1, or None")
        age = self.max_age
        if age is not None and (isinstance(age, bool) or not isinstance(age, (int, float)) or not 0 < age < 1e10):
            raise ConfigError(f"Retention(max_age={age!r}): give seconds, more than 0, or None")

    def __bool__(self) -> bool:
        return (self.max_age, self.max_events, self.max_bytes) != (None, None, None)


Rows: TypeAlias = Callable[[RunRecord], Iterable[tuple[int, int, Callable[[], datetime]]]]
"""The events that a run holds, oldest first: position, bytes, and its timestamp on request."""


def cuts(held: Sequence[RunRecord], retention: Retention, now: datetime, rows: Rows) -> Iterator[tuple[RunRecord, int]]:
    """Which run is to forget its events up to which position, so that the bounds hold. Each run comes once at most."""
    oldest = now - timedelta(seconds=retention.max_age) if retention.max_age is not None else None
    events, size = sum(record.events for record in held), sum(record.size for record in held)
    rest = sorted(held, key=lambda record: (not record.finished, record.updated_at))
    stay = []
    for record in rest:
        over = _over(events, retention.max_events) > 0 or _over(size, retention.max_bytes) > 0
        if (oldest is not None and record.updated_at < oldest) or (record.finished and over):
            events, size = events - record.events, size - record.size
            yield record, record.last
        else:
            stay.append(record)
    for record in sorted(stay, key=lambda record: -record.size):
        upto, gone = record.first - 1, 0
        for position, bytes_, when in rows(record):
            expired = oldest is not None and record.started_at < oldest and when() < oldest
            if not expired and _over(events, retention.max_events) <= 0 and _over(size, retention.max_bytes) <= 0:
                break
            upto, gone, events, size = position, gone + 1, events - 1, size - bytes_
        if gone:
            yield record, upto


def _over(total: int, bound: int | None) -> int:
    return 0 if bound is None else total - bound
