"""``weavegraph tail``, ``runs``, ``replay``: a log as others see it, while it is written and after crashes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from tests.cli.support import (
    FLOWS,
    PATIENCE,
    Terminal,
    cli,
    environment,
    finished,
    golden,
    normal,
    read_until,
    started,
)
from tests.support import clause
from weavegraph.events import STREAM_END_SCOPE, DiagnosticEvent, Event, LLMStreamingEvent, from_json
from weavegraph.log import SqliteLog
from weavegraph.testing import logged

URL = "sqlite:r.db"


def written(folder: Path, *batches: Sequence[Event]) -> None:
    """A log with these events, in ``folder``."""

    async def write() -> None:
        log = SqliteLog(folder / "r.db")
        for batch in batches:
            await log.append(batch[0].run_id or "", batch)
        await log.aclose()

    asyncio.run(write())


def ended(events: Sequence[Event], outcome: str = "completed") -> list[Event]:
    """These events with a terminal one behind."""
    last = events[-1]
    assert last.run_seq is not None
    end = DiagnosticEvent(
        STREAM_END_SCOPE, outcome, {"outcome": outcome}, last.timestamp + timedelta(milliseconds=1), seq=last.seq + 1,
        epoch=last.epoch, run_id=last.run_id, session_id=last.session_id, run_seq=last.run_seq + 1,
        attempt=last.attempt,
    )  # fmt: skip
    return [*events, end]


def positions(out: str) -> list[int]:
    return [json.loads(line)["run_seq"] for line in out.splitlines()]


WITHOUT_RIGHTS = """
import os, sys
from weavegraph.cli import main
command, warm, url = sys.argv[1:4]
with open(os.devnull, "w") as sys.stdout:  # once with rights, so that all is imported
    main([command, warm, *sys.argv[4:]])
sys.stdout = sys.__stdout__
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
sys.exit(main([command, url, *sys.argv[4:]]))
"""


@clause("D5")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_log_that_may_only_be_read_is_read(what: str, tmp_path: Path) -> None:
    """By somebody to whom permissions apply."""
    written(tmp_path, ended(logged("r1", 1, 3)))
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        folder = Path(top) / "logs"
        folder.mkdir()
        shutil.copy(tmp_path / "r.db", folder / "r.db")
        (folder / "r.db").chmod(0o444 if what == "file" else 0o666)
        folder.chmod(0o777 if what == "file" else 0o555)
        found = {}
        for name in ("runs", "tail", "replay"):
            words = [name, f"sqlite:{tmp_path}/r.db", f"sqlite:{folder}/r.db", "--json"]
            done = subprocess.run(
                [sys.executable, "-c", WITHOUT_RIGHTS, *words], capture_output=True, env=environment(), timeout=PATIENCE
            )
            assert done.returncode == 0, done.stderr.decode()
            found[name] = done.stdout.decode()
        assert [json.loads(line)["last_position"] for line in found["runs"].splitlines()] == [4]
        assert positions(found["tail"]) == positions(found["replay"]) == [1, 2, 3, 4]
        assert [each.name for each in folder.iterdir()] == ["r.db"]
        folder.chmod(0o755)


@clause("8.kill", "D4", "O3.resume", "D9")
def test_each_event_exactly_once_while_the_writer_is_killed_and_the_run_resumed(tmp_path: Path) -> None:
    keep = ("--session", "s", "--log", URL, "--checkpointer", URL)
    work = {"WORKED": str(tmp_path / "worked")}
    given = json.dumps({"gate": str(tmp_path / "gate")})
    with started("run", f"{FLOWS}:stepping", given, *keep, cwd=tmp_path, env=work) as writer:
        read_until(writer, "step 1: work")
        with started("tail", URL, "--json", cwd=tmp_path) as watcher:
            seen = read_until(watcher, "step 6: work")
            writer.send_signal(signal.SIGKILL)
            assert writer.wait(10) == -signal.SIGKILL
            (tmp_path / "gate").touch()
            resumed = cli("run", f"{FLOWS}:stepping", "--resume", *keep, cwd=tmp_path, **work)
            assert resumed.code == 0, resumed.err
            done = finished(watcher)
    assert (done.code, done.err) == (0, "")
    events = [from_json(line) for line in (seen + done.out).splitlines()]
    assert [event.run_seq for event in events] == [*range(1, len(events) + 1)]
    ends = [(event.attempt, event.metadata["outcome"]) for event in events if event.scope == STREAM_END_SCOPE]
    assert ends == [(1, "interrupted"), (2, "completed")]
    assert (tmp_path / "worked").read_text().split() == list("0123456789")
    assert json.loads(resumed.out.rpartition("\n\n")[2])["parts"] == list("0123456789")


def test_a_run_that_is_over_is_shown_and_ends_it(tmp_path: Path) -> None:
    assert cli("run", f"{FLOWS}:app", '{"topic": "tea"}', "--log", URL, "--checkpointer", URL, cwd=tmp_path).code == 0
    done = cli("tail", URL, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    golden("tail.txt", done.out)


def test_it_goes_on_through_a_pause(tmp_path: Path) -> None:
    keep = ("--session", "s", "--log", URL, "--checkpointer", URL)
    cli("run", f"{FLOWS}:asking", *keep, cwd=tmp_path)
    with started("tail", URL, cwd=tmp_path) as process:
        out = read_until(process, "run paused\n")
        assert process.poll() is None
        cli("run", f"{FLOWS}:asking", '"oolong"', "--resume", *keep, cwd=tmp_path)
        done = finished(process)
    assert done.code == 0
    assert (out + done.out).endswith("run completed\n")


def test_without_a_name_it_is_the_newest_run(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("one", 1, 2)), ended(logged("two", 1, 3)))
    assert {json.loads(line)["run_id"] for line in cli("tail", URL, "--json", cwd=tmp_path).out.splitlines()} == {"two"}


def test_a_name_may_be_the_beginning_of_an_id_if_only_one_run_begins_so(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("abc-1", 1, 2)), ended(logged("abd-1", 1, 3)))
    assert positions(cli("tail", URL, "abc", "--json", cwd=tmp_path).out) == [1, 2, 3]
    done = cli("tail", URL, "ab", cwd=tmp_path)
    assert (done.code, done.out) == (2, "") and "2 runs begin with 'ab'" in done.err


def test_it_waits_for_a_run_that_is_not_there_yet(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("one", 1, 2)))
    with started("tail", URL, "later", cwd=tmp_path) as process:
        assert "waiting for it" in process.stderr.readline().decode()
        written(tmp_path, ended(logged("later", 1, 2)))
        done = finished(process)
    assert done.code == 0 and done.out.endswith("3  run completed\n")


def test_it_begins_after_a_position_and_shows_what_was_asked_for(tmp_path: Path) -> None:
    assert cli("run", f"{FLOWS}:app", '{"topic": "tea"}', "--log", URL, cwd=tmp_path).code == 0
    everything = [from_json(line) for line in cli("tail", URL, "--json", cwd=tmp_path).out.splitlines()]

    def shown(*words: str) -> list[int]:
        return positions(cli("tail", URL, "--json", *words, cwd=tmp_path).out)

    assert shown("--after", "5") == [event.run_seq for event in everything[5:]]
    assert shown("--kind", "llm") == [e.run_seq for e in everything if isinstance(e, LLMStreamingEvent)]
    assert shown("--kind", "llm", "--kind", "node", "--after", "10") == [
        event.run_seq for event in everything[10:] if not isinstance(event, DiagnosticEvent)
    ]
    assert shown("--scope", "thinking") == [e.run_seq for e in everything if e.scope == "thinking"]
    assert shown("--scope", "weavegraph.node.*") == [
        event.run_seq for event in everything if event.scope.startswith("weavegraph.node.")
    ]
    assert shown("--path", "write") == [event.run_seq for event in everything if event.node_id == "write"]


@clause("10.trimmed")
def test_what_was_trimmed_is_said(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("r", 1, 9)))

    async def trim() -> None:
        log = SqliteLog(tmp_path / "r.db")
        await log.trim("r", 6)
        await log.aclose()

    asyncio.run(trim())
    out = cli("tail", URL, "--after", "2", "--kind", "node", cwd=tmp_path).out
    assert out.splitlines()[0].strip() == "4 events missing: 3 to 6"
    assert [line[:6].strip() for line in out.splitlines()[1:]] == ["7", "8", "9"]


def test_ctrl_c_ends_it_without_a_word(tmp_path: Path) -> None:
    written(tmp_path, logged("r", 1, 3))
    for number in (signal.SIGINT, signal.SIGTERM):
        with started("tail", URL, cwd=tmp_path) as process:
            read_until(process, "kit: 3")
            process.send_signal(number)
            done = finished(process)
        assert (done.code, done.err) == (128 + number, "")


def test_nobody_reads_any_more_ends_it_quietly(tmp_path: Path) -> None:
    written(tmp_path, logged("r", 1, 5000), ended(logged("r", 5001, 20000)))
    for command in (["tail", URL], ["replay", URL, "--speed", "max", "--json"]):
        with started(*command, cwd=tmp_path) as process:
            read_until(process, "5")
            process.stdout.close()
            process.stdout = None
            assert process.wait(20) == 141
            assert process.stderr.read() == b""


@clause("12.4")
def test_on_a_terminal_it_is_live_and_harmless(tmp_path: Path) -> None:
    evil = msgspec.structs.replace(logged("r", 1, 1)[0], message="\x1b]0;title\x07\x1b[2J\u202etxt")
    written(tmp_path, [evil, *logged("r", 2, 3)])
    terminal = Terminal("tail", URL, cwd=tmp_path)
    terminal.read_until("kit: 3")
    assert terminal.process.poll() is None
    written(tmp_path, ended(logged("r", 4, 4)))
    done = terminal.to_the_end()
    assert done.code == 0 and "run completed" in done.out
    assert not {"\x07", "\u202e"} & set(done.out)
    assert "\\x1b]0;title\\x07\\x1b[2J\\u202etxt" in done.out


# ── replay ──────────────────────────────────────────────────────────────────────────────────────────


def paced(*seconds: float) -> list[Event]:
    """Events with so much time between them."""
    at, events = datetime(2026, 1, 1, tzinfo=UTC), []
    for n, gap in enumerate((0.0, *seconds), 1):
        at += timedelta(seconds=gap)
        events.append(msgspec.structs.replace(logged("r", n, n)[0], timestamp=at))
    return ended(events)


def test_replay_keeps_the_pace_of_the_run(tmp_path: Path) -> None:
    written(tmp_path, paced(0.6, 1.2))
    for speed, least in (("1x", 1.7), ("2x", 0.8)):
        with started("replay", URL, "--speed", speed, cwd=tmp_path) as process:
            read_until(process, "kit: 1")
            began = time.monotonic()
            assert finished(process).code == 0
            assert time.monotonic() - began > least


@pytest.mark.parametrize("speed", ["max", "0", "100000x"])
def test_replay_need_not_take_long(tmp_path: Path, speed: str) -> None:
    written(tmp_path, paced(3600, 3600))
    assert cli("replay", URL, "--speed", speed, cwd=tmp_path).code == 0


def test_replay_shows_the_same_as_tail(tmp_path: Path) -> None:
    assert cli("run", f"{FLOWS}:app", '{"topic": "tea"}', "--log", URL, cwd=tmp_path).code == 0
    assert cli("replay", URL, "--speed", "max", cwd=tmp_path).out == cli("tail", URL, cwd=tmp_path).out


def test_replay_rests_only_a_moment_between_attempts(tmp_path: Path) -> None:
    first = paced(0.01)
    later = msgspec.structs.replace(
        logged("r", 4, 4, attempt=2, epoch="e2")[0], timestamp=first[-1].timestamp + timedelta(days=3)
    )
    written(tmp_path, first, ended([later]))
    assert cli("replay", URL, cwd=tmp_path).code == 0


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────


def many(folder: Path) -> None:
    written(
        folder,
        ended(logged("3f2a9c1d77e04b0aa1b2c3d4e5f60718", 1, 211, session_id="customer-4711-of-the-shop")),
        logged("short", 1, 7, attempt=2),
        ended(logged("c0ffee00c0ffee00c0ffee00c0ffee00", 1, 3), "failed"),
    )


def test_runs_as_a_table(tmp_path: Path) -> None:
    many(tmp_path)
    done = cli("runs", URL, cwd=tmp_path)
    assert done.code == 0

    golden("runs.txt", done.out)
    assert len(cli("runs", URL, "--limit", "1", cwd=tmp_path).out.splitlines()) == 2


@pytest.mark.parametrize("columns", [80, 60])
def test_on_a_terminal_the_table_fits(tmp_path: Path, columns: int) -> None:
    many(tmp_path)
    done = Terminal("runs", URL, cwd=tmp_path, columns=columns).to_the_end()
    assert max(map(len, done.out.splitlines())) <= (80 if columns == 80 else 74)  # ids keep 8 characters
    golden(f"runs-{columns}.txt", done.out)


def test_runs_as_json(tmp_path: Path) -> None:
    many(tmp_path)
    found = [json.loads(line) for line in cli("runs", URL, "--json", cwd=tmp_path).out.splitlines()]
    assert [(run["run_id"][:6], run["outcome"], run["last_position"]) for run in found] == [
        ("c0ffee", "failed", 4), ("short", None, 7), ("3f2a9c", "completed", 212),
    ]  # fmt: skip


def test_what_only_reads_makes_no_file_and_no_table(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("r", 1, 2)))
    assert cli("diff", f"{URL}#r", f"{URL}#r", cwd=tmp_path).code == 0
    for command in ("tail", "runs", "replay"):
        assert cli(command, "sqlite:none.db", cwd=tmp_path).code == 2
    assert not (tmp_path / "none.db").exists()

    async def tables() -> list[str]:
        log = SqliteLog(tmp_path / "r.db")
        found = await log.store.query(lambda db: [row[0] for row in db.execute("SELECT name FROM sqlite_master")])
        await log.aclose()
        return found

    assert "checkpoints" not in asyncio.run(tables())
    assert normal("") == ""
