"""What can be wrong with a graph: one function a rule, each yields sentences with the remedy."""

from __future__ import annotations

from collections.abc import Iterator

from weavegraph.graph._compiled import END, START, CompiledGraph

__all__ = ["faults"]


def faults(graph: CompiledGraph) -> tuple[str, ...]:
    """Every fault of the graph, all at once."""
    return tuple(fault for rule in (_entry, _unknown, _dead_ends, _unreachable, _endless) for fault in rule(graph))


def _entry(graph: CompiledGraph) -> Iterator[str]:
    if not graph.edges.get(START) and not graph.conditional.get(START):
        yield "nothing starts: add_edge(START, …)"


def _unknown(graph: CompiledGraph) -> Iterator[str]:
    known = {*graph.nodes, START, END}
    for source, targets in graph.edges.items():
        for name in (source, *targets):
            if name not in known:
                yield f"an edge names {name!r}, which is no node: add_node({name!r}, …)"
    for source, conditional in graph.conditional.items():
        if source not in known:
            yield f"a conditional edge starts at {source!r}, which is no node: add_node({source!r}, …)"
        for edge in conditional:
            for name in edge.to or ():
                if name not in known:
                    yield f"the conditional edge from {source!r} names {name!r}, which is no node"


def _dead_ends(graph: CompiledGraph) -> Iterator[str]:
    for name in graph.nodes:
        if not graph.edges.get(name) and not graph.conditional.get(name):
            yield f"node {name!r} leads nowhere: add_edge({name!r}, END)"


def _unreachable(graph: CompiledGraph) -> Iterator[str]:
    reached = _reachable(graph)
    for name in graph.nodes:
        if name not in reached:
            yield f"node {name!r} is never reached: add an edge to it, or remove it"


def _endless(graph: CompiledGraph) -> Iterator[str]:
    """A cycle of plain edges only: every step of it starts the next one for ever."""
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        state[name] = 1
        for target in graph.edges.get(name, ()):
            if state.get(target) == 1:
                return (*path[path.index(target) :], target) if target in path else (name, target)
            if target in graph.nodes and target not in state and (found := visit(target, (*path, target))):
                return found
        state[name] = 2
        return None

    for name in graph.nodes:
        if name not in state and (cycle := visit(name, (name,))):
            yield f"{' → '.join(cycle)} goes round for ever: make one of these a conditional edge"
            return


def _reachable(graph: CompiledGraph) -> set[str]:
    reached: set[str] = set()
    waiting = [START]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        waiting.extend(graph.edges.get(name, ()))
        for edge in graph.conditional.get(name, ()):
            waiting.extend(graph.nodes if edge.to is None else edge.to)
    return reached
