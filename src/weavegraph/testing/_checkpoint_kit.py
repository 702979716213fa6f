"""What every ``Checkpointer`` must do, as tests that anyone can run over their own.

::

    class TestMyCheckpointer(CheckpointerKit):  # pytest collects its async methods (pytest-anyio or pytest-asyncio)
        async def make(self) -> Checkpointer:
            return MyCheckpointer(...)          # a fresh, empty one

``DurableCheckpointerKit`` adds what one must do whose content outlives its handle; there ``make`` opens the same
storage again and again for one test, and ``recipe`` says how another process opens it.

What was saved belongs to the checkpointer: its values are never changed by whoever saved them, nor by whoever reads
them. A durable one holds them as plain data (``encoded``), and the kit reads everything through ``revive``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar, get_args

from weavegraph.errors import (
    CheckpointConflictError,
    ConfigError,
    LogError,
    StateError,
    WeavegraphError,
)
from weavegraph.protocols import Checkpointer, CheckpointPage
from weavegraph.state import (
    Checkpoint,
    CheckpointStatus,
    ErrorRecord,
    Finished,
    Message,
    OpenQuestion,
    Send,
    StateSchema,
    Task,
    revive,
)
from weavegraph.testing._log_kit import _Raises, soon

__all__ = ["CheckpointerKit", "DurableCheckpointerKit", "KitState", "checkpointed"]

T = TypeVar("T")
S, OTHER = "session-1", "session-2"
_START = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = 30.0


class Mood(enum.Enum):
    FINE = "fine"
    BAD = "bad"


@dataclasses.dataclass
class Note:
    text: str
    at: datetime | None = None
    parts: list[Note] = dataclasses.field(default_factory=list)


class KitState(TypedDict, total=False):
    """A state whose types say what its plain data is to become again."""

    text: str
    raw: bytes
    at: datetime
    day: date
    hour: time
    span: timedelta
    pair: tuple[int, str]
    tags: set[str]
    fixed: frozenset[int]
    note: Note | None
    notes: list[Note]
    by_id: dict[int, Note]
    weights: dict[int, float]
    big: int
    number: float
    money: Decimal
    mood: Mood
    uid: uuid.UUID
    flag: bool
    word: Literal["yes", "no"]
    anything: Any


SCHEMA = StateSchema.of(KitState)
PLAIN = StateSchema.of(None)


def checkpointed(session_id: str = S, number: int = 1, **changes: Any) -> Checkpoint:
    """A checkpoint as a run takes it; equal arguments give equal ones."""
    given: dict[str, Any] = {
        "run_id": "run-1",
        "attempt": 1,
        "run_seq": 5 * number,
        "step": number - 1,
        "status": "running",
        "values": {"text": f"after {number - 1}"},
        "versions": {"text": number},
        "frontier": (Task("work"),),
        "created_at": _START + timedelta(seconds=number),
        "ran_nodes": ("work",) if number > 1 else (),
        "parent": number - 1 or None,
        "fingerprint": "f1",
    }
    return Checkpoint(session_id=session_id, number=number, **{**given, **changes})


def numbers(page: CheckpointPage | Sequence[Checkpoint]) -> list[int]:
    held = page.checkpoints if isinstance(page, CheckpointPage) else page
    return [each.number for each in held]


class CheckpointerKit:
    """The cases; inherit, and give ``make``."""

    async def make(self) -> Checkpointer:
        """A fresh, empty checkpointer."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        made = await self.make()
        try:
            yield made
        finally:
            await made.aclose()

    @asynccontextmanager
    async def holding(self, last: int, session_id: str = S) -> AsyncIterator[Any]:
        async with self.opened() as keeper:
            await self.fill(keeper, last, session_id)
            yield keeper

    async def fill(self, keeper: Checkpointer, last: int, session_id: str = S, **changes: Any) -> None:
        for number in range(1, last + 1):
            await keeper.save(checkpointed(session_id, number, **changes))

    async def through(self, checkpoint: Checkpoint, schema: StateSchema = SCHEMA) -> Checkpoint:
        """What comes back of a checkpoint, read by its schema; the same by ``get``, ``latest`` and ``history``."""
        async with self.opened() as keeper:
            await keeper.delete(checkpoint.session_id)
            await keeper.save(checkpoint)
            found = await keeper.get(checkpoint.session_id, checkpoint.number)
            latest = await keeper.latest(checkpoint.session_id)
            (newest,) = (await keeper.history(checkpoint.session_id, limit=1)).checkpoints
        assert found is not None and latest is not None
        assert found == latest == newest
        return revive(schema, found)

    async def value_survives(self, key: str, value: Any) -> None:
        found = await self.through(checkpointed(values={key: value}))
        assert found.values[key] == value
        assert type(found.values[key]) is type(value)

    async def field_survives(self, **changes: Any) -> None:
        saved = checkpointed(**changes)
        assert await self.through(saved) == saved

    # ── save, get, latest ─────────────────────────────────────────────────────────────────────────

    async def test_it_fulfils_the_protocol(self) -> None:
        async with self.opened() as keeper:
            assert isinstance(keeper, Checkpointer)

    async def test_what_was_saved_comes_back_equal(self) -> None:
        saved = checkpointed()
        assert await self.through(saved) == saved

    async def test_a_fresh_one_holds_nothing(self) -> None:
        async with self.opened() as keeper:
            assert await keeper.latest(S) is None
            assert await keeper.get(S, 1) is None
            assert await keeper.history(S) == CheckpointPage((), None)
            assert list(await keeper.sessions()) == []

    async def test_latest_is_the_last_one_saved(self) -> None:
        async with self.opened() as keeper:
            for number in range(1, 8):
                await keeper.save(checkpointed(number=number))
                found = await keeper.latest(S)
                assert found is not None and found.number == number

    async def test_get_gives_each_by_its_number(self) -> None:
        async with self.holding(12) as keeper:
            for number in range(1, 13):
                found = await keeper.get(S, number)
                assert found is not None and revive(SCHEMA, found) == checkpointed(number=number)

    async def test_get_of_a_number_that_is_not_there_is_none(self) -> None:
        async with self.holding(3) as keeper:
            for number in (0, -1, 4, 2**40):
                assert await keeper.get(S, number) is None

    async def test_an_unknown_session_has_nothing(self) -> None:
        async with self.holding(3) as keeper:
            assert await keeper.latest(OTHER) is None
            assert await keeper.get(OTHER, 1) is None
            assert await keeper.history(OTHER) == CheckpointPage((), None)

    async def test_a_save_is_visible_when_it_returns(self) -> None:
        async with self.opened() as keeper:
            for number in range(1, 20):
                await keeper.save(checkpointed(number=number))
                assert await keeper.get(S, number) is not None
                assert numbers(await keeper.history(S, limit=1)) == [number]

    async def test_save_returns_nothing(self) -> None:
        async with self.opened() as keeper:
            assert await keeper.save(checkpointed()) is None

    async def test_reading_changes_nothing(self) -> None:
        async with self.holding(3) as keeper:
            before = [await keeper.get(S, n) for n in (1, 2, 3)]
            await keeper.latest(S), await keeper.history(S), await keeper.sessions()
            assert [await keeper.get(S, n) for n in (1, 2, 3)] == before

    async def test_the_session_and_number_of_what_comes_back_are_right(self) -> None:
        async with self.holding(2) as keeper:
            await self.fill(keeper, 3, OTHER)
            found = await keeper.latest(OTHER)
            assert found is not None and (found.session_id, found.number) == (OTHER, 3)

    async def test_every_status_survives(self) -> None:
        for status in get_args(CheckpointStatus):
            await self.field_survives(status=status)

    # ── numbering: optimistic concurrency ─────────────────────────────────────────────────────────

    async def test_the_first_number_is_one(self) -> None:
        async with self.opened() as keeper:
            for number in (0, 2, -1, 17):
                with _Raises(CheckpointConflictError):
                    await keeper.save(checkpointed(number=number))
            assert list(await keeper.sessions()) == []
            await keeper.save(checkpointed(number=1))

    async def test_a_number_again_is_a_conflict(self) -> None:
        async with self.holding(3) as keeper:
            for number in (1, 2, 3):
                with _Raises(CheckpointConflictError):
                    await keeper.save(checkpointed(number=number))

    async def test_the_same_checkpoint_again_is_a_conflict_too(self) -> None:
        async with self.opened() as keeper:
            saved = checkpointed()
            await keeper.save(saved)
            with _Raises(CheckpointConflictError):
                await keeper.save(saved)

    async def test_a_number_may_not_be_left_out(self) -> None:
        async with self.holding(3) as keeper:
            for number in (5, 6, 100):
                with _Raises(CheckpointConflictError):
                    await keeper.save(checkpointed(number=number))

    async def test_a_conflict_says_what_is_there(self) -> None:
        async with self.holding(3) as keeper:
            raises = _Raises(CheckpointConflictError)
            with raises:
                await keeper.save(checkpointed(number=3))
            error = raises.error
            assert (error.session_id, error.expected, error.found) == (S, 2, 3)
            assert error.code == "checkpoint_conflict"

    async def test_a_conflict_writes_nothing(self) -> None:
        async with self.holding(3) as keeper:
            for number in (2, 3, 5):
                with _Raises(CheckpointConflictError):
                    await keeper.save(checkpointed(number=number, values={"text": "other"}))
            assert numbers(await keeper.history(S)) == [3, 2, 1]
            assert all(each.values["text"] != "other" for each in (await keeper.history(S)).checkpoints)

    async def test_a_conflict_in_an_unknown_session_makes_no_session(self) -> None:
        async with self.opened() as keeper:
            with _Raises(CheckpointConflictError):
                await keeper.save(checkpointed(number=2))
            assert list(await keeper.sessions()) == []
            assert await keeper.latest(S) is None

    async def test_after_a_conflict_the_right_number_is_taken(self) -> None:
        async with self.holding(3) as keeper:
            with _Raises(CheckpointConflictError):
                await keeper.save(checkpointed(number=3))
            await keeper.save(checkpointed(number=4))
            found = await keeper.latest(S)
            assert found is not None and found.number == 4

    async def test_of_two_writers_of_one_number_one_wins(self) -> None:
        async with self.holding(1) as keeper:
            rivals = [checkpointed(number=2, values={"text": who}) for who in ("one", "other")]
            results = await soon(asyncio.gather(*(keeper.save(each) for each in rivals), return_exceptions=True))
            assert sorted(type(result).__name__ for result in results) == ["CheckpointConflictError", "NoneType"]
            winner = rivals[results.index(None)]
            found = await keeper.latest(S)
            assert found is not None and found.values["text"] == winner.values["text"]

    async def test_many_writers_that_try_again_lose_nothing(self) -> None:
        async with self.opened() as keeper:

            async def add(who: int) -> None:
                for n in range(5):
                    while True:
                        latest = await keeper.latest(S)
                        number = 1 if latest is None else latest.number + 1
                        try:
                            await keeper.save(checkpointed(number=number, values={"text": f"{who}-{n}"}))
                            break
                        except CheckpointConflictError:
                            await asyncio.sleep(0)  # lets the others have their turn

            await soon(asyncio.gather(*map(add, range(6))))
            held = (await keeper.history(S)).checkpoints
            assert numbers(held) == list(range(30, 0, -1))
            assert {each.values["text"] for each in held} == {f"{who}-{n}" for who in range(6) for n in range(5)}

    async def test_sessions_are_numbered_apart(self) -> None:
        async with self.holding(3) as keeper:
            await keeper.save(checkpointed(OTHER, 1))
            await keeper.save(checkpointed(S, 4))
            with _Raises(CheckpointConflictError):
                await keeper.save(checkpointed(OTHER, 4))

    async def test_saves_without_waiting_keep_their_order(self) -> None:
        async with self.opened() as keeper:
            saves = [asyncio.ensure_future(keeper.save(checkpointed(number=n))) for n in range(1, 31)]
            await soon(asyncio.gather(*saves))
            assert numbers(await keeper.history(S)) == list(range(30, 0, -1))

    async def test_the_numbering_goes_on_over_runs(self) -> None:
        async with self.opened() as keeper:
            for number, run_id in enumerate(("a", "a", "b", "b", "b"), 1):
                await keeper.save(checkpointed(number=number, run_id=run_id))
            with _Raises(CheckpointConflictError):
                await keeper.save(checkpointed(number=1, run_id="c"))

    async def test_the_time_of_a_checkpoint_decides_nothing(self) -> None:
        async with self.opened() as keeper:
            for number in range(1, 5):
                await keeper.save(checkpointed(number=number, created_at=_START - timedelta(days=number)))
            assert numbers(await keeper.history(S)) == [4, 3, 2, 1]

    # ── history ───────────────────────────────────────────────────────────────────────────────────

    async def test_history_is_newest_first(self) -> None:
        async with self.holding(9) as keeper:
            assert numbers(await keeper.history(S)) == [9, 8, 7, 6, 5, 4, 3, 2, 1]

    async def test_history_holds_the_whole_checkpoints(self) -> None:
        async with self.holding(3) as keeper:
            page = await keeper.history(S)
            assert [revive(SCHEMA, each) for each in page.checkpoints] == [checkpointed(number=n) for n in (3, 2, 1)]

    async def test_a_page_says_where_the_next_one_begins(self) -> None:
        async with self.holding(7) as keeper:
            page = await keeper.history(S, limit=3)
            assert (numbers(page), page.next_before) == ([7, 6, 5], 5)
            page = await keeper.history(S, limit=3, before=page.next_before)
            assert (numbers(page), page.next_before) == ([4, 3, 2], 2)
            page = await keeper.history(S, limit=3, before=page.next_before)
            assert (numbers(page), page.next_before) == ([1], None)

    async def test_a_page_that_ends_with_the_last_one_says_so(self) -> None:
        async with self.holding(6) as keeper:
            page = await keeper.history(S, limit=3, before=4)
            assert (numbers(page), page.next_before) == ([3, 2, 1], None)
            assert (await keeper.history(S, limit=6)).next_before is None

    async def test_pages_cover_everything_once_whatever_their_size(self) -> None:
        async with self.holding(11) as keeper:
            for limit in (1, 2, 3, 10, 11, 12):
                found, before = [], None
                while True:
                    page = await keeper.history(S, limit=limit, before=before)
                    found += numbers(page)
                    before = page.next_before
                    if before is None:
                        break
                assert found == list(range(11, 0, -1)), limit

    async def test_pages_stand_still_while_somebody_saves(self) -> None:
        async with self.holding(6) as keeper:
            page = await keeper.history(S, limit=3)
            await keeper.save(checkpointed(number=7))
            assert numbers(await keeper.history(S, limit=3, before=page.next_before)) == [3, 2, 1]

    async def test_before_leaves_out_its_own_number(self) -> None:
        async with self.holding(5) as keeper:
            assert numbers(await keeper.history(S, before=3)) == [2, 1]
            assert numbers(await keeper.history(S, before=6)) == [5, 4, 3, 2, 1]
            assert numbers(await keeper.history(S, before=99)) == [5, 4, 3, 2, 1]

    async def test_before_the_first_there_is_nothing(self) -> None:
        async with self.holding(5) as keeper:
            for before in (1, 0, -7):
                assert await keeper.history(S, before=before) == CheckpointPage((), None)

    async def test_a_limit_that_is_none_is_refused_by_name(self) -> None:
        async with self.holding(1) as keeper:
            for limit in (0, -1, 1.5, True, "3", 10**9):
                with _Raises(ConfigError):
                    await keeper.history(S, limit=limit)

    async def test_history_by_step(self) -> None:
        async with self.holding(8) as keeper:
            assert numbers(await keeper.history(S, min_step=5)) == [8, 7, 6]
            assert numbers(await keeper.history(S, max_step=2)) == [3, 2, 1]
            assert numbers(await keeper.history(S, min_step=2, max_step=3)) == [4, 3]
            assert numbers(await keeper.history(S, min_step=3, max_step=2)) == []
            assert numbers(await keeper.history(S, min_step=0, max_step=0)) == [1]

    async def nodes(self, keeper: Checkpointer) -> None:
        ran = [(), ("a",), ("b", "ab"), ("a", "b"), ("c%",)]
        skipped = [(), ("b",), (), ("c",), ("a", "b")]
        for number, (one, other) in enumerate(zip(ran, skipped, strict=True), 1):
            await keeper.save(checkpointed(number=number, ran_nodes=one, skipped_nodes=other))

    async def test_history_by_node_that_ran(self) -> None:
        async with self.opened() as keeper:
            await self.nodes(keeper)
            assert numbers(await keeper.history(S, ran_node="a")) == [4, 2]
            assert numbers(await keeper.history(S, ran_node="b")) == [4, 3]
            assert numbers(await keeper.history(S, ran_node="nobody")) == []

    async def test_history_by_node_that_was_skipped(self) -> None:
        async with self.opened() as keeper:
            await self.nodes(keeper)
            assert numbers(await keeper.history(S, skipped_node="b")) == [5, 2]
            assert numbers(await keeper.history(S, skipped_node="c")) == [4]

    async def test_names_are_compared_whole_and_as_they_are(self) -> None:
        async with self.opened() as keeper:
            await self.nodes(keeper)
            assert numbers(await keeper.history(S, ran_node="ab")) == [3]
            for name in ("%", "_", "c", "a%", '"a"', "a' OR '1'='1", "A", "", "[", "a,b"):
                assert numbers(await keeper.history(S, ran_node=name)) == [], name
            assert numbers(await keeper.history(S, ran_node="c%")) == [5]

    async def test_history_by_run(self) -> None:
        async with self.opened() as keeper:
            for number, run_id in enumerate(("a", "a", "b", "a:1", "b"), 1):
                await keeper.save(checkpointed(number=number, run_id=run_id))
            assert numbers(await keeper.history(S, run_id="a")) == [2, 1]
            assert numbers(await keeper.history(S, run_id="b")) == [5, 3]
            assert numbers(await keeper.history(S, run_id="a%")) == []

    async def test_all_that_is_asked_for_must_fit(self) -> None:
        async with self.opened() as keeper:
            for number in range(1, 13):
                await keeper.save(
                    checkpointed(
                        number=number, run_id="ab"[number % 2], ran_nodes=("x",) if number % 3 == 0 else ("y",)
                    )
                )
            assert numbers(await keeper.history(S, run_id="a", ran_node="x")) == [12, 6]
            assert numbers(await keeper.history(S, run_id="b", ran_node="y", min_step=4, before=11)) == [7, 5]

    async def test_a_query_is_paged_too(self) -> None:
        async with self.opened() as keeper:
            for number in range(1, 21):
                await keeper.save(checkpointed(number=number, ran_nodes=("x",) if number % 2 else ()))
            page = await keeper.history(S, ran_node="x", limit=4)
            assert (numbers(page), page.next_before) == ([19, 17, 15, 13], 13)
            page = await keeper.history(S, ran_node="x", limit=6, before=page.next_before)
            assert (numbers(page), page.next_before) == ([11, 9, 7, 5, 3, 1], None)

    async def test_history_of_one_session_shows_no_other(self) -> None:
        async with self.holding(3) as keeper:
            await self.fill(keeper, 5, OTHER)
            assert {each.session_id for each in (await keeper.history(S)).checkpoints} == {S}
            assert len((await keeper.history(OTHER)).checkpoints) == 5

    # ── sessions ──────────────────────────────────────────────────────────────────────────────────

    async def test_sessions_are_named_in_order_and_once(self) -> None:
        async with self.opened() as keeper:
            for name in ("b", "a", "c", "B", "a:1", "_"):
                await self.fill(keeper, 2, name)
            assert list(await keeper.sessions()) == sorted(("b", "a", "c", "B", "a:1", "_"))

    async def test_sessions_come_in_pages(self) -> None:
        async with self.opened() as keeper:
            names = [f"s{n:02}" for n in range(13)]
            for name in names:
                await keeper.save(checkpointed(name))
            found: list[str] = []
            while page := list(await keeper.sessions(limit=5, after=found[-1] if found else "")):
                assert len(page) <= 5
                found += page
            assert found == names

    async def test_after_the_last_session_there_is_none(self) -> None:
        async with self.holding(1, "m") as keeper:
            assert list(await keeper.sessions(after="m")) == []
            assert list(await keeper.sessions(after="z")) == []
            assert list(await keeper.sessions(after="l")) == ["m"]

    async def test_a_hundred_sessions_are_kept_apart(self) -> None:
        async with self.opened() as keeper:
            await soon(asyncio.gather(*(self.fill(keeper, 3, f"s{n}") for n in range(100))))
            for n in range(100):
                found = await keeper.latest(f"s{n}")
                assert found is not None and (found.session_id, found.number) == (f"s{n}", 3)

    async def test_ids_that_are_prefixes_of_each_other_do_not_mix(self) -> None:
        names = ("a", "a:1", "a_", "a.", "A", "a-")
        async with self.opened() as keeper:
            for n, name in enumerate(names, 1):
                await self.fill(keeper, n, name)
            for n, name in enumerate(names, 1):
                assert numbers(await keeper.history(name)) == list(range(n, 0, -1))

    async def test_an_id_of_all_that_is_allowed_is_kept(self) -> None:
        name = "Az09_.:-" * 16
        async with self.holding(2, name) as keeper:
            assert list(await keeper.sessions()) == [name]
            assert numbers(await keeper.history(name)) == [2, 1]

    # ── delete and trim ───────────────────────────────────────────────────────────────────────────

    async def test_delete_forgets_the_session_and_counts(self) -> None:
        async with self.holding(5) as keeper:
            assert await keeper.delete(S) == 5
            assert await keeper.latest(S) is None
            assert await keeper.history(S) == CheckpointPage((), None)
            assert list(await keeper.sessions()) == []

    async def test_delete_of_an_unknown_session_takes_nothing(self) -> None:
        async with self.holding(2) as keeper:
            assert await keeper.delete(OTHER) == 0
            assert await keeper.delete(S) == 2
            assert await keeper.delete(S) == 0

    async def test_delete_leaves_the_others(self) -> None:
        async with self.holding(2) as keeper:
            await self.fill(keeper, 3, OTHER)
            await keeper.delete(S)
            assert numbers(await keeper.history(OTHER)) == [3, 2, 1]

    async def test_a_deleted_session_begins_at_one_again(self) -> None:
        async with self.holding(3) as keeper:
            await keeper.delete(S)
            with _Raises(CheckpointConflictError):
                await keeper.save(checkpointed(number=4))
            await keeper.save(checkpointed(number=1))
            assert numbers(await keeper.history(S)) == [1]

    async def test_trim_keeps_the_newest_and_counts(self) -> None:
        async with self.holding(9) as keeper:
            assert await keeper.trim(S, keep=4) == 5
            assert numbers(await keeper.history(S)) == [9, 8, 7, 6]
            assert await keeper.get(S, 5) is None

    async def test_trim_twice_counts_only_what_went(self) -> None:
        async with self.holding(9) as keeper:
            assert [await keeper.trim(S, keep=keep) for keep in (5, 5, 7, 2, 1)] == [4, 0, 0, 3, 1]

    async def test_trim_to_one_leaves_the_latest(self) -> None:
        async with self.holding(9) as keeper:
            await keeper.trim(S, keep=1)
            found = await keeper.latest(S)
            assert found is not None and revive(SCHEMA, found) == checkpointed(number=9)

    async def test_trim_to_more_than_there_is_takes_nothing(self) -> None:
        async with self.holding(3) as keeper:
            assert await keeper.trim(S, keep=3) == 0
            assert await keeper.trim(S, keep=2**40) == 0

    async def test_trim_of_an_unknown_session_takes_nothing(self) -> None:
        async with self.opened() as keeper:
            assert await keeper.trim(S, keep=1) == 0
            assert list(await keeper.sessions()) == []

    async def test_trim_to_nothing_is_refused_by_name(self) -> None:
        async with self.holding(3) as keeper:
            for keep in (0, -1, 1.5, True, "2", None):
                with _Raises(ConfigError):
                    await keeper.trim(S, keep=keep)
            assert numbers(await keeper.history(S)) == [3, 2, 1]

    async def test_after_a_trim_the_numbering_goes_on(self) -> None:
        async with self.holding(5) as keeper:
            await keeper.trim(S, keep=1)
            with _Raises(CheckpointConflictError):
                await keeper.save(checkpointed(number=2))
            await keeper.save(checkpointed(number=6))
            assert numbers(await keeper.history(S)) == [6, 5]

    async def test_trim_leaves_the_others(self) -> None:
        async with self.holding(5) as keeper:
            await self.fill(keeper, 5, OTHER)
            await keeper.trim(S, keep=1)
            assert len((await keeper.history(OTHER)).checkpoints) == 5

    # ── isolation ─────────────────────────────────────────────────────────────────────────────────

    async def test_a_later_checkpoint_changes_no_earlier_one(self) -> None:
        async with self.opened() as keeper:
            for number in range(1, 6):
                await keeper.save(checkpointed(number=number, values={"text": str(number), "tags": {str(number)}}))
            for number in range(1, 6):
                found = await keeper.get(S, number)
                assert found is not None
                assert revive(SCHEMA, found).values == {"text": str(number), "tags": {str(number)}}

    async def test_what_was_read_stays_as_it_was(self) -> None:
        async with self.holding(2) as keeper:
            found, page = await keeper.get(S, 1), await keeper.history(S)
            await keeper.save(checkpointed(number=3))
            await keeper.delete(S)
            assert found is not None and revive(SCHEMA, found) == checkpointed(number=1)
            assert numbers(page) == [2, 1]

    async def test_a_key_that_is_gone_is_gone(self) -> None:
        async with self.opened() as keeper:
            await keeper.save(checkpointed(number=1, values={"text": "x", "flag": True}))
            await keeper.save(checkpointed(number=2, values={"flag": True}))
            found = await keeper.latest(S)
            assert found is not None and dict(found.values) == {"flag": True}

    async def test_two_sessions_may_hold_one_object(self) -> None:
        note = Note("shared")
        async with self.opened() as keeper:
            for name in (S, OTHER):
                await keeper.save(checkpointed(name, values={"notes": [note]}))
            for name in (S, OTHER):
                found = await keeper.latest(name)
                assert found is not None and revive(SCHEMA, found).values == {"notes": [Note("shared")]}

    # ── values ────────────────────────────────────────────────────────────────────────────────────

    async def test_text_of_every_kind_survives(self) -> None:
        for text in (
            "",
            " ",
            "ü€😀\u2028\u202e",
            "\x00\x01\x1b[31m\x7f\x9b",
            '"\\',
            "'; DROP TABLE checkpoints; --",
            "a\nb\r\n",
        ):
            await self.value_survives("text", text)

    async def test_bytes_survive(self) -> None:
        for raw in (b"", bytes(range(256)), b"\xff" * 1000):
            await self.value_survives("raw", raw)

    async def test_dates_and_times_survive(self) -> None:
        for at in (_START, datetime(1970, 1, 1, tzinfo=UTC), datetime(2026, 3, 29, 1, 59, 59, 999999, tzinfo=UTC)):
            await self.value_survives("at", at)
        await self.value_survives("day", date(2024, 2, 29))
        await self.value_survives("hour", time(23, 59, 59, 1))
        await self.value_survives("span", timedelta(days=-2, microseconds=3))

    async def test_numbers_survive(self) -> None:
        for big in (0, -1, 2**53 + 1, 2**63 - 1, -(2**63)):
            await self.value_survives("big", big)
        for number in (0.1, -0.0, 1e-308, 1.7976931348623157e308, 3.0):
            await self.value_survives("number", number)
        for money in (Decimal("0.10"), Decimal("-1E+20")):
            await self.value_survives("money", money)

    async def test_numbers_beyond_64_bits_survive_or_are_refused_by_name(self) -> None:
        for big in (2**64, -(2**70), 10**40):
            await self.survives_or_is_refused("big", big)

    async def test_numbers_that_json_cannot_say_survive(self) -> None:
        for number in (float("nan"), float("inf"), float("-inf")):
            await self.unsaid_survives(values={"number": number, "anything": {"deep": [0.5, number, None]}})
            await self.unsaid_survives(values={"weights": {1: number, -2: 0.5}, "number": number})
            await self.unsaid_survives(frontier=(Task("a"), Task("b", True, {"n": [number]})))
            await self.unsaid_survives(questions=(OpenQuestion("ask:1:0:0", "ask", {"what": number}),))
            await self.unsaid_survives(answers={"ask:1:0": ("Ada", number), "x": ()})
            done = Finished(1, (("text", "x"), ("number", number)), ("a", Send("b", [None, number])), ("c",))
            await self.unsaid_survives(finished=(Finished(0, (("number", 1.0),), None), done))

    async def test_an_output_kept_later_may_hold_numbers_that_json_cannot_say(self) -> None:
        async with self.holding(2) as keeper:
            done = Finished(0, (("number", float("nan")), ("anything", [float("-inf"), None])), ("a", Send("b", 1.0)))
            await keeper.add_finished(S, 2, done)
            for found in (await keeper.latest(S), await keeper.get(S, 2)):
                assert found is not None
                assert repr(revive(SCHEMA, found).finished) == repr((done,))

    async def unsaid_survives(self, **changes: Any) -> None:
        """Compared as text: NaN equals nothing."""
        saved = checkpointed(**changes)
        assert repr(await self.through(saved)) == repr(saved)

    async def test_half_a_character_survives_or_is_refused_by_name(self) -> None:
        for text in ("\ud83d", "a\udc00b"):
            await self.survives_or_is_refused("text", text, "\ufffd")

    async def survives_or_is_refused(self, key: str, value: Any, instead: str | None = None) -> None:
        """Refused when it is saved, by name; never another value (``instead`` may stand in), never when it is read."""
        saved = checkpointed(values={key: value})
        async with self.opened() as keeper:
            await keeper.delete(S)
            try:
                await keeper.save(saved)
            except WeavegraphError:
                assert await keeper.latest(S) is None
                return
        found = (await self.through(saved)).values[key]
        alike = repr(found) == repr(value) or (instead is not None and instead in found)
        assert alike, f"{value!r} came back as {found!r}"

    async def test_none_and_empty_things_survive(self) -> None:
        await self.value_survives("note", None)
        await self.value_survives("notes", [])
        await self.value_survives("by_id", {})
        await self.value_survives("tags", set())
        await self.value_survives("anything", None)

    async def test_a_state_without_values_survives(self) -> None:
        await self.field_survives(values={}, versions={})

    async def test_tuples_sets_and_keys_that_are_no_text_survive(self) -> None:
        await self.value_survives("pair", (3, "x"))
        await self.value_survives("tags", {"a", "b"})
        await self.value_survives("fixed", frozenset({1, 2}))
        await self.value_survives("by_id", {1: Note("one"), -2: Note("two")})

    async def test_nested_dataclasses_survive(self) -> None:
        deep = Note("0", _START)
        for n in range(1, 20):
            deep = Note(str(n), None, [deep, Note("beside")])
        await self.value_survives("note", deep)
        await self.value_survives("notes", [Note("a"), deep])

    async def test_enums_ids_and_words_survive(self) -> None:
        await self.value_survives("mood", Mood.BAD)
        await self.value_survives("uid", uuid.UUID(int=7))
        await self.value_survives("word", "no")
        await self.value_survives("flag", False)

    async def test_plain_data_of_a_key_without_a_type_survives(self) -> None:
        await self.value_survives("anything", {"list": [1, 2.5, None, True, {"deep": ["x"]}], "": "", "a.b": {}})

    async def test_what_looks_like_an_object_stays_data(self) -> None:
        data = {"__class__": "os.system", "py/object": "x", "lc": 2, "type": "constructor", "id": ["os"], "$type": "x"}
        await self.value_survives("anything", data)

    async def test_messages_of_the_default_state_survive(self) -> None:
        values = {"messages": [Message.system("hi"), Message.user("ü")], "extra": {"a": [1]}, "errors": []}
        found = await self.through(checkpointed(values=values, versions=dict.fromkeys(values, 1)), PLAIN)
        assert found.values == values

    async def test_errors_in_the_default_state_survive(self) -> None:
        errors = [ErrorRecord(when=_START, scope="node", kind="ValueError", message="no", node="n", step=1)]
        found = await self.through(checkpointed(values={"messages": [], "extra": {}, "errors": errors}), PLAIN)
        assert found.values["errors"] == errors

    async def test_what_is_no_data_is_kept_or_refused_by_name(self) -> None:
        thing = object()
        try:
            found = await self.through(checkpointed(values={"anything": thing}))
        except StateError as exc:
            assert "anything" in str(exc)
        else:
            assert found.values["anything"] is thing

    async def test_what_was_refused_left_nothing(self) -> None:
        async with self.opened() as keeper:
            try:
                await keeper.save(checkpointed(values={"anything": object()}))
            except StateError:
                assert await keeper.latest(S) is None
                await keeper.save(checkpointed())
            assert numbers(await keeper.history(S)) == [1]

    async def test_a_big_state_survives(self) -> None:
        values = {"text": "x" * 3_000_000, "notes": [Note(f"note {n}", _START) for n in range(5_000)]}
        found = await self.through(checkpointed(values=values, versions=dict.fromkeys(values, 1)))
        assert found.values == values

    async def test_a_history_of_big_states_is_read_whole(self) -> None:
        async with self.opened() as keeper:
            for number in range(1, 21):
                await keeper.save(checkpointed(number=number, values={"text": f"{number}" + "x" * 200_000}))
            page = await keeper.history(S)
            assert numbers(page) == list(range(20, 0, -1))
            assert all(len(each.values["text"]) > 200_000 for each in page.checkpoints)

    async def test_a_state_of_many_keys_survives(self) -> None:
        schema = StateSchema.of(TypedDict("Wide", {f"k{n}": int for n in range(500)}))  # type: ignore[operator, misc]
        values = {f"k{n}": n for n in range(500)}
        found = await self.through(checkpointed(values=values, versions=dict.fromkeys(values, 3)), schema)
        assert found.values == values

    # ── everything beside the values ──────────────────────────────────────────────────────────────

    async def test_versions_survive(self) -> None:
        await self.field_survives(versions={"text": 17, "notes": 2**40})

    async def test_the_frontier_survives(self) -> None:
        await self.field_survives(frontier=())
        await self.field_survives(
            frontier=(Task("a"), Task("a"), Task("b", True, {"n": [1, None]}), Task("c", True, None))
        )

    async def test_outputs_of_finished_tasks_survive(self) -> None:
        await self.field_survives(
            finished=(
                Finished(0, (("text", "x"), ("notes", [Note("n", _START)])), None),
                Finished(2, (), ("a", Send("b", {"n": 1})), ("c",)),
                Finished(3, (), ()),
            )
        )

    async def test_open_questions_survive(self) -> None:
        await self.field_survives(
            status="paused",
            questions=(
                OpenQuestion("ask:1:0:0", "ask", {"what": ["name", None]}),
                OpenQuestion("inner:2:1:0", "inner", None, ("outer",)),
            ),
        )

    async def test_answers_survive(self) -> None:
        await self.field_survives(answers={"ask:1:0": ("Ada", 36, None), "ask:1:1": ({"a": [True]},), "x": ()})

    async def test_what_nodes_have_seen_survives(self) -> None:
        await self.field_survives(seen={"a": {"text": 3, "notes": 1}, "b": {}})

    async def test_errors_of_the_run_survive(self) -> None:
        await self.field_survives(
            status="failed",
            errors=(
                ErrorRecord(
                    when=_START, scope="node", kind="ValueError", message="no\n\x1b[31m", causes=("KeyError: 'x'",),
                    node="n", step=3, attempt=2, try_no=4, path=("outer",), tags=("t",), context={"a": 1},
                ),
                ErrorRecord(when=_START, scope="runner", kind="X", message=""),
            ),
        )  # fmt: skip

    async def test_what_a_step_did_survives(self) -> None:
        await self.field_survives(ran_nodes=("a", "b"), skipped_nodes=("c",), updated_keys=("text", "notes"))

    async def test_where_it_came_from_survives(self) -> None:
        await self.field_survives(parent=None, forked_from="another", fingerprint="ff00", iterative=True)
        await self.field_survives(parent=7)

    async def test_the_place_in_the_run_survives(self) -> None:
        await self.field_survives(run_id="r:2", attempt=3, run_seq=2**40, step=0)

    async def test_the_time_survives_to_the_microsecond(self) -> None:
        await self.field_survives(created_at=_START + timedelta(microseconds=1))

    # ── outputs that come after a checkpoint ──────────────────────────────────────────────────────

    async def test_an_output_kept_later_is_found_in_the_checkpoint(self) -> None:
        async with self.holding(2) as keeper:
            await keeper.add_finished(S, 2, Finished(1, (("notes", [Note("n")]),), None))
            await keeper.add_finished(S, 2, Finished(0, (), ("a", Send("b", 1))))
            for found in (await keeper.latest(S), await keeper.get(S, 2)):
                assert found is not None
                assert revive(SCHEMA, found).finished == (
                    Finished(0, (), ("a", Send("b", 1))), Finished(1, (("notes", [Note("n")]),), None),
                )  # fmt: skip

    async def test_an_output_kept_later_joins_those_saved(self) -> None:
        async with self.opened() as keeper:
            await keeper.save(checkpointed(finished=(Finished(2, (), None),)))
            await keeper.add_finished(S, 1, Finished(0, (), None))
            found = await keeper.latest(S)
            assert found is not None and [done.index for done in found.finished] == [0, 2]

    async def test_the_last_output_of_a_task_counts(self) -> None:
        async with self.holding(1) as keeper:
            for text in ("first", "second"):
                await keeper.add_finished(S, 1, Finished(0, (("text", text),), None))
            found = await keeper.latest(S)
            assert found is not None and found.finished[0].writes[0][1] == "second"

    async def test_the_next_checkpoint_forgets_them(self) -> None:
        async with self.holding(1) as keeper:
            await keeper.add_finished(S, 1, Finished(0, (), None))
            await keeper.save(checkpointed(number=2))
            found = await keeper.latest(S)
            assert found is not None and found.finished == ()

    async def test_an_output_of_an_earlier_step_comes_too_late(self) -> None:
        async with self.holding(3) as keeper:
            await keeper.add_finished(S, 2, Finished(0, (), None))
            found = await keeper.latest(S)
            assert found is not None and found.finished == ()

    async def test_an_output_of_an_unknown_session_makes_none(self) -> None:
        async with self.opened() as keeper:
            await keeper.add_finished(S, 1, Finished(0, (), None))
            assert await keeper.latest(S) is None
            assert list(await keeper.sessions()) == []

    async def test_outputs_of_sessions_do_not_mix(self) -> None:
        async with self.holding(1) as keeper:
            await self.fill(keeper, 1, OTHER)
            await keeper.add_finished(S, 1, Finished(0, (), None))
            found = await keeper.latest(OTHER)
            assert found is not None and found.finished == ()

    async def test_a_deleted_session_leaves_no_outputs(self) -> None:
        async with self.holding(1) as keeper:
            await keeper.add_finished(S, 1, Finished(0, (), None))
            await keeper.delete(S)
            await keeper.save(checkpointed())
            found = await keeper.latest(S)
            assert found is not None and found.finished == ()

    # ── cancellation, loops and threads ───────────────────────────────────────────────────────────

    async def test_a_cancelled_save_is_whole_or_not_there(self) -> None:
        async with self.opened() as keeper:
            for turns in range(6):
                name = f"s{turns}"
                await keeper.save(checkpointed(name, 1))
                task = asyncio.ensure_future(keeper.save(checkpointed(name, 2, values={"text": "x" * 100_000})))
                for _ in range(turns):
                    await asyncio.sleep(0)  # lets it get further each time
                task.cancel()
                await soon(asyncio.gather(task, return_exceptions=True))
                latest = await keeper.latest(name)
                assert latest is not None and latest.number in (1, 2)
                if latest.number == 2:
                    assert len(latest.values["text"]) == 100_000
                else:
                    await self.saved_or_there(keeper, checkpointed(name, 2))
                await keeper.save(checkpointed(name, 3))
                assert numbers(await keeper.history(name)) == [3, 2, 1]

    async def saved_or_there(self, keeper: Checkpointer, checkpoint: Checkpoint) -> None:
        """Give it again: what was cancelled may still have been on its way."""
        try:
            await keeper.save(checkpoint)
        except CheckpointConflictError as exc:
            assert exc.found == checkpoint.number

    async def test_a_cancelled_read_leaves_it_usable(self) -> None:
        async with self.holding(5) as keeper:
            for read in (keeper.latest(S), keeper.history(S), keeper.get(S, 2), keeper.sessions()):
                task = asyncio.ensure_future(read)
                await asyncio.sleep(0)  # lets it begin
                task.cancel()
                await soon(asyncio.gather(task, return_exceptions=True))
            assert numbers(await keeper.history(S)) == [5, 4, 3, 2, 1]

    async def test_threads_with_loops_of_their_own_share_it(self) -> None:
        async with self.opened() as keeper:

            async def work(name: str) -> None:
                for number in range(1, 11):
                    await keeper.save(checkpointed(name, number))
                    found = await keeper.latest(name)
                    assert found is not None and found.number == number

            await in_threads([partial(work, f"s{n}") for n in range(6)])
            for n in range(6):
                assert numbers(await keeper.history(f"s{n}")) == list(range(10, 0, -1))

    async def test_threads_that_save_one_session_lose_nothing(self) -> None:
        async with self.opened() as keeper:

            async def work(who: int) -> None:
                for n in range(5):
                    while True:
                        latest = await keeper.latest(S)
                        number = 1 if latest is None else latest.number + 1
                        try:
                            await keeper.save(checkpointed(number=number, values={"text": f"{who}-{n}"}))
                            break
                        except CheckpointConflictError:
                            pass

            await in_threads([partial(work, who) for who in range(4)])
            held = (await keeper.history(S)).checkpoints
            assert numbers(held) == list(range(20, 0, -1))
            assert len({each.values["text"] for each in held}) == 20

    async def test_one_loop_after_another_uses_it(self) -> None:
        async with self.opened() as keeper:
            for number in range(1, 4):
                await in_threads([partial(keeper.save, checkpointed(number=number))])
            assert numbers(await keeper.history(S)) == [3, 2, 1]

    # ── closing ───────────────────────────────────────────────────────────────────────────────────

    async def test_close_twice(self) -> None:
        async with self.holding(1) as keeper:
            await keeper.aclose()
            await keeper.aclose()

    async def test_close_of_an_unused_one(self) -> None:
        keeper = await self.make()
        await keeper.aclose()

    async def test_close_keeps_what_is_under_way(self) -> None:
        async with self.opened() as keeper:
            task = asyncio.ensure_future(keeper.save(checkpointed()))
            await asyncio.sleep(0)  # lets it begin
            await keeper.aclose()
            assert await soon(task) is None


class DurableCheckpointerKit(CheckpointerKit):
    """For those whose content outlives the handle: ``make`` opens the storage of this test, again at each call."""

    def recipe(self) -> tuple[str, list[Any]]:
        """How another process opens this storage: ``"package.module:Class"`` and its arguments, as plain data."""
        raise NotImplementedError

    async def elsewhere(self, code: str, *values: Any) -> Any:
        """Run ``code``, the body of a coroutine with ``keeper`` and ``values``, in another process; what it returns."""
        place, arguments = self.recipe()
        given = json.dumps({"place": place, "arguments": arguments, "values": values})
        body = "\n".join(f"    {line}" for line in code.strip().splitlines())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _ELSEWHERE.replace("BODY", body), given,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 0, err.decode()
        return json.loads(out)

    async def test_what_was_saved_is_there_after_reopening(self) -> None:
        async with self.holding(5):
            pass
        async with self.opened() as again:
            assert numbers(await again.history(S)) == [5, 4, 3, 2, 1]
            found = await again.latest(S)
            assert found is not None and revive(SCHEMA, found) == checkpointed(number=5)

    async def test_the_numbering_goes_on_after_reopening(self) -> None:
        async with self.holding(5):
            pass
        async with self.opened() as again:
            with _Raises(CheckpointConflictError):
                await again.save(checkpointed(number=5))
            await again.save(checkpointed(number=6))

    async def test_every_field_is_there_after_reopening(self) -> None:
        saved = checkpointed(
            values={"note": Note("n", _START), "pair": (1, "x"), "raw": b"\x00\xff"}, versions={"note": 1},
            status="paused", frontier=(Task("a", True, {"n": 1}),), finished=(Finished(0, (("text", "x"),), ("b",)),),
            questions=(OpenQuestion("a:1:0:0", "a", "why?"),), answers={"a:1:0": (1, "two")}, seen={"a": {"note": 1}},
            errors=(ErrorRecord(when=_START, scope="node", kind="E", message="m"),), iterative=True,
        )  # fmt: skip
        async with self.opened() as keeper:
            await keeper.save(saved)
        async with self.opened() as again:
            found = await again.get(S, 1)
            assert found is not None and revive(SCHEMA, found) == saved

    async def test_a_trim_and_a_delete_are_there_after_reopening(self) -> None:
        async with self.holding(5) as keeper:
            await self.fill(keeper, 2, OTHER)
            await keeper.trim(S, keep=2)
            await keeper.delete(OTHER)
        async with self.opened() as again:
            assert numbers(await again.history(S)) == [5, 4]
            assert list(await again.sessions()) == [S]

    async def test_an_output_kept_later_is_there_after_reopening(self) -> None:
        async with self.holding(2) as keeper:
            await keeper.add_finished(S, 2, Finished(3, (("text", "kept"),), None))
        async with self.opened() as again:
            found = await again.latest(S)
            assert found is not None and found.finished == (Finished(3, (("text", "kept"),), None),)

    async def test_what_was_saved_is_independent_of_the_objects_it_was_made_of(self) -> None:
        note = Note("before")
        values: dict[str, Any] = {"note": note, "notes": [note], "tags": {"a"}}
        async with self.opened() as keeper:
            await keeper.save(checkpointed(values=values))
            note.text = "after"
            values["notes"].append(Note("after"))
            values["tags"].add("b")
            values["text"] = "after"
            found = await keeper.latest(S)
            assert found is not None
            assert revive(SCHEMA, found).values == {"note": Note("before"), "notes": [Note("before")], "tags": {"a"}}

    async def test_what_was_read_may_be_changed_without_harm(self) -> None:
        async with self.opened() as keeper:
            await keeper.save(checkpointed(values={"anything": {"list": [1]}}))
            found = await keeper.latest(S)
            assert found is not None
            found.values["anything"]["list"].append(2)
            again = await keeper.latest(S)
            assert again is not None and again.values == {"anything": {"list": [1]}}

    async def test_two_handles_see_each_other(self) -> None:
        async with self.opened() as one, self.opened() as other:
            for number in range(1, 11):
                writer, reader = (one, other) if number % 2 else (other, one)
                await writer.save(checkpointed(number=number))
                found = await reader.latest(S)
                assert found is not None and found.number == number

    async def test_two_handles_that_save_one_number_conflict(self) -> None:
        async with self.opened() as one, self.opened() as other:
            results = await soon(
                asyncio.gather(one.save(checkpointed()), other.save(checkpointed()), return_exceptions=True)
            )
            assert sorted(type(result).__name__ for result in results) == ["CheckpointConflictError", "NoneType"]

    async def test_closing_one_handle_leaves_the_other(self) -> None:
        async with self.opened() as first:
            async with self.holding(3):
                pass
            await first.save(checkpointed(number=4))
            assert numbers(await first.history(S)) == [4, 3, 2, 1]

    async def test_after_close_every_call_is_refused_by_name(self) -> None:
        async with self.holding(1) as keeper:
            await keeper.aclose()
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: keeper.save(checkpointed(number=2)), lambda: keeper.latest(S), lambda: keeper.get(S, 1),
                lambda: keeper.history(S), lambda: keeper.sessions(), lambda: keeper.delete(S),
                lambda: keeper.trim(S, keep=1), lambda: keeper.add_finished(S, 1, Finished(0, (), None)),
            ]  # fmt: skip
            for call in calls:
                with _Raises(LogError):
                    await call()

    async def test_another_process_reads_what_this_one_saved(self) -> None:
        async with self.holding(3) as keeper:
            code = "found = await keeper.latest(values[0])\nreturn [found.number, found.values, found.run_seq]"
            assert await self.elsewhere(code, S) == [3, {"text": "after 2"}, 15]
            await keeper.save(checkpointed(number=4))

    async def test_this_process_reads_what_another_saved(self) -> None:
        async with self.opened() as keeper:
            await self.elsewhere("await keeper.save(checkpointed(values[0], 1))", S)
            found = await keeper.latest(S)
            assert found is not None and revive(SCHEMA, found) == checkpointed()
            await keeper.save(checkpointed(number=2))

    async def test_another_process_that_saves_the_same_number_conflicts(self) -> None:
        async with self.holding(2) as keeper:
            code = (
                "try:\n    await keeper.save(checkpointed(values[0], 2))\n"
                "except CheckpointConflictError as exc:\n    return [exc.expected, exc.found]"
            )
            assert await self.elsewhere(code, S) == [1, 2]
            assert numbers(await keeper.history(S)) == [2, 1]

    async def test_processes_that_save_one_session_lose_nothing(self) -> None:
        code = """
for n in range(8):
    while True:
        latest = await keeper.latest(values[0])
        try:
            number = 1 if latest is None else latest.number + 1
            await keeper.save(checkpointed(values[0], number, values={"text": f"{values[1]}-{n}"}))
            break
        except CheckpointConflictError:
            pass
"""
        async with self.opened() as keeper:
            await asyncio.gather(*(self.elsewhere(code, S, who) for who in range(3)))
            held = (await keeper.history(S)).checkpoints
            assert numbers(held) == list(range(24, 0, -1))
            assert len({each.values["text"] for each in held}) == 24


_ELSEWHERE = """
import asyncio, importlib, json, sys
from weavegraph.errors import CheckpointConflictError
from weavegraph.testing import checkpointed
given = json.loads(sys.argv[1])
values = given["values"]
async def work(keeper):
BODY
async def main():
    module, _, name = given["place"].partition(":")
    keeper = getattr(importlib.import_module(module), name)(*given["arguments"])
    try:
        print(json.dumps(await work(keeper)))
    finally:
        await keeper.aclose()
asyncio.run(main())
"""


async def in_threads(works: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    """Run each on a thread of its own with a loop of its own; raises what one of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], Awaitable[Any]]) -> None:
        async def main() -> None:
            await work()

        try:
            asyncio.run(asyncio.wait_for(main(), PATIENCE))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
