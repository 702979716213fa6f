"""Targets of the tables that come as Markdown, found by their titles, rows and columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from benchmarks.measure import Goal, Table, at_least, at_most

__all__ = ["with_goals"]


def with_goals(table: Table) -> Table:
    for beginning, find in FINDERS.items():
        if table.title.startswith(beginning):
            table.goals = [find(dict(zip(_unique(table.head), row, strict=True))) for row in table.rows]
    return table


def _unique(head: list[str] | tuple[str, ...]) -> list[str]:
    """A column of ratios is called by what stands before it."""
    return [name if name != "× Queue" else f"{before} × Queue" for before, name in itertools.pairwise(["", *head])]


def _burst(cells: dict[str, str]) -> list[Goal]:
    readers, found = int(cells["subscribers"].replace(",", "")), []
    if readers >= 8:
        found.append(at_least(float(cells["`async for` × Queue"]), 5, "`async for`"))
    if readers >= 64:
        found.append(at_least(float(cells["`recv_many` × Queue"]), 15, "`recv_many`"))
    return found


def _single(cells: dict[str, str]) -> list[Goal]:
    limits = {1: 1, 8: 1, 64: 2, 1000: 2.5}
    limit = limits.get(int(cells["subscribers"].replace(",", "")))
    return [at_least(float(cells["`async for` × Queue"]), limit, "`async for`")] if limit else []


def _thread(cells: dict[str, str]) -> list[Goal]:
    counts = cells["contender"].startswith("hub, `async for`")
    return [at_least(float(cells["deliveries × Queue"]), 7)] if counts else []


def _publish(cells: dict[str, str]) -> list[Goal]:
    limit = {"100": 1.1, "1000": 1.1, "1000, with room for 50,000 each": 1.3}.get(cells["subscribers"])
    return [at_most(float(cells["× one"]), limit, "× one")] if limit else []


def _sinks(cells: dict[str, str]) -> list[Goal]:
    if cells["sinks"] != "1000":
        return []
    batches, each = (float(cells[f"{name} × Queue"]) for name in ("counting batches", "counting each event"))
    return [at_least(batches, 45, "batches"), at_least(each, 40, "each")]


def _latency(cells: dict[str, str]) -> list[Goal]:
    return [at_most(float(cells["Queue × Queue"]), {"1": 1.1, "100": 0.5}[cells["readers"]])]


def _capacity(cells: dict[str, str]) -> list[Goal]:
    return [at_most(int(cells["lost of 10,000"].replace(",", "")), 0, "lost")] if "**" in cells["capacity"] else []


FINDERS: dict[str, Callable[[dict[str, str]], list[Goal]]] = {
    "Deliveries per CPU second, burst 64": _burst,
    "Deliveries per CPU second, burst 1,": _single,
    "Inline sinks": _sinks,
    "Latency at 1,000 events a second: the median": _latency,
    "From a thread into a loop": _thread,
    "Cost of `publish`": _publish,
    "Capacity against a burst": _capacity,
}
