"""What browsers and other clients get when connections break, clients misbehave and servers die.

    python tools/web_campaign.py reconnects --count 1000    clients that are cut off, servers that are killed: HTTP
    python tools/web_campaign.py browser --count 50         the same through the built-in page in Chromium
    python tools/web_campaign.py clients --count 1000       many clients, 1 % of them hostile; memory and delay
    python tools/web_campaign.py cycles --count 20000       clients that come and go, also before the body starts

Each prints its seed and one line of figures, ends with 1 if anything is wrong, and adds the line to a ledger with
``--ledger docs/ledger-web.md``. Server and clients are separate processes on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.web.proxy import Proxy  # noqa: E402
from tests.web.support import Client, Quiet  # noqa: E402
from weavegraph import END, START, App, GraphBuilder, NodeContext, RuntimeConfig  # noqa: E402
from weavegraph.events import to_json  # noqa: E402
from weavegraph.log import SqliteLog  # noqa: E402
from weavegraph.web import create_app  # noqa: E402

PATIENCE = 60.0


# ── the server, a process of its own ──────────────────────────────────────────────────────────────────


def graph(config: RuntimeConfig) -> App[Any]:
    """Steps of some words each; where a killed server's run goes on with the next step. Words carry the time."""
    builder = GraphBuilder()

    @builder.node
    async def talk(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        wanted = state["extra"]
        said = wanted.get("said", 0)
        for n in range(wanted.get("words", 10)):
            ctx.emit("word", f"{said}.{n}", at=time.monotonic(), pad="x" * wanted.get("pad", 0))
            await asyncio.sleep(wanted.get("pause", 0.0))
        return {"extra": {"said": said + 1}}

    def more(state: Any) -> str:
        return "talk" if state["extra"]["said"] < state["extra"].get("steps", 1) else END

    builder.add_edge(START, "talk").add_conditional_edge("talk", more, to=["talk", END])
    return builder.compile(config)


async def run_server(arguments: argparse.Namespace) -> None:
    """Serve until told to end; answers ``stats`` with a line of figures."""
    options: dict[str, Any] = {"step_limit": 100_000, "cancel_grace": 0.05}
    if arguments.log:
        options |= {"log": f"sqlite:{arguments.log}", "checkpointer": f"sqlite:{arguments.log}"}
    web = create_app(graph(RuntimeConfig(**options)), resume=bool(arguments.log), heartbeat=5.0, send_timeout=5.0)
    server = Quiet(web, port=arguments.port, log_level="error")
    serving = asyncio.create_task(server.serve())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: setattr(server, "should_exit", True))
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.address.rpartition(":")[2], flush=True)

    def command() -> None:
        line = sys.stdin.readline()
        if not line:
            server.should_exit = True
            loop.remove_reader(sys.stdin)
            return
        told = {
            "rss": rss(os.getpid()),
            "tasks": len(asyncio.all_tasks()),
            "fds": len(os.listdir("/proc/self/fd")),
            "streams": web.hub.streams,
            "feeds": web.hub.feeds,
        }
        print(json.dumps(told), flush=True)

    loop.add_reader(sys.stdin, command)
    await serving


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


class Serving:
    """A server process that can be killed and started again on its port."""

    def __init__(self, log: str = "") -> None:
        self.log, self.port = log, 0
        self.process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        def begin() -> str:
            call = [sys.executable, __file__, "serve", "--port", str(self.port), "--log", self.log]
            self.process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self.process.stdout is not None
            return self.process.stdout.readline()

        for _ in range(20):
            line = await asyncio.to_thread(begin)
            if line.strip():
                self.port = int(line)
                return
            # The port was free, and somebody's connection got it: even a client's that found nobody there.
            await self.stop()
            await asyncio.sleep(0.2)
        raise SystemExit("the server does not start")

    async def stop(self, how: int = signal.SIGTERM) -> float:
        process, began = self.process, time.monotonic()
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.send_signal(how)
        await asyncio.to_thread(process.wait, PATIENCE)
        process.stdin.close()
        process.stdout.close()
        return time.monotonic() - began

    async def stats(self) -> dict[str, int]:
        def ask() -> str:
            process = self.process
            assert process is not None and process.stdin is not None and process.stdout is not None
            process.stdin.write("stats\n")
            process.stdin.flush()
            return process.stdout.readline()

        found: dict[str, int] = json.loads(await asyncio.to_thread(ask))
        return found


# ── reconnects ────────────────────────────────────────────────────────────────────────────────────────


class Tally:
    def __init__(self) -> None:
        self.reconnects = self.events = self.gaps = self.repeats = self.wrong = self.restarts = self.runs = 0
        self.slowest_stop = 0.0


async def follow(client: Client, run_id: str, tally: Tally) -> list[bytes]:
    """Everything of a run, over as many connections as it takes; ends with the 204 behind its last event."""
    last: str | None = "0"
    seen: list[bytes] = []
    position, refused = 0, 0
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                stream = await client.watch(run_id, last)
                if stream.status == 204:
                    return seen
                if stream.status != 200:
                    refused += 1
                    if refused > 500:
                        raise SystemExit(f"run {run_id} is refused: {stream.status}")
                    await asyncio.sleep(0.02)
                    continue
                tally.reconnects += 1
                while piece := await stream.more():
                    for frame in stream.parser.feed(piece):
                        if frame.id is None:
                            tally.gaps += frame.event == "gap"
                            continue
                        at = frame.json["run_seq"]
                        tally.repeats += at <= position
                        tally.gaps += at > position + 1
                        position, last = at, frame.id
                        seen.append(frame.data.encode())
                        tally.events += 1
        except (OSError, asyncio.IncompleteReadError, IndexError, ValueError):
            await asyncio.sleep(0.01)
        finally:
            await client.aclose()


async def reconnects(arguments: argparse.Namespace) -> dict[str, Any]:
    rng, tally = random.Random(arguments.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        server = Serving(f"{folder}/runs.db")
        await server.start()
        proxy = Proxy(server.port)
        await proxy.start()
        going = True

        async def trouble() -> None:
            while going:
                await asyncio.sleep(rng.uniform(0.02, 0.1))
                proxy.cut_after = rng.choice([None, rng.randrange(50, 4000), rng.randrange(50, 40_000)])
                if rng.random() < 0.3:
                    proxy.cut()
                if rng.random() < arguments.restarts:
                    tally.restarts += 1
                    took = await server.stop(rng.choice([signal.SIGTERM, signal.SIGKILL]))
                    tally.slowest_stop = max(tally.slowest_stop, took)
                    await server.start()

        making = asyncio.create_task(trouble())
        straight = Client(server.port)
        while tally.reconnects < arguments.count:
            ids = []
            while len(ids) < 4:
                with contextlib.suppress(OSError, AssertionError, IndexError, ValueError, asyncio.IncompleteReadError):
                    wanted = {"words": 10, "steps": 20, "pause": 0.005}
                    ids.append(await straight.start({"extra": wanted}, session_id=f"s{tally.runs}.{len(ids)}"))
                await asyncio.sleep(0.02)
            tally.runs += len(ids)
            watching = [asyncio.create_task(follow(Client(proxy.port), run_id, tally)) for run_id in ids * 2]
            found = await asyncio.gather(*watching)
            log = SqliteLog(f"{folder}/runs.db")
            for n, run_id in enumerate(ids):
                held = [to_json(event) async for event in log.read(run_id)]
                tally.wrong += (found[n] != held) + (found[n + len(ids)] != held)
            await log.aclose()
        going = False
        await making
        await straight.aclose()
        await proxy.stop()
        await server.stop()
    return {
        "reconnects": tally.reconnects, "restarts": tally.restarts, "runs": tally.runs, "events": tally.events,
        "gaps": tally.gaps, "repeats": tally.repeats, "runs that differ from the log": tally.wrong,
        "slowest stop_s": round(tally.slowest_stop, 2),
        "problems": tally.gaps + tally.repeats + tally.wrong + (tally.slowest_stop > 3.0),
    }  # fmt: skip


async def browser(arguments: argparse.Namespace) -> dict[str, Any]:
    from tests.peers.web.browser import watch_with_cuts

    return await watch_with_cuts(arguments.count, arguments.seed, Serving)


# ── many clients ──────────────────────────────────────────────────────────────────────────────────────


class Crowd:
    """Clients that read what comes and note its delay; as little work a client as can be."""

    def __init__(self, port: int, run_id: str) -> None:
        self.port, self.path = port, f"/runs/{run_id}/events"
        self.delays: list[float] = []
        self.noting = False
        self.events: list[int] = []
        self.lost = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self, count: int) -> None:
        for at in range(0, count, 50):
            await asyncio.gather(*(self._one() for _ in range(min(50, count - at))))

    async def _one(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head:
            raise SystemExit(head.decode())
        index = len(self.events)
        self.events.append(0)
        self._tasks.append(asyncio.create_task(self._read(reader, writer, index)))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int) -> None:
        try:
            while data := await reader.read(65536):
                now = time.monotonic()
                self.events[index] += data.count(b"\nevent: node\n")
                if self.noting:
                    at = data.rfind(b'"at":')
                    if at >= 0:
                        self.delays.append(now - float(data[at + 5 : at + 30].partition(b",")[0]))
            self.lost += 1
        except (OSError, ValueError):
            self.lost += 1
        finally:
            writer.transport.abort()

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def measure(self, seconds: float) -> list[float]:
        self.delays, self.noting = [], True
        await asyncio.sleep(seconds)
        self.noting = False
        return self.delays


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 100 else float("nan")


class Hostile:
    """Connections that never read, that read a byte now and then, that say half a request, that reset."""

    def __init__(self, port: int, path: str, count: int) -> None:
        self.sockets: list[socket.socket] = []
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for n in range(count):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", port))
            kind = n % 4
            sock.sendall(request if kind != 2 else request[:-10])
            if kind == 3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()
                continue
            sock.setblocking(False)
            self.sockets.append(sock)
        self.dawdling = asyncio.create_task(self._dawdle())

    async def _dawdle(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for sock in self.sockets[1::3]:
                with contextlib.suppress(OSError):
                    sock.recv(1)

    async def leave(self) -> None:
        self.dawdling.cancel()
        await asyncio.wait([self.dawdling])
        for sock in self.sockets:
            sock.close()


async def clients(arguments: argparse.Namespace) -> dict[str, Any]:
    server = Serving()
    await server.start()
    client = Client(server.port)
    pause, pad = 0.5, 8000
    # One client and some events first: what Python loads on first use is no client's memory.
    warm = await client.start({"extra": {"words": 200, "pause": 0.0, "pad": pad}})
    for _ in range(3):
        await (await client.watch(warm)).rest()
    run_id = await client.start({"extra": {"words": 10**9, "pause": pause, "pad": pad}})
    await asyncio.sleep(1.0)
    start = await server.stats()
    crowd = Crowd(server.port, run_id)
    await crowd.join(arguments.count)
    await asyncio.sleep(10 * pause)
    full = await server.stats()
    calm: list[list[float]] = []
    troubled: list[list[float]] = []
    peak, most_streams = full["rss"], full["streams"]
    evicted = 0
    for _ in range(arguments.rounds):
        calm.append(await crowd.measure(arguments.seconds))
        hostile = Hostile(server.port, crowd.path, max(4, arguments.count // 100))
        troubled.append(await crowd.measure(arguments.seconds))
        stats = await server.stats()
        peak, most_streams = max(peak, stats["rss"]), max(most_streams, stats["streams"])
        until = time.monotonic() + PATIENCE
        while (await server.stats())["streams"] > arguments.count and time.monotonic() < until:
            await asyncio.sleep(0.5)
        evicted += (await server.stats())["streams"] == arguments.count
        await hostile.leave()
    calm.append(await crowd.measure(arguments.seconds))
    lost = crowd.lost
    events = crowd.events
    await crowd.leave()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        end = await server.stats()
        if all(end[name] <= start[name] for name in ("tasks", "fds", "streams", "feeds")):
            break
        await asyncio.sleep(0.2)
    await client.aclose()
    took = await server.stop()
    each = (peak - start["rss"]) / arguments.count / 1024
    quiet, noisy = [p99(each) for each in calm], [p99(each) for each in troubled]
    # Each time beside what came before and after it: the machine has other things to do, too.
    ratio = statistics.median(2 * each / (quiet[n] + quiet[n + 1]) for n, each in enumerate(noisy))
    left = {name: end[name] - start[name] for name in ("tasks", "fds", "streams", "feeds")}
    problems = lost + (each > 60) + (ratio > 1.2) + (evicted != arguments.rounds) + any(left.values())
    return {
        "clients": arguments.count, "events": sum(events), "fewest": min(events), "most": max(events),
        "disconnects": lost, "KiB each": round(each, 1), "p99 calm_ms": round(statistics.median(quiet) * 1000, 1),
        "p99 with hostile_ms": round(statistics.median(noisy) * 1000, 1), "ratio": round(ratio, 2),
        "rounds": arguments.rounds, "hostile given up": f"{evicted} of {arguments.rounds} rounds",
        "left over": left, "stop_s": round(took, 2), "problems": int(problems),
    }  # fmt: skip


# ── cycles ────────────────────────────────────────────────────────────────────────────────────────────


async def cycles(arguments: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(arguments.seed)
    server = Serving()
    await server.start()
    client = Client(server.port)
    run_id = await client.start({"extra": {"words": 10**9, "pause": 1.0}})
    path = f"/runs/{run_id}/events"
    kinds = [0] * 5

    async def one() -> None:
        kind = rng.randrange(5)
        kinds[kind] += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            query = "?after=0" if kind == 3 else rng.choice(["", "?after=0"])
            request = f"GET {path}{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            try:
                writer.write(request[: rng.randrange(len(request))] if kind == 0 else request)
                if kind >= 2:  # the answer began
                    await reader.readline()
                if kind == 3:
                    await reader.readuntil(b"data: ")
            finally:
                if kind == 4:
                    writer.close()
                else:
                    writer.transport.abort()

    async def many(count: int) -> None:
        for _ in range(count // 20):
            await asyncio.gather(*(one() for _ in range(20)))

    async def at_rest() -> dict[str, int]:
        until = time.monotonic() + 10
        while (await server.stats())["streams"] and time.monotonic() < until:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        return await server.stats()

    await many(1000)  # what is loaded and pooled on first use is there then
    start = await at_rest()
    began = time.monotonic()
    await many(arguments.count)
    took = time.monotonic() - began
    end = await at_rest()
    await client.aclose()
    await server.stop()
    left = {name: end[name] - start[name] for name in ("tasks", "fds", "streams", "feeds")}
    grown = (end["rss"] - start["rss"]) / 1024 / 1024
    return {
        "cycles": arguments.count, "before the request is whole": kinds[0], "before the answer": kinds[1],
        "left over": left, "grown_MiB": round(grown, 1), "per second": round(arguments.count / took),
        "problems": sum(map(bool, left.values())) + (grown > 16),
    }  # fmt: skip


CAMPAIGNS = {"reconnects": reconnects, "browser": browser, "clients": clients, "cycles": cycles}
COUNTS = {"reconnects": 1000, "browser": 50, "clients": 1000, "cycles": 20_000, "serve": 0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=[*CAMPAIGNS, "serve"])
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--restarts", type=float, default=0.04, help="chance of a restart each 60 ms")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", default="")
    arguments = parser.parse_args()
    arguments.count = arguments.count or COUNTS[arguments.campaign]
    if arguments.campaign == "serve":
        asyncio.run(run_server(arguments))
        return 0
    found = asyncio.run(CAMPAIGNS[arguments.campaign](arguments))
    figures = ", ".join(
        f"{name} {value:,}" if type(value) is int else f"{name} {value}" for name, value in found.items()
    )
    machine = f"Python {platform.python_version()}, {platform.system()}"
    line = f"- {datetime.now(UTC):%Y-%m-%d}, {machine}. {arguments.campaign}: seed {arguments.seed}: {figures}"
    print(line)
    if arguments.ledger is not None:
        with arguments.ledger.open("a", encoding="utf-8") as ledger:
            ledger.write(line + "\n")
    return int(bool(found["problems"]))


if __name__ == "__main__":
    raise SystemExit(main())
