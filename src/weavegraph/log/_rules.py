"""What a log accepts, decided before anything is written. Pure: no file, loop, lock or clock.

*Holes.* The first event that is new must stand right behind the last one held. *Fencing.* A batch is written by the
attempt and the epoch of its last event. A later attempt than the run's takes over; the same attempt under another
epoch, or an earlier one, is another process that still believes it owns the run. (A resume that ends a dead attempt
gives its ``interrupted`` and its own start in one batch: they belong to the attempt that comes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from weavegraph.errors import EventInvalidError, InvalidPositionError, LogFencedError, LogHoleError
from weavegraph.events import STREAM_END_SCOPE, Event, check_id
from weavegraph.protocols import LoggedRun

__all__ = [
    "FINAL",
    "RunRecord",
    "advance",
    "check_after",
    "check_batch",
    "check_writer",
    "fenced",
    "held",
    "outcome_of",
]

FINAL = frozenset({"completed", "failed", "cancelled"})
"""Outcomes after which nothing comes unless the run is resumed; ``paused`` and ``interrupted`` wait for more."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a log knows of a run beside its events. With nothing held, ``first`` is ``last + 1``."""

    run_id: str
    session_id: str
    attempt: int
    epoch: str
    first: int
    last: int
    outcome: str | None
    events: int
    size: int
    """Bytes of the JSON of the events held."""
    started_at: datetime
    updated_at: datetime

    @property
    def finished(self) -> bool:
        return self.outcome in FINAL

    def logged(self) -> LoggedRun:
        return LoggedRun(
            run_id=self.run_id,
            session_id=self.session_id,
            attempt=self.attempt,
            first_position=self.first,
            last_position=self.last,
            outcome=self.outcome,
            started_at=self.started_at,
            updated_at=self.updated_at,
        )

    def trimmed(self, upto: int, size: int) -> RunRecord:
        """This record after the events up to ``upto``, of ``size`` bytes together, were forgotten."""
        gone = upto - self.first + 1
        return msgspec.structs.replace(self, first=upto + 1, events=self.events - gone, size=self.size - size)


def check_batch(run_id: str, events: Sequence[Event]) -> None:
    """Whether ``events`` are consecutive events of this run.

    Raises:
        EventInvalidError: of another run, without a position, or its attempts go back. LogHoleError: not consecutive.
    """
    check_id("run_id", run_id)
    position = attempt = 0
    for event in events:
        if event.run_id != run_id:
            raise EventInvalidError("run_id", f"{event.run_id!r} among the events of run {run_id!r}")
        at = event.run_seq
        if type(at) is not int or at < 1:
            raise EventInvalidError("run_seq", f"{at!r} is no position; a log takes events that a run emitted")
        if position and at != position + 1:
            raise LogHoleError(run_id, at, position)
        position = at
        if event.attempt != attempt:
            if _attempt(event) < attempt:
                raise EventInvalidError("attempt", f"goes back from {attempt} to {_attempt(event)} within a batch")
            attempt = _attempt(event)


def held(record: RunRecord | None, events: Sequence[Event]) -> int:
    """How many of a checked batch stand at positions that the log has given away already."""
    if record is None or not events:
        return 0
    assert events[0].run_seq is not None
    return min(max(record.last - events[0].run_seq + 1, 0), len(events))


def check_writer(
    run_id: str, record: RunRecord | None, events: Sequence[Event], known: int, *, anywhere: bool = False
) -> None:
    """Whether the events behind the first ``known`` may be written; ``anywhere``: a run may begin behind a gap.

    Raises:
        LogFencedError: another writer owns the run. LogHoleError: positions are missing before them.
    """
    first, last = events[known], events[-1]
    assert first.run_seq is not None
    if record is not None:
        attempt = _attempt(last)
        if attempt < record.attempt or (attempt == record.attempt and (last.epoch or "") != record.epoch):
            raise fenced(record, last)
    end = 0 if record is None else record.last
    if first.run_seq != end + 1 and not (anywhere and record is None):
        raise LogHoleError(run_id, first.run_seq, end)


def fenced(record: RunRecord, event: Event) -> LogFencedError:
    """The error for an event whose writer does not own the run."""
    return LogFencedError(record.run_id, _attempt(event), record.attempt)


def advance(record: RunRecord | None, events: Sequence[Event], size: int) -> RunRecord:
    """The record after ``events``, of ``size`` bytes, were added."""
    first, last = events[0], events[-1]
    assert first.run_seq is not None and last.run_seq is not None and last.run_id is not None
    if record is None:
        return RunRecord(
            run_id=last.run_id,
            session_id=first.session_id or "",
            attempt=_attempt(last),
            epoch=last.epoch or "",
            first=first.run_seq,
            last=last.run_seq,
            outcome=outcome_of(last),
            events=len(events),
            size=size,
            started_at=first.timestamp,
            updated_at=last.timestamp,
        )
    return msgspec.structs.replace(
        record,
        attempt=_attempt(last),
        epoch=last.epoch or "",
        last=last.run_seq,
        outcome=outcome_of(last),
        events=record.events + len(events),
        size=record.size + size,
        updated_at=last.timestamp,
    )


def outcome_of(event: Event) -> str | None:
    """What a terminal event says about its attempt; ``None`` for every other event."""
    if event.scope != STREAM_END_SCOPE:
        return None
    outcome = event.metadata.get("outcome")
    return outcome if isinstance(outcome, str) else None


def check_after(after: object, record: RunRecord | None) -> int:
    """``after`` if it is a position of this run.

    Raises:
        InvalidPositionError: no whole number, negative, or beyond the last event.
    """
    head = 0 if record is None else record.last
    if type(after) is not int or not 0 <= after <= head:
        raise InvalidPositionError(after, head)
    return after


def _attempt(event: Event) -> int:
    return event.attempt or 1
