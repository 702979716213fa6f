"""A remote sink that configuration names: with a log that lasts it ships from there, without one the loss is exact."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.servers import running
from tests.support import clause
from tests.support import eventually as until
from weavegraph import END, START, EventBusConfig, GraphBuilder, RuntimeConfig
from weavegraph.errors import ConfigError
from weavegraph.events import Event
from weavegraph.log import Outbox, SqliteLog
from weavegraph.log.redis_streams import RedisLog, RedisStreamSink
from weavegraph.runtime import App
from weavegraph.testing import History
from weavegraph.testing._log_kit import collected

ROOT = Path(__file__).resolve().parents[2]


class Gates:
    """Where a run waits in mid-run."""

    def __init__(self) -> None:
        self.half, self.on = asyncio.Event(), asyncio.Event()


def app_of(sinks: Sequence[Any], log: Any, events: int = 200) -> App[Any]:
    builder = GraphBuilder()

    @builder.node
    async def work(state: Any, ctx: Any) -> dict[str, Any]:
        for n in range(events):
            ctx.emit("work", str(n))
            await asyncio.sleep(0)
            if n == events // 2 and ctx.deps is not None:
                ctx.deps.half.set()
                await ctx.deps.on.wait()
        return {}

    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    return builder.compile(RuntimeConfig(log=log, event_bus=EventBusConfig(sinks=tuple(sinks))))


def sink_of(app: App[Any]) -> Outbox:
    found = app.event_bus.sinks["redis"]
    assert isinstance(found, Outbox) and isinstance(found.sink, RedisStreamSink)
    return found


async def judged(log: Any, far: RedisLog) -> History:
    """What a reader of the server got, against what the log has acknowledged."""
    history = History()
    for run in await log.runs():
        given = await collected(log.read(run.run_id))
        for event in given:
            history.given(run.run_id, event.run_seq, "ok")
        got = await collected(far.read(run.run_id))
        history.saw("reader", run.run_id, got)
        history.ended("reader", run.run_id)
        assert got == given
    return history


@clause("X1", "X3", "X4", "S1", "O6")
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_server_that_goes_away_in_mid_run_costs_delay_and_the_run_does_not_notice(
    tmp_path: Path, how: str
) -> None:
    with running(durable=True) as server:
        app = app_of(["memory:", f"{server.url}?timeout=0.3"], f"sqlite:{tmp_path}/e.db")
        gates = Gates()
        async with app:
            run = app.start({}, run_id="run-1", deps=gates)
            await asyncio.wait_for(gates.half.wait(), 20)
            outbox = sink_of(app)
            await until(lambda: outbox.stats().shipped > 100)
            getattr(server, how)()
            gates.on.set()
            await asyncio.wait_for(run.join(), 20)
            assert run.status == "completed"
            await asyncio.wait_for(app.start({}, run_id="run-2").join(), 20)
            await until(lambda: outbox.stats().state == "retrying")
            report = await app.event_bus.flush(timeout=20)
            assert (report.flushed, report.pending) == (("memory",), ("redis",))
            assert len(app.event_bus.sinks["memory"].snapshot()) == app.event_bus.head
            server.start()
            await until(lambda: outbox.stats().state == "idle")
            assert (await app.event_bus.flush(timeout=20)).complete
            far = RedisLog(server.url)
            history = await judged(app.log, far)
            assert history.problems() == []
            stats = outbox.stats()
            assert history.counts()["ok"] == history.counts()["delivered"] == stats.shipped == app.event_bus.head
            assert (stats.dead_lettered, stats.trimmed, stats.pending_events) == (0, 0, 0)
            await far.aclose()


@clause("X1", "X2", "X3")
async def test_the_cursor_outlives_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[tuple[str, int]] = []
    publish = RedisLog.publish

    async def spied(self: RedisLog, run_id: str, events: Sequence[Event], /, *, after: int = 0) -> int:
        published.extend((run_id, event.run_seq or 0) for event in events)
        return await publish(self, run_id, events, after=after)

    with running(durable=True) as server:
        monkeypatch.setattr(RedisLog, "publish", spied)
        ends: dict[str, int] = {}
        for life in range(3):
            async with app_of([server.url], f"sqlite:{tmp_path}/e.db") as app:
                await asyncio.wait_for(app.start({}, run_id=f"run-{life}").join(), 20)
                assert (await app.event_bus.flush(timeout=20)).complete
                assert app.log is not None
                ends[f"run-{life}"] = await app.log.last_position(f"run-{life}")
                assert sink_of(app).stats().shipped == sum(ends.values())
                assert sink_of(app).stats().reshipped == 0
        assert sorted(published) == [(run_id, n) for run_id, last in ends.items() for n in range(1, last + 1)]


@clause("X1", "X4")
async def test_a_process_killed_while_the_server_is_away_leaves_its_events_to_the_next(tmp_path: Path) -> None:
    program = """
        import asyncio, sys
        from tests.log.test_configured_sinks import app_of
        async def main():
            app = app_of([sys.argv[2]], sys.argv[1])
            for n in range(2):
                await app.start({}, run_id=f"{sys.argv[3]}-{n}").join()
            print(app.event_bus.head, flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
    """
    with running(durable=True) as server:
        server.stop()
        url, acknowledged = f"sqlite:{tmp_path}/e.db", 0
        for life in ("first", "second"):
            child = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(program), url, f"{server.url}?timeout=0.3", life],
                stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
            try:
                assert child.stdout is not None
                acknowledged += json.loads(await asyncio.to_thread(child.stdout.readline))
                child.send_signal(signal.SIGKILL)
                assert child.wait(10) == -signal.SIGKILL
            finally:
                child.kill()
                child.wait(10)
                child.stdout.close()
        server.start()
        async with app_of([server.url], url) as app:
            await asyncio.wait_for(app.start({}, run_id="third").join(), 20)
            assert (await app.event_bus.flush(timeout=20)).complete
            far = RedisLog(server.url)
            history = await judged(app.log, far)
            assert history.problems() == []
            assert {run.run_id for run in await far.runs()} == {"first-0", "first-1", "second-0", "second-1", "third"}
            assert sink_of(app).stats().shipped == history.counts()["delivered"] == acknowledged + app.event_bus.head
            await far.aclose()


@clause("X4", "S1")
@pytest.mark.parametrize("log", [None, "memory:"])
async def test_without_a_log_that_lasts_the_bound_decides_and_what_it_costs_is_exact(log: Any) -> None:
    with running(durable=True) as server:
        sinks = ["memory:", f"{server.url}?capacity=50&timeout=0.2"]
        gates = Gates()
        async with app_of(sinks, log, events=3000) as app:
            run = app.start({}, run_id="run-1", deps=gates)
            sink = app.event_bus.sinks["redis"]
            assert isinstance(sink, RedisStreamSink)  # no outbox: nothing is left to ship from
            await asyncio.wait_for(gates.half.wait(), 20)
            assert (await app.event_bus.flush(timeout=20)).complete
            server.stop()
            gates.on.set()
            await asyncio.wait_for(run.join(), 20)
            server.start()
            assert (await app.event_bus.flush(timeout=20)).complete
            (memory, redis) = app.event_bus.metrics().sinks
            assert (memory.delivered, memory.dropped) == (app.event_bus.head, 0)
            assert redis.dropped > 1000 and (redis.dead_lettered, redis.unaccounted) == (0, 0)
            assert redis.delivered + redis.dropped == app.event_bus.head
            far = RedisLog(server.url)
            found = await collected(far.read("run-1"))
            assert sum(event.run_seq is not None for event in found) == redis.delivered
            assert sum(event.metadata["count"] for event in found if event.run_seq is None) == redis.dropped
            await far.aclose()


async def test_an_app_ends_though_the_server_is_away_and_the_next_ships_the_rest(tmp_path: Path) -> None:
    with running(durable=True) as server:
        server.stop()
        app = app_of([f"{server.url}?timeout=0.3"], f"sqlite:{tmp_path}/e.db")
        await asyncio.wait_for(app.start({}, run_id="run-1").join(), 20)
        head = app.event_bus.head
        await asyncio.wait_for(app.aclose(), 9)  # a sink that hung would take the ten seconds of a shutdown
        server.start()
        later = app_of([server.url], f"sqlite:{tmp_path}/e.db")
        async with later:
            later.event_bus.listen_for_events()
            far = RedisLog(server.url)
            await until(lambda: sink_of(later).stats().shipped == head)
            assert (await judged(later.log, far)).problems() == []
            await far.aclose()


async def test_remote_sinks_of_one_name_are_refused(tmp_path: Path) -> None:
    urls = ["redis://127.0.0.1:1/0", "redis://127.0.0.1:2/0"]
    with pytest.raises(ConfigError, match="two remote sinks are called 'redis': give them names"):
        app_of(urls, f"sqlite:{tmp_path}/e.db").start({})
    app = app_of([urls[0], f"{urls[1]}?name=second"], SqliteLog(tmp_path / "e.db"))
    assert sorted(app.event_bus.sinks) == ["redis", "second"]
    await app.aclose()
