"""What can be wrong with a graph: one function a rule, each yields sentences with the remedy."""

from __future__ import annotations

from collections.abc import Iterator

from weavegraph.graph._compiled import END, START, CompiledGraph, NodePlan

__all__ = ["faults", "topological_order"]


def faults(graph: CompiledGraph) -> tuple[str, ...]:
    """Every fault of the graph, all at once."""
    rules = (_entry, _unknown, _dead_ends, _unreachable, _no_way_out, _endless)
    return tuple(fault for rule in rules for fault in rule(graph))


def _entry(graph: CompiledGraph) -> Iterator[str]:
    if not graph.start.edges and not graph.start.conditional:
        yield "nothing starts: add_edge(START, …)"


def _unknown(graph: CompiledGraph) -> Iterator[str]:
    known = {*graph.nodes, END}
    for plan in (graph.start, *graph.nodes.values()):
        for name in plan.edges:
            if name not in known:
                yield f"the edge {plan.name!r} → {name!r} names {name!r}, which is no node: add_node({name!r}, …)"
        for edge in plan.conditional:
            for name in edge.to or ():
                if name not in known:
                    yield f"the conditional edge from {plan.name!r} names {name!r}, which is no node"
        for name in plan.goto or ():
            if name not in known:
                yield f"the commands of {plan.name!r} may go to {name!r}, which is no node"


def _dead_ends(graph: CompiledGraph) -> Iterator[str]:
    for plan in graph.nodes.values():
        if not plan.edges and not plan.conditional and plan.goto == ():
            yield (
                f"node {plan.name!r} leads nowhere: add_edge({plan.name!r}, END); if it returns commands, "
                f"say where they go: add_node(…, to=[…])"
            )


def _unreachable(graph: CompiledGraph) -> Iterator[str]:
    reached: set[str] = set()
    waiting = [START]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            plan = graph.start if name == START else graph.nodes.get(name)
            if plan is not None:
                if _goes_anywhere(plan):
                    return
                waiting.extend(_targets(plan))
    for name in graph.nodes:
        if name not in reached:
            yield f"node {name!r} is never reached: add an edge to it, or remove it"


def _no_way_out(graph: CompiledGraph) -> Iterator[str]:
    sources: dict[str, list[str]] = {}
    waiting = [END]
    for plan in graph.nodes.values():
        if _goes_anywhere(plan):
            waiting.append(plan.name)
        for target in _targets(plan):
            sources.setdefault(target, []).append(plan.name)
    leaving: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in leaving:
            leaving.add(name)
            waiting.extend(sources.get(name, ()))
    stuck = [plan.name for plan in graph.nodes.values() if plan.name not in leaving and _targets(plan)]
    if stuck:
        yield f"from {', '.join(map(repr, stuck))} no edge leads to END: add_edge({stuck[-1]!r}, END)"


def _endless(graph: CompiledGraph) -> Iterator[str]:
    """A cycle of plain edges only: every step of it starts the next one for ever."""
    rest = set(graph.nodes) - set(_sorted(graph))
    if not rest:
        return
    name = next(plan.name for plan in graph.nodes.values() if plan.name in rest and any(t in rest for t in plan.edges))
    path = [name]
    while True:  # everything in `rest` that has a successor in it leads into a cycle
        following = [target for target in graph.nodes[path[-1]].edges if target in rest]
        if not following:
            rest.discard(path.pop())
            continue
        if following[0] in path:
            cycle = [*path[path.index(following[0]) :], following[0]]
            yield f"{' → '.join(cycle)} goes round for ever: make one of these a conditional edge"
            return
        path.append(following[0])


def topological_order(graph: CompiledGraph) -> tuple[str, ...]:
    """START, the nodes, END; nodes of cycles, in registration order, after all others."""
    done = _sorted(graph, through_commands=True)
    seen = set(done)
    return (START, *done, *(name for name in graph.nodes if name not in seen), END)


def _sorted(graph: CompiledGraph, *, through_commands: bool = False) -> list[str]:
    """Kahn's algorithm over plain edges; a node that may return commands does not always follow its edges."""

    edges = {name: plan.edges if through_commands or plan.goto == () else () for name, plan in graph.nodes.items()}
    waits = dict.fromkeys(edges, 0)
    for targets in edges.values():
        for target in targets:
            if target in waits:
                waits[target] += 1
    done = [name for name, count in waits.items() if not count]
    for name in done:  # grows while it is read
        for target in edges[name]:
            if target in waits:
                waits[target] -= 1
                if not waits[target]:
                    done.append(target)
    return done


def _targets(plan: NodePlan) -> tuple[str, ...]:
    """The nodes that it names."""
    if not plan.conditional and not plan.goto:
        return plan.edges
    named = [name for edge in plan.conditional for name in edge.to or ()]
    return (*plan.edges, *named, *(plan.goto or ()))


def _goes_anywhere(plan: NodePlan) -> bool:
    return plan.goto is None or (plan.conditional != () and any(edge.to is None for edge in plan.conditional))
