"""A graph that passed its checks: what to run, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from weavegraph.state import StateSchema

__all__ = ["END", "START", "CompiledGraph", "ConditionalEdge"]

START: Final = "__start__"
END: Final = "__end__"


@dataclass(frozen=True, slots=True)
class ConditionalEdge:
    """After ``source``, ``router(state)`` names where to go; ``to`` are the only names it may give, if given."""

    source: str
    router: Callable[[Any], Any]
    to: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """Nodes in registration order, which is the order in which their updates are merged."""

    nodes: dict[str, Any]
    edges: dict[str, tuple[str, ...]]
    conditional: dict[str, tuple[ConditionalEdge, ...]]
    schema: StateSchema
    name: str

    def ordered(self, names: set[str]) -> tuple[str, ...]:
        """``names`` in registration order."""
        return tuple(name for name in self.nodes if name in names)
