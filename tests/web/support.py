"""A server in this loop, a client of raw bytes, and a reader of frames written from the standard, not from our code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from tests.support import eventually
from weavegraph import END, START, App, GraphBuilder, NodeContext, RuntimeConfig
from weavegraph.web import WebApp, create_app
from weavegraph.web._serve import Server

PATIENCE = 10.0
_BREAKS = re.compile(rb"\r\n|\n|\r(?=[^\n])")  # a CR that ends a piece may be half of one


class Frame(NamedTuple):
    """``id`` is ``None`` where the frame has none."""

    id: str | None
    event: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Parser:
    """Server-sent events as the standard's section 9.2.6 parses them; comments are kept, for tests."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.comments: list[str] = []
        self.retry: str | None = None
        self.last_id = ""
        self._buffer = b""
        self._fields: dict[str, str] = {}
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Frame]:
        before = len(self.frames)
        *lines, self._buffer = _BREAKS.split(self._buffer + data)
        for line in lines:
            self._line(line.decode())
        return self.frames[before:]

    def _line(self, line: str) -> None:
        if not line:
            if self._data:
                frame = Frame(self._fields.get("id"), self._fields.get("event", "message"), "\n".join(self._data))
                self.frames.append(frame)
            if "id" in self._fields:
                self.last_id = self._fields["id"]
            self._fields, self._data = {}, []
            return
        if line.startswith(":"):
            self.comments.append(line[1:].removeprefix(" "))
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "retry":
            self.retry = value
        elif name in ("id", "event"):
            self._fields[name] = value


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        code: str = self.json["error"]["code"]
        return code


class Stream:
    """An open response: frames as they come."""

    def __init__(self, status: int, headers: dict[str, str], reader: Any, writer: Any) -> None:
        self.status, self.headers, self.parser = status, headers, Parser()
        self._reader, self._writer = reader, writer
        self._chunked = headers.get("transfer-encoding") == "chunked"
        self.over = False

    async def more(self) -> bytes:
        """The next piece of the body; empty at its end."""
        if self.over:
            return b""
        if not self._chunked:
            data: bytes = await self._reader.read(65536)
        else:
            size = int((await self._reader.readline()).strip() or b"0", 16)
            data = await self._reader.readexactly(size)
            await self._reader.readline()
        self.over = not data
        return data

    async def frames(self, until: Callable[[list[Frame]], bool]) -> list[Frame]:
        """What came, as soon as it is enough, or at the end."""
        async with asyncio.timeout(PATIENCE):
            while not until(self.parser.frames):
                data = await self.more()
                if not data:
                    break
                self.parser.feed(data)
        return self.parser.frames

    async def take(self, count: int) -> list[Frame]:
        return (await self.frames(lambda found: len(found) >= count))[:count]

    async def rest(self) -> list[Frame]:
        """Everything, to the end of the response."""
        return await self.frames(lambda found: False)

    async def comment(self) -> None:
        """Wait for a heartbeat."""
        async with asyncio.timeout(PATIENCE):
            while not self.parser.comments:
                self.parser.feed(await self.more())

    def leave(self) -> None:
        """Reset the connection, as a process that dies. Idempotent."""
        self._writer.transport.abort()


class Client:
    """One connection a request."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port, self.headers = port, {"Host": f"127.0.0.1:{port}", **headers}
        self._streams: list[Stream] = []

    def like(self, **headers: str) -> Client:
        """The same with other headers; closed with this one."""
        other = Client(self.port, **headers)
        other._streams = self._streams
        return other

    async def open(self, method: str, path: str, body: Any = None, **headers: str) -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        sent = {**self.headers, "Connection": "close"}
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if method == "POST":
            sent |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items() if value)
        writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
        status = int((await reader.readline()).split()[1])
        found = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            found[name.lower()] = value.strip()
        stream = Stream(status, found, reader, writer)
        self._streams.append(stream)
        return stream

    async def aclose(self) -> None:
        for stream in self._streams:
            stream.leave()
        await asyncio.sleep(0)
        self._streams.clear()

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        async with asyncio.timeout(PATIENCE):
            stream = await self.open(method, path, body, **headers)
            data = b""
            while piece := await stream.more():
                data += piece
        stream.leave()
        return Answer(stream.status, stream.headers, data)

    async def start(self, input: Any = None, **options: Any) -> str:
        answer = await self.ask("POST", "/runs", {"input": input or {}, **options})
        assert answer.status == 201, answer
        run_id: str = answer.json["run_id"]
        return run_id

    async def watch(self, run_id: str, after: str | None = "0", **headers: str) -> Stream:
        if after not in (None, "0"):
            headers["Last_Event_ID"] = str(after)
        query = "?after=0" if after == "0" else ""
        return await self.open("GET", f"/runs/{run_id}/events{query}", **headers)


class Quiet(Server):
    """A server that leaves the test runner's signal handlers alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serving(app: App[Any], **settings: Any) -> AsyncIterator[tuple[WebApp, Client]]:
    """A server of ``app`` on a free port, in this loop."""
    web = create_app(app, **settings)
    async with listening(web) as server:
        client = Client(server.servers[0].sockets[0].getsockname()[1])
        try:
            yield web, client
        finally:
            await client.aclose()


@contextlib.asynccontextmanager
async def listening(web: WebApp, app: Any = None, **options: Any) -> AsyncIterator[Quiet]:
    server = Quiet(web, port=0, log_level="critical", **options)
    if app is not None:
        server.config.app = app
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started or task.done(), PATIENCE)
    assert server.started
    try:
        yield server
    finally:
        server.should_exit = True
        await task


class Gated:
    """A graph whose node says words one by one, as it is let."""

    def __init__(self, config: RuntimeConfig | None = None) -> None:
        self.words: asyncio.Queue[str | None] = asyncio.Queue()
        builder = GraphBuilder()

        @builder.node
        async def talk(state: Any, ctx: NodeContext[Any, Any]) -> None:
            while (word := await self.words.get()) is not None:
                ctx.emit("word", word)

        builder.add_edge(START, "talk").add_edge("talk", END)
        self.app = builder.compile(config or RuntimeConfig())

    def say(self, *words: str | None) -> None:
        for word in words:
            self.words.put_nowait(word)


def chatty(count: int = 5, config: RuntimeConfig | None = None, **metadata: Any) -> App[Any]:
    """A graph that says ``count`` words and streams an answer."""
    builder = GraphBuilder()

    @builder.node
    async def talk(state: Any, ctx: NodeContext[Any, Any]) -> None:
        for n in range(count):
            ctx.emit("word", str(n), **metadata)
        await ctx.stream_llm(["green ", "tea"], stream_id="answer")

    builder.add_edge(START, "talk").add_edge("talk", END)
    return builder.compile(config or RuntimeConfig())


Starter = Callable[[], Awaitable[str]]
