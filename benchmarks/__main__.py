"""``python -m benchmarks [--quick] [--write] [name …]``: measures, and prints Markdown."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import Table

OWN = ("graph", "streaming", "runs", "bus_hub", "capacity", "startup")
PEERS = ("peers_graph", "peers_bus", "peers_web")
FURTHER = ("scale", "versions")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and print Markdown tables.")
    parser.add_argument(
        "name", nargs="*", help=f"which: {', '.join((*OWN, *PEERS, *FURTHER))}; default: {', '.join(OWN)}"
    )
    parser.add_argument("--peers", action="store_true", help=f"{' and '.join(PEERS)}: needs the other libraries")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and events; a look, not a result")
    parser.add_argument("--long", action="store_true", help="scale: ten million events instead of one")
    parser.add_argument("--write", action="store_true", help="record into docs/performance, and make its pages")
    parser.add_argument("--render", action="store_true", help="only make the pages, of what is recorded")
    options = parser.parse_args(argv)
    if options.render:
        report.render()
        return 0
    if unknown := set(options.name) - {*OWN, *PEERS, *FURTHER}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join((*OWN, *PEERS, *FURTHER))}")
    if options.quick and options.write:
        parser.error("--quick is for a look; what is recorded is measured in full")
    logging.getLogger("weavegraph").setLevel(logging.ERROR)  # losing events is what some of this is about
    where = about(options.quick)
    print("\n".join(f"- {line}" for line in where), flush=True)
    began = time.monotonic()
    for name in options.name or (PEERS if options.peers else OWN):
        since = time.monotonic()
        tables = report.tables_of(_benchmark(name, options.long)(options.quick))
        print(f"\n## {name}\n\n{report.markdown(tables)}\n\n{time.monotonic() - since:.0f} s", flush=True)
        if options.write:
            command = f"python -m benchmarks {name}{' --long' if options.long and name == 'scale' else ''}"
            report.write(name, command, where, tables)
    print(f"\n{time.monotonic() - began:.0f} seconds in all.")
    return 0


def _benchmark(name: str, long: bool) -> Callable[[bool], str | Sequence[Table]]:
    run: Any = importlib.import_module(f"benchmarks.{name}").run
    return (lambda quick: run(quick, long=long)) if name == "scale" else run


def about(quick: bool) -> list[str]:
    """Where and how this was measured."""
    lines = [
        f"{_processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release().split('-')[0]}{_load()}",
        f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()})"
        f"{'' if _gil() else ', without the GIL'}, stock asyncio, "
        f"weavegraph {version('weavegraph')}, msgspec {version('msgspec')}",
        "CPU seconds of the whole process; contenders take turns after an unmeasured one; "
        "median ± half the interquartile range; ratios are medians of the ratio in each round",
    ]
    if quick:
        lines.append("`--quick`: for a look; do not quote these numbers")
    return lines


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _load() -> str:
    """How busy the machine was when this began, with others' work too: ratios bear it, wall times less so."""
    try:
        return f", load average {os.getloadavg()[0]:.1f}"
    except (AttributeError, OSError):
        return ""


def _gil() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
