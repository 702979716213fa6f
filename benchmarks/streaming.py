"""Streaming out of a node: what an event costs from ``ctx.emit`` to a reader, beside a bare ``asyncio.Queue``.

The queue carries the dict that a node would emit; weavegraph checks, freezes, stamps, counts and keeps the event.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from itertools import chain
from typing import Any, TypedDict

from benchmarks.bare import streamed
from benchmarks.measure import Table, at_least, at_most, cpu_of, cpu_seconds, rounds
from weavegraph import END, START, App, EventBus, EventHub, GraphBuilder, NodeContext, node_message

__all__ = ["app_of", "bare_burst", "burst", "run", "watched"]


class State(TypedDict):
    count: int


def app_of(node: Any) -> App[Any]:
    builder = GraphBuilder(State)
    builder.add_node("speaks", node)
    builder.add_edge(START, "speaks")
    builder.add_edge("speaks", END)
    return builder.compile()


async def watched(app: App[Any], least: int) -> None:
    """One run, one reader of all its events."""
    run = app.start({"count": 0})
    count = 0
    async for _ in run:
        count += 1
    await run
    assert count >= least, count


def burst(events: int) -> Callable[[], Awaitable[Any]]:
    async def speaks(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        emit = ctx.emit
        for number in range(events):
            emit("progress", "item", number=number)
        return {"count": 1}

    app = app_of(speaks)
    return lambda: watched(app, events)


def bare_burst(events: int) -> Callable[[], Awaitable[Any]]:
    async def put_all(put: Callable[[Any], None]) -> None:
        for number in range(events):
            put({"scope": "progress", "message": "item", "number": number})

    async def call() -> None:
        assert await streamed(put_all) == events

    return call


def run(quick: bool = False) -> list[Table]:
    count = 3 if quick else 7
    return [
        throughput(count, 2_000 if quick else 10_000),
        first_event(count, 20 if quick else 100),
        readers(2 * count - 1, 2_000),
        latency(3 if quick else 9, 300 if quick else 1000),
        pumped(count, quick),
    ]


# ── throughput ───────────────────────────────────────────────────────────────────────────────────────


def throughput(count: int, events: int) -> Table:
    async def polite(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        for number in range(events):
            ctx.emit("progress", "item", number=number)
            await asyncio.sleep(0)
        return {"count": 1}

    async def put_polite(put: Callable[[Any], None]) -> None:
        for number in range(events):
            put({"scope": "progress", "message": "item", "number": number})
            await asyncio.sleep(0)

    polite_app = app_of(polite)
    found = rounds(
        {
            "burst": partial(cpu_of, burst(events), 1, events),
            "bare burst": partial(cpu_of, bare_burst(events), 1, events),
            "polite": lambda: cpu_of(lambda: watched(polite_app, events), 1, events),
            "bare polite": lambda: cpu_of(lambda: streamed(put_polite), 1, events),
        },
        count,
    )
    result = Table(
        f"{events:,} events of one node to one reader, CPU µs per event, {count} rounds",
        ["workload", "weavegraph", "bare queue", "× bare", "over bare"],
    )
    for name, text in (("burst", "a burst: the node never awaits"), ("polite", "the node yields after each event")):
        ours, bare = found[name], found[f"bare {name}"]
        ratio, over = ours.over(bare), _median_over(ours.values, bare.values) * 1e6
        goal = at_most(ratio, 1.0, "× bare") if name == "burst" else at_most(over, 2, "over bare")
        result.add(text, ours.text(_us), bare.text(_us), f"{ratio:.2f}", f"{over:+.2f}", goals=[goal])
    return result


def _median_over(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return statistics.median(x - y for x, y in zip(a, b, strict=True))


def first_event(count: int, times: int) -> Table:
    """Wall time from ``start`` to the first event in the reader's hands."""

    async def speaks(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        ctx.emit("hello", "world")
        return {"count": 1}

    app = app_of(speaks)

    async def measured(custom: bool) -> float:
        waits = []
        for _ in range(times):
            before = time.perf_counter()
            run = app.start({"count": 0})
            async for event in run:
                if not custom or event.scope == "hello":
                    waits.append(time.perf_counter() - before)
                    break
            await run
        return statistics.median(waits)

    async def bare() -> float:
        waits = []
        for _ in range(times):
            queue: asyncio.Queue[Any] = asyncio.Queue()

            async def produce(queue: asyncio.Queue[Any] = queue) -> None:
                queue.put_nowait({"scope": "hello"})

            before = time.perf_counter()
            task = asyncio.create_task(produce())
            await queue.get()
            waits.append(time.perf_counter() - before)
            await task
        return statistics.median(waits)

    found = rounds(
        {
            "first": lambda: asyncio.run(measured(False)),
            "node's": lambda: asyncio.run(measured(True)),
            "bare": lambda: asyncio.run(bare()),
        },
        count,
    )
    result = Table(f"From `start` to the first event, wall ms, medians of {times} in {count} rounds", ["which", "ms"])
    result.add("the run's first event", found["first"].text(_ms), goals=[at_most(found["first"].median * 1e3, 0.3)])
    result.add("the node's first event", found["node's"].text(_ms), goals=[at_most(found["node's"].median * 1e3, 0.3)])
    result.add("bare: a task and a queue", found["bare"].text(_ms))
    return result


def readers(count: int, events: int) -> Table:
    """What ``emit`` costs the node, by the number of readers; that each received all of it is checked."""
    spent: list[float] = []

    async def speaks(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        emit = ctx.emit
        before = cpu_seconds()
        for number in range(events):
            emit("progress", "item", number=number)
        spent.append(cpu_seconds() - before)
        return {"count": 1}

    app = app_of(speaks)

    async def reader(run: Any) -> int:
        return sum([1 async for _ in run.events()])

    async def measured(wanted: int) -> float:
        run = app.start({"count": 0})
        got = await asyncio.gather(*(reader(run) for _ in range(wanted)))
        await run
        assert wanted == 0 or min(got) == max(got) >= events, got
        return spent.pop() / events

    sizes = (0, 1, 10, 100)
    found = rounds({str(size): lambda size=size: asyncio.run(measured(size)) for size in sizes}, count)
    title = f"Cost of `ctx.emit`, {events:,} at a time, {count} rounds"
    result = Table(title, ["readers of the run", "CPU µs", "× one"])
    for size in sizes:
        ratio = found[str(size)].over(found["1"])
        goals = [at_most(ratio, 1.3, "× one")] if size > 1 else []
        result.add(str(size), found[str(size)].text(_us), f"{ratio:.2f}", goals=goals)
    return result


# ── latency ──────────────────────────────────────────────────────────────────────────────────────────


def latency(count: int, events: int) -> Table:
    """Wall time from emitting to a reader's hands, 1,000 events a second."""

    async def paced(emit: Callable[[], Any]) -> None:
        due = time.perf_counter()
        for _ in range(events):
            due += 0.001
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            emit()

    async def of_run() -> tuple[float, float]:
        sent: list[float] = []

        async def speaks(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
            await paced(lambda: (sent.append(time.perf_counter()), ctx.emit("tick", "")))
            return {"count": 1}

        waits: list[float] = []
        run = app_of(speaks).start({"count": 0})
        async for event in run:
            if event.scope == "tick":
                waits.append(time.perf_counter() - sent[len(waits)])
        await run
        return _percentiles(waits, events)

    async def of_hub(wanted: int) -> tuple[float, float]:
        hub = EventHub()
        sent: list[float] = []
        event = node_message("tick", "")

        async def reads() -> list[float]:
            waits: list[float] = []
            async for _ in hub.subscribe():
                waits.append(time.perf_counter() - sent[len(waits)])
            return waits

        tasks = [asyncio.create_task(reads()) for _ in range(wanted)]
        await asyncio.sleep(0)
        await paced(lambda: (sent.append(time.perf_counter()), hub.publish(event)))
        hub.close()
        return _percentiles(list(chain.from_iterable(await asyncio.gather(*tasks))), events * wanted)

    async def of_queues(wanted: int) -> tuple[float, float]:
        queues: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(wanted)]
        sent: list[float] = []

        async def reads(queue: asyncio.Queue[Any]) -> list[float]:
            waits: list[float] = []
            while await queue.get() is not None:
                waits.append(time.perf_counter() - sent[len(waits)])
            return waits

        def put(item: Any) -> None:
            for queue in queues:
                queue.put_nowait(item)

        tasks = [asyncio.create_task(reads(queue)) for queue in queues]
        await asyncio.sleep(0)
        await paced(lambda: (sent.append(time.perf_counter()), put({"scope": "tick"})))
        put(None)
        return _percentiles(list(chain.from_iterable(await asyncio.gather(*tasks))), events * wanted)

    contenders: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {
        "a run's reader": of_run,
        "hub, 1 reader": lambda: of_hub(1),
        "asyncio.Queue, 1 reader": lambda: of_queues(1),
        "hub, 100 readers": lambda: of_hub(100),
        "asyncio.Queue each, 100 readers": lambda: of_queues(100),
    }
    tails: dict[str, list[float]] = {name: [] for name in contenders}

    def both(name: str) -> float:
        middle, tail = asyncio.run(contenders[name]())
        tails[name].append(tail)
        return middle

    found = rounds({name: lambda name=name: both(name) for name in contenders}, count)
    result = Table(
        f"Latency at 1,000 events a second, wall µs, {count} rounds of {events:,}",
        ["contender", "p50", "× Queue", "p99", "× Queue"],
        notes=["With 100 readers a percentile is over all of them: the first that is served and the last."],
    )
    for name, middle in found.items():
        queue = "asyncio.Queue each, 100 readers" if "100" in name else "asyncio.Queue, 1 reader"
        ratio = middle.over(found[queue])
        tail = statistics.median(tails[name][1:])
        worse = statistics.median(a / b for a, b in zip(tails[name][1:], tails[queue][1:], strict=True))
        goals = {
            "a run's reader": [at_most(worse, 1.25, "p99")],
            "hub, 1 reader": [at_most(ratio, 1.1, "p50")],
            "hub, 100 readers": [at_most(ratio, 0.5, "p50")],
        }.get(name, [])
        result.add(name, middle.text(_whole_us), f"{ratio:.2f}", _whole_us(tail), f"{worse:.2f}", goals=goals)
    return result


def _percentiles(waits: list[float], expected: int) -> tuple[float, float]:
    assert len(waits) == expected, (len(waits), expected)
    cuts = statistics.quantiles(waits, n=100)
    return cuts[49], cuts[98]


# ── sinks ────────────────────────────────────────────────────────────────────────────────────────────


class Counting:
    """The smallest inline sink."""

    inline = True

    def __init__(self) -> None:
        self.count = 0

    def handle(self, batch: Any) -> None:
        self.count += len(batch)


async def sinks_take(sinks: int, events: int, pause: int) -> float:
    """CPU seconds from the first event until every sink has handled all; ``pause``: events between two yields."""
    bus = EventBus()
    counters = [Counting() for _ in range(sinks)]
    for counter in counters:
        bus.add_sink(counter)
    event = node_message("bench", "a small event")
    emit = bus.emitter().emit
    emit(event)
    await bus.flush()
    before = cpu_seconds()
    for number in range(events):
        emit(event)
        if number % pause == 0:
            await asyncio.sleep(0)
    while any(counter.count <= events for counter in reversed(counters)):
        await asyncio.sleep(0.001)
    spent = cpu_seconds() - before
    for counter in counters:
        assert counter.count == events + 1, counter.count
    await bus.aclose()
    return spent


async def queues_take(readers: int, events: int, pause: int) -> float:
    queues: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(readers)]

    async def reads(queue: asyncio.Queue[Any]) -> int:
        count = 0
        while await queue.get() is not None:
            count += 1
        return count

    tasks = [asyncio.create_task(reads(queue)) for queue in queues]
    await asyncio.sleep(0)
    event = node_message("bench", "a small event")
    before = cpu_seconds()
    for number in range(events):
        for queue in queues:
            queue.put_nowait(event)
        if number % pause == 0:
            await asyncio.sleep(0)
    for queue in queues:
        queue.put_nowait(None)
    got = await asyncio.gather(*tasks)
    spent = cpu_seconds() - before
    assert set(got) == {events}, set(got)
    return spent


def _deliveries(take: Callable[[int, int, int], Coroutine[Any, Any, float]], *sizes: int) -> float:
    return sizes[0] * sizes[1] / asyncio.run(take(*sizes))


def pumped(count: int, quick: bool) -> Table:
    events, sinks = (40 if quick else 100), 1000
    result = Table(
        f"1,000 inline sinks, deliveries per CPU second, {count} rounds",
        ["workload", "weavegraph", "a queue and a task each", "× Queue"],
        notes=["The pump is a thread of its own, so events that come while it works are handed over in one batch."],
    )
    for pause, text, limit in ((1, "yield after each event", 45), (64, "bursts of 64", None)):
        found = rounds(
            {
                "ours": partial(_deliveries, sinks_take, sinks, events, pause),
                "queue": partial(_deliveries, queues_take, sinks, events, pause),
            },
            count,
        )
        ratio = found["ours"].over(found["queue"])
        result.add(text, found["ours"].text(_rate), found["queue"].text(_rate), f"{ratio:.1f}",
                   goals=[] if limit is None else [at_least(ratio, limit)])  # fmt: skip
    return result


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.2f}"


def _whole_us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def _rate(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"
