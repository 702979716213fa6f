"""What is SqliteLog's own: its URL, its rows, its processes, and what damaged or hostile rows come to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.support import clause
from weavegraph.errors import (
    ConfigError,
    LogCorruptError,
    LogVersionError,
    RunNotFoundError,
)
from weavegraph.events import to_json
from weavegraph.log import Retention, SqliteLog
from weavegraph.log.sqlite import sink_from_url
from weavegraph.storage import Schema
from weavegraph.testing import logged

RUN = "run-1"


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> Any:
    log = SqliteLog(path, **options)
    try:
        yield log
    finally:
        await log.aclose()


async def seqs(log: SqliteLog, run_id: str = RUN, **options: Any) -> list[int | None]:
    return [event.run_seq async for event in log.read(run_id, **options)]


def tamper(path: Path, *statements: tuple[str, Any]) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement, values in statements:
            db.execute(statement, values)


def sealed(run_id: str, seq: int, body: bytes, key: int = 1) -> tuple[int, int, bytes]:
    """A row as the log itself would write it, whatever the body."""
    return key << 36 | seq, zlib.crc32(body, zlib.crc32(seq.to_bytes(8), zlib.crc32(run_id.encode()))), body


# ── settings ────────────────────────────────────────────────────────────────────────────────────────


def test_a_url_says_everything(tmp_path: Path) -> None:
    log = SqliteLog.from_url(f"sqlite:{tmp_path}/e.db?durability=relaxed&max_age=60&max_events=10&max_bytes=1000")
    assert (log.store.path, log.store.durability) == (tmp_path / "e.db", "relaxed")
    assert log.retention == Retention(max_age=60, max_events=10, max_bytes=1000)
    plain = SqliteLog.from_url(f"sqlite:{tmp_path}/e.db")
    assert (plain.store.durability, plain.retention) == ("durable", Retention())


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("events.db", "write it as sqlite:PATH"),
        ("postgres:x", "write it as sqlite:PATH"),
        ("sqlite:", "needs a file"),
        ("sqlite::memory:", "needs a file"),
        ("sqlite:e.db?durability=sometimes", "durability"),
        ("sqlite:e.db?codec=pickle", "no option is called 'codec'"),
        ("sqlite:e.db?max_events=many", "max_events"),
        ("sqlite:e.db?max_events=0", "max_events"),
        ("sqlite:e.db?max_age=-1", "max_age"),
        ("sqlite:e.db?max_age=nan", "max_age"),
    ],
)
def test_a_wrong_url_is_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SqliteLog.from_url(url)


async def test_a_sink_is_made_from_a_url(tmp_path: Path) -> None:
    sink = sink_from_url(str(tmp_path / "e.db"), durability="relaxed", max_events=1000)
    await sink.start()
    await sink.handle(logged(RUN, 1, 3))
    await sink.aclose()
    assert (sink.name, sink.delivery) == ("sqlite", "exactly_once")
    async with opened(tmp_path / "e.db") as log:
        assert await seqs(log) == [1, 2, 3]


@clause("D7")
async def test_a_log_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "e.db").write_text("not a database " * 100)
    async with opened(tmp_path / "e.db") as log:
        with pytest.raises(LogCorruptError):
            await log.start()
        with pytest.raises(LogCorruptError):
            await log.append(RUN, logged(RUN, 1, 1))
        with pytest.raises(LogCorruptError):
            await seqs(log)


async def test_runs_before_an_unknown_run_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "e.db") as log:
        with pytest.raises(RunNotFoundError):
            await log.runs(before="nobody")


# ── together with others ────────────────────────────────────────────────────────────────────────────

CHECKPOINTS = Schema("checkpoints", (("CREATE TABLE checkpoints(position INTEGER PRIMARY KEY) STRICT",),))


@clause("D3")
async def test_events_and_a_checkpoint_commit_together(tmp_path: Path) -> None:
    async with opened(tmp_path / "e.db") as log:
        log.store.require_schema(CHECKPOINTS)

        def save(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO checkpoints VALUES (3)")

        assert (await log.store.submit(log.appending(RUN, logged(RUN, 1, 3)), save))[0] == 3
        with pytest.raises(LogCorruptError):  # the checkpoint is there already: the events are not kept either
            await log.store.submit(log.appending(RUN, logged(RUN, 4, 6)), save)
        assert await log.last_position(RUN) == 3


async def test_appends_from_several_loops(tmp_path: Path) -> None:
    async with opened(tmp_path / "e.db") as log:

        def in_a_loop_of_its_own(run_id: str) -> int:
            return asyncio.run(log.append(run_id, logged(run_id, 1, 50)))

        ids = [f"run-{n}" for n in range(6)]
        assert await asyncio.gather(*(asyncio.to_thread(in_a_loop_of_its_own, run_id) for run_id in ids)) == [50] * 6


@clause("D2", "10.valid")
async def test_another_process_is_followed_without_a_seam(tmp_path: Path) -> None:
    source = """
import asyncio, sys
from weavegraph.log import SqliteLog
from weavegraph.testing import logged
from weavegraph.testing._log_kit import ending
async def main():
    log = SqliteLog(sys.argv[1])
    for n in range(1, 200, 10):
        await log.append("run-1", logged("run-1", n, n + 9))
    await log.append("run-1", [ending("completed", 201)])
    await log.aclose()
asyncio.run(main())
"""
    async with opened(tmp_path / "e.db") as log:

        async def follow() -> list[int | None]:
            return [event.run_seq async for event in log.follow(RUN)]

        following = asyncio.ensure_future(follow())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", source, str(tmp_path / "e.db")),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert await asyncio.wait_for(process.wait(), 50) == 0
        assert await asyncio.wait_for(following, 20) == list(range(1, 202))


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────


@clause("D2")
@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE log_events SET body = ? WHERE id = ?", (to_json(logged(RUN, 9, 9)[0]), 1 << 36 | 5)),
        ("UPDATE log_events SET crc = crc + 1 WHERE id = ?", (1 << 36 | 5,)),
        ("DELETE FROM log_events WHERE id = ?", (1 << 36 | 5,)),
        ("DELETE FROM log_events WHERE id > ?", (1 << 36 | 7,)),
        ("DELETE FROM log_events", ()),
        ("UPDATE log_events SET id = id + 100 WHERE id = ?", (1 << 36 | 5,)),
        ("UPDATE log_runs SET last_position = 7, events = 7", ()),
        ("UPDATE log_runs SET first_position = 3, events = 7", ()),
        ("UPDATE log_runs SET started_at = 'yesterday'", ()),
        ("DELETE FROM log_runs", ()),
        ("DELETE FROM log_directory", ()),
        ("DROP TABLE log_events", ()),
        ("ALTER TABLE log_runs RENAME COLUMN epoch TO age", ()),
        ("DELETE FROM schemas", ()),
        ("DELETE FROM store_state", ()),
        ("UPDATE store_state SET commits = 0", ()),
    ],
)
async def test_damage_is_an_error_and_never_other_data(tmp_path: Path, statement: str, values: Any) -> None:
    async with opened(tmp_path / "e.db") as log:
        await log.append(RUN, logged(RUN, 1, 10))
    tamper(tmp_path / "e.db", (statement, values))
    async with opened(tmp_path / "e.db") as log:
        with contextlib.suppress(LogCorruptError):
            assert await seqs(log) == list(range(1, 11))
        with contextlib.suppress(LogCorruptError):
            assert [run.last_position for run in await log.runs()] == [10]


async def test_exchanged_rows_are_found(tmp_path: Path) -> None:
    async with opened(tmp_path / "e.db") as log:
        for run_id in ("a", "b"):
            await log.append(run_id, logged(run_id, 1, 3))
    swap = "UPDATE log_events SET id = ? WHERE id = ?"
    a, b = 1 << 36 | 2, 2 << 36 | 2
    tamper(tmp_path / "e.db", (swap, (-1, a)), (swap, (a, b)), (swap, (b, -1)))
    async with opened(tmp_path / "e.db") as log:
        for run_id in ("a", "b"):
            with pytest.raises(LogCorruptError, match="checksum of position 2"):
                await seqs(log, run_id)


@clause("D7")
async def test_an_event_of_a_later_release_is_told_by_its_version(tmp_path: Path) -> None:
    async with opened(tmp_path / "e.db") as log:
        await log.append(RUN, logged(RUN, 1, 2))
    body = to_json(logged(RUN, 2, 2)[0]).replace(b'"v":1', b'"v":7')
    tamper(tmp_path / "e.db", ("REPLACE INTO log_events VALUES (?, ?, ?)", sealed(RUN, 2, body)))
    async with opened(tmp_path / "e.db") as log:
        with pytest.raises(LogVersionError) as caught:
            await seqs(log)
        assert (caught.value.found, caught.value.known) == (7, 1)


HOSTILE = (
    b"cos\nsystem\n(S'touch pwned'\ntR.",
    b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    b'{"lc":2,"type":"constructor","id":["os","system"],"kwargs":{"command":"id"}}',
    b'{"py/object":"os.system","py/reduce":[{"py/function":"os.system"},["id"]]}',
    b'{"__class__":"subprocess.Popen","args":["id"]}',
    b"!!python/object/apply:os.system ['id']",
    b"\xc7\x08\x05\x93\xa2os\xa6system",
    b'{"type":"node","scope":"a","message":"b","v":1,"timestamp":"2026-01-01T00:00:00Z","metadata":{"x":NaN}}',
    b"[" * 100_000,
    b"\xff\xfe\x00",
    b"",
)


@clause("D8")
def test_nothing_at_rest_can_build_anything(tmp_path: Path) -> None:
    """Rows with a right checksum and hostile content, read under an audit hook: an error by name, and nothing else."""
    source = """
import asyncio, sys
sys.path[:] = [path for path in sys.path]
from tests.log.test_sqlite import *
from weavegraph.errors import LogError
FORBIDDEN = ("pickle.find_class", "exec", "compile", "import", "os.", "subprocess.", "socket.", "open", "ctypes.",
             "sqlite3.load_extension", "sqlite3.enable_load_extension", "marshal.", "code.__new__")
seen, watching = [], False
def hook(event, arguments):
    if watching and event.startswith(FORBIDDEN):
        seen.append((event, arguments))
async def read(log):
    async with contextlib.aclosing(log.read(RUN)) as events:
        return [event async for event in events]
async def main():
    global watching
    path = Path(sys.argv[1])
    async with opened(path) as log:
        await log.append(RUN, logged(RUN, 1, 1))
    async with opened(path) as log:
        assert len(await read(log)) == 1  # everything is imported and open
        sys.addaudithook(hook)
        for body in HOSTILE:
            tamper(path, ("REPLACE INTO log_events VALUES (?, ?, ?)", sealed(RUN, 1, body)))
            watching = True
            try:
                await read(log)
                print("read", body[:40])
            except LogError as error:
                print(type(error).__name__)
            finally:
                watching = False
    print(seen)
asyncio.run(main())
"""
    found = subprocess.run(
        [sys.executable, "-c", source, str(tmp_path / "e.db")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert found.stdout.splitlines() == [*["LogCorruptError"] * len(HOSTILE), "[]"], found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.db", "e.db-mark"]


@clause("12.2")
async def test_ids_are_bound_and_never_part_of_a_statement(tmp_path: Path) -> None:
    from weavegraph.errors import EventInvalidError

    hostile = ["x'; DROP TABLE log_runs; --", "../../etc/passwd", "a\x00b", "%", "é", "", "x" * 129]
    async with opened(tmp_path / "e.db") as log:
        await log.append(RUN, logged(RUN, 1, 2))
        for run_id in hostile:
            assert await seqs(log, run_id) == []
            assert [event async for event in log.read_session(run_id)] == []
            assert await log.trim(run_id) == 0
            with pytest.raises(EventInvalidError):
                await log.append(run_id, logged(RUN, 1, 2))
        assert await seqs(log) == [1, 2]
