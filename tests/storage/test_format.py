"""Whose file it is, which version, and what was lost: told by name, with nothing written (D7)."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.storage.test_store import NOTES, note, opened, texts
from tests.support import clause
from weavegraph.errors import ConfigError, LogCorruptError, LogVersionError
from weavegraph.storage import Schema, SqliteStore

SECOND = Schema("notes", (*NOTES.migrations, ("ALTER TABLE notes ADD COLUMN author TEXT",)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


async def made(path: Path) -> None:
    async with opened(path) as store:
        await store.submit(note("a"))


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


async def refused(path: Path, kind: type[Exception], match: str | None = None) -> Any:
    """Opening fails by that name, again and again, and writes nothing."""
    before = contents(path.parent)
    for _ in range(2):
        async with opened(path) as store:
            with pytest.raises(kind, match=match) as caught:
                await store.start()
            with pytest.raises(kind):
                await store.query(texts)
    after = {name: data for name, data in contents(path.parent).items() if data or name in before}
    assert after == before
    return caught.value


@clause("D7")
async def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await made(path)
    change(path, "PRAGMA user_version = 99")
    error = await refused(path, LogVersionError)
    assert (error.found, error.known) == (99, 1)


@clause("D7")
async def test_a_later_format_with_a_hot_log_is_left_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    await made(source / "a.db")
    with closing(sqlite3.connect(source / "a.db", isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")  # stays in the write-ahead log while this connection lives
        (tmp_path / "crashed").mkdir()
        for name in ("a.db", "a.db-wal", "a.db-mark"):
            shutil.copy(source / name, tmp_path / "crashed" / name)
    await refused(tmp_path / "crashed" / "a.db", LogVersionError)


@clause("D7")
async def test_a_later_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = SqliteStore(path)
    store.require_schema(SECOND)
    await store.start()
    await store.aclose()
    async with opened(path) as old:
        with pytest.raises(LogVersionError, match="schema 'notes'") as caught:
            await old.submit(note("x"))
        assert (caught.value.found, caught.value.known) == (2, 1)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM notes").fetchone() == (0,)


async def test_a_schema_moves_forward_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await made(path)
    async with opened(path) as store:
        store.require_schema(SECOND)
        rows = await store.query(lambda db: db.execute("SELECT text, author FROM notes").fetchall())
    assert rows == [("a", None)]


async def test_a_migration_that_fails_changes_nothing_and_is_tried_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await made(path)
    fails = True

    def migrate(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE notes ADD COLUMN half TEXT")
        if fails:
            raise RuntimeError("half-way")

    async with opened(path) as store:
        store.require_schema(Schema("notes", (*NOTES.migrations, migrate)))
        with pytest.raises(RuntimeError, match="half-way"):
            await store.start()
        with closing(sqlite3.connect(path)) as db:
            assert [row[1] for row in db.execute("PRAGMA table_info(notes)")] == ["id", "text"]
            assert db.execute("SELECT version FROM schemas").fetchall() == [(1,)]
        fails = False
        await store.start()


async def test_schemas_live_side_by_side(tmp_path: Path) -> None:
    other = Schema("others", (("CREATE TABLE others(id INTEGER PRIMARY KEY) STRICT",),))
    async with opened(tmp_path / "a.db") as store:
        await store.submit(note("a"))
        store.require_schema(other)
        await store.submit(note("b"), lambda db: db.execute("INSERT INTO others VALUES (7)"))
        found = await store.query(lambda db: db.execute("SELECT name, version FROM schemas ORDER BY name").fetchall())
    assert found == [("notes", 1), ("others", 1)]


async def test_one_handles_bad_schema_is_no_other_handles_error(tmp_path: Path) -> None:
    bad = Schema("bad", (("CREATE TABLE",),))
    async with opened(tmp_path / "a.db") as good, opened(tmp_path / "a.db") as other:
        other.require_schema(bad)
        with pytest.raises(LogCorruptError):
            await other.start()
        assert await good.submit(note("a")) == (1,)


def test_a_schema_has_a_plain_name_and_a_migration() -> None:
    for name, migrations in (("a b", ((),)), ("a", ())):
        with pytest.raises(ConfigError):
            Schema(name, migrations)


@clause("D7")
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"Dear diary, " * 500)
    await refused(tmp_path / "a.db", LogCorruptError)


@clause("D7")
async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    change(tmp_path / "a.db", "CREATE TABLE theirs(x)")
    await refused(tmp_path / "a.db", LogCorruptError, "not a weavegraph store")


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    await made(tmp_path / "a.db")


# ── the mark: what was acknowledged and is gone ──────────────────────────────────────────────────────


async def crashed(folder: Path) -> Path:
    """A store as a killed writer leaves it: two commits are only in its write-ahead log."""
    path = folder / "source.db"
    async with opened(path) as store:
        await store.submit(note("a"))
        await store.submit(note("b"))
        (folder / "crashed").mkdir()
        for end in ("", "-wal", "-mark"):
            shutil.copy(f"{path}{end}", folder / "crashed" / f"a.db{end}")
    return folder / "crashed" / "a.db"


@clause("D2")
async def test_an_undamaged_crash_is_recovered(tmp_path: Path) -> None:
    path = await crashed(tmp_path)
    async with opened(path) as store:
        assert await store.query(texts) == ["a", "b"]


@clause("D2")
async def test_a_deleted_write_ahead_log_is_not_believed(tmp_path: Path) -> None:
    path = await crashed(tmp_path)
    Path(f"{path}-wal").unlink()
    await refused(path, LogCorruptError, "acknowledged commits are missing")


@clause("D2")
async def test_one_flipped_bit_in_the_last_commit_is_not_believed(tmp_path: Path) -> None:
    path = await crashed(tmp_path)
    wal = bytearray(Path(f"{path}-wal").read_bytes())
    wal[len(wal.rstrip(b"\0")) - 100] ^= 1  # behind the frames there may be room
    Path(f"{path}-wal").write_bytes(wal)
    await refused(path, LogCorruptError, "1 acknowledged commits are missing")


async def test_without_its_mark_a_store_opens_with_what_is_there(tmp_path: Path) -> None:
    path = await crashed(tmp_path)
    Path(f"{path}-wal").unlink()
    Path(f"{path}-mark").unlink()
    async with opened(path) as store:
        assert await store.query(texts) == []


@pytest.mark.parametrize("content", [b"", b"x" * 28, b"x" * 1000])
async def test_a_mark_that_is_none_is_passed_over(tmp_path: Path, content: bytes) -> None:
    path = await crashed(tmp_path)
    Path(f"{path}-mark").write_bytes(content)
    async with opened(path) as store:
        assert await store.query(texts) == ["a", "b"]


async def test_a_deleted_store_begins_anew(tmp_path: Path) -> None:
    await made(tmp_path / "a.db")
    (tmp_path / "a.db").unlink()
    async with opened(tmp_path / "a.db") as store:
        assert await store.query(texts) == []
        await store.submit(note("b"))


async def test_another_stores_mark_says_nothing(tmp_path: Path) -> None:
    await made(tmp_path / "a.db")
    async with opened(tmp_path / "b.db") as store:
        for _ in range(5):
            await store.submit(note("b"))
    shutil.copy(tmp_path / "b.db-mark", tmp_path / "a.db-mark")
    async with opened(tmp_path / "a.db") as store:
        assert await store.query(texts) == ["a"]
