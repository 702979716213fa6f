"""Several Redis servers: a replica that takes over, and a cluster whose other nodes are not followed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.conformance.servers import RedisServer, running
from tests.support import clause, eventually
from weavegraph.bus import RetryPolicy
from weavegraph.errors import LogUnavailableError
from weavegraph.log import Outbox, SqliteLog
from weavegraph.log.redis_streams import RedisLog, RedisStreamSink
from weavegraph.testing import FaultProxy, History, logged
from weavegraph.testing._log_kit import collected, ending, positions

QUICK = RetryPolicy(tries=3, base=0.001, cap=0.01)


def replica_of(primary: RedisServer) -> tuple[str, ...]:
    return "--replicaof", "127.0.0.1", str(primary.port)


@clause("X1", "X3", "X4")
async def test_a_replica_that_lacks_an_end_takes_over_and_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    with running(durable=True) as primary, running("valkey", *replica_of(primary), durable=True) as replica:
        async with FaultProxy("127.0.0.1", primary.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}/0?timeout=0.5"
            log, far, history = SqliteLog(tmp_path / "e.db"), RedisLog.from_url(url), History()
            following = asyncio.ensure_future(collected(far.follow("a")))
            async with Outbox(log, RedisStreamSink(url), retry=QUICK) as outbox:
                await log.append("a", logged("a", 1, 300))
                await log.append("b", [*logged("b", 1, 99), ending("completed", 100, "b")])
                assert await outbox.drain(20)
                replicated = replica.command
                await eventually(lambda: b"300-0" in replicated("XREVRANGE", "weavegraph:{a}", "+", "-", "COUNT", 1))
                replica.command("REPLICAOF", "127.0.0.1", 1)  # its line to the primary is cut; it is read-only still
                await log.append("a", logged("a", 301, 400))
                assert await outbox.drain(20)
                primary.kill()
                proxy.lead_to("127.0.0.1", replica.port)
                await log.append("a", logged("a", 401, 500))
                await eventually(lambda: "read only" in (outbox.stats().last_error or ""))
                replica.command("REPLICAOF", "NO", "ONE")
                await log.append("a", [ending("completed", 501, "a")])
                assert await outbox.drain(20)
                assert (outbox.stats().shipped, outbox.stats().dead_lettered) == (601, 0)
                assert outbox.stats().reshipped == 100  # those that the primary had acknowledged and took with it
            for run_id, last in (("a", 501), ("b", 100)):
                for n in range(1, last + 1):
                    history.given(run_id, n, "ok")
                history.saw("later", run_id, await collected(far.read(run_id)))
                history.ended("later", run_id)
            history.saw("follower", "a", await asyncio.wait_for(following, 20))
            history.ended("follower", "a")
            assert history.problems() == []
            assert history.counts()["delivered"] == 501 + 100 + 501
            await far.aclose()
            await log.aclose()


async def test_a_run_on_another_node_of_a_cluster_is_named_and_costs_no_event(tmp_path: Path) -> None:
    mode = ("--cluster-enabled", "yes")
    with running("valkey", *mode) as one, running("valkey", *mode) as two:
        one.command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        two.command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        one.command("CLUSTER", "MEET", "127.0.0.1", two.port)
        await eventually(lambda: all(b"cluster_state:ok" in server.command("CLUSTER", "INFO") for server in (one, two)))
        log = RedisLog(one.url)
        names = [f"run-{n}" for n in range(20)]
        slots = {name: int(one.command("CLUSTER", "KEYSLOT", f"weavegraph:{{{name}}}")[1:]) for name in names}
        there = [name for name in names if slots[name] > 8191]
        assert 0 < len(there) < len(names)
        sentence = f"clusters of several nodes are not followed: give one server's URL (it is on 127.0.0.1:{two.port})"
        for call in (log.append(there[0], logged(there[0], 1, 3)), log.last_position(there[0])):
            with pytest.raises(LogUnavailableError) as caught:
                await call
            assert sentence in str(caught.value)
        with pytest.raises(LogUnavailableError, match="clusters of several nodes"):
            await collected(log.follow(there[0]))
        local, sink = SqliteLog(tmp_path / "e.db"), RedisStreamSink(f"{one.url}?timeout=0.5")
        async with Outbox(local, sink, retry=QUICK) as outbox:
            await local.append(there[0], logged(there[0], 1, 3))
            await eventually(lambda: outbox.stats().state == "retrying")
            assert sentence in (outbox.stats().last_error or "")
            assert (outbox.stats().dead_lettered, outbox.stats().shipped) == (0, 0)
        await local.aclose()
        await log.aclose()


@clause("X3", "X4")
async def test_a_follower_goes_on_at_the_server_that_took_over() -> None:
    with running(durable=True) as primary, running("valkey", *replica_of(primary), durable=True) as replica:
        async with FaultProxy("127.0.0.1", primary.port) as proxy:
            log = RedisLog(f"redis://127.0.0.1:{proxy.port}/0", timeout=20.0)
            followers = [asyncio.ensure_future(collected(log.follow("a"))) for _ in range(3)]
            await log.append("a", logged("a", 1, 50))
            await eventually(lambda: b"50-0" in replica.command("XREVRANGE", "weavegraph:{a}", "+", "-", "COUNT", 1))
            primary.kill()
            replica.command("REPLICAOF", "NO", "ONE")
            proxy.lead_to("127.0.0.1", replica.port)
            await log.append("a", [*logged("a", 51, 99), ending("completed", 100, "a")])
            for follower in followers:
                assert positions(await asyncio.wait_for(follower, 20)) == list(range(1, 101))
            await log.aclose()
