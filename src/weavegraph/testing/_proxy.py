"""A TCP proxy that misbehaves on request: what a network does to a broker's clients, on one machine, without root."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Literal, TypeAlias

__all__ = ["Fault", "FaultProxy"]

Fault: TypeAlias = Literal["refuse", "reset", "black_hole", "half_close", "delay", "one_byte", "cut"]
"""``refuse``: new connections are refused, present ones reset. ``reset``: present ones are reset, new ones pass.
``black_hole``: nothing passes either way, and nobody is told. ``half_close``: the server's side ends its sending.
``delay``: every piece comes ``seconds`` late. ``one_byte``: one byte a segment. ``cut``: present connections are reset
after ``count`` more bytes of answers, in the middle of whatever that is."""
PIECE = 65536


class FaultProxy:
    """Stands before ``host:port``; connect to ``proxy.port`` on 127.0.0.1. Lives in one event loop.

    ::

        async with FaultProxy("127.0.0.1", server.port) as proxy:
            proxy.inject("black_hole")
            ...
            proxy.heal()
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self.port = 0
        self.fault: Fault | None = None
        self.seconds = 0.05
        self.connections = 0
        """Accepted so far."""
        self.faults = 0
        """Injected so far."""

    async def start(self) -> FaultProxy:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, start_serving=True)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def inject(self, fault: Fault, *, seconds: float = 0.05, count: int = 0) -> None:
        """Begin a fault; it lasts until ``heal``, but ``reset``, ``half_close`` and ``cut`` happen once."""
        self.faults += 1
        self.fault, self.seconds = fault, seconds
        if fault in ("refuse", "reset"):
            self._reset_all()
        elif fault == "half_close":
            for pair in tuple(self._pairs):
                pair.half_close()
        elif fault == "cut":
            for pair in tuple(self._pairs):
                pair.left = count
        if fault in ("reset", "half_close", "cut"):
            self.fault = None

    def heal(self) -> None:
        """Let everything pass again. What was swallowed by a black hole stays lost: those connections are reset."""
        if self.fault == "black_hole":
            self._reset_all()
        self.fault = None

    def lead_to(self, host: str, port: int) -> None:
        """Another server from now on, as after a failover; present connections are reset."""
        self._target = (host, port)
        self._reset_all()

    async def aclose(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._reset_all()
        for pair in tuple(self._pairs):
            await pair.ended()

    async def __aenter__(self) -> FaultProxy:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _reset_all(self) -> None:
        for pair in tuple(self._pairs):
            pair.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.fault == "refuse":
            _reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        pair = _Pair(self, (reader, writer), (server_reader, server_writer))
        self._pairs.add(pair)
        try:
            await pair.run()
        finally:
            self._pairs.discard(pair)


_Side: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pair:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: _Side, server: _Side) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self.left: int | None = None
        """Bytes of answers until the connection is cut."""
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        self._tasks = [
            asyncio.ensure_future(self._pump(self._client[0], self._server[1], answers=False)),
            asyncio.ensure_future(self._pump(self._server[0], self._client[1], answers=True)),
        ]
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.reset()
        await self.ended()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                fault = self._proxy.fault
                if fault == "black_hole":
                    continue
                if fault == "delay":
                    await asyncio.sleep(self._proxy.seconds)
                if answers and self.left is not None:
                    data, self.left = data[: self.left], self.left - len(data)
                pieces = [data[n : n + 1] for n in range(len(data))] if fault == "one_byte" else [data]
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                if answers and self.left is not None and self.left <= 0:
                    return

    def half_close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._client[1].write_eof()

    def reset(self) -> None:
        for _, writer in (self._client, self._server):
            _reset(writer)
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with an RST, not a FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
