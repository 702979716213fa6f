"""Disk full, read-only, locked, moved: an error by its name, nothing damaged, and work again once it is over (D5)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.storage.test_store import note, opened, texts
from tests.support import clause
from weavegraph.errors import LogUnavailableError
from weavegraph.storage import SqliteStore, _turn

pytestmark = clause("D5")


@contextlib.asynccontextmanager
async def holding(path: Path, busy_timeout: float = 0.05) -> AsyncIterator[SqliteStore]:
    async with opened(path, busy_timeout=busy_timeout) as store:
        await store.submit(note("before"))
        yield store
        assert await store.submit(lambda db: db.execute("PRAGMA integrity_check").fetchall()) == ([("ok",)],)


async def test_locked_by_another_process(tmp_path: Path) -> None:
    async with holding(tmp_path / "a.db") as store:
        with contextlib.closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(2):
                with pytest.raises(LogUnavailableError, match="locked"):
                    await store.submit(note("refused"))
            assert await store.query(texts) == ["before"]  # readers do not mind
            other.execute("ROLLBACK")
        assert await store.submit(note("after")) == (2,)


async def test_locked_while_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        async with opened(path, busy_timeout=0.05) as store:
            with pytest.raises(LogUnavailableError, match="locked"):
                await store.start()
            other.execute("ROLLBACK")
            assert await store.submit(note("after")) == (1,)


async def test_a_full_disk(tmp_path: Path) -> None:
    """SQLite says the same of a database that may not grow as of a disk that cannot."""
    async with holding(tmp_path / "a.db") as store:
        (pages,) = await store.submit(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await store.submit(lambda db: db.execute(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(LogUnavailableError, match="disk is full"):
            await store.submit(note("x" * 100_000))
        assert await store.query(texts) == ["before"]
        assert await store.submit(note("small")) == (2,)  # what fits is still kept
        await store.submit(lambda db: db.execute("PRAGMA max_page_count = 1000000"))
        await store.submit(note("x" * 100_000))
        assert [len(text) for text in await store.query(texts)] == [6, 5, 100_000]


def script(source: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A program of its own: what it is refused, this process is not."""
    header = "import asyncio, os, resource, signal, sys\nfrom tests.storage.test_store import *\n"
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", header + source, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=50,
        **options,  # type: ignore[call-overload]
    )


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The system refuses the write itself (EFBIG), half-way through the write-ahead log."""
    found = script(
        """
async def main():
    async with opened(Path(sys.argv[1])) as store:
        await store.submit(note("before"))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        for _ in range(2):
            try:
                await store.submit(note("x" * 500_000))
            except LogUnavailableError as error:
                print(type(error).__name__)
        print(await store.query(texts))
        print(await store.submit(note("small")))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await store.submit(note("x" * 500_000))
        print([len(text) for text in await store.query(texts)])
        print(await store.query(lambda db: db.execute("PRAGMA integrity_check").fetchone()))
asyncio.run(main())
""",
        str(tmp_path / "a.db"),
    )
    assert found.stdout.splitlines() == [
        *["LogUnavailableError"] * 2,
        "['before']",
        "(2,)",
        "[6, 5, 500000]",
        "('ok',)",
    ], found.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk; needs root")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        found = script(
            """
async def main():
    path = Path(sys.argv[1])
    async with opened(path) as store:
        await store.submit(note("before"))
        kept, refused = 0, 0
        (path.parent / "ballast").write_bytes(b"x" * 300_000)
        for _ in range(60):
            try:
                await store.submit(note("x" * 20_000))
                kept += 1
            except LogUnavailableError:
                refused += 1
        print(kept > 0, refused > 0, len(await store.query(texts)) == kept + 1)
        (path.parent / "ballast").unlink()
        await store.submit(note("after"))
        print((await store.query(texts))[-1])
        print(await store.query(lambda db: db.execute("PRAGMA integrity_check").fetchone()))
asyncio.run(main())
""",
            str(disk / "a.db"),
        )
        assert found.stdout.splitlines() == ["True True True", "after", "('ok',)"], found.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_read_only_then_not() -> None:
    """As somebody to whom permissions apply."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "folder" / "a.db"
        path.parent.mkdir()
        _read_only_then_not(path)


def _read_only_then_not(path: Path) -> None:
    found = script(
        """
async def main():
    path = Path(sys.argv[1])
    if os.geteuid() == 0:
        os.chown(path.parent, 65534, 65534)
        os.setegid(65534), os.seteuid(65534)
    async with opened(path) as store:
        await store.submit(note("before"))
    path.chmod(0o400)
    async with opened(path) as store:
        for _ in range(2):
            try:
                await store.submit(note("refused"))
            except LogUnavailableError as error:
                print(type(error).__name__)
        path.chmod(0o600)
        print(await store.submit(note("after")), await store.query(texts))
asyncio.run(main())
""",
        str(path),
    )
    assert found.stdout.splitlines() == [*["LogUnavailableError"] * 2, "(2,) ['before', 'after']"], found.stderr


async def test_moved_away_while_open(tmp_path: Path) -> None:
    """SQLite would go on writing into the moved file; nobody would look for the events there."""
    async with opened(tmp_path / "a.db") as store:
        await store.submit(note("old"))
        (tmp_path / "a.db").rename(tmp_path / "old.db")
        (tmp_path / "a.db-wal").rename(tmp_path / "old.db-wal")
        (tmp_path / "a.db-shm").unlink()
        with pytest.raises(LogUnavailableError, match="moved or deleted"):
            await store.submit(note("lost"))
        assert await store.submit(note("new")) == (1,)
        assert await store.query(texts) == ["new"]


@clause("P3")
def test_a_forked_child_is_refused_by_name(tmp_path: Path) -> None:
    found = script(
        """
async def work(path):
    async with opened(path) as store:
        await store.submit(note("x"))
store = SqliteStore(sys.argv[1] + "/open.db")
store.write().result(20)
if os.fork() == 0:
    signal.alarm(20)
    for one in (store, SqliteStore(sys.argv[1] + "/open.db")):
        try:
            one.write(note("x"))
        except LogClosedError as error:
            print(type(error).__name__)
    store.close()
    asyncio.run(work(Path(sys.argv[1]) / "fresh.db"))
    print("a file that was not open works", flush=True)
    del store, one
    sys.exit(0)
print(os.wait()[1])
store.require_schema(NOTES)
print(store.write(note("y")).result(20))
""",
        str(tmp_path),
    )
    lines = [*["ForkedLogError"] * 2, "a file that was not open works", "0", "(1,)"]
    assert found.stdout.splitlines() == lines, found.stderr


@clause("P1")
def test_what_is_queued_at_exit_is_written(tmp_path: Path) -> None:
    found = script(
        """
store = SqliteStore(sys.argv[1])
store.require_schema(NOTES)
for n in range(500):
    store.write(note(str(n)))
""",
        str(tmp_path / "a.db"),
    )
    assert (found.returncode, found.stderr) == (0, "")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        assert db.execute("SELECT count(*) FROM notes").fetchone() == (500,)


@clause("C4")
def test_a_writer_that_hangs_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    found = script(
        """
import threading
store = SqliteStore(sys.argv[1])
reached = threading.Event()
store.write(lambda db: reached.set() or threading.Event().wait())
reached.wait()
began = __import__("time").monotonic()
import atexit
atexit.register(lambda: None)
print("done")
""",
        str(tmp_path / "a.db"),
    )
    assert (found.returncode, found.stdout) == (0, "done\n")


async def test_a_commit_of_another_process_wakes_watchers(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.submit(note("a"))
        with store.watch("anything") as watch:
            await asyncio.wait_for(watch.wait(), 20)  # the poller's first look tells everybody, once
            found = await asyncio.to_thread(
                script,
                """
async def main():
    async with opened(Path(sys.argv[1])) as store:
        await store.submit(note("b"))
asyncio.run(main())
""",
                str(tmp_path / "a.db"),
            )
            assert found.returncode == 0, found.stderr
            await asyncio.wait_for(watch.wait(), 20)
        assert await store.query(texts) == ["a", "b"]


async def test_processes_that_begin_a_file_at_once(tmp_path: Path) -> None:
    source = """
async def main():
    async with opened(Path(sys.argv[1]), busy_timeout=30) as store:
        for _ in range(20):
            await store.submit(note(sys.argv[2]))
asyncio.run(main())
"""
    path = str(tmp_path / "a.db")
    found = await asyncio.gather(*(asyncio.to_thread(script, source, path, str(n)) for n in range(4)))
    assert [(process.returncode, process.stderr) for process in found] == [(0, "")] * 4
    async with opened(tmp_path / "a.db") as store:
        assert sorted(await store.query(texts)) == sorted(str(n) for n in range(4) for _ in range(20))


@pytest.mark.skipif(not _turn.NEEDED, reason="this SQLite needs no turns")
def test_processes_take_turns(tmp_path: Path) -> None:
    """Another process's turn is waited for and then told by name; a killed process gives its turn back."""
    found = script(
        """
import fcntl
path = Path(sys.argv[1])
async def main():
    async with opened(path, busy_timeout=0.05) as store:
        await store.submit(note("before"))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            file = os.open(f"{path}-mark", os.O_RDWR)
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(writing, b"x")
            signal.pause()
        os.read(reading, 1)
        try:
            await store.submit(note("refused"))
        except LogUnavailableError as error:
            print(error.code)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(await store.submit(note("after")))
asyncio.run(main())
""",
        str(tmp_path / "a.db"),
    )
    assert found.stdout.splitlines() == ["log_unavailable", "(2,)"], found.stderr
