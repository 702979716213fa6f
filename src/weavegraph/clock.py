"""Time, as a seam: the wall clock stamps events, the monotonic one measures; nothing decides by the wall."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["SystemClock"]


class SystemClock:
    """The machine's clocks. ``now()`` is aware UTC with a resolution of one millisecond."""

    __slots__ = ("_at", "_now")

    def __init__(self) -> None:
        self._at = -1.0
        self._now = datetime.now(UTC)

    def now(self) -> datetime:
        # datetime.now(UTC) costs 480 ns, time.time() 70: events of one millisecond share a stamp.
        # Threads may race here; each writes a pair that was true within the same millisecond.
        at = time.time()
        if not 0.0 <= at - self._at < 0.001:
            self._now = datetime.fromtimestamp(at, UTC)
            self._at = at
        return self._now

    def monotonic(self) -> float:
        return time.monotonic()
