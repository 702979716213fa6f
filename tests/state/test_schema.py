"""State: kinds of schema, merging, isolation, versions."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import examples
from weavegraph.errors import StateError
from weavegraph.state import (
    INVOCATION,
    Message,
    StateKey,
    StateSchema,
    Values,
    add_messages,
    append,
    isolate,
    merge_patch,
    weigh,
)
from weavegraph.state._isolation import DEEP


class Typed(TypedDict, total=False):
    topic: str
    parts: Annotated[list[Any], append]
    count: Annotated[int, operator.add]
    both: NotRequired[Annotated[dict[str, int], merge_patch]]


@dataclass
class Data:
    topic: str
    parts: Annotated[list[Any], append] = field(default_factory=list)


class Struct(msgspec.Struct):
    topic: str
    parts: Annotated[list[Any], append] = msgspec.field(default_factory=list)


def merged(schema: StateSchema, state: Values, *updates: tuple[str, dict[str, Any]]) -> Values:
    return schema.merge(state, [(who, update.items()) for who, update in updates])[0]


@pytest.mark.parametrize("kind", [Typed, Data, Struct])
def test_each_kind_of_schema_merges_by_its_reducers_and_gives_its_own_type(kind: type[Any]) -> None:
    schema = StateSchema.of(kind)
    state = merged(schema, schema.initial({"topic": "tea"}), ("a", {"parts": [1]}), ("b", {"parts": [2], "topic": "x"}))
    out = schema.output(state)
    assert isinstance(out, dict if kind is Typed else kind)
    get = out.get if isinstance(out, dict) else lambda key: getattr(out, key)
    assert (get("topic"), get("parts")) == ("x", [1, 2])
    assert schema.initial(out).plain() == state.plain()


def test_a_pydantic_model_is_validated_where_it_is_read() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        topic: str
        parts: Annotated[list[int], append] = []  # noqa: RUF012

    schema = StateSchema.of(Model)
    state = merged(schema, schema.initial({"topic": "tea"}), ("a", {"parts": [1]}))
    assert schema.output(state) == Model(topic="tea", parts=[1])
    with pytest.raises(StateError, match="Model"):
        schema.view(merged(schema, state, ("a", {"parts": ["no number"]})))
    with pytest.raises(StateError, match="lacks topic"):
        schema.initial({})


def test_the_default_state_has_messages_extra_and_errors() -> None:
    schema = StateSchema.of(None)
    state = schema.initial({"messages": ["hello", {"role": "user", "content": "hi"}, ("system", "be brief")]})
    assert state.values == {
        "messages": ["hello", Message.user("hi"), Message.system("be brief")], "extra": {}, "errors": [],
    }  # fmt: skip
    state = merged(schema, state, ("n", {"extra": {"a": 1, "b": 2}}), ("n", {"extra": {"a": None}, "errors": ["e"]}))
    assert (state.values["extra"], state.values["errors"]) == ({"b": 2}, ["e"])


def test_a_message_with_the_id_of_an_earlier_one_takes_its_place() -> None:
    first = add_messages([], [Message.user("a", id="1"), Message.user("b")])
    again = add_messages(first, [Message.user("A", id="1"), Message.user("c", id="2"), Message.user("C", id="2")])
    assert [message.content for message in again] == ["A", "b", "C"]
    assert [message.content for message in first] == ["a", "b"]
    assert add_messages(None, Message.tool("t")) == [Message.tool("t")]
    assert msgspec.json.encode(Message.user("hi")) == b'{"role":"user","content":"hi"}'


def test_unknown_keys_and_conflicts_are_named_errors_that_list_what_is_known() -> None:
    schema = StateSchema.of(Typed)
    state = schema.initial({"topic": "tea"})
    with pytest.raises(StateError, match="node 'a' wrote 'nope'; the state has: topic, parts, count, both"):
        merged(schema, state, ("node 'a'", {"nope": 1}))
    with pytest.raises(StateError, match="a and b both wrote 'topic' in one step; give the key a reducer"):
        merged(schema, state, ("a", {"topic": "x"}), ("b", {"topic": "x"}))
    with pytest.raises(StateError, match="two tasks of a wrote 'topic' in one step; give the key a reducer"):
        merged(schema, state, ("a", {"topic": "x"}), ("a", {"topic": "y"}))  # two sends of one node
    assert schema.merge(state, [("a", [("topic", "x"), ("topic", "y")])])[0].values["topic"] == "y"
    with pytest.raises(StateError, match="lacks topic: Data has no default"):
        StateSchema.of(Data).initial({})
    with pytest.raises(StateError, match="'parts', written by a: append takes a list of items, not int"):
        merged(schema, state, ("a", {"parts": 7}))
    with pytest.raises(StateError, match="no TypedDict, dataclass"):
        StateSchema.of(int)


def test_a_reducer_that_raises_is_named() -> None:
    def picky(current: Any, update: Any) -> Any:
        raise ZeroDivisionError("no")

    schema = StateSchema({"x": picky}, zeros={"x": list})
    with pytest.raises(StateError, match=r"the reducer .*picky of 'x' raised on what a wrote: ZeroDivisionError"):
        merged(schema, schema.initial({}), ("a", {"x": 1}))


def test_a_version_grows_when_the_value_changes_and_only_then() -> None:
    """Trap: in the original the version of errors never moves, and a changed message of equal count counts as none."""
    schema = StateSchema.of(None)
    state = schema.initial({"messages": [Message.user("a", id="1")]})
    before = dict(state.versions)
    same, changed = schema.merge(state, [("n", {"messages": [], "extra": {}, "errors": []}.items())])
    assert (changed, same.versions) == ((), before)
    state, changed = schema.merge(state, [("n", {"messages": [Message.user("A", id="1")], "errors": ["e"]}.items())])
    assert changed == ("messages", "errors")
    assert (state.versions["messages"], state.versions["errors"], state.versions["extra"]) == (
        before["messages"] + 1, before["errors"] + 1, before["extra"],
    )  # fmt: skip


def test_what_cannot_be_compared_counts_as_changed() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

    schema = StateSchema({"x": None})
    _, changed = schema.merge(schema.initial({"x": Odd()}), [("n", {"x": Odd()}.items())])
    assert changed == ("x",)


# ── isolation ─────────────────────────────────────────────────────────────────────────────────────


def values() -> st.SearchStrategy[Any]:
    atoms = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
    return st.recursive(
        atoms,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=2), inner, max_size=3)
            | st.tuples(inner, inner)
            | st.sets(st.integers(), max_size=3)
        ),
        max_leaves=8,
    )


def spoil(value: Any) -> None:
    """Change whatever can be changed in it."""
    if isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoiled")
    elif isinstance(value, dict):
        for item in tuple(value.values()):
            spoil(item)
        value["spoiled"] = True
    elif isinstance(value, set):
        value.add("spoiled")
    elif isinstance(value, tuple):
        for item in value:
            spoil(item)


@given(values())
@settings(max_examples=examples(200), deadline=None)
def test_a_copy_equals_the_original_and_shares_nothing_that_can_be_changed(value: Any) -> None:
    keep = isolate(value, DEEP)
    assert keep == value
    spoil(isolate(value, weigh(value)))
    assert value == keep


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), values()), st.sampled_from(
    ["item", "get", "values", "items", "dict", "star", "pop", "popitem", "copy", "or", "setdefault"]
))  # fmt: skip
@settings(max_examples=examples(200), deadline=None)
def test_whatever_a_node_does_to_its_view_changes_nothing_else(given_: dict[str, Any], how: str) -> None:
    schema = StateSchema({"a": None, "b": None, "c": None})
    state = schema.initial(given_)
    keep = isolate(given_, DEEP)
    view = schema.view(state)
    assert (dict(view) if how == "none" else view) == keep
    taken: list[Any] = []
    match how:
        case "item":
            taken = [view[key] for key in keep]
        case "get":
            taken = [view.get(key) for key in (*keep, "absent")]
        case "values":
            taken = list(view.values())
        case "items":
            taken = [value for _, value in view.items()]
        case "dict":
            taken = list(dict(view).values())
        case "star":
            taken = list({**view}.values())
        case "pop":
            taken = [view.pop(key) for key in keep]
        case "popitem":
            taken = [view.popitem()[1] for _ in keep]
        case "copy":
            taken = list(view.copy().values())
        case "or":
            taken = list((view | {}).values())
        case "setdefault":
            taken = [view.setdefault(key, 1) for key in keep]
    for value in taken:
        spoil(value)
    assert state.values == keep
    assert given_ == keep
    assert schema.output(state) == keep


def test_what_a_node_returned_and_keeps_can_be_changed_by_it_without_harm() -> None:
    schema = StateSchema.of(Typed)
    mine: list[Any] = [[1]]
    state = merged(schema, schema.initial({}), ("n", {"parts": mine}))
    mine[0].append("later")
    assert state.values["parts"] == [[1]]
    inner = schema.output(state)["parts"]
    inner[0].append("later")
    assert state.values["parts"] == [[1]]


def test_a_reducer_that_changes_its_argument_does_not_change_the_state_before() -> None:
    def greedy(current: list[int], update: list[int]) -> list[int]:
        current.extend(update)
        return current

    schema = StateSchema({"x": greedy}, zeros={"x": list})
    first = merged(schema, schema.initial({}), ("a", {"x": [1]}))
    second = merged(schema, first, ("a", {"x": [2]}))
    assert (first.values["x"], second.values["x"]) == ([1], [1, 2])


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        ((1, "x"), 0),
        ([1, (2,)], 1),
        ([{"a": 1}, 2, {3}], 2),
        ({"a": [{"b": 1}], "c": [1]}, 3),
        ([[[[1]]]], DEEP),
        ([(1, [2])], DEEP),
    ],
)
def test_plain_containers_are_copied_level_by_level_and_nothing_of_them_is_shared(value: Any, weight: int) -> None:
    assert weigh(value) == weight
    copied = isolate(value, weight)
    spoil(copied)
    assert value == isolate(value, DEEP)
    assert weight == 0 or copied != value


def test_a_list_that_grows_is_as_deep_as_what_was_added() -> None:
    schema = StateSchema.of(None)
    state = schema.initial({"messages": [Message.user("a")]})
    assert state.shared["messages"] == 1
    state = merged(schema, state, ("n", {"messages": {"no": ["message"]}}))  # a single item
    state = merged(schema, state, ("n", {"extra": {"a": [1]}}))
    assert (state.shared["messages"], state.shared["extra"]) == (3, 2)
    view = schema.view(state)
    view["messages"][1]["no"].append("spoiled")
    view["extra"]["a"].append("spoiled")
    assert (state.values["messages"][1], state.values["extra"]) == ({"no": ["message"]}, {"a": [1]})


def test_lists_that_are_added_are_as_deep_as_their_parts() -> None:
    schema = StateSchema({"x": operator.add}, zeros={"x": list})
    state = merged(schema, schema.initial({"x": [1]}), ("a", {"x": [{"n": 1}]}))
    schema.view(state)["x"][1]["n"] = 2
    assert (state.shared["x"], state.values["x"]) == (2, [1, {"n": 1}])


def test_a_frozen_dataclass_with_a_field_that_is_not_set_can_be_weighed() -> None:
    @dataclass(frozen=True)
    class Half:
        a: int
        b: int = field(init=False)

    assert weigh(Half(1)) == 0


@dataclass
class Last:
    """A reducer without a hash."""

    count: int

    def __call__(self, current: list[int], update: list[int]) -> list[int]:
        return [*current, *update][-self.count :]


class Marked(TypedDict, total=False):
    last: Annotated[list[int], Last, Last(2)]
    plain: Annotated[int, Last]


def test_a_reducer_may_be_an_object_without_a_hash_and_a_class_is_none() -> None:
    schema = StateSchema.of(Marked)
    assert schema.reducers == {"last": Last(2), "plain": None}
    state = merged(schema, schema.initial({"last": [1], "plain": 1}), ("a", {"last": [2, 3], "plain": 2}))
    assert state.values == {"last": [2, 3], "plain": 2}


def test_a_reducer_that_raises_what_has_no_text_is_named() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    def fails(current: Any, update: Any) -> Any:
        raise Mute

    schema = StateSchema({"x": fails}, zeros={"x": list})
    with pytest.raises(StateError, match=r"raised on what a wrote: Mute: \(its text cannot be had\)"):
        merged(schema, schema.initial({}), ("a", {"x": [1]}))


def test_a_cycle_and_what_cannot_be_copied_are_taken_as_they_are() -> None:
    loop: list[Any] = []
    loop.append(loop)
    copied = isolate(loop, weigh(loop))
    assert copied is not loop and copied[0] is copied

    class Client:
        def __deepcopy__(self, memo: object) -> object:
            raise TypeError("no")

    client = Client()
    assert isolate({"c": client}, DEEP)["c"] is client


# ── typed slots ───────────────────────────────────────────────────────────────────────────────────

HITS = StateKey("search", "hits", list[str], version=2, migrations={1: lambda old: old.split(",")})


def test_a_typed_slot_is_written_read_cleared_and_migrated() -> None:
    schema = StateSchema.of(None)
    state = schema.initial({})
    assert HITS.get(schema.view(state)) is None
    with pytest.raises(StateError, match="'search:hits:v2' is empty"):
        HITS.require(schema.view(state))
    state = merged(schema, state, ("n", HITS.put(["a"])))
    assert state.values["extra"] == {"search:hits:v2": ["a"]}
    assert HITS.require(schema.view(state)) == ["a"]
    old = schema.initial({"extra": {"search:hits:v1": "x,y"}})
    assert HITS.require(schema.view(old)) == ["x", "y"]
    state = merged(schema, state, ("n", HITS.clear()))
    assert state.values["extra"] == {}
    with pytest.raises(StateError, match="holds"):
        HITS.put([1])  # type: ignore[list-item]
    with pytest.raises(StateError, match="something else"):
        HITS.get({"extra": {"search:hits:v2": 7}})
    with pytest.raises(StateError, match="no migration"):
        StateKey("a", "b", int, version=3).get({"extra": {"a:b:v1": 1}})
    assert StateKey("a", "b", int) == StateKey("a", "b", int, lifecycle="invocation")


def test_keys_of_one_invocation_are_gone_at_the_next_input() -> None:
    class Scoped(TypedDict, total=False):
        kept: str
        scratch: Annotated[str, INVOCATION]

    schema = StateSchema.of(Scoped)
    state = schema.initial({"kept": "k", "scratch": "s"})
    assert schema.initial({}, state).values == {"kept": "k"}
    default = StateSchema.of(None)
    slot = StateKey("a", "b", int, lifecycle="invocation")
    state = default.initial({"extra": {**slot.put(1)["extra"], "stays": 1}})
    assert default.initial({}, state).values["extra"] == {"stays": 1}
