"""Runs at the same time: 100, each with 200 events and a reader of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from benchmarks.bare import streamed
from benchmarks.measure import Table, at_most, cpu_of, rounds
from benchmarks.streaming import app_of, watched
from weavegraph import NodeContext

__all__ = ["run"]

RUNS, EVENTS, PAUSE = 100, 200, 20


def run(quick: bool = False) -> list[Table]:
    count = 3 if quick else 7

    async def speaks(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        for number in range(EVENTS):
            ctx.emit("progress", "item", number=number)
            if number % PAUSE == 0:
                await asyncio.sleep(0)
        return {"count": 1}

    async def put(put: Callable[[Any], None]) -> None:
        for number in range(EVENTS):
            put({"scope": "progress", "message": "item", "number": number})
            if number % PAUSE == 0:
                await asyncio.sleep(0)

    app = app_of(speaks)

    async def ours() -> None:
        await asyncio.gather(*(watched(app, EVENTS) for _ in range(RUNS)))

    async def bare() -> None:
        got = await asyncio.gather(*(streamed(put) for _ in range(RUNS)))
        assert set(got) == {EVENTS}, set(got)

    found = rounds(
        {"ours": lambda: cpu_of(ours, 1, RUNS * EVENTS), "bare": lambda: cpu_of(bare, 1, RUNS * EVENTS)}, count
    )
    ratio = found["ours"].over(found["bare"])
    result = Table(
        f"{RUNS} runs × {EVENTS} events, each run watched, CPU µs per event, {count} rounds",
        ["contender", "µs", "× bare"],
        notes=[f"The node yields after every {PAUSE} events. One app, one bus, a lane for each run."],
    )
    result.add("weavegraph", found["ours"].text(_us), f"{ratio:.2f}", goals=[at_most(ratio, 1.4)])
    result.add("bare: a task and a queue each", found["bare"].text(_us), "1")
    return [result]


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.2f}"
