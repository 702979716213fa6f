"""Describing a graph: nodes, edges, conditional edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from weavegraph.config import EventBusConfig, RuntimeConfig
from weavegraph.errors import CompileError, GraphError
from weavegraph.events import check_id
from weavegraph.graph._compiled import END, START, CompiledGraph, ConditionalEdge
from weavegraph.graph._validation import faults
from weavegraph.state import StateSchema

if TYPE_CHECKING:
    from weavegraph.runtime import App

__all__ = ["GraphBuilder"]

F = TypeVar("F", bound=Callable[..., Any])


class GraphBuilder:
    """Collects nodes and edges; ``compile`` checks all of it and makes an ``App``.

    Args:
        state: a ``TypedDict``; a field ``Annotated[type, reducer]`` merges updates with ``reducer(current, update)``.
            Without it the state is a mapping of ``messages``, ``extra`` and ``errors``.
        name: of the graph, for events and drawings.
    """

    def __init__(self, state: type[Any] | None = None, *, name: str = "graph") -> None:
        self._schema = StateSchema.of(state)
        self._name = name
        self._nodes: dict[str, Any] = {}
        self._edges: dict[str, list[str]] = {}
        self._conditional: dict[str, list[ConditionalEdge]] = {}
        self._faults: list[str] = []
        self._config = RuntimeConfig()

    def node(self, function: F) -> F:
        """Decorator: add a function under its own name."""
        self.add_node(function.__name__, function)
        return function

    def add_node(self, name: str, node: Any) -> GraphBuilder:
        """Add ``node``: ``(state)`` or ``(state, ctx)``, async or sync, or an object with such a ``run``.

        It returns an update, a mapping of state keys, or ``None``. Registration order is merge order.
        """
        check_id("node", name)
        if name in (START, END):
            raise GraphError(f"{name!r} is the name of the graph's own {'start' if name == START else 'end'}")
        if name in self._nodes:
            self._faults.append(f"node {name!r} is added twice: give the second another name")
        if not callable(node) and not callable(getattr(node, "run", None)):
            kind = type(node).__name__
            raise GraphError(f"node {name!r} is a {kind}; give a function or an object with run(state, ctx)")
        self._nodes[name] = node
        return self

    def add_edge(self, source: str, target: str) -> GraphBuilder:
        """After ``source`` comes ``target``. Several edges from one node start their targets in one step."""
        if source == END or target == START:
            self._faults.append(f"edge {source!r} → {target!r}: END has no successor and START no predecessor")
        targets = self._edges.setdefault(source, [])
        if target in targets:
            self._faults.append(f"edge {source!r} → {target!r} is added twice")
        targets.append(target)
        return self

    def add_conditional_edge(
        self, source: str, router: Callable[[Any], Any], *, to: Iterable[str] | None = None
    ) -> GraphBuilder:
        """After ``source``, ``router(state)`` (sync or async) returns the next node, or several, or ``END``.

        Args:
            to: all that it may return; without it any node is possible, and checked when it happens.
        """
        edge = ConditionalEdge(source, router, None if to is None else tuple(to))
        self._conditional.setdefault(source, []).append(edge)
        return self

    def with_runtime_config(self, config: RuntimeConfig) -> GraphBuilder:
        """The configuration that ``compile()`` uses when it is given none."""
        self._config = config
        return self

    def with_event_bus_config(self, config: EventBusConfig) -> GraphBuilder:
        """The bus that ``compile()`` uses when it is given no configuration."""
        self._config = self._config.with_event_bus(config)
        return self

    def compile(self, config: RuntimeConfig | None = None) -> App:
        """Check everything and make an app. Needs no loop and starts nothing.

        Raises:
            CompileError: names every fault, each with its remedy.
        """
        from weavegraph.runtime import App

        graph = CompiledGraph(
            dict(self._nodes),
            {source: tuple(targets) for source, targets in self._edges.items()},
            {source: tuple(edges) for source, edges in self._conditional.items()},
            self._schema,
            self._name,
        )
        found = (*self._faults, *faults(graph))
        if found:
            raise CompileError(found)
        return App(graph, config or self._config)
