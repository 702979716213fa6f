"""What a plan of the retention has read of a run. A plan that needs more says so, and is made anew with more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from weavegraph.log._rules import RunRecord

__all__ = ["More", "Read"]


class More(Exception):
    """The plan needs another page of this run."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record


class Read:
    """What was read of a run for a plan: position, bytes and timestamp of each event."""

    def __init__(self) -> None:
        self.events: list[tuple[int, int, datetime]] = []
        self.ended = False

    @property
    def reached(self) -> int:
        return self.events[-1][0] if self.events else 0

    def rows(self, record: RunRecord) -> Iterator[tuple[int, int, Callable[[], datetime]]]:
        for position, size, when in self.events:
            yield position, size, lambda when=when: when  # type: ignore[misc]
        if not self.ended:
            raise More(record)
