"""Events as bytes of a wire: server-sent events and NDJSON. Pure: no event, loop or socket.

Fields of a frame are refused, not repaired, when they could begin another field or frame: whoever puts foreign text
into one has a mistake to fix. Data may hold anything; its line breaks become ``data:`` lines, as the standard says.
"""

from __future__ import annotations

import functools
import re

from weavegraph.errors import EventInvalidError

__all__ = ["HEARTBEAT", "ndjson_line", "sse_comment", "sse_frame"]

_ID = re.compile(r"[!-~]{1,128}")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_COMMENT = re.compile(r"[ -~]{0,128}")
_BREAKS = re.compile(rb"\r\n|\r|\n")


def sse_frame(data: bytes, *, id: str | None = None, event: str | None = None, retry: float | None = None) -> bytes:
    """One frame of ``text/event-stream``.

    Args:
        id: what the client sends back as ``Last-Event-ID``; printable ASCII. A frame without one leaves the client's
            position as it is. event: the name that ``addEventListener`` takes. retry: seconds.

    Raises:
        EventInvalidError: a field that could not be told from the end of a line.
    """
    head = b"" if id is None else f"id: {_checked('id', id, _ID)}\n".encode()
    if event is not None:
        head += _named(event)
    if retry is not None:
        head += f"retry: {round(retry * 1000):d}\n".encode()
    if b"\n" not in data and b"\r" not in data:
        return b"%bdata: %b\n\n" % (head, data)
    return head + b"".join(b"data: " + line + b"\n" for line in _BREAKS.split(data)) + b"\n"


@functools.lru_cache(64)
def _named(event: str) -> bytes:
    """The line of a name; there are few. A tenth of a frame's price."""
    return f"event: {_checked('event', event, _NAME)}\n".encode()


def sse_comment(text: str = "") -> bytes:
    """What readers ignore, and proxies count as life."""
    return f": {_checked('comment', text, _COMMENT)}\n\n".encode()


def ndjson_line(data: bytes, *, id: str | None = None, event: str) -> bytes:
    """One line: ``{"id": …, "event": …, "data": …}``; ``data`` is JSON already, without a line break."""
    if b"\n" in data or b"\r" in data:
        raise EventInvalidError("data", "a line break in a line")
    position = "" if id is None else f'"id":"{_checked("id", id, _NAME)}",'
    name = _checked("event", event, _NAME)
    return f'{{{position}"event":"{name}","data":'.encode() + data + b"}\n"


def _checked(field: str, text: str, allowed: re.Pattern[str]) -> str:
    if type(text) is not str or not allowed.fullmatch(text):
        raise EventInvalidError(field, f"{text!r:.60} cannot be sent")
    return text


HEARTBEAT = sse_comment()
