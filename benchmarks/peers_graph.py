"""Other graph runtimes beside weavegraph and the bare loop: the same workloads, in turns, in one process."""

from __future__ import annotations

import importlib
import logging
import warnings
from functools import partial
from importlib.metadata import version
from typing import Any

from benchmarks import graph, startup, streaming
from benchmarks.measure import Table, at_least, cpu_of, cpu_seconds, rounds

__all__ = ["run"]

FILES = ("langgraph_", "llama_index_workflows", "pydantic_graph_", "agent_framework_", "burr_", "haystack_")
IMPORTS = {
    "langgraph_": "langgraph.graph",
    "llama_index_workflows": "workflows",
    "pydantic_graph_": "pydantic_graph",
    "agent_framework_": "agent_framework; agent_framework.WorkflowBuilder",  # it imports when asked for
    "burr_": "burr.core",
    "haystack_": "haystack",
}


SUPERLINEAR = ("LlamaIndex Workflows", "Haystack")
"""Theirs grows with the square of the chain: a run of 1000 takes from a quarter of a minute to a minute."""


class Ours:
    NAME, PACKAGE = "weavegraph", "weavegraph"
    chain, loop, fan_out, burst = map(staticmethod, (graph.chain, graph.loop, graph.fan_out, streaming.burst))


class Bare:
    NAME, PACKAGE = "bare", ""
    chain, loop, fan_out = map(staticmethod, (graph.bare_chain, graph.bare_loop, graph.bare_fan_out))
    burst = staticmethod(streaming.bare_burst)


def run(quick: bool = False) -> list[Table]:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    contenders = [Ours, Bare, *(importlib.import_module(f"benchmarks.peers.{name}") for name in FILES)]
    count = 3 if quick else 5
    parts = [
        workload(contenders, "chain", "Chain of 10, CPU µs per node", 10, count, repeats=10),
        workload(contenders, "chain", "Chain of 100, CPU µs per node", 100, count, least=50),
        *([] if quick else [long_chain(contenders)]),
        compiling(contenders, 100 if quick else 1000),
        workload(contenders, "fan_out", "Fan-out and in of 100, CPU µs per branch", 100, count, least=25),
        workload(contenders, "loop", "Loop of 200, a list growing, CPU µs per step", 200, count if quick else 3),
        workload(contenders, "burst", "One node streams to one reader, CPU µs per event", 1000 if quick else 10_000,
                 3),
        weight(contenders, 3 if quick else 5),
    ]  # fmt: skip
    parts[0].notes.append(f"Versions: {', '.join(f'{c.NAME} {version(c.PACKAGE)}' for c in contenders if c.PACKAGE)}.")
    return parts


def workload(
    contenders: list[Any],
    name: str,
    title: str,
    size: int,
    count: int,
    *,
    repeats: int = 1,
    least: float | None = None,
    skip: tuple[str, ...] = (),
) -> Table:
    able = [peer for peer in contenders if hasattr(peer, name) and peer.NAME not in skip]
    calls = {peer.NAME: getattr(peer, name)(size) for peer in able}
    found = rounds({label: partial(cpu_of, call, repeats, size) for label, call in calls.items()}, count)
    result = Table(f"{title}, {count} rounds", ["contender", "µs", "× bare", "× weavegraph"])
    ours, bare = found["weavegraph"], found["bare"]
    for peer in contenders:
        if peer.NAME not in found:
            result.add(peer.NAME, "not run" if peer.NAME in skip else "has none", "–", "–")
            continue
        sample = found[peer.NAME]
        goals = []
        if peer.NAME == "LangGraph" and least is not None:
            goals = [at_least(sample.over(ours), least, "× weavegraph")]
        result.add(peer.NAME, sample.text(_us), f"{sample.over(bare):.2f}", f"{sample.over(ours):.1f}", goals=goals)
    if skip:
        result.notes.append(f"Not run: {' and '.join(skip)}, whose cost per node grows with the chain.")
    return result


def long_chain(contenders: list[Any]) -> Table:
    return workload(contenders, "chain", "Chain of 1000, CPU µs per node", 1000, 2, skip=SUPERLINEAR)


def compiling(contenders: list[Any], size: int) -> Table:
    def build(peer: Any) -> float:
        before = cpu_seconds()
        peer.chain(size)
        return cpu_seconds() - before

    found = rounds({peer.NAME: partial(build, peer) for peer in contenders if peer is not Bare}, 3)
    title = f"Describing, building and checking a chain of {size:,}, 3 rounds"
    result = Table(title, ["contender", "CPU ms", "× weavegraph"])
    for name, sample in found.items():
        result.add(name, sample.text(lambda v: f"{v * 1e3:.0f}"), f"{sample.over(found['weavegraph']):.1f}")
    return result


def weight(contenders: list[Any], count: int) -> Table:
    modules = {"weavegraph": "weavegraph", "asyncio": "asyncio"}
    modules |= {importlib.import_module(f"benchmarks.peers.{file}").NAME: module for file, module in IMPORTS.items()}
    whole = rounds({name: partial(startup.whole, module) for name, module in modules.items()}, count)
    result = Table(
        f"What it weighs, {count} fresh interpreters each",
        ["contender", "interpreter and import, CPU ms", "× asyncio", "peak RSS, MiB", "required dependencies"],
    )
    packages = {peer.NAME: peer.PACKAGE for peer in contenders}
    for name, module in modules.items():
        needed = len(startup.tree(packages[name])) if name in packages else 0
        result.add(name, whole[name].text(lambda v: f"{v * 1e3:.0f}"), f"{whole[name].over(whole['asyncio']):.1f}",
                   f"{startup.footprint(f'import {module}'):.0f}", str(needed))  # fmt: skip
    return result


def _us(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
