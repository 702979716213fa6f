"""A TCP proxy in this loop that cuts connections, for clients that have to come back."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """``await proxy.start()``; then ``proxy.port`` leads to ``target`` until ``cut``, which resets everybody."""

    def __init__(self, target: int) -> None:
        self.target, self.port, self.cuts = target, 0, 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.cut_after: int | None = None
        """Bytes of an answer after which its connection is cut, in the middle of a frame as like as not."""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection."""
        self.cuts += bool(self._writers)
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        both = [
            asyncio.create_task(self._pass(reader, up_writer, None)),
            asyncio.create_task(self._pass(up_reader, writer, self.cut_after)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.wait(both)
            self._writers -= {writer, up_writer}
            writer.transport.abort()
            up_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if most is not None and passed + len(data) > most:
                    writer.write(data[: most - passed])
                    await writer.drain()
                    self.cuts += 1
                    return
                passed += len(data)
                writer.write(data)
                await writer.drain()
