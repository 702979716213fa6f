"""``weavegraph dead-letters``: what an outbox could not deliver, from another process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.support import Terminal, cli, golden
from tests.cli.test_tail import URL, ended, written
from tests.conformance.servers import running
from weavegraph.bus import RetryPolicy
from weavegraph.errors import PermanentSinkError
from weavegraph.events import Event, from_json
from weavegraph.log import DeadLetters, Outbox, SqliteLog
from weavegraph.log.redis_streams import RedisLog
from weavegraph.sinks import read_jsonlines
from weavegraph.testing import logged
from weavegraph.testing._log_kit import collected


class Picky:
    """Takes no event whose position is named."""

    def __init__(self, name: str, *refused: int) -> None:
        self.name, self._refused = name, refused

    async def handle(self, batch: Sequence[Event]) -> None:
        for event in batch:
            if event.run_seq in self._refused:
                raise PermanentSinkError(f"no {event.run_seq}")


def shipped(folder: Path) -> None:
    """A run of ten events and its end, of which two outboxes could not deliver four."""
    written(folder, ended(logged("run-1", 1, 10)))

    async def ship() -> None:
        log = SqliteLog(folder / "r.db")
        for sink in (Picky("first", 3, 7, 9), Picky("second", 10)):
            async with Outbox(log, sink, retry=RetryPolicy(tries=1, base=0.001, cap=0.001)) as outbox:
                assert await outbox.drain(20)
        await log.aclose()

    asyncio.run(ship())


def left(folder: Path) -> list[tuple[str, int | None]]:
    async def look() -> list[tuple[str, int | None]]:
        letters = DeadLetters(folder / "r.db")
        found = [(letter.outbox, letter.event.run_seq) for letter in await letters.list()]
        await letters.aclose()
        return found

    return asyncio.run(look())


def test_they_are_listed_oldest_first(tmp_path: Path) -> None:
    shipped(tmp_path)
    done = cli("dead-letters", URL, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    golden("letters.txt", done.out)
    found = [json.loads(line) for line in cli("dead-letters", URL, "--json", cwd=tmp_path).out.splitlines()]
    assert [(one["id"], one["outbox"], one["event"]["run_seq"], one["error"]) for one in found] == [
        (1, "first", 3, "PermanentSinkError: no 3"), (2, "first", 7, "PermanentSinkError: no 7"),
        (3, "first", 9, "PermanentSinkError: no 9"), (4, "second", 10, "PermanentSinkError: no 10"),
    ]  # fmt: skip
    only = cli("dead-letters", URL, "--outbox", "second", "--json", cwd=tmp_path).out.splitlines()
    assert [json.loads(line)["id"] for line in only] == [4]
    lines = Terminal("dead-letters", URL, cwd=tmp_path, columns=50).to_the_end().out.splitlines()
    assert len(lines) == 5 and max(map(len, lines)) == 50


def test_one_is_shown_whole(tmp_path: Path) -> None:
    shipped(tmp_path)
    golden("letter.txt", cli("dead-letters", URL, "2", "4", cwd=tmp_path).out)
    (line,) = cli("dead-letters", URL, "2", "--json", cwd=tmp_path).out.splitlines()
    assert from_json(json.dumps(json.loads(line)["event"]).encode()) == logged("run-1", 7, 7)[0]


def test_they_are_sent_again_and_what_was_taken_is_dropped(tmp_path: Path) -> None:
    shipped(tmp_path)
    done = cli("dead-letters", URL, "3", "1", "77", "--resend", "jsonl:again.jsonl", cwd=tmp_path)
    assert done == (1, "2 sent, 1 left\n", "letter 77: no such letter\n")
    assert left(tmp_path) == [("first", 7), ("second", 10)]
    done = cli("dead-letters", URL, "--all", "--outbox", "first", "--resend", "jsonl:again.jsonl", cwd=tmp_path)
    assert done == (0, "1 sent, 0 left\n", "")
    assert left(tmp_path) == [("second", 10)]
    assert [event.run_seq for event in read_jsonlines(tmp_path / "again.jsonl").events] == [9, 3, 7]


def test_a_log_takes_what_comes_after_its_end_and_the_rest_stays_with_the_reason(tmp_path: Path) -> None:
    shipped(tmp_path)
    with running(durable=True) as server:
        done = cli("dead-letters", URL, "1", "2", "--resend", server.url, cwd=tmp_path)
        assert done == (0, "2 sent, 0 left\n", "")
        again = cli("dead-letters", URL, "--all", "--resend", f"{server.url}?prefix=other", cwd=tmp_path)
        assert again == (0, "2 sent, 0 left\n", "")

        async def read() -> list[int | None]:
            log = RedisLog(server.url)
            found = [event.run_seq for event in await collected(log.read("run-1"))]
            await log.aclose()
            return found

        assert asyncio.run(read()) == [None, 3, None, 7]
    assert left(tmp_path) == []


def test_a_server_that_is_away_leaves_them(tmp_path: Path) -> None:
    shipped(tmp_path)
    with running() as server:
        server.stop()
        done = cli("dead-letters", URL, "1", "--resend", f"{server.url}?timeout=0.3", cwd=tmp_path)
    assert (done.code, done.out) == (1, "0 sent, 1 left\n")
    assert done.err.startswith("letter 1: LogUnavailableError: ") and done.err.count("\n") == 1
    assert len(left(tmp_path)) == 4


def test_they_are_dropped(tmp_path: Path) -> None:
    shipped(tmp_path)
    assert cli("dead-letters", URL, "1", "5", "--drop", cwd=tmp_path) == (
        1,
        "1 dropped\n",
        "letter 5: no such letter\n",
    )
    assert cli("dead-letters", URL, "--drop", "--all", "--outbox", "second", cwd=tmp_path) == (0, "1 dropped\n", "")
    assert left(tmp_path) == [("first", 7), ("first", 9)]


def test_a_log_without_letters_is_left_as_it_is(tmp_path: Path) -> None:
    written(tmp_path, ended(logged("run-1", 1, 3)))
    done = cli("dead-letters", URL, cwd=tmp_path)
    assert done == (0, "", f"{URL} holds no dead letter\n")
    assert cli("dead-letters", URL, "--json", cwd=tmp_path) == (0, "", "")

    async def tables() -> list[str]:
        log = SqliteLog(tmp_path / "r.db")
        found = await log.store.query(lambda db: [row[0] for row in db.execute("SELECT name FROM sqlite_master")])
        await log.aclose()
        return found

    assert "outbox_letters" not in asyncio.run(tables())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((URL, "9"), "there is no dead letter 9: without ids all are listed"),
        ((URL, "x"), "Invalid value for 'ID': Input should be a valid integer"),
        ((URL, "--drop"), "--drop: which letters? Give their ids, or --all"),
        ((URL, "--resend", "jsonl:x"), "--resend: which letters? Give their ids, or --all"),
        ((URL, "--all"), "--all goes with --resend or --drop"),
        ((URL, "1", "--all", "--drop"), "--all and ids: give one of them"),
        ((URL, "1", "--drop", "--resend", "jsonl:x"), "--resend and --drop: one at a time"),
        ((URL, "1", "--resend", "carrier-pigeon:"), "no sink is called 'carrier-pigeon'"),
        (("sqlite:none.db",), "there is no file 'none.db'"),
        (("redis://127.0.0.1:1/0",), "has no dead letters: they stand beside the sqlite: log"),
    ],
)
def test_wrong_words_are_one_sentence(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    shipped(tmp_path)
    done = cli("dead-letters", *words, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err and done.err.count("\n") == 1
    assert len(left(tmp_path)) == 4
