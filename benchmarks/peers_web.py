"""A run shown to browsers, beside sse-starlette: one client, and a hundred watchers of the same events.

The server, and what publishes, is this process, whose CPU time counts; the clients are another one. Both servers are
uvicorn with its defaults, over loopback. Each client counts its frames to the end of the answer.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import uvicorn

from benchmarks.measure import Table, at_least, cpu_seconds, rounds
from weavegraph import END, START, GraphBuilder, NodeContext
from weavegraph.web import create_app

__all__ = ["run"]

TEXT = "x" * 200
BURST = 16
"""Events that are published before others have a turn."""
CLIENT = r"""
import asyncio, json, sys

class Frames(asyncio.Protocol):
    def __init__(self, path):
        self.path, self.frames, self.tail, self.over = path, 0, b"", asyncio.get_running_loop().create_future()
    def connection_made(self, transport):
        transport.write(f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    def data_received(self, data):
        data = self.tail + data
        self.frames += data.count(b"\ndata:")
        self.tail = data[-5:]
    def connection_lost(self, error):
        self.over.set_result(self.frames)

async def main(port, path, count):
    loop = asyncio.get_running_loop()
    all = [(await loop.create_connection(lambda: Frames(path), "127.0.0.1", port))[1] for _ in range(count)]
    print(json.dumps([await each.over for each in all]))

asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""
Pause = Callable[[int], Awaitable[None]]
Served = tuple[Any, str, Callable[[], int], Callable[[], Awaitable[Any]]]


class Ours:
    NAME, PACKAGE = "weavegraph", "weavegraph"

    @staticmethod
    async def served(events: int, text: str, pause: Pause) -> Served:
        builder: GraphBuilder[Any, Any] = GraphBuilder()
        begin = asyncio.Event()

        @builder.node
        async def work(state: Any, ctx: NodeContext[Any, Any]) -> None:
            await begin.wait()
            for number in range(1, events + 1):
                ctx.emit("word", text)
                await pause(number)

        app = builder.add_edge(START, "work").add_edge("work", END).compile()
        web = create_app(app)
        run = app.start({}, run_id="bench")

        async def publish() -> None:
            begin.set()
            await run

        return web, "/runs/bench/events", lambda: web.hub.streams, publish


def run(quick: bool = False) -> list[Table]:
    peer = importlib.import_module("benchmarks.peers.sse_starlette_")
    count = 2 if quick else 5
    result = Table(
        f"Server-sent events, deliveries per CPU second of the server, {count} rounds",
        ["clients", "weavegraph", "sse-starlette", "× sse-starlette"],
        notes=[
            f"Events of {len(TEXT)} characters, {BURST} between two turns of the loop. weavegraph's are those of a "
            "run: stamped, kept for resumes, counted, encoded by the server. sse-starlette "
            f"{version('sse-starlette')} is given text that was encoded before, through a queue a watcher; it keeps "
            "nothing."
        ],
    )
    for clients, events, goal in ((1, 2_000 if quick else 20_000, 3), (100, 200 if quick else 1_000, 10)):
        found = rounds({each.NAME: partial(once, each, clients, events) for each in (Ours, peer)}, count)
        ours, theirs = found["weavegraph"], found["sse-starlette"]
        ratio = ours.over(theirs)
        cells = (each.text(lambda value: f"{value:,.0f}") for each in (ours, theirs))
        result.add(str(clients), *cells, f"{ratio:.1f}", goals=[at_least(ratio, goal)])
    return [result]


def once(peer: Any, clients: int, events: int) -> float:
    return asyncio.run(measured(peer, clients, events))


async def measured(peer: Any, clients: int, events: int) -> float:
    async def pause(number: int) -> None:
        if number % BURST == 0:
            await asyncio.sleep(0)

    text = TEXT if peer is Ours else json.dumps({"message": TEXT})
    app, path, watching, publish = await peer.served(events, text, pause)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    words = [sys.executable, "-c", CLIENT, str(port), path, str(clients)]
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    while watching() < clients:
        await asyncio.sleep(0.01)
    began = cpu_seconds()
    await publish()
    out, _ = await process.communicate()
    spent = cpu_seconds() - began
    server.should_exit = True
    await serving
    got = json.loads(out)
    frames = {len(got), *got}
    assert len(got) == clients and len(set(got)) == 1 and got[0] >= events, (peer.NAME, frames)
    assert got[0] == events or peer is Ours, (peer.NAME, frames)  # ours: and the events of the run itself
    return clients * events / spent
