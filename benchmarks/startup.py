"""What it costs to be there: import time, memory, dependencies. Each measurement is a fresh interpreter.

Modules are compiled in the unmeasured round, into a folder of this run's own, and loaded in the others: as whoever
installed a library has them, whatever the environment says about writing bytecode.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires

from benchmarks.measure import Table, at_most, rounds

__all__ = ["HELLO", "footprint", "run", "tree", "whole"]

IMPORT = "import time; t=time.process_time(); import {0}; print(time.process_time()-t)"
WHOLE = "import {0}; import time; print(time.process_time())"
HELLO = """
import asyncio
from weavegraph import END, START, GraphBuilder

async def hello(state, ctx):
    ctx.emit("greeting", "hello, world")
    return {"extra": {"said": True}}

app = GraphBuilder().add_node("hello", hello).add_edge(START, "hello").add_edge("hello", END).compile()
asyncio.run(app.invoke({}))
"""
BARE_HELLO = """
import asyncio

async def hello():
    print("hello, world")

asyncio.run(hello())
"""
MEMORY = """
import os
if os.path.exists("/proc/self/status"):
    with open("/proc/self/status") as status:
        print(status.read().partition("VmHWM:")[2].split()[0])
else:
    print("nan")
"""


def run(quick: bool = False) -> list[Table]:
    count = 5 if quick else 15
    found = rounds(
        {
            "asyncio": lambda: _number(IMPORT.format("asyncio")),
            "weavegraph": lambda: _number(IMPORT.format("weavegraph")),
            "asyncio whole": lambda: whole("asyncio"),
            "weavegraph whole": lambda: whole("weavegraph"),
        },
        count,
    )
    memory = rounds({"ours": lambda: footprint(HELLO), "bare": lambda: footprint(BARE_HELLO)}, 3 if quick else 5)
    result = Table(
        f"Startup, {count} fresh interpreters each", ["what", "weavegraph", "asyncio", "× asyncio"],
        notes=["Required dependencies are counted with those that they require themselves."],
    )  # fmt: skip
    for label, suffix, limit in (
        ("import, CPU ms", "", None),
        ("interpreter and import, CPU ms", " whole", 1.6),
    ):
        ours, bare = found["weavegraph" + suffix], found["asyncio" + suffix]
        ratio = ours.over(bare)
        result.add(label, ours.text(_ms), bare.text(_ms), f"{ratio:.2f}",
                   goals=[at_most(ratio, 1.6)] if limit else [])  # fmt: skip
    result.add(
        "hello world, peak RSS, MiB", f"{memory['ours'].median:.1f}", f"{memory['bare'].median:.1f}",
        f"{memory['ours'].over(memory['bare']):.2f}", goals=[at_most(memory["ours"].median, 24, "MiB")],
    )  # fmt: skip
    needed = tree("weavegraph")
    result.add("required dependencies", f"{len(needed)} ({', '.join(sorted(needed))})", "0", "–",
               goals=[at_most(len(needed), 1)])  # fmt: skip
    return [result]


def whole(module: str) -> float:
    """CPU seconds of an interpreter that starts and imports a module."""
    return _number(WHOLE.format(module))


def footprint(program: str) -> float:
    """Peak resident memory of a program, MiB; not a number where the system does not tell."""
    return _number(program + MEMORY) / 1024


def tree(package: str) -> set[str]:
    """Everything that is installed with a package without extras, as far as it is installed here."""
    seen: set[str] = set()
    waiting = [package]
    while waiting:
        for requirement in _required(waiting.pop()):
            if requirement not in seen:
                seen.add(requirement)
                waiting.append(requirement)
    return seen


def _required(package: str) -> Sequence[str]:
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return []
    names = []
    for line in lines:
        name, _, marker = line.partition(";")
        if "extra ==" not in marker and _applies(marker):
            names.append(re.split(r"[^A-Za-z0-9._-]", name.strip())[0].lower().replace("_", "-"))
    return names


def _applies(marker: str) -> bool:
    if not marker.strip():
        return True
    try:
        from packaging.markers import Marker
    except ImportError:
        return True
    return Marker(marker.strip()).evaluate()


def _number(program: str) -> float:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    return float(done.stdout.split()[-1])


@functools.cache
def _environment() -> dict[str, str]:
    compiled = tempfile.mkdtemp(prefix="benchmarks-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": compiled}


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"
