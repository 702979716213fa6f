"""What was measured, kept as JSON, and the pages of docs/performance made of it.

``results.json`` holds one entry a benchmark; measuring one again replaces only its own. The pages are made of it alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import bare, peers, svg
from benchmarks.goals import with_goals
from benchmarks.measure import Curve, Goal, Table

__all__ = ["markdown", "tables_of", "write"]

PLACE = Path(__file__).resolve().parent.parent / "docs" / "performance"
SECTIONS = {
    "graph": "Graphs",
    "streaming": "Streaming",
    "runs": "Concurrent runs",
    "bus_hub": "The hub",
    "capacity": "Capacity",
    "startup": "Startup",
    "scale": "Scale",
    "peers_graph": "Beside other graph runtimes",
    "peers_bus": "Beside other buses",
    "peers_web": "Beside sse-starlette",
    "versions": "Other Pythons, another loop",
}
INTRODUCTION = """\
---
orphan: true
---

# Performance

Measured, not promised. Every table names the command that prints it; run it and get your own. Contenders take turns in
one run, so a ratio survives a slow or busy machine; absolute numbers do not travel. Costs are CPU time of the whole
process unless a title says *wall*; cells are medians ± half the interquartile range, after an unmeasured round; a ratio
is the median of the ratios of the rounds. Each contender's result is checked in every round: all events, in every
reader's hands, the right state at the end. The record here was taken on a machine that was busy with other work; its
load stands under the tables. Wall times suffer most from that, latency percentiles first.

*Target* is what this project set itself, *met* whether the median recorded here reaches it. A **no** stays.
The numbers belong to the commit that recorded them; one that has become faster since does not show it here.
[Where the time goes](bounds.md), and what bounds it, is written down for those that are not reached.

**bare** is a loop of supersteps written by hand, [shown below](#the-bare-loop): no error handling, no events, no
cancellation, no bounds. It is the floor that asyncio sets, not something one would ship. The programs of the other
libraries are shown [on their own page](programs.md).

`make bench` measures weavegraph · `make bench-peers` other libraries beside it · `python -m benchmarks scale` how costs
grow. `--write` records into this folder.
"""
FLATNESS = """\
A cost per unit that stays within 1.3× from the second size to the last is called flat. Where it is not, the
note under the table says why.
"""


def tables_of(result: str | Sequence[Table]) -> list[Table]:
    """What a benchmark returned; Markdown is taken apart."""
    if not isinstance(result, str):
        return list(result)
    found = []
    for part in result.split("### ")[1:]:
        title, _, rest = part.partition("\n")
        lines = rest.strip().splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        notes = "\n".join(line for line in lines if not line.startswith("|")).strip()
        made = Table(title.strip(), cells[0], notes=[notes] if notes else [])
        for row in cells[2:]:
            made.add(*row)
        found.append(with_goals(made))
    return found


def markdown(tables: Sequence[Table]) -> str:
    return "\n\n".join(made.markdown() for made in tables)


# ── recording ────────────────────────────────────────────────────────────────────────────────────────


def write(name: str, command: str, about: Sequence[str], tables: Sequence[Table]) -> None:
    """Keep the tables of one benchmark, and make the pages anew."""
    PLACE.mkdir(parents=True, exist_ok=True)
    kept = _kept()
    kept[name] = {
        "command": command,
        "about": list(about),
        "taken": datetime.date.today().isoformat(),
        "tables": [dataclasses.asdict(made) for made in tables],
    }
    text = json.dumps({name: kept[name] for name in SECTIONS if name in kept}, indent=1, ensure_ascii=False)
    (PLACE / "results.json").write_text(text + "\n", encoding="utf-8")
    render()


def render() -> None:
    """The pages, from what is kept."""
    kept = _kept()
    parts = [INTRODUCTION, _summary(kept)]
    for name, title in SECTIONS.items():
        if name in kept:
            parts.append(_section(title, name, kept[name]))
    if missing := [f"`python -m benchmarks {name} --write`" for name in SECTIONS if name not in kept]:
        parts.append(f"## Not recorded yet\n\nThe commands that would: {', '.join(missing)}.\n")
    parts.append(f"## The bare loop\n\n```python\n{inspect.getsource(bare)}```\n")
    (PLACE / "README.md").write_text("\n".join(parts), encoding="utf-8")
    programs = ["---\norphan: true\n---\n\n# The programs of the other libraries\n", PROGRAMS]
    for module in peers.modules():
        programs.append(f"## {module.NAME}\n\n```python\n{module.source}```\n")
    (PLACE / "programs.md").write_text("\n".join(programs), encoding="utf-8")


PROGRAMS = """\
Each is written as that library's own documentation writes it, for the workloads that it has a way to express. If you
know a faster way that its documentation recommends, the file in `benchmarks/peers/` is the place; it has no other use.
"""


def _kept() -> dict[str, Any]:
    path = PLACE / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _restored(entry: Mapping[str, Any]) -> Table:
    goals = [[Goal(**goal) for goal in row] for row in entry["goals"]]
    curve = Curve(**entry["curve"]) if entry["curve"] else None
    return Table(entry["title"], entry["head"], entry["rows"], goals, entry["notes"], curve)


def _section(title: str, name: str, entry: Mapping[str, Any]) -> str:
    parts = [f"## {title}\n"]
    if name == "scale":
        parts.append(FLATNESS)
    for made in map(_restored, entry["tables"]):
        parts.append(made.markdown() + "\n")
        if made.curve is not None:
            drawn = svg.lines(made.title, made.curve.x, made.curve.y, made.curve.lines)
            (PLACE / f"{made.curve.name}.svg").write_text(drawn, encoding="utf-8")
            parts.append(f"![{made.title}]({made.curve.name}.svg)\n")
        parts.append(f"`{entry['command']}`, {entry['taken']}: {'; '.join(entry['about'][:2])}\n")
    return "\n".join(parts)


def _summary(kept: Mapping[str, Any]) -> str:
    """Every row that has a target, in one table: met, and not met."""
    rows = [
        (SECTIONS[name], made.title.split(", ")[0], cells[0], goal.text, goal.met)
        for name in SECTIONS
        if name in kept
        for made in map(_restored, kept[name]["tables"])
        for cells, goals in zip(made.rows, made.goals, strict=True)
        for goal in goals
    ]
    met = sum(row[-1] for row in rows)
    missed = Table("", ["not met yet: section", "table", "row", "target"])
    for section, title, label, text, reached in rows:
        if not reached:
            missed.add(section, title, label, text)
    listed = missed.markdown().partition("\n\n")[2] + "\n" if missed.rows else ""
    return f"**{met} of {len(rows)} targets are met.**\n\n{listed}"
