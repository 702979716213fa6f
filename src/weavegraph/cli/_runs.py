"""``weavegraph runs``: what a log holds, newest first."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weavegraph.cli._lines import duration
from weavegraph.cli._load import opened
from weavegraph.cli._screen import Screen, plain, say
from weavegraph.protocols import LoggedRun

__all__ = ["runs"]

_TITLES = ("RUN", "SESSION", "ATT", "OUTCOME", "EVENTS", "STARTED", "TOOK")
SHORTEST = 8
"""Characters that are left of an id on the narrowest terminal."""


async def runs(url: str, *, limit: int, as_json: bool) -> int:
    """Print the newest runs as a table, or as lines of JSON."""
    async with opened(url) as log:
        found = await log.runs(limit=limit)
    screen = Screen.out()
    if as_json:
        for run in found:
            screen.json(msgspec.json.encode(run))
        return 0
    if not found:
        say(f"{url} holds no run yet")
        return 0
    rows = [_row(run, screen.width is not None) for run in found]
    for line in table([_TITLES, *rows], screen.width):
        screen.line(line)
    return 0


def _row(run: LoggedRun, narrow: bool) -> tuple[str, ...]:
    held = f"{run.first_position}–{run.last_position}" if run.first_position <= run.last_position else "trimmed"
    seconds = (run.updated_at - run.started_at).total_seconds()
    started = run.started_at.astimezone()
    return (
        plain(run.run_id),
        plain(run.session_id),
        str(run.attempt),
        plain(run.outcome or "running"),
        held,
        f"{started:%m-%d %H:%M:%S}" if narrow else started.isoformat(" ", "seconds"),
        duration(max(seconds, 0.0)),
    )


def table(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Rows as lines, columns side by side. Where ``width`` is short of room, ids (the first two) are cut: a run is
    found by the beginning of its id; a session is not, so its cut shows."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is not None:
        room = max(width - sum(widths[2:]) - 2 * (len(widths) - 1), 2 * SHORTEST)
        if widths[0] + widths[1] > room:
            widths[1] = max(min(widths[1], room - widths[0]), min(widths[1], room // 2))
            widths[0] = min(widths[0], room - widths[1])
    lines = []
    for row in rows:
        cells = [text if len(text) <= room else text[:room] for text, room in zip(row, widths, strict=True)]
        if len(row[1]) > widths[1]:
            cells[1] = cells[1][:-1] + "…"
        lines.append("  ".join(cell.ljust(room) for cell, room in zip(cells, widths, strict=True)).rstrip())
    return lines
