"""Alternated rounds, medians and spreads, and tables of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Sample", "cpu_seconds", "rounds", "table"]


class Sample:
    """What one contender gave in each round."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = tuple(values)
        self.median = statistics.median(values)
        self.low, _, self.high = statistics.quantiles(values, n=4, method="inclusive")

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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are aligned to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(_pad(cell, widths[i], i) for i, cell in enumerate(row)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths))
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)
