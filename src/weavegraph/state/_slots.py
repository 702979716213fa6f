"""Typed, versioned places inside the ``extra`` of the default state, for components that do not know each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

import msgspec

from weavegraph.errors import StateSlotError

__all__ = ["INVOCATION_MARK", "StateKey"]

T = TypeVar("T")
_MISSING: Any = object()
INVOCATION_MARK = "~"
"""Ends the storage key of a slot that lives for one invocation."""


class StateKey(Generic[T]):
    """``StateKey("search", "hits", list[str], version=2)``: stored in ``extra`` as ``search:hits:v2``.

    ``get`` and ``require`` read it from a node's state, ``put`` makes the update that writes it. The value is stored as
    plain data (msgspec) and comes back as the type. ``lifecycle="invocation"``: gone when the session's next input
    begins. ``migrations={1: function}`` turns plain data of version 1 into that of version 2, when only that is there.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        type: type[T],
        *,
        version: int = 1,
        lifecycle: Literal["durable", "invocation"] = "durable",
        migrations: Mapping[int, Callable[[Any], Any]] | None = None,
    ) -> None:
        for what, text in (("namespace", namespace), ("name", name)):
            if not text or ":" in text or INVOCATION_MARK in text:
                raise StateSlotError(f"StateKey {what} {text!r}: use text without ':' and {INVOCATION_MARK!r}")
        self.namespace, self.name, self.type, self.version = namespace, name, type, version
        self.lifecycle: Literal["durable", "invocation"] = lifecycle
        self._migrations = dict(migrations or {})

    @property
    def storage_key(self) -> str:
        return self._key(self.version)

    def _key(self, version: int) -> str:
        mark = INVOCATION_MARK if self.lifecycle == "invocation" else ""
        return f"{self.namespace}:{self.name}:v{version}{mark}"

    def put(self, value: T) -> dict[str, dict[str, Any]]:
        """The update that writes ``value``."""
        try:
            plain = msgspec.to_builtins(value)
            msgspec.convert(plain, self.type)
        except (msgspec.ValidationError, TypeError) as exc:
            raise StateSlotError(f"slot {self.storage_key!r} holds {self.type!r}: {exc}") from exc
        return {"extra": {self.storage_key: plain}}

    def clear(self) -> dict[str, dict[str, Any]]:
        """The update that empties the slot."""
        return {"extra": {self.storage_key: None}}

    def get(self, state: Mapping[str, Any], default: T | None = None) -> T | None:
        """The value in ``state``, or ``default``; raises ``StateSlotError`` when what is there is of another type."""
        found = self._find(state)
        return default if found is _MISSING else self._convert(found)

    def require(self, state: Mapping[str, Any]) -> T:
        """The value in ``state``; raises ``StateSlotError`` when there is none."""
        found = self._find(state)
        if found is _MISSING:
            raise StateSlotError(f"slot {self.storage_key!r} is empty")
        return self._convert(found)

    def _find(self, state: Mapping[str, Any]) -> Any:
        extra = state.get("extra") or {}
        for version in range(self.version, 0, -1):
            key = self._key(version)
            if key in extra:
                value = extra[key]
                for step in range(version, self.version):
                    if step not in self._migrations:
                        raise StateSlotError(f"slot {key!r} is of version {step}: StateKey has no migration from it")
                    value = self._migrations[step](value)
                return value
        return _MISSING

    def _convert(self, plain: Any) -> T:
        try:
            return msgspec.convert(plain, self.type)
        except msgspec.ValidationError as exc:
            raise StateSlotError(f"slot {self.storage_key!r} holds something else: {exc}") from exc

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateKey) and (self.namespace, self.name, self.version) == (
            other.namespace, other.name, other.version,
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.namespace, self.name, self.version))

    def __repr__(self) -> str:
        return f"StateKey({self.storage_key!r})"
