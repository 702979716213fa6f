"""A log in memory: for tests, and for processes whose events need not outlive them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any

from weavegraph.clock import SystemClock
from weavegraph.errors import InvalidPositionError, LogClosedError, RunNotFoundError
from weavegraph.events import Event, admit, to_json
from weavegraph.log._compact import Survey
from weavegraph.log._reading import PAGE_BYTES, PAGE_EVENTS, Page, follow_run, read_run
from weavegraph.log._retention import Retention, cuts
from weavegraph.log._rules import RunRecord, advance, check_batch, check_writer, fenced, held
from weavegraph.protocols import Clock, LoggedRun
from weavegraph.storage import Notices

__all__ = ["MemoryLog"]


class _Run:
    """The record and, from position ``record.first`` on, the events with the size of each."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.events: list[Event] = []
        self.sizes: list[int] = []


class MemoryLog:
    """An ``EventLog`` that ends with its process; the rules are those of ``SqliteLog``. Any thread, any event loop.

    *Loss*: everything at exit; before that only what ``retention`` takes, which is checked with every append.
    """

    def __init__(self, *, retention: Retention | None = None, clock: Clock | None = None) -> None:
        self._retention, self._clock = retention or Retention(), clock or SystemClock()
        self._lock = threading.Lock()  # guards all below
        self._runs: dict[str, _Run] = {}
        self._notices = Notices()
        self._closed = False

    async def start(self) -> None:
        """Nothing is to be opened."""
        self._check_open()

    async def append(self, run_id: str, events: Sequence[Event], /) -> int:
        """Keep ``events``; see ``EventLog.append``. Nothing is kept when it raises.

        Raises:
            LogFencedError, LogHoleError, EventInvalidError: see ``SqliteLog.append``.
        """
        return self._add(run_id, events, False)

    async def publish(self, run_id: str, events: Sequence[Event], /, *, after: int = 0) -> int:
        """As ``append``, but a run that is not there may begin behind a gap, when nothing is known to be before it."""
        return self._add(run_id, events, not after)

    def _add(self, run_id: str, events: Sequence[Event], anywhere: bool) -> int:
        self._check_open()
        batch = tuple(events)
        check_batch(run_id, batch)
        with self._lock:
            last = self._append(run_id, batch, anywhere)
            if batch and self._retention:
                self._retain()
        self._notices.tell((run_id,))
        return last

    def read(self, run_id: str, /, after: int = 0, *, compact: bool = False) -> AsyncIterator[Event]:
        """What is held after that position, then the end; ``compact`` as in ``SqliteLog.read``."""
        return self._compacted(run_id, after) if compact else read_run(self._fetch(run_id), after)

    def follow(self, run_id: str, /, after: int = 0) -> AsyncIterator[Event]:
        """As ``read``, then what comes; ends after a completed, failed or cancelled."""
        return follow_run(self._fetch(run_id), lambda: self._notices.watch(run_id), after)

    async def read_session(self, session_id: str, /) -> AsyncIterator[Event]:
        """The events of all runs of a session, run after run."""
        self._check_open()
        with self._lock:
            ids = [run_id for run_id, run in self._runs.items() if run.record.session_id == session_id]
        for run_id in ids:
            async for event in self.read(run_id):
                yield event

    async def last_position(self, run_id: str, /) -> int:
        """0 for a run that is not there."""
        self._check_open()
        with self._lock:
            run = self._runs.get(run_id)
            return 0 if run is None else run.record.last

    async def runs(self, *, limit: int = 100, before: str | None = None) -> Sequence[LoggedRun]:
        """The newest runs first; see ``SqliteLog.runs``."""
        self._check_open()
        with self._lock:
            records = [run.record for run in reversed(self._runs.values())]
        if before is not None:
            ids = [record.run_id for record in records]
            if before not in ids:
                raise RunNotFoundError(before)
            records = records[ids.index(before) + 1 :]
        return tuple(record.logged() for record in records[: max(limit, 0)])

    async def trim(self, run_id: str, /, upto: int | None = None) -> int:
        """Forget the run's events up to a position; see ``SqliteLog.trim``."""
        self._check_open()
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return 0
            if upto is not None and (type(upto) is not int or not 0 <= upto <= run.record.last):
                raise InvalidPositionError(upto, run.record.last)
            gone = self._cut(run, run.record.last if upto is None else upto)
            if upto is None and run.record.finished:
                del self._runs[run_id]
        self._notices.tell((run_id,))
        return gone

    async def retain(self) -> int:
        """Apply the retention now; returns how many events went."""
        self._check_open()
        with self._lock:
            return self._retain()

    async def aclose(self) -> None:
        """Refuse further calls; readers that wait get ``LogClosedError``. Idempotent."""
        self._closed = True
        self._notices.tell_all()

    def _append(self, run_id: str, batch: tuple[Event, ...], anywhere: bool) -> int:
        run = self._runs.get(run_id)
        record = None if run is None else run.record
        known = held(record, batch)
        if run is not None:
            for event in batch[:known]:
                assert event.run_seq is not None
                at = event.run_seq - run.record.first
                if at >= 0 and to_json(run.events[at]) != to_json(event):
                    raise fenced(run.record, batch[-1])
        if known < len(batch):
            check_writer(run_id, record, batch, known, anywhere=anywhere)
            new = [admit(event, reserved=True)[0] for event in batch[known:]]
            sizes = [len(to_json(event)) for event in new]
            record = advance(record, new, sum(sizes))
            run = self._runs.setdefault(run_id, _Run(record))
            run.record = record
            run.events += new
            run.sizes += sizes
        return 0 if record is None else record.last

    def _fetch(self, run_id: str) -> Any:
        async def fetch(after: int) -> Page:
            await asyncio.sleep(0)  # a long run is not read in one turn of the loop
            self._check_open()
            with self._lock:
                run = self._runs.get(run_id)
                if run is None:
                    return Page(None)
                start, size, stop = max(after + 1 - run.record.first, 0), 0, 0
                for stop in range(start, min(start + PAGE_EVENTS, len(run.events))):
                    size += run.sizes[stop]
                    if size > PAGE_BYTES:
                        break
                return Page(run.record, run.events[start : stop + 1])

        return fetch

    async def _compacted(self, run_id: str, after: int) -> AsyncIterator[Event]:
        survey, end = Survey(), await self.last_position(run_id)
        async for event in read_run(self._fetch(run_id), after, end):
            survey.see(event)
        fold = survey.fold()
        async for event in read_run(self._fetch(run_id), after, end):
            if (folded := fold.feed(event)) is not None:
                yield folded

    def _retain(self) -> int:
        records = [run.record for run in self._runs.values() if run.record.events]
        plan = list(cuts(records, self._retention, self._clock.now(), self._rows))
        return sum(self._cut(self._runs[record.run_id], upto) for record, upto in plan)

    def _rows(self, record: RunRecord) -> Iterable[tuple[int, int, Any]]:
        run = self._runs[record.run_id]
        for offset, (event, size) in enumerate(zip(run.events, run.sizes, strict=True)):

            def when(at: datetime = event.timestamp) -> datetime:
                return at

            yield record.first + offset, size, when

    @staticmethod
    def _cut(run: _Run, upto: int) -> int:
        gone = max(upto - run.record.first + 1, 0)
        if gone:
            run.record = run.record.trimmed(upto, sum(run.sizes[:gone]))
            del run.events[:gone], run.sizes[:gone]
        return gone

    def _check_open(self) -> None:
        if self._closed:
            raise LogClosedError("the MemoryLog")

    def __repr__(self) -> str:
        return f"<MemoryLog {len(self._runs)} runs>"
