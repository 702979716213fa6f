"""How an update of a key is merged into its current value. Each gives a new value and changes neither argument."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from weavegraph.errors import StateError
from weavegraph.state._messages import Message, as_message

__all__ = ["GROWING", "SAFE", "add_messages", "append", "label", "merge_patch"]


def append(current: Any, update: Any) -> list[Any]:
    """The update's items after the current ones."""
    return [*(current or ()), *_items("append", update)]


def merge_patch(current: Any, update: Any) -> dict[str, Any]:
    """The update's keys over the current ones; ``None`` deletes (RFC 7396, top level)."""
    if not isinstance(update, Mapping):
        raise StateError(f"merge_patch merges mappings, not {type(update).__name__}")
    merged = {**(current or {}), **update}
    return {key: value for key, value in merged.items() if value is not None}


def add_messages(current: Any, update: Any) -> list[Any]:
    """The update's messages after the current ones; one with the ``id`` of an earlier one takes its place.

    What is shaped like a message becomes a ``Message``: ``{"role": "user", "content": "hi"}`` and ``("user", "hi")``. A
    single one may be given without a list. Other values, text for instance, are kept as they are.
    """
    single = isinstance(update, (str, Message, Mapping)) or isinstance(as_message(update), Message)
    added = [as_message(item) for item in ((update,) if single else _items("add_messages", update))]
    if all(getattr(item, "id", None) is None for item in added):
        return [*(current or ()), *added]
    merged = list(current or ())
    places = {item.id: place for place, item in enumerate(merged) if getattr(item, "id", None) is not None}
    for item in added:
        key = getattr(item, "id", None)
        if key is not None and key in places:
            merged[places[key]] = item
        else:
            if key is not None:
                places[key] = len(merged)
            merged.append(item)
    return merged


GROWING: tuple[Callable[[Any, Any], Any], ...] = (append, add_messages, merge_patch)
"""Reducers whose result holds items of the current value and of the update, and nothing else."""
SAFE: tuple[Callable[[Any, Any], Any], ...] = (*GROWING, operator.add, operator.or_, operator.and_, max, min)
"""Reducers that are known not to change their arguments: they need no copy of the current value."""


def label(reducer: Callable[..., Any] | None) -> str:
    """A function's name, for fingerprints and drawings."""
    return "" if reducer is None else getattr(reducer, "__qualname__", type(reducer).__qualname__)


def _items(who: str, update: Any) -> Iterable[Any]:
    if isinstance(update, (str, bytes, Mapping)) or not isinstance(update, Iterable):
        raise StateError(f"{who} takes a list of items, not {type(update).__name__}: write [{update!r:.60}]")
    return update
