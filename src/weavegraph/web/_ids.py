"""Positions as a client sees them: opaque ids, strictly increasing (as text, too) within one stream.

An id names its stream, so that one of another run is refused, and, where positions end with the process, the
process's epoch, so that one of an earlier process is known for what it is.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from weavegraph.errors import InvalidCursorError, RunNotFoundError

__all__ = ["EVERYTHING", "MAX_CHARS", "Cursor", "WireIds"]

MAX_CHARS = 128
EVERYTHING = "*"
"""In place of a run id: the stream of all runs, whose positions are the bus's."""
_FORM = re.compile(r"([0-9a-f]{8})\.([0-9]{12,19})(?:\.([0-9a-f]{8}))?")


class Cursor(NamedTuple):
    """Where a client stands. ``foreign``: of another epoch; its position means nothing here."""

    position: int
    foreign: bool = False


class WireIds:
    """The ids of one stream. ``epoch``: only where positions end with the process."""

    def __init__(self, stream: str, epoch: str | None) -> None:
        self._stream = stream
        self._mark = _digest(stream)
        self._epoch = None if epoch is None else _digest(epoch)
        self._suffix = "" if self._epoch is None else f".{self._epoch}"

    def of(self, position: int) -> str:
        """The id of the event at ``position``."""
        return f"{self._mark}.{position:012d}{self._suffix}"

    def parse(self, text: str) -> Cursor:
        """Where ``text`` stands; ``0`` is before the first event.

        Raises:
            InvalidCursorError: it is no id. RunNotFoundError: it is one of another run.
        """
        if text == "0":
            return Cursor(0)
        found = _FORM.fullmatch(text) if len(text) <= MAX_CHARS else None
        if found is None or (found[3] is None) is not (self._epoch is None):
            raise InvalidCursorError("malformed")
        if found[1] != self._mark:
            raise RunNotFoundError(self._stream)
        return Cursor(int(found[2]), foreign=found[3] != self._epoch)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
