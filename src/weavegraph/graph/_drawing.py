"""A graph as text: Mermaid and DOT, which others draw, and ASCII, which is read as it is."""

from __future__ import annotations

from collections.abc import Iterator

from weavegraph.graph._compiled import END, START, CompiledGraph

__all__ = ["ascii_text", "dot", "mermaid"]

_MERMAID = {'"': "#quot;", "<": "#lt;", ">": "#gt;", "\n": " ", "\r": " "}


def mermaid(graph: CompiledGraph) -> str:
    ids = {START: "start", END: "stop"} | {name: f"n{number}" for number, name in enumerate(graph.nodes)}
    lines = ["flowchart TD", '    start(["start"])']
    for name, plan in graph.nodes.items():
        text = _escape(name, _MERMAID)
        lines.append(f'    {ids[name]}[["{text}"]]' if plan.graph is not None else f'    {ids[name]}["{text}"]')
    lines.append('    stop(["end"])')
    for source, target, text, dashed in _arrows(graph):
        middle = f'|"{_escape(text, _MERMAID)}"|' if text else ""
        lines.append(f"    {ids[source]} {'-.->' if dashed else '-->'}{middle} {ids[target]}")
    return "\n".join(lines) + "\n"


def dot(graph: CompiledGraph) -> str:
    def quoted(name: str) -> str:
        return '"' + _escape(name, {"\\": "\\\\", '"': '\\"', "\n": "\\n"}) + '"'

    lines = [f"digraph {quoted(graph.name)} {{", "    rankdir=TB;"]
    lines.append(f'    {quoted(START)} [label="start", shape=oval];')
    for name, plan in graph.nodes.items():
        lines.append(f"    {quoted(name)} [shape={'box3d' if plan.graph is not None else 'box'}];")
    lines.append(f'    {quoted(END)} [label="end", shape=oval];')
    for source, target, text, dashed in _arrows(graph):
        options = [*(["style=dashed"] if dashed else []), *([f"label={quoted(text)}"] if text else [])]
        lines.append(f"    {quoted(source)} -> {quoted(target)}{' [' + ', '.join(options) + ']' if options else ''};")
    return "\n".join(lines) + "\n}\n"


def ascii_text(graph: CompiledGraph) -> str:
    def shown(name: str) -> str:
        return {START: "(start)", END: "(end)"}.get(name) or name

    arrows = [
        (shown(source), shown(target), text.encode("unicode_escape").decode("ascii"), dashed)
        for source, target, text, dashed in _arrows(graph)
    ]
    left = max(len(source) for source, *_ in arrows)
    right = max(len(target) for _, target, *_ in arrows)
    lines, last = [], ""
    for source, target, text, dashed in arrows:
        label = f"  [{text}]" if text else ""
        lines.append(
            f"{'' if source == last else source:{left}} {'..>' if dashed else '-->'} {target:{right}}{label}".rstrip()
        )
        last = source
    return "\n".join(lines) + "\n"


def _arrows(graph: CompiledGraph) -> Iterator[tuple[str, str, str, bool]]:
    """Source, target, label, dashed; a router or command that may go anywhere points at every node and END."""
    everywhere = (*graph.nodes, END)
    for plan in (graph.start, *graph.nodes.values()):
        for target in plan.edges:
            yield plan.name, target, "", False
        for edge in plan.conditional:
            answers: dict[str, list[str]] = {}
            for answer, node in (edge.names or {}).items():
                answers.setdefault(node, []).append(str(answer))
            for target in everywhere if edge.to is None else edge.to:
                yield plan.name, target, ", ".join(answers.get(target, ())), True
        for target in everywhere if plan.goto is None else plan.goto:
            yield plan.name, target, "", True


def _escape(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(char, char) for char in text)
