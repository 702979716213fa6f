"""The same few measurements under other interpreters and with uvloop: which of them changes what.

Names of interpreters come from ``BENCH_PYTHONS``, separated by ``:``; each needs weavegraph installed, and uvloop if it
is to be measured. Without it only this interpreter is measured. They take turns, in processes of their own.
Nothing is claimed for builds without the GIL: they are not measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks import graph, streaming
from benchmarks.bus_hub import _hub, _iterate, _many
from benchmarks.measure import Sample, Table, cpu_of

__all__ = ["probe", "run"]

MEASURED = {
    "chain of 100, µs per node": "{:.1f}",
    "fan-out of 100, µs per branch": "{:.1f}",
    "burst to one reader, µs per event": "{:.2f}",
    "hub, 64 × `async for`, M/s": "{:.2f}",
    "hub, 64 × `recv_many`, M/s": "{:.2f}",
}
PROGRAM = "from benchmarks.versions import probe; probe({loop!r})"


def run(quick: bool = False) -> list[Table]:
    pythons = [path for path in os.environ.get("BENCH_PYTHONS", "").split(":") if path] or [sys.executable]
    contenders = {}
    for python in pythons:
        about = json.loads(_output(python, "from benchmarks.versions import about; about()"))
        contenders[f"{about['python']}, asyncio"] = (python, "asyncio")
        if about["uvloop"]:
            contenders[f"{about['python']}, uvloop {about['uvloop']}"] = (python, "uvloop")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for turn in range(2 if quick else 5):
        for name in list(contenders) if turn % 2 else reversed(contenders):
            python, loop = contenders[name]
            found[name].append(json.loads(_output(python, PROGRAM.format(loop=loop))))
    result = Table(f"Interpreters and loops, {2 if quick else 5} processes each", ["interpreter, loop", *MEASURED])
    for name, rounds in found.items():
        samples = [Sample([values[label] for values in rounds]) for label in MEASURED]
        result.add(name, *(sample.text(form.format) for sample, form in zip(samples, MEASURED.values(), strict=True)))
    result.notes.append(
        "CPU time. All are builds with the GIL; how an interpreter was built (optimised or not) is its own matter, so "
        "compare columns, not releases. Nothing is claimed for free-threaded builds."
    )
    return [result]


def about() -> None:
    """This interpreter, as JSON."""
    from importlib.metadata import version

    found = {"python": f"CPython {sys.version.split()[0]}", "uvloop": version("uvloop") if find_spec("uvloop") else ""}
    print(json.dumps(found))


def probe(loop: str) -> None:
    """One round of every measurement, as JSON: best of three in this process."""
    runner: Any = {"loop_factory": None}
    if loop == "uvloop":
        import uvloop

        runner = {"loop_factory": uvloop.new_event_loop}

    def go(call: Any) -> Any:
        with asyncio.Runner(**runner) as made:
            return made.run(call)

    def cost(call: Any, times: int, units: int) -> float:
        call_once = partial(cpu_of, call, times, units, go)
        return min(call_once() for _ in range(4)) * 1e6

    def rate(read: Any) -> float:
        return max(go(_hub(64, 640, 64, read)) for _ in range(4)) / 1e6

    values = [cost(graph.chain(100), 5, 100), cost(graph.fan_out(100), 5, 100), cost(streaming.burst(5_000), 1, 5_000)]
    print(json.dumps(dict(zip(MEASURED, [*values, rate(_iterate), rate(_many)], strict=True))))


def _output(python: str, program: str) -> str:
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{python}: {done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]
