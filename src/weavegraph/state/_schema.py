"""What a state holds: its keys, how an update of each is merged, and the type that nodes see. Pure."""

from __future__ import annotations

import dataclasses
import functools
import operator
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from weavegraph.errors import StateError
from weavegraph.state._isolation import ATOMS, DEEP, FLAT, FROZEN, StateView, isolate, weigh
from weavegraph.state._records import said
from weavegraph.state._reducers import GROWING, SAFE, add_messages, append, label, merge_patch
from weavegraph.state._slots import INVOCATION_MARK

__all__ = ["INVOCATION", "Reduce", "StateSchema", "Values"]

Reduce: TypeAlias = Callable[[Any, Any], Any]
Kind: TypeAlias = Literal["mapping", "dataclass", "struct", "pydantic"]
_ZEROS: dict[Any, Callable[[], Any]] = {list: list, dict: dict, set: set, tuple: tuple, frozenset: frozenset, str: str}
_ABSENT: Any = object()


class _Invocation:
    def __repr__(self) -> str:
        return "INVOCATION"


INVOCATION: Any = _Invocation()
"""``Annotated[str, INVOCATION]``: this key lives for one invocation; the session's next input begins without it."""


class Values:
    """A state's values, each with a version that grows when it changes. Never changed in place once it is shared."""

    __slots__ = ("shared", "values", "versions")

    def __init__(self, values: dict[str, Any], versions: dict[str, int], shared: dict[str, int]) -> None:
        self.values, self.versions = values, versions
        self.shared = shared
        """Keys whose value can be changed by whoever holds it, and how deep."""

    @classmethod
    def of(cls, values: Mapping[str, Any], versions: Mapping[str, int] | None = None) -> Values:
        """Values that nobody else holds."""
        weights = {key: weigh(value) for key, value in values.items()}
        return cls(
            dict(values),
            dict(versions) if versions is not None else dict.fromkeys(values, 1),
            {key: weight for key, weight in weights.items() if weight},
        )

    def plain(self) -> dict[str, Any]:
        """A copy that shares nothing changeable."""
        shared = self.shared
        return {key: isolate(value, shared.get(key, FROZEN)) for key, value in self.values.items()}


class StateSchema:
    """Keys, reducers and defaults of one graph's state.

    From a ``TypedDict``, dataclass, ``msgspec.Struct`` or pydantic model, whose fields may be
    ``Annotated[type, reducer]``; the reducer is the first callable there that is no class.
    Without a type: ``messages``, ``extra`` and ``errors``.
    """

    def __init__(
        self,
        reducers: Mapping[str, Reduce | None],
        *,
        kind: Kind = "mapping",
        type: type[Any] | None = None,
        defaults: Mapping[str, Callable[[], Any]] | None = None,
        required: Iterable[str] = (),
        zeros: Mapping[str, Callable[[], Any]] | None = None,
        scoped: Iterable[str] = (),
        hints: Mapping[str, Any] | None = None,
    ) -> None:
        self.reducers = dict(reducers)
        self.kind: Kind = kind
        self.type = type
        self.defaults = dict(defaults or {})
        self.required = tuple(required)
        self.zeros = dict(zeros or {})
        self.scoped = frozenset(scoped)
        self.hints = dict(hints or {})
        # By identity: a reducer may be an object of somebody's class, which compares as it likes and has no hash.
        self._safe = frozenset(key for key, each in self.reducers.items() if _among(each, SAFE))
        self._growing = frozenset(key for key, each in self.reducers.items() if _among(each, GROWING))

    @classmethod
    def of(cls, kind: type[Any] | None) -> StateSchema:
        if kind is None:
            return cls(
                {"messages": add_messages, "extra": merge_patch, "errors": append},
                defaults={"messages": list, "extra": dict, "errors": list},
            )
        try:
            hints = typing.get_type_hints(kind, include_extras=True)
        except (NameError, TypeError) as exc:
            raise StateError(f"the state type {kind!r} cannot be read: {exc}") from exc
        fields = _fields(kind)
        hints = {key: hint for key, hint in hints.items() if fields is None or key in fields}
        if not hints:
            raise StateError(f"the state type {kind!r} has no annotated fields")
        defaults = {key: make for key, make in (fields or {}).items() if make is not None}
        zeros = {key: zero for key, hint in hints.items() if (zero := _ZEROS.get(_origin(hint))) is not None}
        return cls(
            {key: _reducer(hint) for key, hint in hints.items()},
            kind=_kind(kind),
            type=kind,
            defaults=defaults,
            required=[key for key in hints if fields is not None and key not in defaults],
            zeros=zeros,
            scoped=[key for key, hint in hints.items() if _among(INVOCATION, _extras(hint))],
            hints={key: _bare(hint) for key, hint in hints.items()},
        )

    def with_reducer(self, key: str, reducer: Reduce) -> StateSchema:
        """This schema with another reducer for ``key``; a new key when there is none of that name."""
        known = self.kind == "mapping" and self.type is None
        if key not in self.reducers and not known:
            raise StateError(f"{key!r} is no key of the state; it has: {', '.join(self.reducers)}")
        return StateSchema(
            {**self.reducers, key: reducer}, kind=self.kind, type=self.type, defaults=self.defaults,
            required=self.required, zeros=self.zeros, scoped=self.scoped, hints=self.hints,
        )  # fmt: skip

    # ── in and out ────────────────────────────────────────────────────────────────────────────────

    def initial(self, given: Any, before: Values | None = None) -> Values:
        """The state that a run starts from: the defaults, or what the session holds, with ``given`` merged in."""
        update = self.as_update(given, "the input")
        if before is None:
            start = Values.of({key: make() for key, make in self.defaults.items()})
        else:
            start = self._without_scoped(before)
        state, _ = self.merge(start, [("the input", update.items())])
        self._check_required(state)
        self.view(state)  # a pydantic model refuses here what it does not like
        return state

    def _check_required(self, state: Values) -> None:
        missing = [key for key in self.required if key not in state.values]
        if missing:
            raise StateError(f"the input lacks {', '.join(missing)}: {self._name()} has no default for it")

    def entered(self, shared: Mapping[str, Any]) -> Values:
        """The state that a sub-graph starts from: what it shares with its parent, else its defaults. Nobody else holds
        ``shared``, or what is in it."""
        own = {key: make() for key, make in self.defaults.items() if key not in shared}
        state = Values.of({**own, **shared})
        self._check_required(state)
        return state

    def _without_scoped(self, before: Values) -> Values:
        values = {key: value for key, value in before.values.items() if key not in self.scoped}
        for key in self.scoped & self.defaults.keys():
            values[key] = self.defaults[key]()
        extra = values.get("extra")
        if isinstance(extra, dict) and any(str(key).endswith(INVOCATION_MARK) for key in extra):
            values["extra"] = {key: item for key, item in extra.items() if not str(key).endswith(INVOCATION_MARK)}
        return Values.of(values, {key: version for key, version in before.versions.items() if key in values})

    def as_update(self, given: Any, who: str) -> dict[str, Any]:
        """``given`` as a mapping of keys; an instance of the state's own type gives all its fields."""
        if given is None:
            return {}
        if isinstance(given, Mapping):
            return dict(given)
        if self.is_state(given):
            return {key: getattr(given, key) for key in self.reducers}
        raise StateError(f"{who} is a {type(given).__name__}; give a mapping of: {', '.join(self.reducers)}")

    def is_state(self, value: Any) -> bool:
        """Whether ``value`` is an instance of the state's own type."""
        return self.type is not None and self.kind != "mapping" and isinstance(value, self.type)

    def check_keys(self, update: Mapping[str, Any], who: str) -> None:
        """Raise ``StateError`` for a key that the state has not."""
        for key in update:
            if key not in self.reducers:
                raise StateError(f"{who} wrote {key!r}; the state has: {', '.join(self.reducers)}")

    def view(self, state: Values) -> Any:
        """What a node is given: its own copy, in the type of the schema."""
        if self.kind == "mapping":
            return StateView(state.values, state.shared) if state.shared else dict(state.values)
        values = state.plain()
        try:
            if self.kind == "pydantic":
                return self.type.model_validate(values)  # type: ignore[union-attr]
            return self.type(**values)  # type: ignore[misc]
        except (TypeError, ValueError) as exc:
            raise StateError(f"{self._name()} does not take its state: {exc}") from exc

    def output(self, state: Values) -> Any:
        """What ``invoke`` returns: as ``view``, a plain dict for a mapping."""
        return state.plain() if self.kind == "mapping" else self.view(state)

    # ── merging ───────────────────────────────────────────────────────────────────────────────────

    def merge(
        self, state: Values, updates: Iterable[tuple[str, Iterable[tuple[str, Any]]]], who: str = "{}"
    ) -> tuple[Values, tuple[str, ...]]:
        """All of a step's updates, in the order given, over ``state``, which is not changed; and the changed keys.

        ``who``: how an error calls those that the updates are from.

        Raises:
            StateError: an unknown key, two nodes of the step wrote a key that has no reducer, or a reducer raised.
        """
        merged = state
        values, versions, shared = state.values, state.versions, state.shared
        writers: dict[str, int] = {}
        named: list[str] = []
        changed: dict[str, None] = {}
        reducers = self.reducers
        for node, pairs in updates:
            place = len(named)
            named.append(node)
            for key, value in pairs:
                if merged is state:
                    values, versions, shared = values.copy(), versions.copy(), shared.copy()
                    merged = Values(values, versions, shared)
                try:
                    reducer = reducers[key]
                except (KeyError, TypeError):
                    problem = f"{who.format(node)} wrote {key!r}; the state has: {', '.join(reducers)}"
                    raise StateError(problem) from None
                weight = FROZEN if type(value) in ATOMS else weigh(value)
                if weight:
                    value = isolate(value, weight)
                before = values.get(key, _ABSENT)
                if reducer is None:
                    if writers.setdefault(key, place) != place:
                        first, second = who.format(named[writers[key]]), who.format(node)
                        both = f"two tasks of {second}" if first == second else f"{first} and {second} both"
                        raise StateError(
                            f"{both} wrote {key!r} in one step; give the key a reducer: Annotated[…, reducer]"
                        )
                    after = value
                else:
                    try:
                        after, weight = self._reduce(key, reducer, before, value, weight, shared.get(key, FROZEN))
                    except StateError as exc:
                        raise StateError(f"{key!r}, written by {who.format(node)}: {exc}") from exc
                    except Exception as exc:
                        what = f"the reducer {label(reducer)} of {key!r} raised on what {who.format(node)} wrote"
                        raise StateError(f"{what}: {said(exc)}") from exc
                values[key] = after
                if weight:
                    shared[key] = weight
                else:
                    shared.pop(key, None)
                if key not in changed and not _same(before, after):
                    changed[key] = None
                    versions[key] = versions.get(key, 0) + 1
        return merged, tuple(changed)

    def _reduce(self, key: str, reducer: Reduce, before: Any, value: Any, weight: int, held: int) -> tuple[Any, int]:
        """What ``reducer`` makes of the two, and how deep it can be changed."""
        if before is _ABSENT:
            zero = self.zeros.get(key)
            if zero is None and key not in self._safe:
                return value, weight
            before = zero() if zero is not None else None
            if before is None and key not in self._growing:
                return value, weight
            held = FLAT
        after = reducer(before if key in self._safe else isolate(before, held), value)
        # What was held has been weighed before; weighing it again would cost its length.
        if key in self._growing or (reducer is operator.add and type(before) is list and type(value) is list):
            if reducer is add_messages and weight and type(value) is not list:
                weight += 1  # one message that is none of ours: an item of the list
            return after, min(weight if weight > held else held or FLAT, DEEP)
        return after, weigh(after)

    def _name(self) -> str:
        return "the state" if self.type is None else self.type.__name__


def _same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    try:
        return type(before) is type(after) and bool(before == after)
    except Exception:
        return False  # what cannot be compared counts as changed


def _kind(kind: type[Any]) -> Kind:
    if dataclasses.is_dataclass(kind):
        return "dataclass"
    if issubclass(kind, msgspec.Struct):
        return "struct"
    if hasattr(kind, "model_validate") and hasattr(kind, "model_fields"):
        return "pydantic"
    if typing.is_typeddict(kind):
        return "mapping"
    raise StateError(
        f"the state type {kind!r} is no TypedDict, dataclass, msgspec.Struct or pydantic model; "
        "GraphBuilder() alone gives messages, extra and errors"
    )


def _fields(kind: type[Any]) -> dict[str, Callable[[], Any] | None] | None:
    """Field names and how to make their default; ``None`` for a TypedDict, where every key may be absent."""
    family = _kind(kind)
    if family == "dataclass":
        found: dict[str, Callable[[], Any] | None] = {}
        for field in dataclasses.fields(kind):
            if field.init:
                made = field.default_factory is not dataclasses.MISSING
                has = made or field.default is not dataclasses.MISSING
                found[field.name] = None if not has else (field.default_factory if made else _always(field.default))  # type: ignore[assignment]
        return found
    if family == "struct":
        return {
            field.name: None
            if field.required
            else (field.default_factory if field.default is msgspec.NODEFAULT else _always(field.default))
            for field in msgspec.structs.fields(kind)
        }
    if family == "pydantic":
        models: Mapping[str, Any] = kind.model_fields
        return {
            name: None if field.is_required() else functools.partial(field.get_default, call_default_factory=True)
            for name, field in models.items()
        }
    return None


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def _extras(hint: Any) -> tuple[Any, ...]:
    while typing.get_origin(hint) in (typing.Required, typing.NotRequired):
        hint = typing.get_args(hint)[0]
    return tuple(hint.__metadata__) if typing.get_origin(hint) is Annotated else ()


def _bare(hint: Any) -> Any:
    while typing.get_origin(hint) in (typing.Required, typing.NotRequired, Annotated):
        hint = typing.get_args(hint)[0]
    return hint


def _origin(hint: Any) -> Any:
    hint = _bare(hint)
    return typing.get_origin(hint) or hint


def _reducer(hint: Any) -> Reduce | None:
    for extra in _extras(hint):
        if callable(extra) and not isinstance(extra, type):  # a class says something to somebody else
            reducer: Reduce = extra
            return reducer
    return None


def _among(wanted: Any, found: Iterable[Any]) -> bool:
    return any(each is wanted for each in found)
