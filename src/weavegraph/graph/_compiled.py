"""A graph that passed its checks: what to run, as a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

import msgspec

from weavegraph.bus import RetryPolicy
from weavegraph.errors import ConfigError
from weavegraph.state import StateSchema, Task, label

__all__ = ["END", "START", "CompiledGraph", "ConditionalEdge", "GraphMetadata", "NodePlan", "Retry"]

START: Final = "__start__"
END: Final = "__end__"
Mode: TypeAlias = Literal["async", "sync", "graph"]


class Retry(RetryPolicy, frozen=True, kw_only=True):
    """How often a node is tried: ``tries`` in all, with ``base`` seconds of jittered, doubling delay up to ``cap``.

    Only exceptions of the class or classes ``on`` are retried; those that say that the graph itself is wrong never are.

    Raises:
        ConfigError: a number is out of range, or ``on`` names no exceptions.
    """

    tries: int = 3
    on: type[BaseException] | tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        super().__post_init__()
        on = (self.on,) if isinstance(self.on, type) else self.on
        classes = isinstance(on, tuple) and all(isinstance(each, type) for each in on)
        if not classes or not all(issubclass(each, BaseException) for each in on):
            raise ConfigError(f"Retry.on={self.on!r}: give an exception class, or a tuple of them")


class ConditionalEdge(msgspec.Struct, frozen=True):
    """After ``source``, ``router(state)`` answers where to go.

    ``to`` are the only nodes it may name, if known; ``names`` turns its answers into nodes.
    """

    source: str
    router: Callable[[Any], Any]
    to: tuple[str, ...] | None
    names: dict[Any, str] | None = None


class NodePlan(msgspec.Struct):
    """A node and all that running it needs, looked up once at ``compile``."""

    name: str
    call: Callable[..., Any]
    mode: Mode
    takes_context: bool
    retry: Retry | None = None
    timeout: float | None = None
    goto: tuple[str, ...] | None = ()
    """Where its commands may go: named nodes, none, or anywhere (``None``)."""
    index: int = 0
    """Its place in the order of registration, in which updates are merged."""
    edges: tuple[str, ...] = ()
    following: tuple[Task, ...] = ()
    """What its plain edges start, in registration order."""
    conditional: tuple[ConditionalEdge, ...] = ()
    graph: CompiledGraph | None = None


class GraphMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a graph: the same on every machine, whatever the order in which it was described."""

    name: str
    version: str
    fingerprint: str
    nodes: int
    edges: int
    conditional_edges: int
    reducers: dict[str, str]


class CompiledGraph(msgspec.Struct, eq=False, dict=True, weakref=True):
    """Nodes in registration order, which is the order in which their updates are merged."""

    nodes: dict[str, NodePlan]
    start: NodePlan
    schema: StateSchema
    name: str
    topological: tuple[str, ...] = ()

    def edges(self) -> Iterator[tuple[str, str]]:
        """Every plain edge, START's first."""
        for plan in (self.start, *self.nodes.values()):
            for target in plan.edges:
                yield plan.name, target

    def conditional_edges(self) -> Iterator[ConditionalEdge]:
        """Every conditional edge, START's first."""
        for plan in (self.start, *self.nodes.values()):
            yield from plan.conditional

    def topological_order(self) -> tuple[str, ...]:
        """START first, END last, each node after those with a plain edge to it; ties in registration order."""
        return self.topological

    def metadata(self) -> GraphMetadata:
        return GraphMetadata(
            name=self.name,
            version=_version(),
            fingerprint=self.fingerprint,
            nodes=len(self.nodes),
            edges=sum(1 for _ in self.edges()),
            conditional_edges=sum(1 for _ in self.conditional_edges()),
            reducers={key: label(reducer) for key, reducer in self.schema.reducers.items()},
        )

    @cached_property
    def nested(self) -> bool:
        """Whether a node is a graph."""
        return any(plan.graph is not None for plan in self.nodes.values())

    @cached_property
    def fingerprint(self) -> str:
        """Of nodes and where their commands may go, edges, conditional edges with their answers, and the state's keys
        with their reducers."""
        import hashlib

        parts = [f"node {plan.name} {_listed(plan.goto)}" for plan in self.nodes.values()]
        parts += [f"edge {source} {target}" for source, target in self.edges()]
        for edge in self.conditional_edges():
            names = _listed(f"{_answer(answer)} {node}" for answer, node in (edge.names or {}).items())
            parts.append(f"conditional {edge.source} {_listed(edge.to)} {label(edge.router)} {names}")
        parts += [f"key {key} {label(reducer)}" for key, reducer in self.schema.reducers.items()]
        parts += [f"graph {plan.name} {plan.graph.fingerprint}" for plan in self.nodes.values() if plan.graph]
        return hashlib.blake2b("\n".join(sorted(parts)).encode(), digest_size=16).hexdigest()

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart; conditional edges are dashed."""
        from weavegraph.graph._drawing import mermaid

        return mermaid(self)

    def to_dot(self) -> str:
        """The graph in the DOT language of Graphviz; conditional edges are dashed."""
        from weavegraph.graph._drawing import dot

        return dot(self)

    def to_ascii(self) -> str:
        """The graph as lines of ASCII, one an edge: ``-->`` always, ``..>`` conditional, with the answers behind."""
        from weavegraph.graph._drawing import ascii_text

        return ascii_text(self)


def _listed(names: Iterable[str] | None) -> str:
    return "anywhere" if names is None else str(sorted(names))


def _answer(answer: Any) -> str:
    """An answer of a router, the same in every process: no address of an object."""
    return repr(answer) if isinstance(answer, (str, int, float, bytes, type(None))) else type(answer).__qualname__


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("weavegraph")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
