"""Graphs: what a node, a superstep, a branch and a compiled node cost, beside a loop written by hand (``bare``).

Chain: n nodes in a row, each adds one to a counter. Loop: one node 200 times, messages growing by one each time, a
router after it. Fan-out: one node, then n in one superstep, then one that joins. Every result is checked.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypedDict

from benchmarks.bare import walk
from benchmarks.measure import Sample, Table, at_most, cpu_of, cpu_seconds, rounds
from weavegraph import END, START, App, GraphBuilder, RuntimeConfig

__all__ = ["bare_chain", "bare_fan_out", "bare_loop", "chain", "chain_builder", "fan_out", "fan_out_app", "loop", "run"]

Call = Callable[[], Awaitable[Any]]


class Counter(TypedDict):
    count: int


class Log(TypedDict):
    done: Annotated[list[Any], operator.add]


async def step(state: Any) -> dict[str, Any]:
    return {"count": state["count"] + 1}


async def work(state: Any) -> dict[str, Any]:
    return {"done": [1]}


def run(quick: bool = False) -> list[Table]:
    count = 3 if quick else 7
    return [chains(count), others(count), compiling(3 * count), blocking(count)]


# ── the programs ─────────────────────────────────────────────────────────────────────────────────────


def chain_builder(size: int) -> GraphBuilder[Any]:
    builder = GraphBuilder(Counter)
    names = [START, *(f"n{number}" for number in range(size)), END]
    for name in names[1:-1]:
        builder.add_node(name, step)
    for source, target in itertools.pairwise(names):
        builder.add_edge(source, target)
    return builder


def chain(size: int) -> Call:
    app = chain_builder(size).compile(RuntimeConfig(step_limit=size + 1))

    async def call() -> None:
        state = await app.invoke({"count": 0})
        assert state["count"] == size, state

    return call


def bare_chain(size: int) -> Call:
    nodes = {f"n{number}": step for number in range(size)}
    edges = {f"n{number}": (f"n{number + 1}",) for number in range(size - 1)}

    async def call() -> None:
        state = await walk(nodes, edges, {}, {}, {"count": 0}, "n0")
        assert state["count"] == size, state

    return call


def loop(turns: int) -> Call:
    builder = GraphBuilder(Log)
    builder.add_node("again", work)
    builder.add_edge(START, "again")
    builder.add_conditional_edge("again", lambda state: END if len(state["done"]) >= turns else "again")
    app = builder.compile(RuntimeConfig(step_limit=turns + 1))

    async def call() -> None:
        state = await app.invoke({"done": []})
        assert len(state["done"]) == turns, len(state["done"])

    return call


def bare_loop(turns: int) -> Call:
    def router(state: dict[str, Any]) -> str:
        return "END" if len(state["done"]) >= turns else "again"

    async def call() -> None:
        state = await walk({"again": work}, {}, {"again": router}, {"done": operator.add}, {"done": []}, "again")
        assert len(state["done"]) == turns, len(state["done"])

    return call


def fan_out(width: int) -> Call:
    app = fan_out_app(width, work)

    async def call() -> None:
        state = await app.invoke({"done": []})
        assert len(state["done"]) == width + 2, len(state["done"])

    return call


def fan_out_app(width: int, worker: Any, **config: Any) -> App[Any]:
    builder = GraphBuilder(Log)
    builder.add_node("split", work)
    builder.add_edge(START, "split")
    for number in range(width):
        builder.add_node(f"w{number}", worker)
        builder.add_edge("split", f"w{number}")
    builder.add_node("join", work)
    for number in range(width):
        builder.add_edge(f"w{number}", "join")
    builder.add_edge("join", END)
    return builder.compile(RuntimeConfig(concurrency_limit=max(width, 1), **config))


def bare_fan_out(width: int) -> Call:
    names = [f"w{number}" for number in range(width)]
    nodes = dict.fromkeys(("split", *names, "join"), work)
    edges = {"split": tuple(names), **dict.fromkeys(names, ("join",))}

    async def call() -> None:
        state = await walk(nodes, edges, {}, {"done": operator.add}, {"done": []}, "split")
        assert len(state["done"]) == width + 2, len(state["done"])

    return call


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────


def chains(count: int) -> Table:
    """Cost per node of chains, and what one more node costs: a run has a cost of its own, which short chains show."""
    result = Table(
        f"Chain, CPU µs per node, {count} rounds",
        ["nodes", "weavegraph", "bare", "× bare"],
        notes=[
            "*One node* is a run with nothing to spread its cost over: start, two ends of an invocation, the run's "
            "stream and its books. Flatness is about what one *more* node costs, so that a run's own cost is not "
            "mistaken for a node's: (cost of 100 − cost of 10) / 90, and (1000 − 100) / 900."
        ],
    )
    sizes = (1, 10, 100, 1000)
    contenders: dict[str, Callable[[], float]] = {}
    for size in sizes:
        repeats = max(2, (1000 if count > 3 else 300) // size)
        contenders |= {
            f"ours {size}": partial(cpu_of, chain(size), repeats),
            f"bare {size}": partial(cpu_of, bare_chain(size), repeats),
        }
    found = rounds(contenders, count)
    for size in sizes:
        ours, bare = found[f"ours {size}"], found[f"bare {size}"]
        goals = [at_most(ours.over(bare), 0.31)] if size > 1 else []
        label = f"{size}" if size > 1 else "one: a run by itself"
        result.add(label, ours.text(lambda v, n=size: _us(v / n)), bare.text(lambda v, n=size: _us(v / n)),
                   f"{ours.over(bare):.2f}", goals=goals)  # fmt: skip
    for kind in ("ours", "bare"):
        near = _marginal(found[f"{kind} 10"], found[f"{kind} 100"], 90)
        far = _marginal(found[f"{kind} 100"], found[f"{kind} 1000"], 900)
        flat = far.over(near)
        label = "weavegraph" if kind == "ours" else "bare"
        result.add(
            f"one more node, {label}: 10 → 100, 100 → 1000",
            f"{_us(near.median)} → {_us(far.median)}" if kind == "ours" else "–",
            f"{_us(near.median)} → {_us(far.median)}" if kind == "bare" else "–",
            f"{flat:.2f} of the first",
            goals=[at_most(abs(flat - 1), 0.2, "1 ±")] if kind == "ours" else [],
        )
    for goals in result.goals[-2:-1]:
        goals[:] = [type(goal)("0.8 to 1.2", goal.met) for goal in goals]
    return result


def _marginal(small: Sample, large: Sample, more: int) -> Sample:
    return Sample([(b - a) / more for a, b in zip(small.values, large.values, strict=True)])


def others(count: int) -> Table:
    result = Table(
        f"Loop and fan-out, CPU µs per step or branch, {count} rounds", ["workload", "weavegraph", "bare", "× bare"]
    )
    repeats = 5 if count > 3 else 2
    cases = {
        "loop of 200, growing messages": (loop(200), bare_loop(200), 200, 0.31),
        "fan-out and in, 100": (fan_out(100), bare_fan_out(100), 100, 1.3),
    }
    for name, (ours, bare, units, limit) in cases.items():
        found = rounds(
            {"ours": partial(cpu_of, ours, repeats, units), "bare": partial(cpu_of, bare, repeats, units)}, count
        )
        ratio = found["ours"].over(found["bare"])
        goals = [at_most(ratio, limit)]
        result.add(name, found["ours"].text(_us), found["bare"].text(_us), f"{ratio:.2f}", goals=goals)
    return result


def compiling(count: int) -> Table:
    def build() -> float:
        before = cpu_seconds()
        chain_builder(1000)
        return cpu_seconds() - before

    def compile_it() -> float:
        builder = chain_builder(1000)
        before = cpu_seconds()
        builder.compile()
        return cpu_seconds() - before

    found = rounds({"build": build, "compile": compile_it}, count)
    result = Table(f"Building and compiling a chain of 1000, {count} rounds", ["what", "CPU ms"])
    result.add("`add_node` and `add_edge`, 1000 each", found["build"].text(_ms))
    result.add(
        "`compile`: validated, ordered", found["compile"].text(_ms),
        goals=[at_most(found["compile"].median * 1e3, 5)],
    )  # fmt: skip
    return result


def blocking(count: int) -> Table:
    """Wall time: what is asked is whether the threads are there, not what they cost."""

    def sleeps(state: Any) -> dict[str, Any]:
        time.sleep(0.05)
        return {"done": [1]}

    app = fan_out_app(20, sleeps)

    async def ours() -> float:
        before = time.perf_counter()
        state = await app.invoke({"done": []})
        assert len(state["done"]) == 22
        return time.perf_counter() - before

    async def bare() -> float:
        async def threaded(state: dict[str, Any]) -> dict[str, Any]:
            return await asyncio.to_thread(sleeps, state)

        names = [f"w{number}" for number in range(20)]
        nodes: dict[str, Any] = {"split": work, "join": work, **dict.fromkeys(names, threaded)}
        edges = {"split": tuple(names), **dict.fromkeys(names, ("join",))}
        before = time.perf_counter()
        await walk(nodes, edges, {}, {"done": operator.add}, {"done": []}, "split")
        return time.perf_counter() - before

    found = rounds({"ours": lambda: asyncio.run(ours()), "bare": lambda: asyncio.run(bare())}, count)
    result = Table(
        f"20 sync nodes that sleep 50 ms each, in one superstep, {count} rounds",
        ["contender", "wall ms", "× one sleep"],
    )
    ratio = found["ours"].median / 0.05
    result.add("weavegraph", found["ours"].text(_ms), f"{ratio:.2f}", goals=[at_most(ratio, 1.15)])
    result.add("bare, `asyncio.to_thread`", found["bare"].text(_ms), f"{found['bare'].median / 0.05:.2f}")
    result.notes.append("The bare loop has asyncio's default pool: as many threads as CPUs and four.")
    return result


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
