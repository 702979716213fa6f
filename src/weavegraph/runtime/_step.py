"""What a step decides, as pure functions: no loop, no clock, no events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weavegraph.errors import GraphError, NodeOutputError
from weavegraph.graph import END, CompiledGraph, ConditionalEdge

__all__ = ["frontier", "targets_of", "update_of"]


def update_of(node: str, output: Any) -> Mapping[str, Any]:
    """A node's output as an update."""
    if output is None:
        return {}
    if not isinstance(output, Mapping):
        raise NodeOutputError(node, output)
    return output


def targets_of(graph: CompiledGraph, edge: ConditionalEdge, answer: Any) -> tuple[str, ...]:
    """What a router's answer means: names of nodes or END, checked."""
    names: Iterable[Any] = (answer,) if isinstance(answer, str) else () if answer is None else answer
    targets = tuple(names)
    allowed = (*graph.nodes, END) if edge.to is None else edge.to
    for name in targets:
        if name not in allowed:
            raise GraphError(f"the router after {edge.source!r} answered {name!r}; it may answer: {', '.join(allowed)}")
    return targets


def frontier(graph: CompiledGraph, targets: Iterable[str]) -> tuple[str, ...]:
    """The nodes of the next step, each once, in registration order."""
    return graph.ordered(set(targets) - {END})
