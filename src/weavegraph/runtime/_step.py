"""What a step decides, as pure functions: no loop, no clock, no events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from weavegraph.errors import GraphError, NodeOutputError, StateError
from weavegraph.graph import END, CompiledGraph, ConditionalEdge, NodePlan
from weavegraph.state import Command, Goto, NodePartial, Send, StateSchema, Task, Writes, isolate, weigh

__all__ = ["NOTHING", "Output", "frontier_of", "output_of", "targets_of"]


class Output(msgspec.Struct, frozen=True):
    """What a node's return value means."""

    writes: Iterable[tuple[str, Any]]
    goto: tuple[Goto, ...] | None = None
    """Instead of its edges; ``None``: along its edges."""
    added: tuple[Goto, ...] = ()
    """In addition to its edges."""


NOTHING = Output(())


def output_of(graph: CompiledGraph, plan: NodePlan, value: Any) -> Output:
    """A node's return value as writes and routes.

    Raises:
        NodeOutputError: it is nothing that a node may return. GraphError: it goes where it may not.
    """
    if value is None:
        return NOTHING
    if isinstance(value, Mapping):
        return Output(value.items())
    if isinstance(value, Command):
        writes = () if value.update is None else _items(graph.schema, plan, value.update)
        if value.goto is None:
            return Output(writes)
        targets = value.goto if isinstance(value.goto, (tuple, list)) else (value.goto,)
        return Output(writes, _checked(graph, plan, targets))
    if isinstance(value, NodePartial):
        writes, command = _items(graph.schema, plan, value.update), value.frontier
        if command is None:
            return Output(writes)
        targets = _checked(graph, plan, command.targets)
        return Output(writes, None, targets) if command.kind == "append" else Output(writes, targets)
    if isinstance(value, Writes):
        return Output(value.pairs)
    if isinstance(value, Send):
        return Output((), _checked(graph, plan, (value,)))
    if isinstance(value, (list, tuple)) and all(isinstance(item, Send) for item in value):
        return Output((), _checked(graph, plan, value))  # of no items: it goes nowhere
    raise NodeOutputError(plan.name, value)


def _items(schema: StateSchema, plan: NodePlan, update: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(update, Mapping):
        return update.items()
    what = f"the update of node {plan.name!r} is a {type(update).__name__}; give a mapping of the keys that change"
    if schema.is_state(update):
        what += ": of a whole state, keys with a reducer would be merged once more"
    raise StateError(what)


def _checked(graph: CompiledGraph, plan: NodePlan, targets: Iterable[Any]) -> tuple[Goto, ...]:
    found = tuple(targets)
    for target in found:
        name = target.node if isinstance(target, Send) else target
        if not isinstance(name, str) or (name not in graph.nodes and name != END):
            known = ", ".join((*graph.nodes, END))
            raise GraphError(f"node {plan.name!r} wants to go to {name!r}, which is no node; there are: {known}")
        if plan.goto and name not in plan.goto and name not in plan.edges:
            raise GraphError(f"node {plan.name!r} went to {name!r}, but said it goes to: {', '.join(plan.goto)}")
    return found


def targets_of(graph: CompiledGraph, edge: ConditionalEdge, answer: Any) -> tuple[Goto, ...]:
    """What a router's answer means: nodes, END or sends, checked.

    Raises:
        GraphError: it names what it may not; the text lists what it may.
    """
    if answer is None:
        return ()
    names = edge.names
    single = isinstance(answer, (str, Send)) or not isinstance(answer, Iterable)
    single = single or (names is not None and _hashable(answer) and answer in names)
    found: list[Goto] = []
    for item in (answer,) if single else answer:
        if names is not None and _hashable(item) and item in names:
            item = names[item]
        name = item.node if isinstance(item, Send) else item
        allowed = (*graph.nodes, END) if edge.to is None else edge.to
        if name not in allowed:
            may = ", ".join(map(str, names or allowed))
            raise GraphError(f"the router after {edge.source!r} answered {item!r}; it may answer: {may}")
        found.append(item)
    return tuple(found)


def frontier_of(graph: CompiledGraph, targets: Iterable[Goto]) -> tuple[Task, ...]:
    """The tasks of the next step: each node once, each send by itself, in registration order."""
    tasks: dict[Any, Task] = {}
    for target in targets:
        if isinstance(target, Send):
            if target.node != END:
                payload = isolate(target.payload, weigh(target.payload))
                tasks[len(tasks), "send"] = Task(target.node, True, payload)
        elif target != END and target not in tasks:
            tasks[target] = Task(target)
    nodes = graph.nodes
    return tuple(sorted(tasks.values(), key=lambda task: nodes[task.node].index))  # stable: sends keep their order


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
