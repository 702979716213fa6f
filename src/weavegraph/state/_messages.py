"""What a conversation is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["Message", "as_message"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message: who says it, and what. ``role`` is ``user``, ``assistant``, ``system``, ``tool``, or your own.

    A message with an ``id`` replaces the earlier one of that id when both meet in ``messages``.
    """

    role: str
    content: str
    id: str | None = None
    name: str | None = None

    @classmethod
    def user(cls, content: str, *, id: str | None = None) -> Message:
        return cls("user", content, id)

    @classmethod
    def assistant(cls, content: str, *, id: str | None = None) -> Message:
        return cls("assistant", content, id)

    @classmethod
    def system(cls, content: str, *, id: str | None = None) -> Message:
        return cls("system", content, id)

    @classmethod
    def tool(cls, content: str, *, id: str | None = None, name: str | None = None) -> Message:
        return cls("tool", content, id, name)

    def __str__(self) -> str:
        return f"{self.role}: {self.content}"


def as_message(value: Any) -> Any:
    """A ``Message`` if ``value`` is shaped like one: a mapping with ``role`` and ``content``, or such a pair."""
    if isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str):
        if value.keys() <= {"role", "content", "id", "name"}:
            return Message(value["role"], value["content"], value.get("id"), value.get("name"))
    elif isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return Message(*value)
    return value
