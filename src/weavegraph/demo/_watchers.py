"""Everyone who watches the demo's run: each sees every event, or can say exactly which it missed."""

from __future__ import annotations

import asyncio
import shutil
import textwrap
import threading
from collections.abc import Sequence
from typing import TextIO

from weavegraph import (
    GAP_SCOPE,
    Event,
    EventStream,
    LLMStreamingEvent,
    NodeEvent,
)
from weavegraph.errors import PermanentSinkError
from weavegraph.sinks import escape_controls

__all__ = ["PickySink", "Terminal", "blocking_reader", "fast_reader", "slow_reader"]


class PickySink:
    """A sink that refuses some events, to show that its failures are its own and are counted."""

    name = "picky"

    def handle(self, batch: Sequence[Event]) -> None:
        for event in batch:
            if event.scope == "rank":
                raise PermanentSinkError("this sink does not like ranks")


class Terminal:
    """Prints the run as it happens: a line for what nodes say, the digest word by word."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._width = min(shutil.get_terminal_size((80, 24)).columns, 100) if out.isatty() else 80
        self._column = 0
        self._scores = 0

    async def watch(self, stream: EventStream) -> None:
        async with stream:
            async for event in stream:
                self._show(event)

    def _show(self, event: Event) -> None:
        if isinstance(event, LLMStreamingEvent):
            if event.phase == "chunk":
                self._word(escape_controls(event.chunk))
            else:
                self._line("")
        elif isinstance(event, NodeEvent) and event.scope == "score":
            self._scores += 1
        elif isinstance(event, NodeEvent):
            if self._scores:
                self._line(f"  scored {self._scores} times, three nodes at once")
                self._scores = 0
            label = f"{event.node_id}@{event.step}"
            text = f"  {label:<12}{escape_controls(event.message)}"
            for line in textwrap.wrap(text, self._width, subsequent_indent=" " * 14, drop_whitespace=False) or [text]:
                self._line(line)

    def _word(self, text: str) -> None:
        if not self._column:
            text = "  " + text.lstrip()
        elif self._column + len(text) > self._width:
            self._out.write("\n")
            self._column = 0
            text = "  " + text.lstrip()
        self._column += len(text)
        self._out.write(text)
        self._out.flush()

    def _line(self, text: str) -> None:
        if self._column:
            self._out.write("\n")
            self._column = 0
        if text:
            self._out.write(text + "\n")
        self._out.flush()


async def fast_reader(stream: EventStream) -> int:
    """Reads as fast as it can, in batches; the number of events it got."""
    async with stream:
        return sum([1 async for _ in stream])


async def slow_reader(stream: EventStream, seconds: float) -> list[str]:
    """Takes its time over every event; what it was told that it missed."""
    gaps: list[str] = []
    async with stream:
        async for event in stream:
            if event.scope == GAP_SCOPE:
                gaps.append(f"{event.metadata['count']} ({event.metadata['first_seq']}–{event.metadata['last_seq']})")
            else:
                await asyncio.sleep(seconds)
    return gaps


def blocking_reader(stream: EventStream) -> threading.Thread:
    """Counts events in a plain thread, with no event loop in it."""

    def read() -> None:
        with stream.blocking() as events:
            for _ in events:
                pass

    thread = threading.Thread(target=read, name="blocking reader", daemon=True)
    thread.start()
    return thread
