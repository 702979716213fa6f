"""Room behind the frames of the write-ahead log: made in time, harmless to whoever opens the file, and bounded."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.storage.test_store import note, opened, texts
from tests.support import clause
from weavegraph.storage import _room

WAYS = ["durable", "relaxed"]


async def grown(path: Path, commits: int, durability: str) -> int:
    """How many of so many commits lengthened the log."""
    times, size = 0, 0
    async with opened(path, durability=durability) as store:
        for n in range(commits):
            await store.submit(note(str(n)))
            now = Path(f"{path}-wal").stat().st_size
            times, size = times + (now != size), now
        assert len(await store.query(texts)) == commits
        for end in ("", "-wal", "-mark"):
            shutil.copy(f"{path}{end}", path.with_name(f"left.db{end}"))
    return times


@clause("D1")
@pytest.mark.parametrize("durability", WAYS)
async def test_most_durable_commits_find_room(tmp_path: Path, durability: str) -> None:
    times = await grown(tmp_path / "a.db", 300, durability)
    assert times == 300 if durability == "relaxed" else 1 < times < 30  # where nothing is synced it gains nothing


@clause("D2", "8.kill")
@pytest.mark.parametrize("durability", WAYS)
async def test_what_a_kill_leaves_is_whole_with_the_room_behind_it(tmp_path: Path, durability: str) -> None:
    await grown(tmp_path / "a.db", 40, durability)
    assert (tmp_path / "left.db-wal").read_bytes().endswith(bytes(9000)) is (durability == "durable")
    async with opened(tmp_path / "left.db") as store:
        assert await store.query(texts) == [str(n) for n in range(40)]
        await store.submit(note("more"))
        assert await store.query(lambda db: db.execute("PRAGMA integrity_check").fetchone()[0]) == "ok"
    with sqlite3.connect(tmp_path / "left.db") as db:
        assert texts(db) == [*(str(n) for n in range(40)), "more"]


def test_a_log_is_given_as_much_again_as_it_has_and_no_more_when_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = tmp_path / "a.db-wal"
    room = _room.Room(tmp_path / "a.db")
    room.make()  # there is none yet
    monkeypatch.setattr(_room, "MOST", 1000)
    monkeypatch.setattr(_room, "FULL", 5000)
    sizes = []
    for written in (0, 300, 0, 10, 700, 5000):
        with wal.open("ab") as file:
            file.write(b"x" * written)
        room.make()
        sizes.append(wal.stat().st_size)
    assert sizes == [0, 600, 600, 1220, 2920, 7920]
    wal.write_bytes(b"x" * 100)  # SQLite cut it
    room.make()
    assert wal.stat().st_size == 100


async def test_a_log_that_cannot_be_lengthened_costs_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError("full")

    monkeypatch.setattr("weavegraph.storage._room.os.pwrite", full)
    async with opened(tmp_path / "a.db") as store:
        for n in range(3):
            await store.submit(note(str(n)))
        assert await store.query(texts) == ["0", "1", "2"]
