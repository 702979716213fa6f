"""``weavegraph tail`` and ``replay``: the events of a run in a log, as they come, or at the pace at which they came."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from weavegraph.cli._lines import Lines
from weavegraph.cli._load import opened, run_of
from weavegraph.cli._screen import Screen, say
from weavegraph.errors import CommandError, InvalidPositionError, LogUnavailableError
from weavegraph.events import GAP_SCOPE, STREAM_END_SCOPE, Event, EventFilter
from weavegraph.protocols import EventLog

__all__ = ["replay", "speed_of", "tail"]

LONGEST_REST = 2.0
"""Seconds that ``replay`` rests between two attempts, which may have been days apart."""
AGAIN = 1.0
"""Seconds after which a log that cannot be read for a while is tried again."""


async def tail(url: str, name: str | None, *, after: int, wanted: EventFilter, as_json: bool) -> int:
    """Print what is there after a position, and then what comes, until the run is over."""
    async with opened(url) as log:
        run_id = await run_of(log, url, name, wait=True)
        printer = Printer(wanted, as_json)
        try:
            async for event in unbroken(log, run_id, after):
                printer.show(event)
        except InvalidPositionError as exc:
            raise CommandError(f"--after {after}: run {run_id} has positions up to {exc.head}") from exc
        finally:
            printer.close()
    return 0


async def replay(url: str, name: str | None, *, speed: float, after: int, wanted: EventFilter, as_json: bool) -> int:
    """Print what is there, resting between events as long as there was between them, divided by ``speed``."""
    async with opened(url) as log:
        run_id = await run_of(log, url, name)
        printer = Printer(wanted, as_json)
        before: tuple[datetime, bool] | None = None
        began, due = asyncio.get_running_loop().time(), 0.0
        try:
            async for event in log.read(run_id, after):
                if speed and before is not None and event.scope != GAP_SCOPE:
                    rest = max((event.timestamp - before[0]).total_seconds(), 0.0)
                    due += min(rest, LONGEST_REST) if before[1] else rest / speed
                    await asyncio.sleep(began + due - asyncio.get_running_loop().time())
                if event.scope != GAP_SCOPE:
                    before = event.timestamp, event.scope == STREAM_END_SCOPE
                printer.show(event)
        except InvalidPositionError as exc:
            raise CommandError(f"--after {after}: run {run_id} has positions up to {exc.head}") from exc
        finally:
            printer.close()
    return 0


async def unbroken(log: EventLog, run_id: str, after: int) -> AsyncIterator[Event]:
    """As ``log.follow``, also over a time in which the log cannot be read; what cannot be read at all is raised."""
    position, begun, told = after, False, False
    while True:
        try:
            async for event in log.follow(run_id, position):
                begun, told = True, False
                position = int(event.metadata["last_seq"]) if event.run_seq is None else event.run_seq
                yield event
            return
        except LogUnavailableError as exc:
            if not begun:
                raise
            if not told:
                say(f"the log cannot be read now: {exc}; trying again")
            told = True
            await asyncio.sleep(AGAIN)


def speed_of(text: str) -> float:
    """``2x`` or ``0.5``: so many times as fast; 0 and ``max``: without resting (0.0)."""
    if text == "max":
        return 0.0
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?x?", text):
        raise CommandError(f"--speed {text}: write 2x, 0.5x, or max")
    return float(text.removesuffix("x"))


class Printer:
    """Prints the events that are wanted; gaps always."""

    def __init__(self, wanted: EventFilter, as_json: bool) -> None:
        self._wanted, self._json, self._screen = wanted, as_json, Screen.out()
        screen: Any = self._screen
        self._lines = Lines(width=screen.width, color=screen.color, unicode=screen.unicode)

    def show(self, event: Event) -> None:
        if event.scope != GAP_SCOPE and not self._wanted(event):
            return
        if self._json:
            self._screen.json(event.to_json())
        else:
            self._screen.write(self._lines.feed(event))

    def close(self) -> None:
        if text := self._lines.close():
            self._screen.write(text)
