"""Programs of other libraries for the same workloads, one small file each. Only ``make bench-peers`` imports them.

A graph runtime's file has any of these, each returning a call to await, whose result it checks itself:

- ``chain(size)``: nodes in a row, each adds one to a counter
- ``fan_out(width)``: one node, then ``width`` at the same time, then one that joins
- ``loop(turns)``: one node, again and again, a list growing by one item each time
- ``burst(events)``: one node streams that many items to one reader

A bus's file has ``fan_out(readers, events, burst, watch)``, which returns how many events each reader received; between
``watch.start()`` and ``watch.stop()`` nothing is set up or torn down. What those with a queue for each subscriber share
is in ``queues``. A web server's file has ``served(events, text, pause)``; see ``benchmarks.peers_web``.
"""

from __future__ import annotations

import pkgutil
import types
from pathlib import Path

__all__ = ["modules"]


def modules() -> list[types.SimpleNamespace]:
    """Name and source of every file, also where its library is not installed."""
    found = []
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        path = Path(__file__).parent / f"{info.name}.py"
        source = path.read_text(encoding="utf-8")
        name = next(line for line in source.splitlines() if line.startswith("NAME ="))
        found.append(types.SimpleNamespace(NAME=name.split('"')[1], source=source, module=info.name))
    return found
