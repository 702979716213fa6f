"""What a node may return besides a mapping: where to go next, and updates with their own commands. Values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from weavegraph.errors import GraphError
from weavegraph.state._messages import Message
from weavegraph.state._slots import StateKey

__all__ = ["Command", "FrontierCommand", "Goto", "NodePartial", "Send", "Writes"]

T = TypeVar("T")


class Send(msgspec.Struct, frozen=True):
    """Run ``node`` in the next step with ``payload`` as its state; several of one node run side by side."""

    node: str
    payload: Any = None


Goto: TypeAlias = str | Send


class Command(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """An update, and where to go next: ``Command(goto="write", update={"draft": text})``.

    ``goto``: a node, ``END``, a ``Send``, or a list of these; it takes the place of the node's edges. Without ``goto``
    the edges hold. As a return type, ``Command[Literal["write", "review"]]`` tells ``compile`` where it may go.
    """

    goto: Goto | tuple[Goto, ...] | list[Goto] | None = None
    update: Any = None

    def __post_init__(self) -> None:
        if self.goto is not None and not isinstance(self.goto, (str, Send, tuple, list)):
            what = type(self.goto).__name__
            raise GraphError(f"Command(goto=…) is a {what}; give a node, END, a Send, or a list of these")


class FrontierCommand(msgspec.Struct, frozen=True):
    """Where a node wants to go: in addition to its edges (``append``), or instead of them (``replace``)."""

    kind: Literal["append", "replace"]
    targets: tuple[Goto, ...]

    def __post_init__(self) -> None:
        if self.kind not in ("append", "replace"):
            raise GraphError(f"FrontierCommand({self.kind!r}, …): the kind is 'append' or 'replace'")
        if not isinstance(self.targets, (tuple, list)):
            raise GraphError(
                f"FrontierCommand({self.kind!r}, {self.targets!r}): give a tuple of targets, or write "
                f"FrontierCommand.{self.kind}({self.targets!r})"
            )

    @classmethod
    def append(cls, *targets: Goto) -> FrontierCommand:
        return cls("append", targets)

    @classmethod
    def replace(cls, *targets: Goto) -> FrontierCommand:
        return cls("replace", targets)


class NodePartial(msgspec.Struct, frozen=True):
    """A node's update, built piece by piece: ``NodePartial().with_messages(Message.assistant("hi")).with_extra(n=1)``.

    ``with_messages``, ``with_extra`` and ``with_errors`` write the keys of the default state; ``NodePartial(update)``
    and ``with_update`` any key.
    """

    update: Mapping[str, Any] = msgspec.field(default_factory=dict)
    frontier: FrontierCommand | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.update, Mapping):
            what = type(self.update).__name__
            raise GraphError(f"NodePartial({what}): give a mapping of the keys that change, or nothing")
        if self.frontier is not None and not isinstance(self.frontier, FrontierCommand):
            what = type(self.frontier).__name__
            raise GraphError(f"NodePartial(frontier={what}): give a FrontierCommand")

    def with_update(self, **values: Any) -> NodePartial:
        return NodePartial({**self.update, **values}, self.frontier)

    def with_messages(self, *messages: Message | Mapping[str, Any] | str) -> NodePartial:
        return self.with_update(messages=[*self.update.get("messages", ()), *messages])

    def with_extra(self, **values: Any) -> NodePartial:
        return self.with_update(extra={**self.update.get("extra", {}), **values})

    def with_typed_extra(self, key: StateKey[T], value: T) -> NodePartial:
        """Write a typed slot; see ``StateKey``."""
        return self.with_extra(**key.put(value)["extra"])

    def clear_extra_keys(self, *keys: str) -> NodePartial:
        return self.with_extra(**dict.fromkeys(keys))

    def clear_typed_extra_key(self, key: StateKey[Any]) -> NodePartial:
        return self.clear_extra_keys(key.storage_key)

    def with_errors(self, *errors: Any) -> NodePartial:
        return self.with_update(errors=[*self.update.get("errors", ()), *errors])

    def with_frontier(self, command: FrontierCommand) -> NodePartial:
        return NodePartial(self.update, command)


class Writes:
    """Updates of one node in order; a key may come more than once. What a sub-graph hands to its parent."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self.pairs = tuple(pairs)
