"""How costs grow: one size after the other, the same measurement; what a unit costs should not depend on how many.

Sizes of one curve take turns like contenders do. ``--quick`` leaves out the last size of each.
"""

from __future__ import annotations

import asyncio
import gc
import operator
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

from benchmarks.graph import chain, fan_out
from benchmarks.measure import Curve, Goal, Table, cpu_of, cpu_seconds, rounds
from benchmarks.streaming import app_of, sinks_take
from weavegraph import END, START, EndOfStream, EventHub, GraphBuilder, NodeContext, RuntimeConfig, node_message

__all__ = ["run"]

FLAT = 1.3


def run(quick: bool = False, *, long: bool = False) -> list[Table]:
    count = 2 if quick else 3
    return [
        subscribers(count, quick),
        sinks(count, quick),
        runs(count, quick),
        nodes(count, quick),
        branches(count, quick),
        state(count, quick),
        events(count, quick),
        endurance(10_000_000 if long else 100_000 if quick else 1_000_000),
    ]


def curve(
    name: str, title: str, x: str, y: str, measure: Callable[[int], float], sizes: Sequence[int], count: int,
    *, base: int | None = None, head: str | None = None, why: str = "", text: Callable[[float], str] | None = None,
) -> Table:  # fmt: skip
    """``base``: the size from which the cost per unit should be flat; below it a fixed cost shows. ``measure`` gives
    CPU seconds of a unit."""
    text = text or _us
    base = sizes[1] if base is None else base
    found = rounds({str(size): partial(measure, size) for size in sizes}, count)
    result = Table(title, [x, head or y, f"× {base:,}"])
    for size in sizes:
        ratio = found[str(size)].over(found[str(base)])
        goals = [Goal(f"≤ {FLAT}", ratio <= FLAT)] if size > base else []
        result.add(f"{size:,}", found[str(size)].text(text), f"{ratio:.2f}", goals=goals)
    if why:
        result.notes.append(why)
    line = [(size, found[str(size)].median * 1e6) for size in sizes]
    result.curve = Curve(name, x, y, {"weavegraph": line})
    return result


# ── the bus ──────────────────────────────────────────────────────────────────────────────────────────


def subscribers(count: int, quick: bool) -> Table:
    event = node_message("bench", "a small event")

    async def reads(stream: Any) -> int:
        got = 0
        try:
            while True:
                got += len(await stream.recv_many())
        except EndOfStream:
            return got

    async def measured(size: int) -> float:
        published = max(320, 64_000 // size // 64 * 64)
        hub = EventHub()
        tasks = [asyncio.ensure_future(reads(hub.subscribe())) for _ in range(size)]
        await asyncio.sleep(0)
        before = cpu_seconds()
        for number in range(1, published + 1):
            hub.publish(event)
            if number % 64 == 0:
                await asyncio.sleep(0)
        hub.close()
        got = await asyncio.gather(*tasks)
        spent = cpu_seconds() - before
        assert set(got) == {published}
        return spent / published / size

    sizes = (1, 10, 100, 1000, *(() if quick else (10_000,)))
    return curve(
        "scale-subscribers", f"Subscribers of one hub, bursts of 64, `recv_many`, {count} rounds",
        "subscribers", "CPU µs per delivery", lambda size: asyncio.run(measured(size)), sizes, count, base=100,
        why="With few subscribers a delivery carries the event's own cost: stamping, counting and keeping it.",
    )  # fmt: skip


def sinks(count: int, quick: bool) -> Table:
    def measured(size: int) -> float:
        handed = max(200, 20_000 // size)
        return asyncio.run(sinks_take(size, handed, 16)) / handed / size

    return curve(
        "scale-sinks", f"Inline sinks of one bus, bursts of 16, {count} rounds",
        "sinks", "CPU µs per delivery", measured, (1, 10, 100, 1000), count, base=100,
        why="As above: with few sinks the event's own cost shows.",
    )  # fmt: skip


def runs(count: int, quick: bool) -> Table:
    emitted = 20

    async def speaks(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        for number in range(emitted):
            ctx.emit("progress", "item", number=number)
            if number % 5 == 0:
                await asyncio.sleep(0)
        return {"count": 1}

    async def measured(size: int) -> float:
        app = app_of(speaks)

        async def watched() -> None:
            run = app.start({"count": 0})
            got = 0
            async for event in run:
                got += event.scope == "progress"
            await run
            assert got == emitted

        before = cpu_seconds()
        for _ in range(max(1, 200 // size)):
            await asyncio.gather(*(watched() for _ in range(size)))
        return (cpu_seconds() - before) / size / max(1, 200 // size)

    sizes = (1, 10, 100, 1000, *(() if quick else (10_000,)))
    return curve(
        "scale-runs", f"Runs at the same time, each watched, each with {emitted} events of its own, {count} rounds",
        "runs", "CPU µs per run", lambda size: asyncio.run(measured(size)), sizes, count, base=100,
    )  # fmt: skip


# ── the graph ────────────────────────────────────────────────────────────────────────────────────────


def nodes(count: int, quick: bool) -> Table:
    calls = {size: chain(size) for size in (10, 100, 1000, *(() if quick else (10_000,)))}
    return curve(
        "scale-nodes", f"Nodes of one graph, a chain, {count} rounds", "nodes", "CPU µs per node",
        lambda size: cpu_of(calls[size], max(1, 1000 // size), size), tuple(calls), count, base=100,
        why="The first row carries the cost of a run: see *one more node* in the table of chains.",
    )  # fmt: skip


def branches(count: int, quick: bool) -> Table:
    calls = {size: fan_out(size) for size in (10, 100, 1000, *(() if quick else (10_000,)))}
    return curve(
        "scale-branches", f"Branches in one superstep, {count} rounds", "branches", "CPU µs per branch",
        lambda size: cpu_of(calls[size], max(1, 1000 // size), size), tuple(calls), count, base=100,
    )  # fmt: skip


def state(count: int, quick: bool) -> Table:
    """A large value that nobody touches, in a loop that updates a small one."""

    class Heavy(TypedDict):
        blob: list[str]
        done: Annotated[list[int], operator.add]

    turns = 100

    async def work(state: Any) -> dict[str, Any]:
        return {"done": [1]}

    builder = GraphBuilder(Heavy)
    builder.add_node("again", work)
    builder.add_edge(START, "again")
    builder.add_conditional_edge("again", lambda state: END if len(state["done"]) >= turns else "again")
    app = builder.compile(RuntimeConfig(step_limit=turns + 1))

    def measured(size: int) -> float:
        blob = ["x" * 1000 for _ in range(size // 1000)]

        async def call() -> None:
            final = await app.invoke({"blob": blob, "done": []})
            assert len(final["done"]) == turns

        return cpu_of(call, 1, turns)

    return curve(
        "scale-state", f"A state of that size, {turns} small updates, {count} rounds", "bytes of state",
        "CPU µs per step", measured, (1_000, 100_000, 1_000_000, 10_000_000), count, base=1_000,
        why="The state is a list of texts of 1,000 characters each: as many objects as kilobytes.",
    )  # fmt: skip


def events(count: int, quick: bool) -> Table:
    """The size of an event: its text. What is copied would show here."""

    def measured(size: int) -> float:
        number = 2_000 if size < 100_000 else 200
        texts = [f"{index:08d}" + "x" * (size - 8) for index in range(8)]

        async def call() -> None:
            with EventHub() as hub, hub.subscribe() as stream:
                for index in range(number):
                    hub.publish(node_message("bench", texts[index % 8]))
                    assert (await stream.recv()).message is not None

        return cpu_of(call, 1, number)

    sizes = (100, 1_000, 10_000, 100_000, 1_000_000)
    return curve(
        "scale-events", f"An event of that size, made, published and received, {count} rounds", "characters",
        "CPU µs per event", measured, sizes, count, base=100,
        why="Not flat, and why: a text of at most 512 bytes is charged a flat size. A longer one is encoded as JSON to "
        "be measured, message and whole event, because bounds in bytes are exact; from there on an event costs about "
        "a nanosecond for each character, and one beyond the flat charge asks the hub for room each time.",
    )  # fmt: skip


# ── endurance ────────────────────────────────────────────────────────────────────────────────────────


def endurance(total: int) -> Table:
    """Memory and pace of one hub while events go through; a reader takes all of them."""
    parts = 10
    each = total // parts

    async def go() -> list[tuple[float, float]]:
        hub = EventHub()
        stream = hub.subscribe()
        found = []
        for _ in range(parts):
            gc.collect()
            before = cpu_seconds()
            for number in range(each // 100):
                for index in range(100):
                    hub.publish(node_message("bench", f"event {number} {index}"))
                taken = 0
                while taken < 100:
                    taken += len(await stream.recv_many())
            found.append(((cpu_seconds() - before) / each, _resident()))
        books = stream.stats()
        assert books.delivered == parts * (each // 100) * 100 and not books.unaccounted, books
        hub.close()
        return found

    found = asyncio.run(go())
    head = ["events so far", "CPU µs per event", "resident MiB", "× second"]
    result = Table(f"{total:,} events through one hub", head)
    base = found[1][1]
    for part, (cost, memory) in enumerate(found):
        goals = [Goal("MiB ≤ 1.1", memory / base <= 1.1)] if part == parts - 1 else []
        ratio = f"{memory / base:.2f}"
        result.add(f"{(part + 1) * each:,}", _us(cost), f"{memory:.1f}", ratio, goals=goals)
    result.notes.append("The first tenth fills the ring of 16,384 events; from then on memory is to stay.")
    return result


def _resident() -> float:
    """MiB now; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return float(status.read_text(encoding="utf-8").partition("VmRSS:")[2].split()[0]) / 1024


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.2f}"
