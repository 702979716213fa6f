"""The store by itself: one writer, all or nothing, whose error is whose, what is shared, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.support import clause
from weavegraph.errors import ConfigError, LogClosedError, LogCorruptError, LogError, LogUnavailableError
from weavegraph.storage import Schema, SqliteStore

NOTES = Schema("notes", (("CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT",),))


def note(text: str) -> Callable[[sqlite3.Connection], int]:
    def op(db: sqlite3.Connection) -> int:
        return int(db.execute("INSERT INTO notes(text) VALUES (?)", (text,)).lastrowid or 0)

    return op


def fail(error: Exception) -> Callable[[sqlite3.Connection], None]:
    def op(db: sqlite3.Connection) -> None:
        raise error

    return op


def texts(db: sqlite3.Connection) -> list[str]:
    return [text for (text,) in db.execute("SELECT text FROM notes ORDER BY id")]


def commits(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT commits FROM store_state").fetchone()[0])


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, **options)
    store.require_schema(NOTES)
    try:
        yield store
    finally:
        await store.aclose()


class Gate:
    """An operation that holds the writer until it is let go: what is queued meanwhile is one group."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, db: sqlite3.Connection) -> None:
        self.reached.set()
        assert self.go.wait(20)


async def held(store: SqliteStore) -> tuple[Gate, Future[Any]]:
    gate = Gate()
    future = store.write(gate)
    assert await asyncio.to_thread(gate.reached.wait, 20)
    return gate, future


async def test_a_write_returns_what_each_operation_returned(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        assert await store.submit(note("x"), note("y"), lambda db: "z") == (1, 2, "z")


@clause("D3")
async def test_a_write_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        with pytest.raises(ZeroDivisionError):
            await store.submit(note("x"), fail(ZeroDivisionError()), note("y"))
        assert await store.query(texts) == []


@clause("D1")
async def test_what_is_queued_at_an_instant_is_one_commit(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.start()
        before = await store.query(commits)
        gate, first = await held(store)
        writes = [store.write(note(str(n))) for n in range(100)]
        gate.go.set()
        await asyncio.gather(*map(asyncio.wrap_future, [first, *writes]))
        assert await store.query(commits) - before == 2
        assert await store.query(texts) == [str(n) for n in range(100)]


async def test_an_error_undoes_only_its_callers_part(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.start()
        gate, _ = await held(store)
        good = store.write(note("a"))
        bad = store.write(note("b"), fail(ValueError("mine")))
        broken = store.write(lambda db: db.execute("INSERT INTO notes(id, text) VALUES (1, NULL)"))
        last = store.write(note("c"))
        gate.go.set()
        results = await asyncio.gather(*map(asyncio.wrap_future, (good, bad, broken, last)), return_exceptions=True)
        assert [type(result) for result in results] == [tuple, ValueError, LogCorruptError, tuple]
        assert await store.query(texts) == ["a", "c"]


async def test_an_operation_that_ends_the_transaction_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        with pytest.raises(RuntimeError, match="ended the transaction"):
            await store.submit(note("a"), lambda db: db.execute("ROLLBACK"))
        assert await store.submit(note("b")) == (1,)


async def test_writes_of_a_thread_keep_their_order(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        futures = [store.write(note(str(n))) for n in range(300)]
        await asyncio.gather(*map(asyncio.wrap_future, futures))
        assert await store.query(texts) == [str(n) for n in range(300)]


async def test_a_cancelled_write_that_has_not_begun_is_taken_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        gate, first = await held(store)
        taken_back = store.write(note("x"))
        assert taken_back.cancel()
        gate.go.set()
        await asyncio.wrap_future(first)
        assert await store.submit(note("y")) == (1,)


async def test_reading_waits_for_no_writer(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.submit(note("a"))
        gate, writing = await held(store)
        assert await asyncio.wait_for(store.query(texts), 20) == ["a"]
        gate.go.set()
        await asyncio.wrap_future(writing)


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        with pytest.raises(LogUnavailableError, match="read-only"):
            await store.query(note("x"))
        assert await store.query(texts) == []


async def test_a_query_sees_one_snapshot(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.submit(note("a"))
        looked, go_on = threading.Event(), threading.Event()

        def twice(db: sqlite3.Connection) -> tuple[list[str], list[str]]:
            first = texts(db)
            looked.set()
            assert go_on.wait(20)
            return first, texts(db)

        query = asyncio.ensure_future(store.query(twice))
        assert await asyncio.to_thread(looked.wait, 20)
        await store.submit(note("b"))
        go_on.set()
        assert await query == (["a"], ["a"])
        assert await store.query(texts) == ["a", "b"]


@clause("D1")
@pytest.mark.parametrize(("durability", "level"), [("durable", 2), ("relaxed", 1)])
async def test_durability_is_the_level_of_syncing(tmp_path: Path, durability: Any, level: int) -> None:
    async with opened(tmp_path / "a.db", durability=durability) as store:
        assert await store.submit(lambda db: db.execute("PRAGMA synchronous").fetchone()[0]) == (level,)


@clause("D1")
async def test_a_transaction_is_as_careful_as_its_most_careful_write(tmp_path: Path) -> None:
    levels: list[int] = []

    def look(db: sqlite3.Connection) -> None:
        levels.append(db.execute("PRAGMA synchronous").fetchone()[0])

    async with (
        opened(tmp_path / "a.db", durability="relaxed") as relaxed,
        opened(tmp_path / "a.db") as durable,
    ):
        await relaxed.start()
        gate, _ = await held(relaxed)
        one, two = relaxed.write(look), durable.write(look)
        gate.go.set()
        await asyncio.gather(asyncio.wrap_future(one), asyncio.wrap_future(two))
    assert levels == [2, 2]


async def test_handles_of_one_file_share_the_writer(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    async with opened(tmp_path / "a.db") as one, opened(tmp_path / "link.db") as two:
        threads = await asyncio.gather(
            one.submit(lambda db: threading.get_ident()), two.submit(lambda db: threading.get_ident())
        )
        assert threads[0] == threads[1]


async def test_closing_one_handle_leaves_the_other(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as one:
        async with opened(tmp_path / "a.db") as two:
            await two.submit(note("a"))
        await one.submit(note("b"))
        assert await one.query(texts) == ["a", "b"]


async def test_the_last_close_leaves_one_clean_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.submit(note("a"))
        await store.query(texts)
        with contextlib.closing(store.watch("x")):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "a.db-mark"]


async def test_a_closed_handle_is_refused_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.submit(note("a"))
    await store.aclose()
    store.close()
    with pytest.raises(LogClosedError):
        store.write(note("b"))
    with pytest.raises(LogClosedError):
        await store.query(texts)


async def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        futures = [store.write(note(str(n))) for n in range(50)]
    assert all(future.done() for future in futures)
    async with opened(tmp_path / "a.db") as store:
        assert len(await store.query(texts)) == 50


async def test_files_belong_to_their_owner_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.submit(note("a"))
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("a.db", "a.db-wal", "a.db-shm", "a.db-mark"), 0o600)


async def test_nothing_is_touched_before_the_first_use(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "no" / "such" / "folder" / "a.db")
    store.require_schema(NOTES)
    await store.aclose()
    assert list(tmp_path.iterdir()) == []


def test_a_store_needs_a_file_and_known_settings(tmp_path: Path) -> None:
    for path in ("", ":memory:"):
        with pytest.raises(ConfigError, match="MemoryLog"):
            SqliteStore(path)
    with pytest.raises(ConfigError, match="durability"):
        SqliteStore(tmp_path / "a.db", durability="maybe")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="busy_timeout"):
        SqliteStore(tmp_path / "a.db", busy_timeout=-1)


async def test_watchers_are_woken_by_topic(tmp_path: Path) -> None:
    def about(topic: str) -> Any:
        op: Any = note(topic)
        op.about = topic
        return op

    async with opened(tmp_path / "a.db") as store:
        await store.start()
        with store.watch("x") as x, store.watch("y") as y:
            await asyncio.wait_for(x.wait(), 20)  # the poller's first look tells everybody, once
            await asyncio.wait_for(y.wait(), 20)
            await store.submit(about("x"))
            await asyncio.wait_for(x.wait(), 20)
            assert not y._told
        assert not store._open().notices


async def test_threads_without_a_loop_may_write(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await asyncio.gather(*(asyncio.to_thread(lambda: store.write(note("t")).result(20)) for _ in range(8)))
        assert await store.query(texts) == ["t"] * 8


async def test_a_failed_open_is_tried_anew(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    async with opened(folder / "a.db") as store:
        with pytest.raises(LogUnavailableError, match="cannot be created"):
            await store.start()
        folder.mkdir()
        assert await store.submit(note("a")) == (1,)


async def test_an_error_says_which_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "no" / "a.db") as store:
        with pytest.raises(LogError, match=r"a\.db"):
            await store.query(texts)
