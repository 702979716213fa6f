"""A stream as a WebSocket: each event a text message, the same as a line of NDJSON. What a client sends is ignored.

Close codes: 1000 the run is over and everything was sent (also at once, where HTTP says 204); 1012 the server ends,
come back; 1008 refused, or no longer known; 1011 the stream broke; 1013 too slow.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.websockets import WebSocket

from weavegraph.errors import EndOfStream
from weavegraph.web._frames import ndjson_line
from weavegraph.web._sse import farewell
from weavegraph.web._viewer import Viewer

__all__ = ["event_socket"]

_CODES = {"over": 1000, "shutdown": 1012, "reauth": 1008, "failed": 1011, "stalled": 1013}


async def event_socket(watching: AbstractAsyncContextManager[Viewer | None], socket: WebSocket) -> None:
    """Send a stream until it ends or the client leaves. Raises before the socket is accepted what ``watch`` raises."""
    async with watching as viewer:
        await socket.accept()
        if viewer is None:
            await socket.close(1000)
            return
        listener = asyncio.get_running_loop().create_task(_until_gone(socket, viewer))
        try:
            with contextlib.suppress(EndOfStream):
                while True:
                    data = await viewer.next()
                    for line in data.splitlines():
                        await viewer.send(socket.send({"type": "websocket.send", "text": line.decode()}))
            await _say_goodbye(viewer, socket)
        except asyncio.CancelledError:
            if viewer.ending != "stalled":
                raise
            task: Any = asyncio.current_task()
            task.uncancel()
        finally:
            listener.cancel()


async def _say_goodbye(viewer: Viewer, socket: WebSocket) -> None:
    if viewer.ending in ("gone", None):
        return
    last = farewell(viewer)
    with contextlib.suppress(Exception):  # it may have left meanwhile
        if last is not None:
            line = ndjson_line(last[1], event=last[0]).rstrip()
            await viewer.send(socket.send({"type": "websocket.send", "text": line.decode()}))
        await viewer.send(socket.close(_CODES[viewer.ending], reason=viewer.ending))


async def _until_gone(socket: WebSocket, viewer: Viewer) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
    viewer.end("gone")
