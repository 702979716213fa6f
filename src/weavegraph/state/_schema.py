"""What a state holds: its keys, and how an update of each is merged. Pure."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from weavegraph.errors import StateError

__all__ = ["StateSchema", "append", "merge_patch"]


def append(current: Any, update: Any) -> list[Any]:
    """A reducer: the update's items after the current ones."""
    return [*(current or ()), *update]


def merge_patch(current: Any, update: Mapping[str, Any]) -> dict[str, Any]:
    """A reducer: the update's keys over the current ones; ``None`` deletes (RFC 7396, top level)."""
    merged = {**(current or {}), **update}
    return {key: value for key, value in merged.items() if value is not None}


class StateSchema:
    """Keys and reducers of one graph's state.

    From a ``TypedDict`` whose fields may be ``Annotated[type, reducer]``; without one: ``messages``, ``extra`` and
    ``errors``, each with its reducer.
    """

    def __init__(self, reducers: Mapping[str, Callable[[Any, Any], Any] | None]) -> None:
        self.reducers = dict(reducers)

    @classmethod
    def of(cls, kind: type[Any] | None) -> StateSchema:
        if kind is None:
            return cls({"messages": append, "extra": merge_patch, "errors": append})
        try:
            hints = typing.get_type_hints(kind, include_extras=True)
        except (NameError, TypeError) as exc:
            raise StateError(f"the state type {kind!r} cannot be read: {exc}") from exc
        if not hints:
            raise StateError(f"the state type {kind!r} has no annotated fields")
        return cls({key: _reducer(hint) for key, hint in hints.items()})

    def initial(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The state that a run starts from."""
        self._check(given, "the input")
        return dict(given)

    def merge(self, state: Mapping[str, Any], updates: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
        """All of a step's updates, in the order given, over ``state``; neither is changed.

        Raises:
            StateError: an unknown key, or two nodes of the step wrote a key that has no reducer.
        """
        merged = dict(state)
        writers: dict[str, str] = {}
        for node, update in updates:
            self._check(update, f"node {node!r}")
            for key, value in update.items():
                reducer = self.reducers[key]
                if reducer is not None:
                    merged[key] = reducer(merged.get(key), value)
                elif key in writers:
                    raise StateError(
                        f"nodes {writers[key]!r} and {node!r} both wrote {key!r} in one step; give the key a reducer: "
                        f"Annotated[…, reducer]"
                    )
                else:
                    merged[key] = value
                    writers[key] = node
        return merged

    def _check(self, update: Mapping[str, Any], who: str) -> None:
        for key in update:
            if key not in self.reducers:
                raise StateError(f"{who} wrote {key!r}; the state has: {', '.join(self.reducers)}")


def _reducer(hint: Any) -> Callable[[Any, Any], Any] | None:
    if typing.get_origin(hint) is Annotated:
        for extra in hint.__metadata__:
            if callable(extra):
                reducer: Callable[[Any, Any], Any] = extra
                return reducer
    return None
