"""The commands over a Redis log, from other processes than the run's; and two web processes that share one."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import FLOWS, cli, finished, read_until, started
from tests.conformance.servers import RedisServer, running
from tests.support import clause
from tests.web.support import Client
from weavegraph.events import STREAM_END_SCOPE, from_json

TEA = '{"topic": "tea"}'


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running(durable=True) as server:
        yield server


def test_runs_tail_replay_and_diff_show_what_a_log_in_a_file_shows(tmp_path: Path, server: RedisServer) -> None:
    url, file = f"{server.url}?prefix=shop", "sqlite:r.db"
    assert cli("run", f"{FLOWS}:app", TEA, "--log", url, cwd=tmp_path).code == 0
    assert cli("run", f"{FLOWS}:app", '{"topic": "coffee"}', "--log", url, cwd=tmp_path).code == 0
    assert cli("log", "copy", url, file, cwd=tmp_path).code == 0
    coffee, tea = (json.loads(line)["run_id"] for line in cli("runs", url, "--json", cwd=tmp_path).out.splitlines())
    for words in (
        ("runs", "{}"),
        ("runs", "{}", "--json", "--limit", "1"),
        ("tail", "{}"),
        ("tail", "{}", tea, "--json", "--after", "4", "--kind", "llm"),
        ("tail", "{}", tea[:12], "--scope", "weavegraph.node.*"),
        ("replay", "{}", tea, "--speed", "max"),
        ("replay", "{}", "--speed", "100x", "--json"),
    ):
        there, here = (cli(*(word.format(place) for word in words), cwd=tmp_path) for place in (url, file))
        assert there == here and there.code == 0 and there.out
    same = cli("diff", f"{url}#{tea}", f"{file}#{tea}", "--profile", "strict", cwd=tmp_path)
    assert (same.code, same.err) == (0, "") and same.out.startswith("16 events agree; ")
    assert cli("diff", f"{url}#{tea}", f"{url}#", cwd=tmp_path).code == 1
    assert cli("tail", url, coffee, "--after", "400", cwd=tmp_path).code == 2
    for words in (("replay", url, "nobody"), ("replay", f"{server.url}?prefix=empty"), ("runs", f"{server.url}?x=1")):
        done = cli(*words, cwd=tmp_path)
        assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1
    server.stop()
    for command in ("runs", "tail", "replay"):
        done = cli(command, f"redis://u:s3cr3t@127.0.0.1:{server.port}/0?timeout=0.3", cwd=tmp_path)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert done.err.startswith(f"weavegraph: redis://127.0.0.1:{server.port}/0: ") and "s3cr3t" not in done.err


@clause("8.kill", "X3", "X4", "O3.resume", "D9")
def test_tail_sees_each_event_once_while_writer_and_server_are_killed(tmp_path: Path, server: RedisServer) -> None:
    url = f"{server.url}?timeout=20"
    keep = ("--session", "s", "--log", url, "--checkpointer", "sqlite:r.db")
    work = {"WORKED": str(tmp_path / "worked")}
    given = json.dumps({"gate": str(tmp_path / "gate")})
    with started("run", f"{FLOWS}:stepping", given, *keep, cwd=tmp_path, env=work) as writer:
        read_until(writer, "step 1: work")
        with started("tail", url, "--json", cwd=tmp_path) as watcher:
            seen = read_until(watcher, "step 6: work")
            writer.send_signal(signal.SIGKILL)
            assert writer.wait(10) == -signal.SIGKILL
            server.kill()
            server.start()
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


@clause("10.valid", "X3", "X5")
async def test_a_client_hops_between_two_web_processes_over_one_server(tmp_path: Path, server: RedisServer) -> None:
    """Every position that one process gave is good at the other, while the run goes on in the first."""
    words = ("serve", f"{FLOWS}:endless", "--port", "0", "--log", f"{server.url}?prefix=web&timeout=20")
    unbuffered = {"PYTHONUNBUFFERED": "1"}
    with (
        started(*words, cwd=tmp_path, env=unbuffered) as one,
        started(*words, cwd=tmp_path, env=unbuffered) as two,
    ):
        clients = [Client(int(read_until(process, "/\n").rsplit(":", 1)[1].rstrip("/\n"))) for process in (one, two)]
        run_id = await clients[0].start({"pace": 0.005})
        assert (await clients[1].ask("POST", f"/runs/{run_id}/cancel")).code == "run_elsewhere"
        seen: list[int] = []
        last: str | None = "0"
        hops, outcome = 0, ""
        async with asyncio.timeout(40):
            for client in itertools.cycle(reversed(clients)):
                stream = await client.watch(run_id, last)
                if stream.status == 204:
                    break
                frames = await stream.frames(lambda found: len(found) >= 7)
                stream.leave()
                seen += [frame.json["run_seq"] for frame in frames]
                last, hops = frames[-1].id, hops + 1
                if frames[-1].event == "end":
                    outcome = frames[-1].json["metadata"]["outcome"]
                if hops == 20:  # the server is away for a moment, and nobody is told anything wrong
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                if hops == 40:
                    assert (await clients[0].ask("POST", f"/runs/{run_id}/cancel")).status == 202
        assert seen == [*range(1, len(seen) + 1)] and len(seen) >= 40 * 7 and outcome == "cancelled"
        others = [await client.watch(run_id, "0") for client in clients]
        assert [[frame.json["run_seq"] for frame in await stream.rest()] for stream in others] == [seen, seen]
        listed = [(await client.ask("GET", "/runs")).json for client in clients]
        assert [[run["run_id"] for run in found["runs"]] for found in listed] == [[run_id], [run_id]]
        for client, process in zip(clients, (one, two), strict=True):
            await client.aclose()
            process.send_signal(signal.SIGTERM)
            done = await asyncio.to_thread(finished, process)
            assert "Traceback" not in done.err
