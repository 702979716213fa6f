"""What the sink of an outbox may see of the log: a view of each run, the same wherever shipping goes on."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from weavegraph.events import Redactor, View
from weavegraph.log._shipping import batches_of
from weavegraph.protocols import EventLog

__all__ = ["Views"]

KEPT = 1024
"""Runs whose view is remembered between two looks; others begin theirs some events earlier, as after a restart."""


class Views:
    """Reads a log as one audience sees it. One reading of a run at a time."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._kept: OrderedDict[str, tuple[int, View]] = OrderedDict()  # by run: a view, and how far it has seen

    async def batches(self, log: EventLog, run_id: str, after: int, upto: int | None = None) -> AsyncIterator[Any]:
        """As ``batches_of``: batches of events, and for each gap how many are missing."""
        at, view = self._begin(run_id, after)
        reading: Any = batches_of(log, run_id, at, upto)
        async with contextlib.aclosing(reading) as batches:
            async for batch in batches:
                if isinstance(batch, int):
                    before, at = max(at, after), at + batch
                    if at > before:
                        yield at - before
                    continue
                at = batch[-1].run_seq or at
                seen = batch if view is None else [view.see(event) for event in batch]
                self._keep(run_id, at, view)
                if left := [event for event in seen if (event.run_seq or 0) > after]:
                    yield left

    def _begin(self, run_id: str, after: int) -> tuple[int, View | None]:
        at, view = self._kept.pop(run_id, (-1, None))
        if view is not None and at == after:
            return after, view
        return max(0, after - self._redactor.look_back), self._redactor.view()

    def _keep(self, run_id: str, at: int, view: View | None) -> None:
        if view is not None:
            self._kept[run_id] = at, view
            self._kept.move_to_end(run_id)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
