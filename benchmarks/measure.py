"""Alternated rounds, medians and spreads, and tables of them."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Curve", "Goal", "Sample", "Table", "at_least", "at_most", "cpu_of", "cpu_seconds", "rounds", "table"]


class Sample:
    """What one contender gave in each round."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = tuple(values)
        self.median = statistics.median(values)
        if len(values) > 1:
            self.low, _, self.high = statistics.quantiles(values, n=4, method="inclusive")
        else:
            self.low = self.high = self.median

    @property
    def spread(self) -> float:
        """Half of the interquartile range, as a part of the median."""
        return (self.high - self.low) / 2 / self.median

    def over(self, other: Sample) -> float:
        """The median of this contender's ratio to the other in the same round: drift of the machine cancels out."""
        return statistics.median(a / b for a, b in zip(self.values, other.values, strict=True))

    def text(self, format: Callable[[float], str]) -> str:
        return f"{format(self.median)} ±{self.spread:.0%}"


def rounds(contenders: Mapping[str, Callable[[], float]], count: int) -> dict[str, Sample]:
    """Measure each contender ``count`` times, in turns: 1 2 3 · 3 2 1 · 1 2 3 …; one unmeasured turn first."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(count + 1):
        names = list(contenders) if turn % 2 else list(reversed(contenders))
        for name in names:
            gc.collect()
            value = contenders[name]()
            if turn:
                values[name].append(value)
    return {name: Sample(found) for name, found in values.items()}


def cpu_seconds() -> float:
    """CPU time of this process, all threads."""
    return time.process_time()


def cpu_of(
    call: Callable[[], Awaitable[Any]], times: int = 1, units: int = 1, run: Callable[[Any], Any] = asyncio.run
) -> float:
    """CPU seconds of one of ``units`` parts of ``call``, awaited ``times`` times in a loop that is running already."""

    async def measured() -> float:
        before = cpu_seconds()
        for _ in range(times):
            await call()
        return cpu_seconds() - before

    spent: float = run(measured())
    return spent / times / units


# ── goals ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Goal:
    """A target of a row, and whether the measured median reaches it."""

    text: str
    met: bool


def at_most(value: float, limit: float, what: str = "") -> Goal:
    return Goal(f"{what} ≤ {limit:g}".strip(), value <= limit)


def at_least(value: float, limit: float, what: str = "") -> Goal:
    return Goal(f"{what} ≥ {limit:g}".strip(), value >= limit)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Curve:
    """A drawing of a table: ``lines`` of points (x, y), both axes logarithmic."""

    name: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass
class Table:
    """Rows of texts. A row's goals, if it has any, become two columns at the end."""

    title: str
    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    goals: list[list[Goal]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curve: Curve | None = None

    def add(self, *cells: str, goals: Sequence[Goal] = ()) -> None:
        self.rows.append(list(cells))
        self.goals.append(list(goals))

    def markdown(self) -> str:
        parts = [f"### {self.title}", table(*self._complete())]
        return "\n\n".join([*parts, *self.notes])

    def _complete(self) -> tuple[list[str], list[list[str]]]:
        if not any(self.goals):
            return list(self.head), self.rows
        return [*self.head, "target", "met"], [
            [*cells, " · ".join(goal.text for goal in goals) or "–", _verdict(goals)]
            for cells, goals in zip(self.rows, self.goals, strict=True)
        ]


def _verdict(goals: Sequence[Goal]) -> str:
    return " · ".join("yes" if goal.met else "**no**" for goal in goals) or "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are aligned to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(_pad(cell, widths[i], i) for i, cell in enumerate(row)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths))
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)
