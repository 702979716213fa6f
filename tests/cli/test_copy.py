"""``weavegraph log copy``: runs from one log to another, as a process that may be stopped."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import FLOWS, Terminal, cli, finished, started
from tests.cli.test_tail import URL, ended, written
from tests.conformance.servers import running
from weavegraph.events import Event
from weavegraph.log import SqliteLog, open_log
from weavegraph.testing import logged

OTHER = "sqlite:other.db"


def held(url: str, folder: Path) -> dict[str, list[Event]]:
    """Everything that a log holds, by run, the one that began first first."""

    async def read() -> dict[str, list[Event]]:
        log: Any = open_log(url.replace("sqlite:", f"sqlite:{folder}/"))
        runs = await log.runs(limit=1000)
        found = {run.run_id: [event async for event in log.read(run.run_id)] for run in reversed(runs)}
        await log.aclose()
        return found

    return asyncio.run(read())


def test_every_run_arrives_and_again_copies_only_what_is_new(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("one", 1, 600)), logged("two", 1, 3))
    done = cli("log", "copy", URL, OTHER, cwd=tmp_path)
    assert done == (0, "2 runs: 604 events copied\n", "")
    assert held(OTHER, tmp_path) == held(URL, tmp_path)
    written(tmp_path, ended(logged("two", 4, 4)))
    done = cli("log", "copy", URL, OTHER, cwd=tmp_path)
    assert done == (0, "2 runs: 2 events copied, 604 were there\n", "")
    assert held(OTHER, tmp_path) == held(URL, tmp_path)
    assert cli("log", "copy", URL, OTHER, cwd=tmp_path).out == "2 runs: 0 events copied, 606 were there\n"


def test_only_the_runs_that_are_named_by_their_beginnings(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("abc", 1, 2)), ended(logged("abd", 1, 2)), ended(logged("xyz", 1, 2)))
    assert cli("log", "copy", URL, OTHER, "x", "abc", cwd=tmp_path) == (0, "2 runs: 6 events copied\n", "")
    assert list(held(OTHER, tmp_path)) == ["xyz", "abc"]
    done = cli("log", "copy", URL, OTHER, "ab", cwd=tmp_path)
    assert (done.code, done.out) == (2, "") and "2 runs begin with 'ab'" in done.err
    assert cli("log", "copy", URL, OTHER, "nobody", cwd=tmp_path).code == 2


def test_what_was_trimmed_and_what_was_refused_is_said(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("a", 1, 9)), ended(logged("b", 1, 9)), ended(logged("c", 1, 9)))

    async def prepare() -> None:
        log, other = SqliteLog(tmp_path / "r.db"), SqliteLog(tmp_path / "other.db")
        await log.trim("a", 4)
        await other.append("b", logged("b", 1, 2, epoch="another"))
        await log.aclose()
        await other.aclose()

    asyncio.run(prepare())
    done = cli("log", "copy", URL, OTHER, cwd=tmp_path)
    assert done.code == 1
    assert done.out == "3 runs: 16 events copied, 2 were there, 4 had been trimmed and show as a gap, 1 run refused\n"
    assert done.err.startswith("run b was not copied whole: ") and done.err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_says_so_and_the_same_command_copies_the_rest(tmp_path: Path, number: signal.Signals) -> None:
    written(tmp_path, *(ended(logged(f"run-{n}", 1, 1999)) for n in range(60)))
    with started("log", "copy", URL, OTHER, cwd=tmp_path) as process:
        while not (tmp_path / "other.db").exists():
            assert process.poll() is None
        process.send_signal(number)
        done = finished(process)
    assert (done.code, done.out) == (128 + number, "")
    assert done.err.startswith("stopped after ") and done.err.count("\n") == 1
    first = sum(map(len, held(OTHER, tmp_path).values()))
    assert first < 120_000
    done = cli("log", "copy", URL, OTHER, cwd=tmp_path)
    # What a cancelled append had given to the file may be kept, so the books are those of the file.
    assert (done.code, done.err) == (0, "")
    there = f", {first:,} were there" if first else ""
    assert done.out == f"60 runs: {120_000 - first:,} events copied{there}\n"
    assert held(OTHER, tmp_path) == held(URL, tmp_path)


def test_on_a_terminal_it_counts(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("one\u0041", 1, 1200)))
    done = Terminal("log", "copy", URL, OTHER, cwd=tmp_path, columns=50).to_the_end()
    assert "\rrun 1 of 1, 500 events: oneA" in done.out and "\rrun 1 of 1, 1,201 events: oneA" in done.out
    assert done.out.rpartition("\r")[2] == "1 run: 1,201 events copied\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("sqlite:none.db", OTHER), "there is no file 'none.db'"),
        (("r.db", OTHER), "'r.db' is no URL of a log: write sqlite:r.db"),
        ((URL, "memory:"), "a memory: log ends with the process"),
        ((URL, "amqp://u:s3cr3t@h"), "known are memory:, sqlite:PATH, redis://HOST"),
        ((URL, URL), "is both FROM and TO: name another log as TO"),
        ((URL,), "Missing argument 'TO'; see weavegraph log copy --help"),
    ],
)
def test_wrong_words_are_one_sentence(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    written(tmp_path, ended(logged("a", 1, 2)))
    done = cli("log", "copy", *words, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err and done.err.count("\n") == 1 and "s3cr3t" not in done.err
    assert not (tmp_path / "other.db").exists() and not (tmp_path / "none.db").exists()


def test_to_redis_and_back_and_a_server_that_is_away(tmp_path: Path) -> None:
    given = json.dumps({"topic": "tea"})
    assert cli("run", f"{FLOWS}:app", given, "--log", URL, cwd=tmp_path).code == 0
    written(tmp_path, ended(logged("two", 1, 700)))
    with running(durable=True) as server:
        far = f"{server.url}?prefix=shop&timeout=2"
        assert cli("log", "copy", URL, far, cwd=tmp_path).code == 0
        assert cli("log", "copy", far, OTHER, cwd=tmp_path).code == 0
        assert held(OTHER, tmp_path) == held(URL, tmp_path)
        server.stop()
        done = cli("log", "copy", URL, f"{server.url}?timeout=0.3", cwd=tmp_path)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"weavegraph: redis://127.0.0.1:{server.port}/0: ") and done.err.count("\n") == 1
