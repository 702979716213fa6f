"""``python -m benchmarks [--quick] [bus_hub] [capacity]``: prints Markdown."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks import bus_hub, capacity

BENCHMARKS: dict[str, Callable[[bool], str]] = {"capacity": capacity.run, "bus_hub": bus_hub.run}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and print Markdown tables.")
    parser.add_argument("name", nargs="*", help=f"which: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and events; a look, not a result")
    options = parser.parse_args(argv)
    if unknown := set(options.name) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    logging.getLogger("weavegraph").setLevel(logging.ERROR)  # losing events is what some of this is about
    print(about(options.quick), flush=True)
    began = time.monotonic()
    for name in options.name or BENCHMARKS:
        print(f"\n## {name}\n\n{BENCHMARKS[name](options.quick)}", flush=True)
    print(f"\n{time.monotonic() - began:.0f} seconds in all.")
    return 0


def about(quick: bool) -> str:
    """Where and how this was measured."""
    lines = [
        f"- {_processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release().split('-')[0]}",
        f"- {platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()})"
        f"{'' if _gil() else ', without the GIL'}, stock asyncio, "
        f"weavegraph {version('weavegraph')}, msgspec {version('msgspec')}",
        "- CPU seconds of the whole process; contenders take turns, "
        f"{3 if quick else 7} rounds after an unmeasured one; "
        "median ± half the interquartile range; ratios are medians of the ratio in each round",
    ]
    if quick:
        lines.append("- `--quick`: for a look; do not quote these numbers")
    return "\n".join(lines)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gil() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
