"""State as plain data and back: what a durable checkpoint holds. Nothing but data is ever built (contract D8)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from weavegraph.errors import StateError
from weavegraph.state._checkpoint import Checkpoint, Finished, Task
from weavegraph.state._messages import as_message
from weavegraph.state._records import ErrorRecord
from weavegraph.state._routes import Send

if TYPE_CHECKING:
    from weavegraph.state._schema import StateSchema

__all__ = ["flatten", "flatten_finished", "revive"]

T = TypeVar("T", Checkpoint, Finished)
_pack = msgspec.msgpack.Encoder().encode
_UNSAID = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")  # how packed NaN and infinity begin


def flatten(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with everything of the user's as plain data: text, numbers, lists, mappings.

    Dataclasses, ``msgspec.Struct``, pydantic models, dates, bytes, tuples and sets are turned into data; the schema's
    type hints turn them back. NaN and infinity, which JSON lacks, become ``None`` and are named in ``unsaid``.

    Raises:
        StateError: a value has no form as data; the text says which key.
    """
    changed: dict[str, Any] = {"values": _plain_values(checkpoint.values), "encoded": True}
    # Most have none of the following: what need not be gone through is not.
    if any(task.payload is not None for task in checkpoint.frontier):
        changed["frontier"] = tuple(
            Task(task.node, task.sent, _plain(task.payload, f"the payload sent to {task.node!r}"))
            for task in checkpoint.frontier
        )
    if checkpoint.finished:
        changed["finished"] = tuple(map(flatten_finished, checkpoint.finished))
    if checkpoint.questions:
        changed["questions"] = tuple(
            msgspec.structs.replace(each, question=_plain(each.question, "a question")) for each in checkpoint.questions
        )
    if checkpoint.answers:
        changed["answers"] = {
            key: tuple(_plain(each, "an answer") for each in given) for key, given in checkpoint.answers.items()
        }
    return _sayable(msgspec.structs.replace(checkpoint, **changed))


def flatten_finished(done: Finished) -> Finished:
    """The same for one task's output."""
    flat = Finished(
        done.index,
        tuple((key, _plain(value, f"an update of {key!r}")) for key, value in done.writes),
        None if done.goto is None else tuple(_plain(target, "a command") for target in done.goto),
        tuple(_plain(target, "a command") for target in done.added),
    )
    return _sayable(flat)


def revive(schema: StateSchema, checkpoint: Checkpoint) -> Checkpoint:
    """The inverse of ``flatten``, by the schema's types.

    Raises:
        StateError: a value does not fit its type any more; give its key a migration, or begin a new session.
    """
    if not checkpoint.encoded:
        return checkpoint
    checkpoint = _as_it_was(checkpoint)
    return msgspec.structs.replace(
        checkpoint,
        values={key: _typed(schema, key, value) for key, value in checkpoint.values.items()},
        finished=tuple(
            Finished(
                done.index,
                tuple((key, _typed(schema, key, value)) for key, value in done.writes),
                None if done.goto is None else tuple(_target(target) for target in done.goto),
                tuple(_target(target) for target in done.added),
            )
            for done in map(_as_it_was, checkpoint.finished)
        ),
        encoded=False,
    )


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.to_builtins(dict(values), enc_hook=_hook)
        return found
    except (TypeError, ValueError, RecursionError):  # one by one, to say which
        return {key: _plain(value, f"the state's {key!r}") for key, value in values.items()}


def _plain(value: Any, what: str) -> Any:
    try:
        return msgspec.to_builtins(value, enc_hook=_hook)
    except (TypeError, ValueError, RecursionError) as exc:
        raise StateError(
            f"{what} cannot be saved: {exc}; keep plain data, dataclasses or msgspec.Struct in the state, and what is "
            "no data (clients, locks) in deps"
        ) from exc


def _hook(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no data")


def _sayable(flat: T) -> T:
    """``flat`` as JSON can say it."""
    try:
        if not _UNSAID.search(_pack(flat)):  # most have none, and this takes a tenth of a walk through all of it
            return flat
    except (OverflowError, UnicodeEncodeError):
        pass  # no number that can be packed, or no text
    found: list[Any] = []
    said: T = _without_unsaid(flat, (), found)
    return msgspec.structs.replace(said, unsaid=tuple(found))


def _without_unsaid(value: Any, path: tuple[str | int, ...], found: list[Any]) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        found.append((path, repr(value)))
        return None
    if isinstance(value, dict):
        if not all(type(key) is str for key in value):
            value = msgspec.to_builtins(value, str_keys=True)  # the keys that JSON gives it
        return {key: _without_unsaid(item, (*path, key), found) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_unsaid(item, (*path, at), found) for at, item in enumerate(value))
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        return type(value)(**{name: _without_unsaid(item, (*path, name), found) for name, item in fields.items()})
    return value


def _as_it_was(flat: T) -> T:
    """The inverse of ``_sayable``."""
    if not flat.unsaid:
        return flat
    tree: dict[Any, Any] = {"unsaid": ()}
    for (*above, last), number in flat.unsaid:
        node = tree
        for at in above:
            node = node.setdefault(at, {})
        node[last] = float(number)
    try:
        whole: T = _put(flat, tree)
        return whole
    except (LookupError, AttributeError, TypeError) as exc:
        raise StateError(f"what was saved names a number where it has no place: {exc!r}; begin a new session") from exc


def _put(value: Any, tree: Any) -> Any:
    """A copy of ``value`` with numbers at the places that ``tree`` names."""
    if not isinstance(tree, dict):
        return tree
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **{at: _put(getattr(value, at), sub) for at, sub in tree.items()})
    if isinstance(value, Mapping):
        return {**value, **{at: _put(value[at], sub) for at, sub in tree.items()}}
    items = list(value)
    for at, sub in tree.items():
        items[at] = _put(items[at], sub)
    return type(value)(items)


def _typed(schema: StateSchema, key: str, value: Any) -> Any:
    if schema.type is None:
        if key == "messages" and isinstance(value, list):
            return [as_message(item) for item in value]
        if key == "errors" and isinstance(value, list):
            return [_error(item) for item in value]
        return value
    hint = schema.hints.get(key, Any)
    try:
        return msgspec.convert(value, hint, str_keys=True, dec_hook=_build)
    except (msgspec.ValidationError, TypeError, ValueError) as exc:
        raise StateError(
            f"the saved {key!r} does not fit {hint!r}: {exc}; the state's type has changed: begin a new session"
        ) from exc


def _build(hint: Any, value: Any) -> Any:
    validate = getattr(hint, "model_validate", None)
    if validate is not None:
        return validate(value)
    raise TypeError(f"{hint!r} cannot be made from data")


def _error(item: Any) -> Any:
    if isinstance(item, Mapping) and {"when", "scope", "kind", "message"} <= item.keys():
        try:
            return msgspec.convert(item, ErrorRecord)
        except msgspec.ValidationError:
            return item
    return item


def _target(target: Any) -> Any:
    return Send(target["node"], target.get("payload")) if isinstance(target, Mapping) else target
