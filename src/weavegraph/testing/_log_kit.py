"""What every ``EventLog`` must do, as tests that anyone can run over their own.

::

    class TestMyLog(LogKit):                  # pytest collects its async methods (pytest-anyio or pytest-asyncio)
        async def make(self) -> EventLog:
            return MyLog(...)                 # a fresh, empty log

``DurableLogKit`` adds what a log must do whose content outlives its handle; there ``make`` opens the same storage again
and again for one test. A log may be opened lazily, may lack ``start``, and is closed by the kit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from msgspec.structs import replace

from weavegraph.errors import EventInvalidError, InvalidPositionError, LogError, LogFencedError, LogHoleError
from weavegraph.events import (
    GAP_SCOPE,
    STREAM_END_SCOPE,
    DiagnosticEvent,
    Event,
    LLMStreamingEvent,
    NodeEvent,
    admit,
    from_json,
    llm_chunk,
    llm_final,
    to_json,
)
from weavegraph.protocols import EventLog

__all__ = ["CompactingLogKit", "DurableLogKit", "LogKit", "logged"]

T = TypeVar("T")
PATIENCE = 20.0  # seconds for what happens at once in a healthy log
_START = datetime(2026, 1, 1, tzinfo=UTC)
RUN, OTHER, SESSION = "run-1", "run-2", "session-1"


def logged(
    run_id: str,
    first: int,
    last: int,
    *,
    attempt: int = 1,
    epoch: str = "epoch-1",
    session_id: str = SESSION,
    text: str = "",
) -> list[Event]:
    """Events of a run as its lane stamps them, positions ``first`` to ``last``; equal arguments give equal events."""
    return [
        _stamped(NodeEvent("kit", text or str(n), {"n": n}), run_id, n, attempt, epoch, session_id)
        for n in range(first, last + 1)
    ]


def ending(outcome: str, position: int, run_id: str = RUN, *, attempt: int = 1, epoch: str = "epoch-1") -> Event:
    """The terminal event of an attempt."""
    event = DiagnosticEvent(STREAM_END_SCOPE, outcome, {"outcome": outcome})
    return _stamped(event, run_id, position, attempt, epoch, SESSION)


def _stamped(event: Event, run_id: str, n: int, attempt: int, epoch: str, session_id: str) -> Event:
    stamped = replace(
        event,
        seq=n,
        epoch=epoch,
        timestamp=_START + timedelta(milliseconds=n),
        session_id=session_id,
        run_id=run_id,
        run_seq=n,
        attempt=attempt,
    )
    return admit(stamped, reserved=True)[0]


async def soon(work: Awaitable[T]) -> T:
    """The result, or a failure instead of a hang."""
    return await asyncio.wait_for(work, PATIENCE)  # type: ignore[arg-type]


async def collected(events: AsyncIterator[Event], most: int | None = None) -> list[Event]:
    """All of ``events``, or the first ``most`` of them."""
    found: list[Event] = []
    try:
        while most is None or len(found) < most:
            found.append(await soon(anext(events)))
    except StopAsyncIteration:
        pass
    finally:
        close: Any = getattr(events, "aclose", None)
        if close is not None:
            await close()
    return found


def positions(events: Sequence[Event]) -> list[int | tuple[int, int]]:
    """Positions of events, and gaps as (first, last), each checked for its count."""
    found: list[int | tuple[int, int]] = []
    for event in events:
        if event.scope == GAP_SCOPE:
            first, last = event.metadata["first_seq"], event.metadata["last_seq"]
            assert event.metadata["count"] == last - first + 1, event
            assert event.run_seq is None, event
            found.append((first, last))
        else:
            assert event.run_seq is not None
            found.append(event.run_seq)
    return found


class _Raises:
    """``pytest.raises`` without pytest; keeps the error."""

    def __init__(self, *kinds: type[Exception]) -> None:
        self.kinds = kinds
        self.error: Any = None

    def __enter__(self) -> _Raises:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        assert kind is not None, f"expected {' or '.join(k.__name__ for k in self.kinds)}"
        self.error = error
        return issubclass(kind, self.kinds)


class LogKit:
    """The cases; inherit, and give ``make``."""

    async def make(self) -> EventLog:
        """A fresh, empty log."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        log = await self.make()
        try:
            yield log
        finally:
            await log.aclose()

    @asynccontextmanager
    async def holding(self, last: int, run_id: str = RUN) -> AsyncIterator[Any]:
        async with self.opened() as log:
            await log.append(run_id, logged(run_id, 1, last))
            yield log

    # ── append ────────────────────────────────────────────────────────────────────────────────────

    async def test_it_fulfils_the_protocol(self) -> None:
        async with self.opened() as log:
            assert isinstance(log, EventLog)

    async def test_append_returns_the_last_position(self) -> None:
        async with self.opened() as log:
            assert await log.append(RUN, logged(RUN, 1, 3)) == 3
            assert await log.append(RUN, logged(RUN, 4, 4)) == 4

    async def test_append_of_nothing_returns_the_last_position(self) -> None:
        async with self.holding(3) as log:
            assert await log.append(RUN, []) == 3

    async def test_append_of_nothing_to_an_unknown_run_makes_no_run(self) -> None:
        async with self.opened() as log:
            assert await log.append(RUN, []) == 0
            assert list(await log.runs()) == []

    async def test_what_was_appended_is_read_equal(self) -> None:
        events = logged(RUN, 1, 25)
        async with self.holding(25) as log:
            assert await collected(log.read(RUN)) == events

    async def test_what_was_appended_is_read_byte_for_byte(self) -> None:
        events = logged(RUN, 1, 5)
        async with self.holding(5) as log:
            assert [to_json(e) for e in await collected(log.read(RUN))] == [to_json(e) for e in events]

    async def test_any_text_survives(self) -> None:
        texts = ["", "\x00\x1b[31m\n\r\u2028", "ü€😀" * 50, "'; DROP TABLE log_events; --", '\\"%_', "\ud83d\ude00"]
        events = [replace(logged(RUN, n, n, text="x")[0], message=text) for n, text in enumerate(texts, 1)]
        events = [admit(event, reserved=True)[0] for event in events]
        async with self.opened() as log:
            await log.append(RUN, events)
            assert await collected(log.read(RUN)) == events

    async def test_nested_metadata_survives(self) -> None:
        data = {"list": [1, 2.5, None, True, {"deep": ["x"]}], "big": 2**63, "__class__": "x", "py/object": "os.system"}
        event = admit(replace(logged(RUN, 1, 1)[0], metadata=data), reserved=True)[0]
        async with self.opened() as log:
            await log.append(RUN, [event])
            assert await collected(log.read(RUN)) == [event]

    async def test_all_three_kinds_survive(self) -> None:
        events = [
            logged(RUN, 1, 1)[0],
            _stamped(llm_chunk("a", stream_id="s"), RUN, 2, 1, "epoch-1", SESSION),
            ending("completed", 3),
        ]
        async with self.opened() as log:
            await log.append(RUN, events)
            assert await collected(log.read(RUN)) == events

    async def test_an_event_of_nearly_a_megabyte_survives(self) -> None:
        event = admit(replace(logged(RUN, 1, 1)[0], message="x" * 1_000_000), reserved=True)[0]
        async with self.opened() as log:
            await log.append(RUN, [event])
            assert await collected(log.read(RUN)) == [event]

    async def test_many_large_events_are_read_in_order(self) -> None:
        events = [admit(replace(event, message="x" * 300_000), reserved=True)[0] for event in logged(RUN, 1, 20)]
        async with self.opened() as log:
            await log.append(RUN, events)
            assert positions(await collected(log.read(RUN))) == list(range(1, 21))

    async def test_read_events_cannot_be_changed(self) -> None:
        async with self.holding(1) as log:
            (event,) = await collected(log.read(RUN))
            with _Raises(TypeError):
                event.metadata["n"] = 2  # type: ignore[index]

    async def test_changing_a_batch_after_append_changes_nothing(self) -> None:
        events = logged(RUN, 1, 3)
        async with self.opened() as log:
            await log.append(RUN, events)
            events.clear()
            assert positions(await collected(log.read(RUN))) == [1, 2, 3]

    async def test_any_sequence_is_a_batch(self) -> None:
        async with self.opened() as log:
            assert await log.append(RUN, tuple(logged(RUN, 1, 2))) == 2

    async def test_runs_do_not_mix(self) -> None:
        async with self.opened() as log:
            await log.append(RUN, logged(RUN, 1, 3))
            await log.append(OTHER, logged(OTHER, 1, 2))
            await log.append(RUN, logged(RUN, 4, 5))
            assert positions(await collected(log.read(RUN))) == [1, 2, 3, 4, 5]
            assert positions(await collected(log.read(OTHER))) == [1, 2]
            assert {event.run_id for event in await collected(log.read(OTHER))} == {OTHER}

    async def test_ids_that_are_prefixes_of_each_other_do_not_mix(self) -> None:
        async with self.opened() as log:
            for run_id in ("a", "a:1", "a_", "a.", "A", "a-"):
                await log.append(run_id, logged(run_id, 1, 2))
            for run_id in ("a", "a:1", "a_", "a.", "A", "a-"):
                assert {event.run_id for event in await collected(log.read(run_id))} == {run_id}

    async def test_appends_of_many_runs_at_once_are_all_kept(self) -> None:
        async with self.opened() as log:

            async def write(run_id: str) -> None:
                for n in range(1, 41, 4):
                    await log.append(run_id, logged(run_id, n, n + 3))

            ids = [f"run-{n}" for n in range(12)]
            await soon(asyncio.gather(*map(write, ids)))
            for run_id in ids:
                assert positions(await collected(log.read(run_id))) == list(range(1, 41))

    async def test_appends_of_one_run_without_waiting_keep_their_order(self) -> None:
        async with self.opened() as log:
            tasks = [asyncio.ensure_future(log.append(RUN, logged(RUN, n, n))) for n in range(1, 51)]
            await soon(asyncio.gather(*tasks))
            assert positions(await collected(log.read(RUN))) == list(range(1, 51))

    async def test_an_append_is_visible_when_it_returns(self) -> None:
        async with self.opened() as log:
            for n in range(1, 11):
                await log.append(RUN, logged(RUN, n, n))
                assert await log.last_position(RUN) == n
                assert positions(await collected(log.read(RUN, n - 1))) == [n]

    async def test_a_cancelled_append_can_be_given_again(self) -> None:
        events = logged(RUN, 1, 100)
        async with self.opened() as log:
            task = asyncio.ensure_future(log.append(RUN, events))
            await asyncio.sleep(0)  # lets it begin
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await log.append(RUN, events) == 100
            assert positions(await collected(log.read(RUN))) == list(range(1, 101))

    # ── given again ───────────────────────────────────────────────────────────────────────────────

    async def test_the_same_batch_again_is_passed_over(self) -> None:
        async with self.holding(5) as log:
            assert await log.append(RUN, logged(RUN, 1, 5)) == 5
            assert positions(await collected(log.read(RUN))) == [1, 2, 3, 4, 5]

    async def test_a_part_again_returns_the_last_position(self) -> None:
        async with self.holding(5) as log:
            assert await log.append(RUN, logged(RUN, 2, 3)) == 5

    async def test_a_batch_that_overlaps_adds_what_is_new(self) -> None:
        async with self.holding(5) as log:
            assert await log.append(RUN, logged(RUN, 4, 8)) == 8
            assert await collected(log.read(RUN)) == logged(RUN, 1, 8)

    async def test_another_event_at_a_held_position_is_fenced(self) -> None:
        async with self.holding(5) as log:
            with _Raises(LogFencedError):
                await log.append(RUN, logged(RUN, 5, 5, text="other"))
            assert await collected(log.read(RUN)) == logged(RUN, 1, 5)

    async def test_an_overlap_that_differs_keeps_nothing_of_its_batch(self) -> None:
        async with self.holding(5) as log:
            with _Raises(LogFencedError):
                await log.append(RUN, logged(RUN, 5, 7, text="other"))
            assert await log.last_position(RUN) == 5

    async def test_a_batch_from_before_a_takeover_again_is_passed_over(self) -> None:
        async with self.holding(3) as log:
            await log.append(RUN, logged(RUN, 4, 4, attempt=2, epoch="epoch-2"))
            assert await log.append(RUN, logged(RUN, 1, 3)) == 4

    async def test_trimmed_events_again_are_passed_over(self) -> None:
        async with self.holding(5) as log:
            await log.trim(RUN, 3)
            assert await log.append(RUN, logged(RUN, 1, 6)) == 6
            assert positions(await collected(log.read(RUN))) == [(1, 3), 4, 5, 6]

    # ── holes ─────────────────────────────────────────────────────────────────────────────────────

    async def test_a_hole_behind_the_end_is_refused(self) -> None:
        async with self.holding(3) as log:
            with _Raises(LogHoleError) as caught:
                await log.append(RUN, logged(RUN, 5, 6))
            assert (caught.error.run_id, caught.error.position, caught.error.last) == (RUN, 5, 3)
            assert positions(await collected(log.read(RUN))) == [1, 2, 3]

    async def test_a_run_that_does_not_begin_at_one_is_refused(self) -> None:
        async with self.opened() as log:
            with _Raises(LogHoleError) as caught:
                await log.append(RUN, logged(RUN, 2, 3))
            assert caught.error.last == 0
            assert list(await log.runs()) == []

    async def test_a_hole_within_a_batch_is_refused_whole(self) -> None:
        async with self.opened() as log:
            with _Raises(LogHoleError):
                await log.append(RUN, [*logged(RUN, 1, 2), *logged(RUN, 4, 4)])
            assert await log.last_position(RUN) == 0

    async def test_a_batch_out_of_order_is_refused(self) -> None:
        async with self.opened() as log:
            with _Raises(LogHoleError):
                await log.append(RUN, logged(RUN, 1, 3)[::-1])

    async def test_a_position_twice_in_a_batch_is_refused(self) -> None:
        async with self.opened() as log:
            with _Raises(LogHoleError):
                await log.append(RUN, logged(RUN, 1, 1) * 2)

    async def test_an_event_of_another_run_is_refused(self) -> None:
        async with self.opened() as log:
            with _Raises(EventInvalidError) as caught:
                await log.append(RUN, [*logged(RUN, 1, 1), *logged(OTHER, 2, 2)])
            assert caught.error.field == "run_id"
            assert await log.last_position(RUN) == 0

    async def test_an_event_without_a_position_is_refused(self) -> None:
        async with self.opened() as log:
            with _Raises(EventInvalidError) as caught:
                await log.append(RUN, [replace(logged(RUN, 1, 1)[0], run_seq=None)])
            assert caught.error.field == "run_seq"

    async def test_a_gap_notice_is_refused(self) -> None:
        gap = DiagnosticEvent(GAP_SCOPE, "", {"count": 1, "first_seq": 1, "last_seq": 1}, run_id=RUN)
        async with self.opened() as log:
            with _Raises(EventInvalidError):
                await log.append(RUN, [gap])

    async def test_an_error_leaves_the_log_usable(self) -> None:
        async with self.holding(3) as log:
            with _Raises(LogHoleError):
                await log.append(RUN, logged(RUN, 9, 9))
            assert await log.append(RUN, logged(RUN, 4, 4)) == 4

    async def test_an_error_of_one_append_does_not_touch_others_of_that_moment(self) -> None:
        async with self.holding(3) as log:
            results = await soon(
                asyncio.gather(
                    log.append("a", logged("a", 1, 5)),
                    log.append(RUN, logged(RUN, 9, 9)),
                    log.append("b", logged("b", 1, 5)),
                    log.append("c", logged("c", 2, 5)),
                    log.append(RUN, logged(RUN, 4, 5)),
                    return_exceptions=True,
                )
            )
            assert [type(result) for result in results] == [int, LogHoleError, int, LogHoleError, int]
            assert [await log.last_position(run_id) for run_id in ("a", "b", "c", RUN)] == [5, 5, 0, 5]

    # ── fencing ───────────────────────────────────────────────────────────────────────────────────

    async def test_a_second_writer_of_the_same_attempt_is_fenced(self) -> None:
        async with self.holding(3) as log:
            with _Raises(LogFencedError) as caught:
                await log.append(RUN, logged(RUN, 4, 4, epoch="epoch-2"))
            assert (caught.error.attempt, caught.error.owner) == (1, 1)
            assert await log.last_position(RUN) == 3

    async def test_a_later_attempt_takes_over(self) -> None:
        async with self.holding(3) as log:
            assert await log.append(RUN, logged(RUN, 4, 5, attempt=2, epoch="epoch-2")) == 5
            (run,) = await log.runs()
            assert run.attempt == 2

    async def test_the_former_writer_is_fenced_after_a_takeover(self) -> None:
        async with self.holding(3) as log:
            await log.append(RUN, logged(RUN, 4, 5, attempt=2, epoch="epoch-2"))
            for first in (4, 5, 6):
                with _Raises(LogFencedError) as caught:
                    await log.append(RUN, logged(RUN, first, 8, text="zombie"))
                assert (caught.error.attempt, caught.error.owner) == (1, 2)
            assert [e.attempt for e in await collected(log.read(RUN))] == [1, 1, 1, 2, 2]

    async def test_a_takeover_needs_the_right_position(self) -> None:
        async with self.holding(3) as log:
            with _Raises(LogHoleError):
                await log.append(RUN, logged(RUN, 6, 6, attempt=2, epoch="epoch-2"))
            assert await log.append(RUN, logged(RUN, 4, 4)) == 4  # and the owner stays

    async def test_attempts_may_be_skipped(self) -> None:
        async with self.holding(3) as log:
            assert await log.append(RUN, logged(RUN, 4, 4, attempt=7, epoch="epoch-7")) == 4

    async def test_a_takeover_in_the_same_process_keeps_its_epoch(self) -> None:
        async with self.holding(3) as log:
            assert await log.append(RUN, logged(RUN, 4, 4, attempt=2)) == 4
            with _Raises(LogFencedError):
                await log.append(RUN, logged(RUN, 5, 5, attempt=1))

    async def test_one_batch_may_end_a_dead_attempt_and_begin_the_next(self) -> None:
        async with self.holding(3) as log:
            batch = [ending("interrupted", 4, epoch="epoch-2"), *logged(RUN, 5, 6, attempt=2, epoch="epoch-2")]
            assert await log.append(RUN, batch) == 6
            (run,) = await log.runs()
            assert (run.attempt, run.outcome) == (2, None)

    async def test_attempts_do_not_go_back_within_a_batch(self) -> None:
        async with self.opened() as log:
            with _Raises(EventInvalidError):
                await log.append(RUN, [*logged(RUN, 1, 1, attempt=2), *logged(RUN, 2, 2, attempt=1)])

    async def test_two_writers_at_once_never_interleave(self) -> None:
        async with self.opened() as log:

            async def write(epoch: str) -> int:
                kept = 0
                for n in range(1, 21):
                    try:
                        await log.append(RUN, logged(RUN, n, n, epoch=epoch, text=epoch))
                        kept = n
                    except LogError:
                        return kept
                return kept

            await soon(asyncio.gather(write("epoch-a"), write("epoch-b")))
            events = await collected(log.read(RUN))
            assert positions(events) == list(range(1, 21))
            assert len({event.epoch for event in events}) == 1

    async def test_fencing_is_per_run(self) -> None:
        async with self.holding(3) as log:
            await log.append(RUN, logged(RUN, 4, 4, attempt=2, epoch="epoch-2"))
            assert await log.append(OTHER, logged(OTHER, 1, 1)) == 1

    # ── read ──────────────────────────────────────────────────────────────────────────────────────

    async def test_an_unknown_run_has_no_events(self) -> None:
        async with self.opened() as log:
            assert await collected(log.read(RUN)) == []
            assert await log.last_position(RUN) == 0

    async def test_reading_makes_no_run(self) -> None:
        async with self.opened() as log:
            await collected(log.read(RUN))
            assert list(await log.runs()) == []

    async def test_read_is_strictly_after_the_position(self) -> None:
        async with self.holding(9) as log:
            for after in range(10):
                assert positions(await collected(log.read(RUN, after))) == list(range(after + 1, 10))

    async def test_read_takes_after_by_name(self) -> None:
        async with self.holding(3) as log:
            assert positions(await collected(log.read(RUN, after=2))) == [3]

    async def test_read_over_many_pages(self) -> None:
        async with self.opened() as log:
            await log.append(RUN, logged(RUN, 1, 2500))
            assert positions(await collected(log.read(RUN, 3))) == list(range(4, 2501))

    async def test_two_readers_at_once_see_the_same(self) -> None:
        async with self.holding(1200) as log:
            one, two = await asyncio.gather(collected(log.read(RUN)), collected(log.read(RUN)))
            assert one == two

    async def test_read_ends_while_the_run_goes_on(self) -> None:
        async with self.holding(600) as log:
            reading, found, n = log.read(RUN), [], 600
            async for event in reading:
                found.append(event)
                if len(found) % 50 == 0 and n < 700:
                    n += 1
                    await log.append(RUN, logged(RUN, n, n))
            assert positions(found)[:600] == list(range(1, 601))
            assert positions(found) == list(range(1, len(found) + 1))

    async def test_a_reader_that_leaves_early_harms_nothing(self) -> None:
        async with self.holding(1200) as log:
            assert positions(await collected(log.read(RUN), 3)) == [1, 2, 3]
            assert await log.append(RUN, logged(RUN, 1201, 1201)) == 1201

    async def test_a_position_beyond_the_end_is_refused(self) -> None:
        async with self.holding(3) as log:
            with _Raises(InvalidPositionError) as caught:
                await collected(log.read(RUN, 4))
            assert (caught.error.after, caught.error.head) == (4, 3)

    async def test_a_position_of_an_unknown_run_is_refused(self) -> None:
        async with self.opened() as log:
            with _Raises(InvalidPositionError):
                await collected(log.read(RUN, 1))

    async def test_what_is_no_position_is_refused(self) -> None:
        async with self.holding(3) as log:
            for after in (-1, "2", 1.0, None, True):
                with _Raises(InvalidPositionError):
                    await collected(log.read(RUN, after))
                with _Raises(InvalidPositionError):
                    await collected(log.follow(RUN, after))

    # ── follow ────────────────────────────────────────────────────────────────────────────────────

    async def test_follow_of_a_finished_run_reads_and_ends(self) -> None:
        async with self.opened() as log:
            for outcome in ("completed", "failed", "cancelled"):
                await log.append(outcome, [*logged(outcome, 1, 3), ending(outcome, 4, outcome)])
                assert positions(await collected(log.follow(outcome))) == [1, 2, 3, 4]

    async def test_follow_after_everything_of_a_finished_run_ends_at_once(self) -> None:
        async with self.holding(3) as log:
            await log.append(RUN, [ending("completed", 4)])
            assert await collected(log.follow(RUN, 4)) == []

    async def test_follow_sees_what_comes(self) -> None:
        async with self.holding(3) as log:
            task = asyncio.ensure_future(collected(log.follow(RUN)))
            for n in range(4, 30):
                await log.append(RUN, logged(RUN, n, n))
            await log.append(RUN, [ending("completed", 30)])
            assert positions(await soon(task)) == list(range(1, 31))

    async def test_follow_waits_for_a_run_that_is_not_there_yet(self) -> None:
        async with self.opened() as log:
            task = asyncio.ensure_future(collected(log.follow(RUN)))
            await asyncio.sleep(0)  # lets it begin
            await log.append(OTHER, logged(OTHER, 1, 1))
            await log.append(RUN, logged(RUN, 1, 2))
            await log.append(RUN, [ending("completed", 3)])
            assert positions(await soon(task)) == [1, 2, 3]

    async def test_follow_goes_on_after_paused_and_interrupted(self) -> None:
        async with self.opened() as log:
            for run in ("paused", "interrupted"):
                await log.append(run, [*logged(run, 1, 3), ending(run, 4, run)])
                events = log.follow(run)
                assert positions([await soon(anext(events)) for _ in range(4)]) == [1, 2, 3, 4]
                waiting = asyncio.ensure_future(collected(events))
                batch = [*logged(run, 5, 5, attempt=2, epoch="e2"), ending("completed", 6, run, attempt=2, epoch="e2")]
                await log.append(run, batch)
                assert positions(await soon(waiting)) == [5, 6]

    async def test_follow_passes_a_failure_that_was_resumed(self) -> None:
        async with self.holding(3) as log:
            await log.append(RUN, [ending("failed", 4)])
            await log.append(RUN, logged(RUN, 5, 5, attempt=2, epoch="e2"))
            await log.append(RUN, [ending("completed", 6, attempt=2, epoch="e2")])
            assert positions(await collected(log.follow(RUN))) == [1, 2, 3, 4, 5, 6]

    async def test_follow_has_no_seam_whenever_it_begins(self) -> None:
        async with self.opened() as log:

            async def write() -> None:
                for n in range(1, 400, 7):
                    await log.append(RUN, logged(RUN, n, n + 6))
                end = await log.last_position(RUN) + 1
                await log.append(RUN, [ending("completed", end)])

            writer = asyncio.ensure_future(write())
            readers = []
            for _ in range(20):
                readers.append(asyncio.ensure_future(collected(log.follow(RUN))))
                await asyncio.sleep(0)  # the next one begins at another moment of the writing
            await soon(writer)
            whole = list(range(1, await log.last_position(RUN) + 1))
            for reader in readers:
                assert positions(await soon(reader)) == whole

    async def test_follow_after_a_position_is_strictly_after_it(self) -> None:
        async with self.holding(5) as log:
            task = asyncio.ensure_future(collected(log.follow(RUN, 3)))
            await log.append(RUN, [ending("completed", 6)])
            assert positions(await soon(task)) == [4, 5, 6]

    async def test_follow_beyond_the_end_is_refused(self) -> None:
        async with self.holding(3) as log:
            with _Raises(InvalidPositionError):
                await collected(log.follow(RUN, 4))

    async def test_a_cancelled_follower_harms_nothing(self) -> None:
        async with self.holding(3) as log:
            task = asyncio.ensure_future(collected(log.follow(RUN)))
            await asyncio.sleep(0)  # lets it begin
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await log.append(RUN, logged(RUN, 4, 4)) == 4

    async def test_many_followers_all_see_the_end(self) -> None:
        async with self.opened() as log:
            tasks = [asyncio.ensure_future(collected(log.follow(RUN))) for _ in range(50)]
            await log.append(RUN, logged(RUN, 1, 20))
            await log.append(RUN, [ending("failed", 21)])
            for task in tasks:
                assert positions(await soon(task)) == list(range(1, 22))

    # ── sessions and runs ─────────────────────────────────────────────────────────────────────────

    async def test_a_session_is_read_run_after_run(self) -> None:
        async with self.opened() as log:
            await log.append("b", logged("b", 1, 2))
            await log.append("x", logged("x", 1, 1, session_id="other"))
            await log.append("a", logged("a", 1, 2))
            await log.append("b", logged("b", 3, 3))
            events = await collected(log.read_session(SESSION))
            assert [(e.run_id, e.run_seq) for e in events] == [("b", 1), ("b", 2), ("b", 3), ("a", 1), ("a", 2)]

    async def test_an_unknown_session_has_no_events(self) -> None:
        async with self.holding(1) as log:
            assert await collected(log.read_session("nobody")) == []

    async def test_runs_tells_what_is_known(self) -> None:
        async with self.holding(3) as log:
            (run,) = await log.runs()
            assert (run.run_id, run.session_id, run.attempt) == (RUN, SESSION, 1)
            assert (run.first_position, run.last_position, run.outcome) == (1, 3, None)
            assert (run.started_at, run.updated_at) == (
                _START + timedelta(milliseconds=1),
                _START + timedelta(milliseconds=3),
            )

    async def test_runs_tells_each_outcome(self) -> None:
        async with self.opened() as log:
            for outcome in ("completed", "failed", "cancelled", "paused", "interrupted"):
                await log.append(outcome, [*logged(outcome, 1, 2), ending(outcome, 3, outcome)])
            assert {run.run_id: run.outcome for run in await log.runs()} == {
                outcome: outcome for outcome in ("completed", "failed", "cancelled", "paused", "interrupted")
            }

    async def test_an_outcome_is_gone_while_the_next_attempt_is_open(self) -> None:
        async with self.holding(3) as log:
            await log.append(RUN, [ending("paused", 4)])
            await log.append(RUN, logged(RUN, 5, 5, attempt=2, epoch="e2"))
            assert (await log.runs())[0].outcome is None

    async def test_runs_come_newest_first_and_in_pages(self) -> None:
        async with self.opened() as log:
            for n in range(10):
                await log.append(f"run-{n}", logged(f"run-{n}", 1, 1))
            await log.append("run-0", logged("run-0", 2, 2))  # an older run that goes on stays where it began
            first = [run.run_id for run in await log.runs(limit=4)]
            rest = [run.run_id for run in await log.runs(limit=100, before=first[-1])]
            assert first + rest == [f"run-{n}" for n in reversed(range(10))]

    # ── trim ──────────────────────────────────────────────────────────────────────────────────────

    async def test_trim_forgets_up_to_the_position(self) -> None:
        async with self.holding(9) as log:
            assert await log.trim(RUN, 4) == 4
            assert positions(await collected(log.read(RUN))) == [(1, 4), 5, 6, 7, 8, 9]
            assert (await log.runs())[0].first_position == 5

    async def test_trim_twice_counts_only_what_went(self) -> None:
        async with self.holding(9) as log:
            assert [await log.trim(RUN, upto) for upto in (4, 4, 2, 6, 0)] == [4, 0, 0, 2, 0]

    async def test_the_gap_is_exact_wherever_reading_begins(self) -> None:
        async with self.holding(9) as log:
            await log.trim(RUN, 5)
            expected = {0: [(1, 5), 6], 2: [(3, 5), 6], 4: [(5, 5), 6], 5: [6, 7], 7: [8, 9], 9: []}
            for after, start in expected.items():
                assert positions(await collected(log.read(RUN, after)))[:2] == start

    async def test_follow_tells_the_gap_too(self) -> None:
        async with self.holding(9) as log:
            await log.trim(RUN, 5)
            await log.append(RUN, [ending("completed", 10)])
            assert positions(await collected(log.follow(RUN, 2))) == [(3, 5), 6, 7, 8, 9, 10]

    async def test_trim_of_everything_keeps_an_open_runs_position(self) -> None:
        async with self.holding(5) as log:
            assert await log.trim(RUN) == 5
            assert await log.last_position(RUN) == 5
            assert positions(await collected(log.read(RUN))) == [(1, 5)]
            assert await log.append(RUN, logged(RUN, 6, 6)) == 6

    async def test_trim_of_everything_forgets_a_finished_run(self) -> None:
        async with self.holding(5) as log:
            await log.append(RUN, [ending("completed", 6)])
            assert await log.trim(RUN) == 6
            assert await log.last_position(RUN) == 0
            assert list(await log.runs()) == []
            assert await log.append(RUN, logged(RUN, 1, 2)) == 2

    async def test_trim_up_to_the_end_keeps_the_outcome(self) -> None:
        async with self.holding(5) as log:
            await log.append(RUN, [ending("completed", 6)])
            assert await log.trim(RUN, 6) == 6
            (run,) = await log.runs()
            assert (run.outcome, run.first_position, run.last_position) == ("completed", 7, 6)
            assert positions(await collected(log.follow(RUN))) == [(1, 6)]

    async def test_trim_of_an_unknown_run_takes_nothing(self) -> None:
        async with self.opened() as log:
            assert await log.trim(RUN) == 0
            assert await log.trim(RUN, 5) == 0

    async def test_trim_beyond_the_end_is_refused(self) -> None:
        async with self.holding(3) as log:
            for upto in (4, -1):
                with _Raises(InvalidPositionError):
                    await log.trim(RUN, upto)
            assert positions(await collected(log.read(RUN))) == [1, 2, 3]

    async def test_trim_of_one_run_leaves_the_others(self) -> None:
        async with self.holding(5) as log:
            await log.append(OTHER, logged(OTHER, 1, 5))
            await log.trim(RUN)
            assert positions(await collected(log.read(OTHER))) == [1, 2, 3, 4, 5]

    async def test_a_trim_while_someone_reads_shows_as_a_gap(self) -> None:
        async with self.holding(1500) as log:
            events = log.read(RUN)
            found = [await soon(anext(events)) for _ in range(10)]
            await log.trim(RUN, 1400)
            found += await collected(events)
            covered: list[int] = []
            for entry in positions(found):
                covered += [entry] if isinstance(entry, int) else range(entry[0], entry[1] + 1)
            assert covered == list(range(1, 1501))

    async def test_a_follower_of_a_run_that_is_forgotten_gets_a_gap_and_the_end(self) -> None:
        async with self.holding(1500) as log:
            await log.append(RUN, [ending("completed", 1501)])
            events = log.follow(RUN)
            found = [await soon(anext(events)) for _ in range(10)]
            await log.trim(RUN)
            found += await collected(events)
            *read, gap = positions(found)
            assert read == list(range(1, len(read) + 1))
            assert gap == (len(read) + 1, 1501)

    # ── closing ───────────────────────────────────────────────────────────────────────────────────

    async def test_close_twice(self) -> None:
        async with self.holding(1) as log:
            await log.aclose()
            await log.aclose()

    async def test_close_of_an_unused_log(self) -> None:
        log = await self.make()
        await log.aclose()

    async def test_after_close_every_call_is_refused_by_name(self) -> None:
        async with self.holding(1) as log:
            await log.aclose()
            with _Raises(LogError):
                await log.append(RUN, logged(RUN, 2, 2))
            with _Raises(LogError):
                await log.last_position(RUN)
            with _Raises(LogError):
                await log.runs()
            with _Raises(LogError):
                await collected(log.read(RUN))
            with _Raises(LogError):
                await collected(log.follow(RUN))

    async def test_close_keeps_what_is_under_way(self) -> None:
        async with self.opened() as log:
            task = asyncio.ensure_future(log.append(RUN, logged(RUN, 1, 50)))
            await asyncio.sleep(0)  # lets it begin
            await log.aclose()
            assert await soon(task) == 50

    async def test_a_follower_that_waits_is_told_of_the_close(self) -> None:
        async with self.holding(2) as log:
            events = log.follow(RUN)
            await soon(anext(events)), await soon(anext(events))
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)  # lets it begin to wait
            await log.aclose()
            with _Raises(LogError, StopAsyncIteration):
                await soon(waiting)


class CompactingLogKit(LogKit):
    """``read(run_id, after, compact=True)``, which a log may offer beyond the protocol."""

    async def stream(self, log: Any, parts: Sequence[Event]) -> list[Event]:
        """Append ``parts`` at positions from 1."""
        events = [_stamped(event, RUN, n, 1, "epoch-1", SESSION) for n, event in enumerate(parts, 1)]
        await log.append(RUN, events)
        return events

    async def test_a_finished_stream_is_one_event(self) -> None:
        async with self.opened() as log:
            await self.stream(
                log,
                [
                    NodeEvent("kit", "before"),
                    *(llm_chunk(text, stream_id="s", index=i) for i, text in enumerate(("He", "l", "lo"))),
                    llm_final("!", stream_id="s", index=3),
                    NodeEvent("kit", "after"),
                ],
            )
            before, one, after = await collected(log.read(RUN, compact=True))
            assert isinstance(one, LLMStreamingEvent)
            assert (before.message, after.message) == ("before", "after")
            assert (one.chunk, one.message, one.phase, one.run_seq) == ("Hello!", "Hello!", "final", 5)
            assert (one.metadata["first_seq"], one.metadata["last_seq"], one.metadata["count"]) == (2, 5, 4)

    async def test_what_lies_between_keeps_its_order(self) -> None:
        async with self.opened() as log:
            await self.stream(
                log,
                [
                    llm_chunk("a", stream_id="s"),
                    llm_chunk("x", stream_id="t"),
                    NodeEvent("kit", "between"),
                    llm_chunk("y", stream_id="t", index=1),
                    llm_final(stream_id="t", index=2),
                    llm_final("b", stream_id="s", index=1),
                ],
            )
            events = await collected(log.read(RUN, compact=True))
            assert [event.message for event in events] == ["between", "xy", "ab"]
            assert [event.run_seq for event in events] == [3, 5, 6]

    async def test_an_open_stream_is_left_as_it_is(self) -> None:
        async with self.opened() as log:
            events = await self.stream(log, [llm_chunk("a", stream_id="s"), llm_chunk("b", stream_id="s", index=1)])
            assert await collected(log.read(RUN, compact=True)) == events

    async def test_compaction_after_a_position_names_the_first_it_covers(self) -> None:
        async with self.opened() as log:
            chunks = [llm_chunk(str(i), stream_id="s", index=i) for i in range(5)]
            await self.stream(log, [*chunks, llm_final(stream_id="s", index=5)])
            (one,) = await collected(log.read(RUN, 2, compact=True))
            assert isinstance(one, LLMStreamingEvent)
            assert (one.chunk, one.metadata["first_seq"], one.metadata["count"]) == ("234", 3, 4)

    async def test_compacted_events_survive_the_wire(self) -> None:
        async with self.opened() as log:
            await self.stream(log, [llm_chunk("a", stream_id="s"), llm_final(stream_id="s", index=1)])
            (one,) = await collected(log.read(RUN, compact=True))
            assert from_json(to_json(one)) == one


class DurableLogKit(LogKit):
    """For logs whose content outlives the handle: ``make`` opens the storage of this test, again at each call."""

    async def test_a_second_handle_reads_what_the_first_wrote(self) -> None:
        async with self.holding(5), self.opened() as second:
            assert await collected(second.read(RUN)) == logged(RUN, 1, 5)

    async def test_what_was_kept_is_there_after_reopening(self) -> None:
        async with self.holding(5):
            pass
        async with self.opened() as again:
            assert await collected(again.read(RUN)) == logged(RUN, 1, 5)
            assert await again.append(RUN, logged(RUN, 6, 6)) == 6

    async def test_fencing_survives_reopening(self) -> None:
        async with self.holding(3) as log:
            await log.append(RUN, logged(RUN, 4, 4, attempt=2, epoch="e2"))
        async with self.opened() as again:
            with _Raises(LogFencedError):
                await again.append(RUN, logged(RUN, 5, 5))

    async def test_a_trim_survives_reopening(self) -> None:
        async with self.holding(5) as log:
            await log.trim(RUN, 3)
        async with self.opened() as again:
            assert positions(await collected(again.read(RUN))) == [(1, 3), 4, 5]

    async def test_a_second_handle_follows_the_first(self) -> None:
        async with self.opened() as first, self.opened() as second:
            task = asyncio.ensure_future(collected(second.follow(RUN)))
            for n in range(1, 20):
                await first.append(RUN, logged(RUN, n, n))
            await first.append(RUN, [ending("completed", 20)])
            assert positions(await soon(task)) == list(range(1, 21))

    async def test_two_handles_write_different_runs(self) -> None:
        async with self.opened() as first, self.opened() as second:
            await asyncio.gather(
                *(first.append(f"a{n}", logged(f"a{n}", 1, 10)) for n in range(10)),
                *(second.append(f"b{n}", logged(f"b{n}", 1, 10)) for n in range(10)),
            )
            assert len(await first.runs()) == len(await second.runs()) == 20

    async def test_a_second_handle_is_fenced(self) -> None:
        async with self.holding(3), self.opened() as second:
            with _Raises(LogFencedError):
                await second.append(RUN, logged(RUN, 4, 4, epoch="epoch-2"))

    async def test_closing_one_handle_leaves_the_other(self) -> None:
        async with self.opened() as first:
            async with self.holding(3):
                pass
            assert await first.append(RUN, logged(RUN, 4, 4)) == 4
