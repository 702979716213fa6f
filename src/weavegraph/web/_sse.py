"""A stream as an HTTP response: server-sent events, or NDJSON.

::

    listener ──http.disconnect──▶ viewer.end("gone")
    loop:  viewer.next() ──bytes of whole frames──▶ send, watched by the hub's clock

The way it ends: after the run's last event (``over``), with a ``shutdown``, ``reauth`` or ``broken`` frame (without an
id: the client comes back to where it was), or without a word when the client left or took nothing (``stalled``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from weavegraph.errors import EndOfStream
from weavegraph.web._feed import Form
from weavegraph.web._frames import HEARTBEAT, ndjson_line, sse_frame
from weavegraph.web._viewer import Viewer

__all__ = ["EventResponse", "farewell"]

_TYPES: dict[Form, bytes] = {"sse": b"text/event-stream; charset=utf-8", "ndjson": b"application/x-ndjson"}
_HEADERS = [
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"content-encoding", b"identity"),
    (b"x-content-type-options", b"nosniff"),
]
_BEAT: dict[Form, bytes] = {"sse": HEARTBEAT, "ndjson": b"\n"}


def farewell(viewer: Viewer) -> tuple[str, bytes] | None:
    """Name and data of the frame that a client is given when its stream ends before the run does."""
    if viewer.ending in ("shutdown", "reauth"):
        return viewer.ending, b"{}"
    if viewer.ending == "failed":
        code = viewer.failure.code if viewer.failure is not None else "internal"
        return "broken", f'{{"code":"{code}"}}'.encode()
    return None


class EventResponse:
    """An ASGI response that goes on as long as its stream. ``watch`` gives the viewer; see ``StreamHub.watch``."""

    def __init__(
        self,
        watch: Callable[[], AbstractAsyncContextManager[Viewer | None]],
        form: Form,
        retry: float,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        self._watch, self._form, self._retry, self._headers = watch, form, retry, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._watch() as viewer:
            if viewer is None:
                headers = [(b"cache-control", b"no-store"), *self._headers]
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
            start = {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", _TYPES[self._form]), *_HEADERS, *self._headers],
            }
            if scope["method"] == "HEAD":
                await send(start)
                await send({"type": "http.response.body", "body": b""})
                return
            viewer.abort = scope.get("extensions", {}).get("weavegraph.connection", {}).get("abort")
            listener = asyncio.get_running_loop().create_task(_until_gone(receive, viewer))
            try:
                await self._stream(viewer, start, send)
            except asyncio.CancelledError:
                if viewer.ending != "stalled":
                    raise
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
            finally:
                listener.cancel()

    async def _stream(self, viewer: Viewer, start: Message, send: Send) -> None:
        await viewer.send(send(start))
        if self._form == "sse":  # at once: proxies and browsers then know that the stream is open
            await viewer.send(send(_body(f"retry: {round(self._retry * 1000)}\n\n".encode())))
        with contextlib.suppress(EndOfStream):
            while True:
                data = await viewer.next()
                await viewer.send(send(_body(data or _BEAT[self._form])))
        if viewer.ending in ("gone", "stalled"):
            return
        last = farewell(viewer)
        if last is not None:
            make: Any = sse_frame if self._form == "sse" else ndjson_line
            await viewer.send(send(_body(make(last[1], event=last[0]))))
        await viewer.send(send({"type": "http.response.body", "body": b"", "more_body": False}))


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _until_gone(receive: Receive, viewer: Viewer) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    viewer.end("gone")
