"""Containers that a reader cannot change: one copy of an event's metadata is shared by everyone."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["EMPTY", "FrozenDict", "FrozenList"]


def _refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
    raise TypeError("an event's metadata is shared by every reader and cannot be changed; copy it first: dict(…)")


class FrozenDict(dict[str, Any]):
    """A dict that refuses changes; equal to, and encoded like, the plain dict."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, memo: object) -> FrozenDict:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenDict, (dict(self),))


class FrozenList(list[Any]):
    """A list that refuses changes; equal to, and encoded like, the plain list."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse  # type: ignore[assignment]
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse  # type: ignore[assignment]

    def copy(self) -> list[Any]:
        return list(self)

    def __copy__(self) -> FrozenList:
        return self

    def __deepcopy__(self, memo: object) -> FrozenList:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenList, (list(self),))


EMPTY = FrozenDict()
"""The metadata of an event that has none: one object for all of them."""
