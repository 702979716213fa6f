"""The run on the terminal: a live view where the terminal can redraw, else a line for each thing that happens."""

from __future__ import annotations

import os
import shutil
import textwrap
from typing import Any, Protocol, TextIO

from weavegraph import Event, EventStream, LLMStreamingEvent, NodeEvent
from weavegraph.sinks import escape_controls

__all__ = ["Screen", "screen_for"]


class Screen(Protocol):
    async def watch(self, stream: EventStream) -> None: ...


def screen_for(out: TextIO) -> Screen:
    """Live with rich on a terminal that can move its cursor; plain on a dumb one, and into a file or pipe."""
    if out.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ:
        try:
            return Live(out)
        except ImportError:
            pass
    return Plain(out)


class Plain:
    """A line for what nodes say, one for each section that is done, the digest word by word."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._width = min(shutil.get_terminal_size((80, 24)).columns, 100) if out.isatty() else 80
        self._column = 0

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
            if event.metadata["done"] == event.metadata["total"]:
                self._labelled(event, f"{event.metadata['section']}: {event.metadata['total']} scores")
        elif isinstance(event, NodeEvent):
            self._labelled(event, event.message)

    def _labelled(self, event: Event, text: str) -> None:
        line = f"  {f'{event.node_id}@{event.step}':<12}{escape_controls(text)}"
        for part in textwrap.wrap(line, self._width, subsequent_indent=" " * 14, drop_whitespace=False) or [line]:
            self._line(part)

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
            self._out.write(text.rstrip() + "\n")
        self._out.flush()


class Live:
    """A bar for each section, what the other nodes say, and the digest as it grows."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=out, highlight=False)
        self._sections: dict[str, tuple[int, int]] = {}
        self._said: list[str] = []
        self._digest = ""

    async def watch(self, stream: EventStream) -> None:
        from rich.live import Live as RichLive

        with RichLive(console=self._console, refresh_per_second=12, get_renderable=self._render) as live:
            async with stream:
                async for event in stream:
                    self._note(event)
            live.refresh()

    def _note(self, event: Event) -> None:
        if isinstance(event, LLMStreamingEvent):
            self._digest += escape_controls(event.chunk)
        elif isinstance(event, NodeEvent) and event.scope == "score":
            self._sections[str(event.metadata["section"])] = (event.metadata["done"], event.metadata["total"])
        elif isinstance(event, NodeEvent):
            if event.scope == "split":
                self._sections = dict.fromkeys(map(str, event.metadata["sections"]), (0, 1))
            self._said.append(f"[cyan]{event.node_id}@{event.step}[/]  {_escape(escape_controls(event.message))}")

    def _render(self) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
        table.add_column(ratio=4)
        table.add_column(justify="right", width=9)
        rows = max(4, min(len(self._sections), self._console.height - 14))
        for title, (done, total) in list(self._sections.items())[:rows]:
            table.add_row(Text(escape_controls(title)), ProgressBar(total=total, completed=done), f"{done}/{total}")
        if len(self._sections) > rows:
            table.add_row(f"and {len(self._sections) - rows} more sections", "", "")
        said = [Text.from_markup(line, overflow="ellipsis") for line in self._said[-6:]]
        parts: list[Any] = [table, *said]
        if self._digest:
            parts += [Text(), Padding(Text(self._digest, style="green"), (0, 2))]
        return Padding(Group(*parts), (0, 2))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
