"""A file, or a folder, that may only be read is read, and nothing is made beside it (D5)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runtime.test_kills import simple
from tests.storage.test_store import NOTES, commits, note, opened, texts
from tests.support import clause
from weavegraph import RuntimeConfig
from weavegraph.errors import LogCorruptError, LogUnavailableError
from weavegraph.log import SqliteLog
from weavegraph.storage import SqliteStore
from weavegraph.storage._reader import Reader

pytestmark = clause("D5")

HEADER = """
import asyncio, concurrent.futures.thread, os, sys  # all that is needed: later imports may be refused too
from tests.storage.test_store import *
from tests.runtime.test_kills import *
from weavegraph.storage import Schema
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
path = Path(sys.argv[1])
"""


def command(source: str, path: Path) -> list[str]:
    """A program of somebody to whom permissions apply."""
    return [sys.executable, "-W", "error::ResourceWarning", "-c", HEADER + source, str(path)]


def options() -> dict[str, object]:
    return {"env": {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, "text": True}


def said(source: str, path: Path) -> list[str]:
    found = subprocess.run(command(source, path), capture_output=True, timeout=50, **options())  # type: ignore[call-overload]
    assert found.returncode == 0, found.stderr
    return list(found.stdout.splitlines())


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        folder = Path(top) / "folder"
        folder.mkdir()
        try:
            yield folder / "a.db"
        finally:
            folder.chmod(0o755)


def only_to_be_read(path: Path, what: str) -> None:
    for each in path.parent.iterdir():
        each.chmod(0o666 if what == "folder" else 0o444)
    path.parent.chmod(0o555 if what == "folder" else 0o777)


def contents(folder: Path) -> dict[str, bytes]:
    """All but the index of the write-ahead log, in which readers note where they are."""
    return {each.name: each.read_bytes() for each in folder.iterdir() if not each.name.endswith("-shm")}


READ = """
async def main():
    async with opened(path) as store:
        print(await store.query(texts), await store.query(texts))
        try:
            print(await store.submit(note("refused")))
        except LogUnavailableError as error:
            print(error)
        print(await store.query(texts))
asyncio.run(main())
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_one_that_was_closed(path: Path, what: str) -> None:
    async def write(text: str) -> None:
        async with opened(path) as store:
            await store.submit(note(text))

    asyncio.run(write("before"))
    only_to_be_read(path, what)
    before = contents(path.parent)
    refusal = f"{path}: read-only: this user may not write {'it' if what == 'file' else 'its folder'}"
    assert said(READ, path) == ["['before'] ['before']", refusal, "['before']"]
    assert contents(path.parent) == before
    assert not (path.parent / "a.db-shm").exists()
    path.chmod(0o666), path.parent.chmod(0o777)
    for each in path.parent.iterdir():
        each.chmod(0o666)
    assert said(READ, path) == ["['before'] ['before']", "(2,)", "['before', 'refused']"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_one_whose_writer_was_killed(path: Path, what: str) -> None:
    """Its last commits are in the write-ahead log, which nobody may move into the database."""
    source = """
import asyncio, os, sys
from tests.storage.test_store import *
async def main():
    async with opened(Path(sys.argv[1])) as store:
        await store.submit(note("before"))
        os._exit(0)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", source, str(path)], check=True, timeout=50, **options())  # type: ignore[call-overload]
    assert (path.parent / "a.db-wal").stat().st_size
    only_to_be_read(path, what)
    before = contents(path.parent)
    if what == "file":
        refusal = f"{path}: read-only: this user may not write it"
        assert said(READ, path) == ["['before'] ['before']", refusal, "['before']"]
        assert contents(path.parent) == before
    else:  # the files themselves may be written
        assert said(READ, path) == ["['before'] ['before']", "(2,)", "['before', 'refused']"]


def test_a_write_ahead_log_without_its_index_in_such_a_folder_is_refused_with_the_remedy(path: Path) -> None:
    async def write() -> None:
        async with opened(path) as store:
            await store.submit(note("before"))
            for name in ("a.db", "a.db-wal"):
                shutil.copy(path.parent / name, path.parent.parent / name)

    asyncio.run(write())
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    for name in ("a.db", "a.db-wal"):
        shutil.move(path.parent.parent / name, path.parent / name)
        (path.parent / name).chmod(0o444)
    path.parent.chmod(0o555)
    remedy = "its write-ahead log can only be read where a -shm file can be made: copy both into another folder"
    assert said(
        """
async def main():
    async with opened(path) as store:
        try:
            print(await store.query(texts))
        except LogUnavailableError as error:
            print(error)
asyncio.run(main())
""",
        path,
    ) == [f"{path}: {remedy}"]


FOLLOW = """
async def main():
    async with opened(path) as store:
        with store.watch("notes") as changes:
            seen = 0
            while True:
                found = await store.query(texts)
                for text in found[seen:]:
                    print(text, flush=True)
                seen = len(found)
                if "last" in found:
                    break
                await changes.wait()
asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user, who may not write what this one writes")
def test_one_that_is_followed_over_writers_that_come_and_go(path: Path) -> None:
    """With a writer there is a write-ahead log, without one there is none: the follower sees every commit of both."""

    def opened_for_all() -> None:
        for each in path.parent.iterdir():
            if not each.name.endswith("-mark"):
                each.chmod(0o644)

    async def write(expected: Callable[[str], None]) -> None:
        for turn in range(3):
            async with opened(path) as store:
                await store.start()
                opened_for_all()
                for n in range(3):
                    await store.submit(note(f"{turn}.{n}"))
                    opened_for_all()
                    await asyncio.to_thread(expected, f"{turn}.{n}")
        async with opened(path) as store:
            await store.submit(note("last"))

    async def begin() -> None:
        async with opened(path) as store:
            await store.submit(note("first"))

    asyncio.run(begin())
    path.chmod(0o644)
    with subprocess.Popen(command(FOLLOW, path), stdout=subprocess.PIPE, **options()) as follower:  # type: ignore[call-overload]
        try:

            def expected(text: str) -> None:
                assert follower.stdout is not None
                assert follower.stdout.readline() == text + "\n"

            expected("first")
            asyncio.run(write(expected))
            expected("last")
            assert follower.wait(30) == 0
        finally:
            follower.kill()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_app_shows_the_runs_of_such_a_log_and_starts_none(path: Path, what: str) -> None:
    async def write() -> int:
        async with simple(RuntimeConfig(log=SqliteLog(path))) as app:
            await app.invoke({}, run_id="r")
            assert app.log is not None
            last = await app.log.last_position("r")
            await app.log.aclose()
            return last

    last = asyncio.run(write())
    only_to_be_read(path, what)
    before = contents(path.parent)
    found = said(
        """
async def main():
    async with simple(RuntimeConfig(log=SqliteLog(path))) as app:
        print([event.run_seq async for event in app.event_stream(run_id="r")])
        print([event.run_seq async for event in app.event_stream(run_id="r", after=3)])
        try:
            await app.invoke({}, run_id="refused")
        except LogUnavailableError as error:
            print(error)
asyncio.run(main())
""",
        path,
    )
    refusal = f"{path}: read-only: this user may not write {'it' if what == 'file' else 'its folder'}"
    assert found == [str([*range(1, last + 1)]), str([*range(4, last + 1)]), refusal]
    assert contents(path.parent) == before


def test_tables_that_are_not_there_yet_are_told_by_name(path: Path) -> None:
    async def write() -> None:
        async with opened(path) as store:
            await store.submit(note("before"))

    asyncio.run(write())
    only_to_be_read(path, "file")
    assert said(
        """
async def main():
    async with opened(path) as store:
        store.require_schema(Schema("others", (("CREATE TABLE others(id INTEGER) STRICT",),)))
        try:
            print(await store.query(texts))
        except LogUnavailableError as error:
            print(error)
asyncio.run(main())
""",
        path,
    ) == [f"{path}: has no others yet, and this user may not write it"]


# ── the reader itself, which trusts only while nobody writes ─────────────────────────────────────────


def test_a_read_that_a_writer_came_into_is_done_again(tmp_path: Path) -> None:
    """The writer moves its commit into the database and goes: no write-ahead log tells that it was there."""
    path = tmp_path / "a.db"

    async def write(*some: str) -> None:
        async with opened(path) as store:
            for text in some:
                await store.submit(note(text))

    asyncio.run(write("before"))
    reader, reads = Reader(path, 1.0, lambda: 0), []

    def read(db: sqlite3.Connection) -> list[str]:
        found = texts(db)
        reads.append(found)
        if len(reads) == 1:
            with contextlib.closing(sqlite3.connect(path)) as other:
                other.execute("INSERT INTO notes(text) VALUES ('meanwhile')")
                other.commit()
            raise LogCorruptError("here", "torn")
        return found

    assert reader.run(read, (NOTES,)) == ["before", "meanwhile"]
    assert reads == [["before"], ["before", "meanwhile"]]
    reader.close()


def test_what_is_damaged_is_told_and_not_read_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def write() -> None:
        async with opened(path) as store:
            await store.submit(note("before"))

    asyncio.run(write())
    reader = Reader(path, 1.0, lambda: 0)

    def read(db: sqlite3.Connection) -> None:
        raise LogCorruptError("here", "torn")

    with pytest.raises(LogCorruptError, match="torn"):
        reader.run(read)
    reader.close()


@clause("D2")
def test_commits_that_are_missing_are_missed_by_who_only_reads_too(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def write() -> None:
        async with opened(path) as store:
            await store.submit(note("kept"))
        shutil.copy(path, tmp_path / "older.db")
        async with opened(path) as store:
            await store.submit(note("lost"))

    asyncio.run(write())
    shutil.copy(tmp_path / "older.db", path)
    reader = Reader(path, 1.0, lambda: 0)
    with pytest.raises(LogCorruptError, match="1 acknowledged commits are missing"):
        reader.run(commits)
    reader.close()


def test_an_empty_file_that_may_not_be_written_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.touch()
    reader = Reader(path, 1.0, lambda: 0)
    with pytest.raises(LogUnavailableError, match="holds nothing yet"):
        reader.run(commits)
    reader.close()


async def test_who_may_write_opens_to_write_as_ever(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db")
    store.require_schema(NOTES)
    assert await store.query(texts) == []
    await store.aclose()
