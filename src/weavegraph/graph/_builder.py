"""Describing a graph: nodes, edges, conditional edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from weavegraph.config import EventBusConfig, RuntimeConfig
from weavegraph.errors import CompileError, ConfigError, EventInvalidError, GraphError
from weavegraph.events import check_id
from weavegraph.graph._compiled import END, START, CompiledGraph, ConditionalEdge, NodePlan, Retry
from weavegraph.graph._inspection import answers_of, check_router, names_of, plan_of
from weavegraph.graph._validation import faults, topological_order
from weavegraph.state import Reduce, StateSchema, Task

if TYPE_CHECKING:
    from weavegraph.runtime import App

__all__ = ["GraphBuilder"]

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")


class GraphBuilder(Generic[S]):
    """Collects nodes and edges; ``compile`` checks all of it and makes an ``App``.

    Args:
        state: a ``TypedDict``, dataclass, ``msgspec.Struct`` or pydantic model; a field ``Annotated[type, reducer]``
            merges updates with ``reducer(current, update)``. Nodes are given that type, and ``invoke`` returns it.
            Without it the state is a dict of ``messages``, ``extra`` and ``errors``.
        name: of the graph, for events and drawings.
    """

    @overload
    def __init__(self: GraphBuilder[dict[str, Any]], state: None = None, *, name: str = "graph") -> None: ...
    @overload
    def __init__(self, state: type[S], *, name: str = "graph") -> None: ...
    def __init__(self, state: Any = None, *, name: str = "graph") -> None:
        self._schema = StateSchema.of(state)
        self._name = name
        self._nodes: dict[str, NodePlan] = {}
        self._edges: dict[str, list[str]] = {}
        self._conditional: dict[str, list[ConditionalEdge]] = {}
        self._faults: list[str] = []
        self._config = RuntimeConfig()

    # ── nodes ─────────────────────────────────────────────────────────────────────────────────────

    @overload
    def node(self, function: F, /) -> F: ...
    @overload
    def node(
        self,
        /,
        *,
        name: str | None = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        to: str | Iterable[str] | None = None,
    ) -> Callable[[F], F]: ...
    def node(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Decorator: add a function under its own name; ``@builder.node(retry=3)`` takes ``add_node``'s options."""

        if isinstance(function, str):
            raise GraphError(f"builder.node({function!r}): give the name as @builder.node(name={function!r})")
        chosen = options.pop("name", None)

        def add(function: F) -> F:
            name = getattr(function, "__name__", None) if chosen is None else chosen
            if name is None:
                what = type(function).__name__
                raise GraphError(f"a {what} has no name of its own: builder.node(name=…), or add_node(name, …)")
            self.add_node(name, function, **options)
            return function

        return add if function is None else add(function)

    def add_node(
        self,
        name: str,
        node: Any,
        *,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        to: str | Iterable[str] | None = None,
    ) -> GraphBuilder[S]:
        """Add a node. Registration order is merge order.

        Args:
            node: ``(state)`` or ``(state, ctx)``, async or sync, an object with such a ``run``, or a compiled app as a
                sub-graph. It returns an update (a mapping of state keys, or ``None``), a ``Command``, a
                ``NodePartial``, or a ``Send`` or list of them. A sync one runs on a thread, with the caller's context.
            retry: tries in all, or a ``Retry`` policy. timeout: seconds for each try.
            to: where its commands may go, a name or several; not needed when its return type says so
                (``Command[Literal[…]]``).

        Raises:
            GraphError: the node is no node, its name is no id, or an option is wrong.
        """
        try:
            check_id("node", name)
        except EventInvalidError as exc:
            raise GraphError(f"the name of a node: {exc.problem}") from None
        if name in (START, END):
            raise GraphError(f"{name!r} is the name of the graph's own {'start' if name == START else 'end'}")
        if name in self._nodes:
            self._faults.append(f"node {name!r} is added twice: give the second another name")
        goto = None if to is None else names_of(f"node {name!r}", to)
        self._nodes[name] = plan_of(name, node, retry=retry, timeout=timeout, goto=goto)
        return self

    # ── edges ─────────────────────────────────────────────────────────────────────────────────────

    def add_edge(self, source: str, target: str) -> GraphBuilder[S]:
        """After ``source`` comes ``target``. Several edges from one node start their targets in one step.

        Raises:
            GraphError: one of them is no name.
        """
        if not isinstance(source, str) or not isinstance(target, str):
            raise GraphError(f"add_edge({source!r}, {target!r}): give two names of nodes; call it once for each edge")
        if source == END or target == START:
            self._faults.append(f"edge {source!r} → {target!r}: END has no successor and START no predecessor")
            return self
        targets = self._edges.setdefault(source, [])
        if target in targets:
            self._faults.append(f"edge {source!r} → {target!r} is added twice: remove one")
        else:
            targets.append(target)
        return self

    def add_conditional_edge(
        self, source: str, router: Callable[[Any], Any], *, to: str | Iterable[str] | Mapping[Any, str] | None = None
    ) -> GraphBuilder[S]:
        """After ``source``, ``router(state)`` (sync or async, called in the loop) answers where to go.

        Its answer is a node, ``END``, a ``Send``, a list of these, or ``None`` for nowhere.

        Args:
            to: all that it may answer, or a mapping from its answers to nodes. Without it, and without a return type
                ``Literal[…]``, it may reach any node; what it names is then checked when it happens.

        Raises:
            GraphError: ``router`` is no function of the state, or ``to`` names no nodes.
        """
        if not isinstance(source, str):
            raise GraphError(f"add_conditional_edge({source!r}, …): give the name of one node")
        if source == END:
            self._faults.append("a conditional edge starts at END, which has no successor")
            return self
        if not callable(router):
            raise GraphError(f"the router after {source!r} is a {type(router).__name__}; give a function of the state")
        check_router(source, router)
        who = f"the router after {source!r}"
        names = dict(to) if isinstance(to, Mapping) else None
        targets = answers_of(router) if to is None else names_of(who, to if names is None else names.values())
        self._conditional.setdefault(source, []).append(ConditionalEdge(source, router, targets, names))
        return self

    # ── settings ──────────────────────────────────────────────────────────────────────────────────

    def with_reducer(self, key: str, reducer: Reduce) -> GraphBuilder[S]:
        """Merge updates of ``key`` with ``reducer``, instead of what the state's type says; in the default state also
        a further key."""
        if not callable(reducer):
            raise GraphError(f"the reducer of {key!r} is a {type(reducer).__name__}; give a function (current, update)")
        self._schema = self._schema.with_reducer(key, reducer)
        return self

    def with_runtime_config(self, config: RuntimeConfig) -> GraphBuilder[S]:
        """The configuration that ``compile()`` uses when it is given none."""
        self._config = _checked(config)
        return self

    def with_event_bus_config(self, config: EventBusConfig) -> GraphBuilder[S]:
        """The bus that ``compile()`` uses when it is given no configuration."""
        self._config = self._config.with_event_bus(config)
        return self

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    def nodes(self) -> Iterator[str]:
        """Names of the nodes, in registration order."""
        return iter(tuple(self._nodes))

    def edges(self) -> Iterator[tuple[str, str]]:
        """Every plain edge."""
        return iter([(source, target) for source, targets in self._edges.items() for target in targets])

    def topological_sort(self) -> tuple[str, ...]:
        """START first, END last, each node after those with a plain edge to it; ties in registration order."""
        return topological_order(self._graph())

    def validate(self) -> tuple[str, ...]:
        """Every fault that ``compile`` would raise, as sentences; empty when there is none."""
        return self._faults_of(self._graph())

    def _faults_of(self, graph: CompiledGraph) -> tuple[str, ...]:
        known = {*self._nodes, START, END}
        stray = [
            f"{kind} starts at {source!r}, which is no node: add_node({source!r}, …)"
            for kind, table in (("an edge", self._edges), ("a conditional edge", self._conditional))
            for source in table
            if source not in known
        ]
        return (*self._faults, *stray, *faults(graph))

    def compile(self, config: RuntimeConfig | None = None) -> App[S]:
        """Check everything and make an app. Needs no loop and starts nothing.

        Raises:
            CompileError: names every fault, each with its remedy. ConfigError: ``config`` is no ``RuntimeConfig``.
        """
        from weavegraph.runtime import App

        chosen = self._config if config is None else _checked(config)
        graph = self._graph()
        found = self._faults_of(graph)
        if found:
            raise CompileError(found)
        graph.topological = topological_order(graph)
        return App(graph, chosen)

    def _graph(self) -> CompiledGraph:
        places = {name: index for index, name in enumerate(self._nodes)}

        def complete(plan: NodePlan, index: int) -> NodePlan:
            edges = tuple(self._edges.get(plan.name, ()))
            following = [name for name in edges if name in places]
            if len(following) > 1:
                following.sort(key=places.__getitem__)
            return NodePlan(
                plan.name,
                plan.call,
                plan.mode,
                plan.takes_context,
                plan.retry,
                plan.timeout,
                plan.goto,
                index,
                edges,
                tuple([Task(name) for name in following]),
                tuple(self._conditional.get(plan.name, ())),
                plan.graph,
            )

        nodes = {name: complete(plan, places[name]) for name, plan in self._nodes.items()}
        return CompiledGraph(nodes, complete(NodePlan(START, _nothing, "sync", False), -1), self._schema, self._name)


def _checked(config: Any) -> RuntimeConfig:
    if not isinstance(config, RuntimeConfig):
        raise ConfigError(f"the configuration is a {type(config).__name__}; give a RuntimeConfig(…)")
    return config


def _nothing(state: Any) -> None:
    """START itself does nothing."""
