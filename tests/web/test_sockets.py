"""The same stream as a WebSocket, driven as a server drives it; and by a real client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from tests.support import clause
from tests.web.support import Gated, chatty, eventually, serving
from weavegraph import App
from weavegraph.web import WebApp, bearer, create_app


class Socket:
    """A client's side of one WebSocket."""

    def __init__(self, web: WebApp, path: str, query: str = "", **headers: str) -> None:
        pairs = [(b"host", b"localhost"), *((k.replace("_", "-").encode(), v.encode()) for k, v in headers.items())]
        self._scope: dict[str, Any] = {
            "type": "websocket", "path": path, "query_string": query.encode(), "headers": pairs,
            "server": ("127.0.0.1", 1), "subprotocols": [],
        }  # fmt: skip
        self._in: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.say({"type": "websocket.connect"})
        self.task = asyncio.create_task(web(self._scope, self._in.get, self.sent.put))

    def say(self, message: Any) -> None:
        self._in.put_nowait(message)

    async def rest(self) -> list[Any]:
        """Everything up to the close; messages as JSON."""
        found = []
        async with asyncio.timeout(10):
            while True:
                message = await self.sent.get()
                if message["type"] == "websocket.close":
                    await self.task
                    return [*found, message["code"]]
                if message["type"] == "websocket.send":
                    found.append(json.loads(message["text"]))


@contextlib.asynccontextmanager
async def shown(app: App[Any], **settings: Any) -> AsyncIterator[WebApp]:
    web = create_app(app, **settings)
    async with web.lifespan():
        yield web


@clause("10.valid", "10.over")
async def test_the_same_events_and_positions_as_over_http() -> None:
    async with serving(chatty()) as (web, client):
        run_id = await client.start()
        frames = await (await client.watch(run_id)).rest()
        *told, code = await Socket(web, f"/runs/{run_id}/ws", "after=0").rest()
        assert [(line["id"], line["event"], line["data"]) for line in told] == [
            (frame.id, frame.event, frame.json) for frame in frames
        ]
        assert code == 1000
        *told, code = await Socket(web, f"/runs/{run_id}/ws", f"after={frames[2].id}&kinds=llm").rest()
        assert [line["event"] for line in told] == ["llm"] * (len(told) - 1) + ["end"]
        assert await Socket(web, f"/runs/{run_id}/ws", f"after={frames[-1].id}").rest() == [1000]


@clause("12.6", "10.malformed")
async def test_what_is_refused_is_refused_before_it_is_accepted() -> None:
    async with shown(chatty(), auth=bearer({"alice-token": "alice"})) as web:
        alice = {"authorization": "Bearer alice-token"}
        for headers, path, reason in (
            ({}, "/ws", "unauthorized"), (alice, "/ws", "not_allowed"), (alice, "/runs/x/ws", "run_not_found"),
            ({**alice, "origin": "http://evil.example"}, "/ws", "origin"),
            (alice, "/sessions/x/ws", "session_not_found"),
        ):  # fmt: skip
            socket = Socket(web, path, **headers)
            await socket.task
            assert socket.sent.get_nowait() == {"type": "websocket.close", "code": 1008, "reason": reason}
    async with shown(chatty()) as web:
        await web.app.start({}, run_id="r")
        for query, reason in (("after=1", "invalid_cursor"), ("after=0&kinds=x", "config")):
            socket = Socket(web, "/runs/r/ws", query)
            await socket.task
            assert socket.sent.get_nowait()["reason"] == reason


@clause("8.disconnect")
async def test_a_client_that_leaves_gives_its_slot_back() -> None:
    talk = Gated()
    async with shown(talk.app) as web:
        handle = web.app.start({}, run_id="r")
        socket = Socket(web, "/runs/r/ws", "after=0")
        await eventually(lambda: web.hub.streams == 1)
        socket.say({"type": "websocket.receive", "text": "hello"})
        socket.say({"type": "websocket.disconnect", "code": 1001})
        await socket.task
        assert (web.hub.streams, web.hub.feeds) == (0, 0)
        talk.say(None)
        await handle


@clause("8.sigterm")
async def test_the_end_of_the_server_is_told() -> None:
    talk = Gated()
    async with shown(talk.app) as web:
        handle = web.app.start({}, run_id="r")
        sockets = [Socket(web, path, "after=0") for path in ("/runs/r/ws", "/ws", "/sessions/s/ws")]
        await eventually(lambda: web.hub.streams == 3)
        web.end_streams()
        for socket in sockets:
            *_, last, code = await socket.rest()
            assert (last, code) == ({"event": "shutdown", "data": {}}, 1012)
        talk.say(None)
        await handle


async def test_who_takes_nothing_is_given_up() -> None:
    talk = Gated()
    async with shown(talk.app, send_timeout=0.1, heartbeat=0.1) as web:
        handle = web.app.start({}, run_id="r")
        socket = Socket(web, "/runs/r/ws", "after=0")
        socket.task.cancel()
        await asyncio.wait([socket.task])
        incoming: asyncio.Queue[Any] = asyncio.Queue()
        incoming.put_nowait({"type": "websocket.connect"})

        async def send(message: Any) -> None:
            if message["type"] == "websocket.send":
                await asyncio.Event().wait()

        async with asyncio.timeout(5):
            await web(socket._scope, incoming.get, send)
        assert web.hub.streams == 0
        talk.say(None)
        await handle


async def test_a_real_client() -> None:
    async with serving(chatty()) as (_, client):
        run_id = await client.start()
        frames = await (await client.watch(run_id)).rest()
        uri = f"ws://127.0.0.1:{client.port}/runs/{run_id}/ws?after=0"
        async with connect(uri) as socket:
            told = [json.loads(text) async for text in socket]
        assert [line["id"] for line in told] == [frame.id for frame in frames]


@clause("12.7")
async def test_a_large_frame_is_refused_by_its_header_and_nothing_is_compressed() -> None:
    """A frame that says it is 1 GiB, and one that is more than 64 KiB: closed with 1009; the stream's slot is free."""
    talk = Gated()
    async with serving(talk.app) as (web, client):
        handle = web.app.start({}, run_id="r")
        uri = f"ws://127.0.0.1:{client.port}/runs/r/ws?after=0"
        for large in (b"\x81\xff" + (1 << 30).to_bytes(8, "big") + b"mask" + b"x" * 100, None):
            async with connect(uri, compression="deflate") as socket:
                assert socket.protocol.extensions == []
                await socket.recv()
                if large is None:
                    await socket.send("x" * (64 * 1024 + 1))
                else:
                    socket.transport.write(large)
                with pytest.raises(ConnectionClosedError) as closed:
                    while True:
                        await socket.recv()
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
            await eventually(lambda: web.hub.streams == 0)
        talk.say(None)
        await handle
