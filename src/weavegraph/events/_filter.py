"""Which events a subscription wants, as a value that a wire can carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from weavegraph.errors import ConfigError
from weavegraph.events._types import DiagnosticEvent, Event, LLMStreamingEvent, NodeEvent

__all__ = ["EventFilter", "Predicate"]

Predicate: TypeAlias = Callable[[Event], bool]
_KINDS = {NodeEvent: "node", DiagnosticEvent: "diagnostic", LLMStreamingEvent: "llm"}


class EventFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Every field that is given must match; an empty filter matches all.

    ``kinds``: any of them. ``scopes``: exact names, or prefixes that end in ``*``. ``path``: the first elements of
    the event's path and node. Equality and prefixes only: a client may send one.
    """

    kinds: tuple[Literal["node", "diagnostic", "llm"], ...] = ()
    scopes: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    run_id: str | None = None
    session_id: str | None = None

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in _KINDS.values():
                raise ConfigError(f"EventFilter(kinds=…): {kind!r} is not one of node, diagnostic, llm")

    def __call__(self, event: Event) -> bool:
        if self.kinds and _KINDS[type(event)] not in self.kinds:
            return False
        if self.run_id is not None and event.run_id != self.run_id:
            return False
        if self.session_id is not None and event.session_id != self.session_id:
            return False
        if self.path:
            path = event.path if event.node_id is None else (*event.path, event.node_id)
            if path[: len(self.path)] != self.path:
                return False
        return not self.scopes or any(
            event.scope.startswith(scope[:-1]) if scope.endswith("*") else event.scope == scope for scope in self.scopes
        )
