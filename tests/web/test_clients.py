"""Clients that leave, stall, dawdle or never read cost nobody else anything, and are gone in time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support import clause
from tests.web.support import PATIENCE, Client, Gated, Parser, chatty, eventually, listening, serving
from weavegraph import RuntimeConfig
from weavegraph.web import WebApp, create_app


def tasks() -> int:
    return len(asyncio.all_tasks())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def hostile(port: int, request: bytes) -> socket.socket:
    """A connection that is given a small window, so that not reading is noticed soon."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(True)
    sock.connect(("127.0.0.1", port))
    sock.sendall(request)
    return sock


def get(port: int, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()


@clause("8.disconnect")
async def test_a_client_that_leaves_is_gone_within_a_tenth_of_a_second() -> None:
    talk = Gated()
    async with serving(talk.app) as (web, client):
        run_id = await client.start()
        for _ in range(10):
            stream = await client.watch(run_id)
            await stream.take(1)
            began = time.monotonic()
            stream.leave()
            await eventually(lambda: web.hub.streams == 0 and web.hub.feeds == 0)
            assert time.monotonic() - began < 0.1
        talk.say(None)


@clause("L7")
async def test_who_does_not_read_is_given_up_and_nobody_else_notices() -> None:
    talk = Gated()
    async with (
        serving(talk.app, send_timeout=1.0, heartbeat=0.2) as (web, client),
        contextlib.AsyncExitStack() as after,
    ):
        run_id = await client.start()
        path = f"/runs/{run_id}/events?after=0"
        others = [await client.watch(run_id) for _ in range(3)]
        before = tasks(), descriptors()
        never = [hostile(client.port, get(client.port, path)) for _ in range(3)]
        slow = hostile(client.port, get(client.port, path))
        after.callback(lambda: [sock.close() for sock in (*never, slow)])
        await eventually(lambda: web.hub.streams == 7)
        word = "x" * 5000
        dawdling = asyncio.create_task(_a_byte_now_and_then(slow))
        reading = [asyncio.create_task(_words(stream, 400)) for stream in others]
        for _ in range(400):  # 2 MB: more than kernels keep for them
            talk.say(word)
        assert await asyncio.gather(*reading) == [400] * 3
        await eventually(lambda: web.hub.streams == 3)  # the hostile ones are given up
        dawdling.cancel()
        await asyncio.wait([dawdling])
        talk.say(None)
        for stream in others:
            assert (await stream.rest())[-1].event == "end"
        await eventually(lambda: web.hub.streams == 0 and web.hub.feeds == 0)
        after.pop_all()
        for sock in (*never, slow):
            sock.close()
        await eventually(lambda: tasks() <= before[0] and descriptors() <= before[1])


async def _a_byte_now_and_then(sock: socket.socket) -> None:
    sock.setblocking(False)
    while True:
        await asyncio.sleep(0.05)  # sleeps: its pace
        try:
            if not sock.recv(1):
                return
        except BlockingIOError:
            pass
        except OSError:
            return


async def _words(stream: Any, count: int) -> int:
    frames = await stream.frames(lambda found: sum(frame.event == "node" for frame in found) >= count)
    return sum(frame.event == "node" for frame in frames)


async def test_a_thousand_clients_come_and_go_and_nothing_is_left() -> None:
    talk = Gated()
    async with serving(talk.app) as (web, client):
        run_id = await client.start()
        await asyncio.sleep(0)
        before = tasks(), descriptors()
        rng = random.Random(7)
        for _ in range(20):
            await asyncio.gather(*(_come_and_go(client, run_id, rng.randrange(4)) for _ in range(50)))
        await eventually(lambda: (web.hub.streams, web.hub.feeds) == (0, 0))
        await eventually(lambda: tasks() <= before[0] and descriptors() <= before[1])
        talk.say(None)


async def _come_and_go(client: Client, run_id: str, when: int) -> None:
    """Leave before the request is whole, before the answer, after its head, or in the middle of the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    request = get(client.port, f"/runs/{run_id}/events?after=0")
    writer.write(request[: len(request) // 2] if when == 0 else request)
    if when >= 2:
        await reader.readline()
    if when == 3:
        await reader.readuntil(b"data: ")
    writer.transport.abort()


async def test_half_a_request_is_not_waited_for_for_ever() -> None:
    talk = Gated()
    web = create_app(talk.app)
    async with listening(web, head_timeout=1.0) as server:
        client = Client(server.servers[0].sockets[0].getsockname()[1])
        run_id = await client.start()
        stream = await client.watch(run_id)  # a request that is whole may take as long as it likes
        await asyncio.gather(
            _half(client, False, b""), _half(client, False, b"GET / HT"), _half(client, True, b"GET /li")
        )
        assert web.hub.streams == 1
        talk.say(None)
        assert (await stream.rest())[-1].event == "end"
        await client.aclose()


async def _half(client: Client, whole: bool, half: bytes) -> None:
    """Perhaps a request, then half of one; wait until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    if whole:
        writer.write(get(client.port, "/live"))
        await reader.readuntil(b'"ok"}')
    writer.write(half)
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
    writer.transport.abort()


async def test_a_slot_is_given_back_when_the_body_never_started() -> None:
    web = create_app(chatty())
    async with web.lifespan():
        handle = web.app.start({}, run_id="r")
        await handle
        before = tasks()
        for fail_at in range(4):
            for error in (OSError("gone"), asyncio.CancelledError()):
                await _drive(web, fail_at, error)
        assert (web.hub.streams, web.hub.feeds) == (0, 0)
        await eventually(lambda: tasks() <= before)


async def _drive(web: WebApp, fail_at: int, error: BaseException) -> None:
    """A request of an ASGI server whose ``send`` fails at one of its calls, or never returns."""
    calls = 0

    async def send(message: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > fail_at:
            raise error

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {
        "type": "http", "method": "GET", "path": "/runs/r/events", "query_string": b"after=0",
        "headers": [(b"host", b"localhost")], "server": ("127.0.0.1", 1),
    }  # fmt: skip
    try:
        await web(scope, receive, send)
    except (OSError, asyncio.CancelledError) as exc:
        assert exc is error or isinstance(exc, type(error))


async def test_a_server_that_cannot_give_a_connection_up_is_left_all_the_same() -> None:
    talk = Gated()
    web = create_app(talk.app, send_timeout=0.1, heartbeat=0.1)
    async with web.lifespan():
        handle = web.app.start({}, run_id="r")

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        async def receive() -> Any:
            await asyncio.Event().wait()

        scope = {
            "type": "http", "method": "GET", "path": "/runs/r/events", "query_string": b"after=0",
            "headers": [(b"host", b"localhost")], "server": ("127.0.0.1", 1),
        }  # fmt: skip
        async with asyncio.timeout(5):
            await web(scope, receive, send)
        assert web.hub.streams == 0
        talk.say(None)
        await handle


@clause("8.sigterm")
async def test_the_end_of_the_server_is_told_and_takes_less_than_two_seconds() -> None:
    talk = Gated(RuntimeConfig(cancel_grace=0.01))
    async with serving(talk.app) as (web, client):
        run_id = await client.start()
        watching = [await client.watch(run_id) for _ in range(3)]
        stuck = hostile(client.port, get(client.port, f"/runs/{run_id}/events?after=0"))
        await eventually(lambda: web.hub.streams == 4)
        talk.say(*["y" * 50_000] * 100)  # more than the one that does not read can be given
        await asyncio.gather(*(_words(stream, 100) for stream in watching))
        began = time.monotonic()
        web.end_streams()
        for frames in await asyncio.gather(*(stream.rest() for stream in watching)):
            assert frames[-1].event == "shutdown"
        assert time.monotonic() - began < 0.5
    assert time.monotonic() - began < 2.5  # the app is drained, too
    stuck.close()


@clause("8.sigterm")
async def test_streams_end_with_a_shutdown_frame_without_an_id() -> None:
    talk = Gated(RuntimeConfig(cancel_grace=0.01))
    async with serving(talk.app) as (web, client):
        run_id = await client.start()
        stream = await client.watch(run_id)
        frames = await stream.take(1)
        web.end_streams()
        frames = await stream.rest()
        assert frames[-1].event == "shutdown" and frames[-1].id is None
        answer = await client.ask("GET", f"/runs/{run_id}/events")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "server_closing", "1")


PROGRAM = """
import sys
from weavegraph import END, START, GraphBuilder
import asyncio

builder = GraphBuilder()

@builder.node
async def talk(state, ctx):
    for n in range(state["extra"].get("words", 3)):
        ctx.emit("word", str(n))
        await asyncio.sleep(state["extra"].get("pause", 0.0))  # sleeps: its work

app = builder.add_edge(START, "talk").add_edge("talk", END)
"""


STEPS = """
import asyncio
from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()

@builder.node
async def step(state, ctx):
    n = state["extra"].get("n", 0)
    with open("ran.txt", "a") as file:
        print("began", n, file=file, flush=True)
        ctx.emit("began", str(n))
        await asyncio.sleep(0.1)  # sleeps: its work
        print("ended", n, file=file, flush=True)
    return {"extra": {"n": n + 1}}

app = builder.add_edge(START, "step").add_conditional_edge(
    "step", lambda state: END if state["extra"]["n"] == 12 else "step", to=["step", END])
"""


class Served:
    """``serve`` as a process of its own."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0, program: str = PROGRAM) -> None:
        (folder / "flow.py").write_text(program)
        call = f"from weavegraph.web import serve; serve('flow:app', port={port}, {', '.join(arguments)})"
        self.process = subprocess.Popen([sys.executable, "-c", call], cwd=folder, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(line.rsplit(":", 1)[1].strip().rstrip("/"))

    def stop(self, how: int) -> float:
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return time.monotonic() - began


@clause("8.sigterm", "8.kill", "10.valid")
async def test_a_client_sees_each_event_once_through_restarts_of_the_server(tmp_path: Path) -> None:
    """Stopped by SIGTERM or SIGKILL in mid-run, and started again on the same port: it resumes the run."""
    served = await asyncio.to_thread(Served, tmp_path, "log='sqlite:runs.db'", "resume=True")
    client = Client(served.port)
    run_id = await client.start({"extra": {"words": 40, "pause": 0.02}}, session_id="s")
    seen: list[int] = []
    last: str | None = "0"
    outcome, restarts = "", 0
    async with asyncio.timeout(40):
        while outcome != "completed":
            try:
                stream = await client.watch(run_id, last)
                if stream.status == 204:
                    break
                count = 0
                async with asyncio.timeout(10):
                    while piece := await stream.more():
                        for frame in stream.parser.feed(piece):
                            count += 1
                            if frame.id is None:
                                continue
                            seen.append(frame.json["run_seq"])
                            last = frame.id
                            if frame.event == "end":
                                outcome = frame.json["metadata"]["outcome"]
                        if restarts < 2 and count > 12:
                            break
            except (OSError, asyncio.IncompleteReadError, IndexError, ValueError):
                await asyncio.sleep(0)
            if restarts < 2 and outcome == "":
                how = (signal.SIGKILL, signal.SIGTERM)[restarts]
                await asyncio.to_thread(served.stop, how)
                restarts += 1
                served = await asyncio.to_thread(
                    Served, tmp_path, "log='sqlite:runs.db'", "resume=True", port=served.port
                )
                last = last or "0"
    assert seen == [*range(1, len(seen) + 1)] and restarts == 2 and outcome == "completed"
    assert (await client.watch(run_id, last)).status == 204
    stream = await client.open("GET", "/events")
    took = await asyncio.to_thread(served.stop, signal.SIGTERM)
    parser = Parser()
    while piece := await stream.more():
        parser.feed(piece)
    assert parser.frames[-1].event == "shutdown" and took < 2.5
    await client.aclose()


@clause("10.valid")
async def test_a_client_hops_between_two_processes_of_one_log(tmp_path: Path) -> None:
    """Each position that one server gave is good at the other, while the run goes on in the first."""
    one, two = [await asyncio.to_thread(Served, tmp_path, "log='sqlite:runs.db'") for _ in range(2)]
    here, there = Client(one.port), Client(two.port)
    run_id = await here.start({"extra": {"words": 100, "pause": 0.01}})
    assert (await there.ask("POST", f"/runs/{run_id}/cancel")).code == "run_elsewhere"
    seen: list[int] = []
    last: str | None = "0"
    hops = 0
    async with asyncio.timeout(40):
        for client in itertools.cycle((there, here)):
            stream = await client.watch(run_id, last)
            if stream.status == 204:
                break
            frames = await stream.frames(lambda found: len(found) >= 5)
            stream.leave()
            hops += 1
            seen += [frame.json["run_seq"] for frame in frames]
            last = frames[-1].id
    assert seen == [*range(1, len(seen) + 1)] and len(seen) > 100 and hops >= 5
    for client, server in ((here, one), (there, two)):
        await client.aclose()
        await asyncio.to_thread(server.stop, signal.SIGTERM)


@clause("8.sigterm", "O3.resume")
async def test_sigterm_stops_a_run_between_two_steps_and_the_next_server_goes_on(tmp_path: Path) -> None:
    served = await asyncio.to_thread(Served, tmp_path, "log='sqlite:runs.db'", program=STEPS)
    client = Client(served.port)
    run_id = await client.start()
    stream = await client.watch(run_id)
    await stream.frames(lambda found: sum(frame.json.get("scope") == "began" for frame in found) >= 3)
    took = await asyncio.to_thread(served.stop, signal.SIGTERM)
    seen = await stream.rest()
    assert seen[-1].event == "shutdown" and took < 2.5
    ran = (tmp_path / "ran.txt").read_text().splitlines()
    assert ran == [f"{word} {n}" for n in range(len(ran) // 2) for word in ("began", "ended")]  # no step was cut
    served = await asyncio.to_thread(
        Served, tmp_path, "log='sqlite:runs.db'", "resume=True", port=served.port, program=STEPS
    )
    seen = [*seen[:-1], *await (await client.watch(run_id, seen[-2].id)).rest()]
    assert [frame.json["run_seq"] for frame in seen] == [*range(1, len(seen) + 1)]
    ends = [frame.json["metadata"]["outcome"] for frame in seen if frame.event in ("pause", "end")]
    assert ends == ["interrupted", "completed"]
    ran = (tmp_path / "ran.txt").read_text().splitlines()
    assert ran == [f"{word} {n}" for n in range(12) for word in ("began", "ended")]  # none ran twice
    await client.aclose()
    await asyncio.to_thread(served.stop, signal.SIGTERM)
