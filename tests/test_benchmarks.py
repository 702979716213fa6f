"""What the hot paths cost, counted rather than timed: bytecode instructions are the same on any machine, at any load.

Bounds are generous: half as much again as when they were set, on the version of Python that needed most. Who
exceeds one has put work into every emit, delivery or step: `python -m benchmarks` tells what it costs.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks import goals, graph, report, streaming, svg
from benchmarks.measure import Sample, Table, at_least, at_most
from weavegraph import EventHub, node_message

PERFORMANCE = Path(__file__).resolve().parent.parent / "docs" / "performance"
EVENT = node_message("bench", "a small event")


class Instructions:
    """Counts the bytecode instructions of this thread while entered."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Instructions:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.count += 1
        return self._trace


async def each(call: Callable[[int], Awaitable[Any]], small: int = 20, large: int = 120) -> float:
    """Instructions that one more unit takes; ``call`` does that many. What a call costs by itself cancels out."""
    counts = []
    for size in (small, large):
        await call(size)  # caches are warm, rings have grown
        with Instructions() as instructions:
            await call(size)
        counts.append(instructions.count)
    return (counts[1] - counts[0]) / (large - small)


def count(call: Callable[[int], Awaitable[Any]]) -> float:
    return asyncio.run(each(call))


async def publishing(events: int) -> None:
    with EventHub() as hub:
        for _ in range(events):
            hub.publish(EVENT)


async def delivering(events: int, readers: int = 1) -> None:
    hub = EventHub()

    async def reads(stream: Any) -> int:
        return sum([1 async for _ in stream])

    tasks = [asyncio.ensure_future(reads(hub.subscribe())) for _ in range(readers)]
    await asyncio.sleep(0)
    for _ in range(events):
        hub.publish(EVENT)
    hub.close()
    assert set(await asyncio.gather(*tasks)) == {events}


async def describing(nodes: int) -> None:
    graph.chain_builder(nodes)


async def compiling(nodes: int) -> None:
    graph.chain_builder(nodes).compile()


def emitting(readers: int) -> float:
    """Instructions of one publish while that many readers wait; their own are not counted."""

    async def go() -> float:
        counts = []
        for events in (1000, 4000):  # what is decided anew now and then, for all readers, is spread over many
            hub = EventHub()
            tasks = [asyncio.ensure_future(_drained(hub.subscribe())) for _ in range(readers)]
            await asyncio.sleep(0)
            with Instructions() as instructions:
                for _ in range(events):
                    hub.publish(EVENT)
            counts.append(instructions.count)
            hub.close()
            await asyncio.gather(*tasks)
        return (counts[1] - counts[0]) / 3000

    async def _drained(stream: Any) -> None:
        async for _ in stream:
            pass

    return asyncio.run(go())


def prepared(make: Callable[[int], Callable[[], Awaitable[Any]]]) -> float:
    """As ``count``, of a benchmark's own program; building it is not counted."""
    calls = {size: make(size) for size in (20, 120)}
    return count(lambda size: calls[size]())


BOUNDS: dict[str, tuple[Callable[[], float], int]] = {
    "publish": (lambda: count(publishing), 400),
    "delivery to an async for": (lambda: count(delivering) - count(publishing), 60),
    "add_node and add_edge": (lambda: count(describing), 800),
    "compile, a node": (lambda: count(compiling) - count(describing), 710),
    "ctx.emit, read by one": (lambda: prepared(streaming.burst), 650),
    "a node of a chain": (lambda: prepared(graph.chain), 2130),
    "a turn of a loop, a router after it": (lambda: prepared(graph.loop), 3030),
    "a branch of a fan-out": (lambda: prepared(graph.fan_out), 1560),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_instructions_stay_within_the_bound(name: str) -> None:
    measure, bound = BOUNDS[name]
    found = measure()
    assert 0 < found <= bound, f"{name}: {found:.0f} instructions, at most {bound}"


@pytest.mark.clause("R5")
def test_a_publish_takes_no_more_instructions_for_a_hundred_waiting_readers_than_for_one() -> None:
    assert emitting(100) <= 1.1 * emitting(1)


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert Sample([2.0, 30.0, 4.0]).over(Sample([1.0, 10.0, 2.0])) == 2.0


def test_a_missed_target_stands_in_the_table() -> None:
    table = Table("Cost", ["what", "µs"])
    table.add("here", "3", goals=[at_most(3, 2), at_least(3, 2)])
    table.add("there", "1")
    assert table.markdown().splitlines()[2:] == [
        "| what  | µs |    target |          met |",
        "|-------|---:|----------:|-------------:|",
        "| here  |  3 | ≤ 2 · ≥ 2 | **no** · yes |",
        "| there |  1 |         – |            – |",
    ]


def test_targets_of_tables_that_come_as_markdown_are_found() -> None:
    head = ["subscribers", "`async for`", "× Queue", "`recv_many`", "× Queue", "Queue", "Queue, drained"]
    text = "### Deliveries per CPU second, burst 64, 7 rounds\n\n"
    text += "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["-"] * 7, ["64", "", "5.1", "", "14", "", ""])])
    (table,) = report.tables_of(text)
    found = [(goal.text, goal.met) for goal in table.goals[0]]
    assert found == [("`async for` ≥ 5", True), ("`recv_many` ≥ 15", False)]
    assert goals.with_goals(Table("Something else", ["what"])).goals == []


def test_a_flat_line_is_drawn_flat() -> None:
    drawn = svg.lines("Cost", "size", "µs", {"ours <1>": [(1, 2.0), (10, 2.0), (100, 2.0)]})
    heights = {point.split(",")[1] for point in drawn.partition('points="')[2].partition('"')[0].split()}
    assert len(heights) == 1 and "ours &lt;1&gt;" in drawn


@pytest.mark.skipif(not (PERFORMANCE / "results.json").exists(), reason="nothing is recorded")
def test_the_pages_are_made_of_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PERFORMANCE / "results.json", tmp_path)
    monkeypatch.setattr(report, "PLACE", tmp_path)
    report.render()
    for made in tmp_path.iterdir():
        again = "run: python -m benchmarks --render"
        assert made.read_text(encoding="utf-8") == (PERFORMANCE / made.name).read_text(encoding="utf-8"), again
