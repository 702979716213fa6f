"""The door: what may become an event (contract E4–E6, 12.1–12.3, 12.8)."""

from __future__ import annotations

import enum
import math
import re
from typing import Any

import msgspec
import pytest

from tests.support import clause
from weavegraph import (
    EventHub,
    EventInvalidError,
    EventTooLargeError,
    LLMStreamingEvent,
    NodeEvent,
    diagnostic,
    errors,
    llm_chunk,
    llm_error,
    llm_final,
    node_message,
)
from weavegraph.events import (
    EMPTY,
    FLAT_BYTES,
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    FrozenDict,
    _admit,
    admit,
    check_id,
    check_scope,
    freeze_metadata,
    freeze_usual,
    from_json,
)


def label(value: object) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


def nested(depth: int, kind: type = dict) -> Any:
    value: Any = {} if kind is dict else []
    for _ in range(depth - 1):
        value = {"k": value} if kind is dict else [value]
    return value


@clause("12.1")
@pytest.mark.parametrize("kind", [dict, list])
def test_metadata_may_be_32_deep_and_no_deeper(kind: type) -> None:
    inner = MAX_DEPTH - 1  # the metadata itself is the first level
    event = admit(node_message("a", "m", x=nested(inner, kind)))[0]
    assert from_json(event.to_json()).metadata == event.metadata
    with pytest.raises(EventTooLargeError) as caught:
        admit(node_message("a", "m", x=nested(inner + 1, kind)))
    assert (caught.value.size, caught.value.limit) == (33, 32)


@clause("12.1", "E4")
def test_metadata_that_contains_itself_is_too_deep_and_nothing_hangs() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(EventTooLargeError):
        admit(node_message("a", "m", x=loop))


@clause("12.1", "E4")
def test_what_is_accepted_near_the_limit_stays_within_it_on_the_wire_with_any_ids() -> None:
    """The stamp comes after the check: ids of full length must not push an accepted event over the limit."""
    from weavegraph import EventBus

    low, high = MAX_EVENT_BYTES - 2000, MAX_EVENT_BYTES
    while low < high:  # the longest message that is accepted
        middle = (low + high + 1) // 2
        try:
            admit(NodeEvent("a", "x" * middle))
            low = middle
        except EventTooLargeError:
            high = middle - 1
    bus = EventBus()
    lane = bus.open_lane("r" * 128, "s" * 128)
    for _ in range(2):
        stamped = lane._accept(NodeEvent("a", "x" * low))
        raw = stamped.to_json()
        assert len(raw) <= MAX_EVENT_BYTES
        assert from_json(raw) == stamped
    with pytest.raises(EventTooLargeError):
        lane.publish(NodeEvent("a", "x" * (low + 1)))
    assert lane.head == 2
    bus.close()


@clause("K1")
@pytest.mark.parametrize("size", [0, 85, 86, 400, 512, 513, 1000, 5000, 100_000])
@pytest.mark.parametrize("where", ["message", "metadata", "both"])
def test_the_charge_is_at_least_text_and_metadata_and_512(size: int, where: str) -> None:
    text = "x" * size
    metadata = {} if where == "message" else {"k": text}
    event, extra = admit(NodeEvent("a", "" if where == "metadata" else text, metadata))
    content = len(msgspec.json.encode(event.message)) - 2 + len(msgspec.json.encode(event.metadata))
    assert FLAT_BYTES + extra >= content + 512 - (2 if event.metadata is EMPTY else 0)
    assert extra == 0 or content > 500


@clause("12.2")
@pytest.mark.parametrize("good", ["a", "A-z_0.9:x", "x" * 128])
def test_ids_of_the_allowed_alphabet_are_accepted(good: str) -> None:
    assert check_id("run_id", good) == good


BAD_IDS = ["", "x" * 129, "a b", "a\n", "ä", "a/b", "../x", "a\x00", "\ud800", 5, b"a", object()]


@clause("12.2", "E4")
@pytest.mark.parametrize("bad", BAD_IDS, ids=label)
@pytest.mark.parametrize("field", ["node_id", "session_id", "stream_id", "run_id", "epoch"])
def test_an_id_outside_of_the_alphabet_is_refused_on_every_field(field: str, bad: object) -> None:
    values: dict[str, Any] = {field: bad}
    with EventHub() as hub, pytest.raises(EventInvalidError) as caught:
        hub.publish(LLMStreamingEvent("llm_stream", "m", chunk="m", **values))
    assert caught.value.field == field
    assert hub.head == 0


@clause("E4")
@pytest.mark.parametrize(
    "values",
    [
        {"path": (1,)}, {"path": "ab c"}, {"path": object()}, {"path": ("a", "b c")}, {"run_seq": "1"}, {"run_seq": 0},
        {"run_seq": 2**63}, {"attempt": object()}, {"attempt": True}, {"step": -1}, {"step": 1.0}, {"step": 2**63},
        {"v": 2}, {"v": object()},
    ],
    ids=label,
)  # fmt: skip
def test_every_field_of_the_envelope_is_checked_so_that_what_is_accepted_encodes(values: dict[str, Any]) -> None:
    with EventHub() as hub, pytest.raises(EventInvalidError):
        hub.publish(NodeEvent("a", "m", **values))


@clause("E4")
@pytest.mark.parametrize(
    "values",
    [
        {"phase": "done"}, {"phase": "final"}, {"phase": "final", "is_final": 1}, {"is_final": True}, {"index": -1},
        {"index": 1.5}, {"index": 2**63}, {"chunk": "other"},
    ],
    ids=label,
)  # fmt: skip
def test_an_llm_event_that_contradicts_itself_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(EventInvalidError):
        admit(LLMStreamingEvent("llm_stream", "m", **{"chunk": "m", **values}))


@clause("E4", "12.3")
@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), 2**64, -(2**63) - 1, b"x", {1: 2}, {1, 2}, object(), 1j, [float("nan")],
     {"a": [{"b": object()}]}, range(3)],
    ids=label,
)  # fmt: skip
def test_what_json_cannot_say_is_refused_by_name_before_a_position_is_taken(value: object) -> None:
    with EventHub() as hub:
        with pytest.raises(EventInvalidError) as caught:
            hub.publish(node_message("a", "m", deep=[0, value]))
        assert caught.value.field.startswith("metadata.deep[1]")
        assert (hub.head, hub.producer_stats().refused_invalid) == (0, 1)
        assert hub.publish(node_message("a", "fine")) == 1


@clause("E4")
@pytest.mark.parametrize("wrong", [None, "text", {"scope": "a"}, object(), NodeEvent], ids=label)
def test_what_is_no_event_is_refused(wrong: Any) -> None:
    with EventHub() as hub, pytest.raises(EventInvalidError):
        hub.publish(wrong)


@clause("E4")
def test_a_metadata_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(EventInvalidError, match="no text"):
        admit(NodeEvent("a", "m", {1: 2}))  # type: ignore[dict-item]


@clause("E4")
@pytest.mark.parametrize("message", [None, 5, b"bytes"])
def test_a_message_that_is_no_text_is_refused(message: Any) -> None:
    with pytest.raises(EventInvalidError):
        admit(node_message("a", message))


@clause("E5")
def test_lone_surrogates_are_replaced_in_message_keys_and_values_alike() -> None:
    event = admit(NodeEvent("a", "x\ud800y", {"k\udfff": ["\ud83d\ude00", "\udead"]}))[0]
    assert event.message == "x\ufffdy"
    assert event.metadata == {"k\ufffd": ["\U0001f600", "\ufffd"]}
    assert from_json(event.to_json()) == event


class Colour(enum.IntEnum):
    RED = 7


class Text(str):
    __slots__ = ()


@clause("E5")
def test_subclasses_become_the_plain_values_that_a_reader_of_the_wire_gets() -> None:
    event = admit(NodeEvent("a", Text("m"), {Text("k"): Text("v"), "n": Colour.RED, "t": (1, (2,))}))[0]
    assert type(event.message) is str
    assert [type(key) for key in event.metadata] == [str, str, str]
    assert [type(event.metadata[key]) for key in ("k", "n")] == [str, int]
    assert event.metadata == {"k": "v", "n": 7, "t": [1, [2]]}


@clause("E6")
@pytest.mark.parametrize("scope", ["weavegraph.", "weavegraph.gap", "weavegraph.stream.end", "weavegraph.mine"])
def test_the_reserved_prefix_is_refused_for_all_three_kinds(scope: str) -> None:
    for event in (node_message(scope, "m"), diagnostic(scope, "m"), LLMStreamingEvent(scope, "m", chunk="m")):
        with EventHub() as hub, pytest.raises(EventInvalidError, match="runtime's own"):
            hub.publish(event)


@clause("E6")
@pytest.mark.parametrize("scope", ["weavegraph", "Weavegraph.x", "my.weavegraph.x"])
def test_what_only_looks_reserved_is_accepted(scope: str) -> None:
    assert admit(node_message(scope, "m"))[0].scope == scope


@clause("E4")
@pytest.mark.parametrize("scope", ["", "x" * 257, "a\n", "\x1b[31m", "\u202e", 5, None], ids=label)
def test_a_scope_is_short_printable_text(scope: Any) -> None:
    with pytest.raises(EventInvalidError) as caught:
        admit(node_message(scope, "m"))
    assert caught.value.field == "scope"


def classes() -> list[type[Exception]]:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    return sorted(found, key=lambda cls: cls.__name__)


@clause("12.8")
def test_every_error_has_a_stable_code_of_its_own() -> None:
    codes = {cls.__name__: vars(cls)["code"] for cls in classes()}
    assert set(codes) == set(errors.__all__)
    assert len(set(codes.values())) == len(codes)
    assert all(code == code.lower() and code.replace("_", "").isalpha() for code in codes.values())


@clause("12.8")
def test_the_codes_of_the_bus_never_change() -> None:
    known = {
        "BackpressureError": "backpressure", "BlockingInLoopError": "blocking_in_loop", "EndOfStream": "end_of_stream",
        "EventDecodeError": "event_decode", "EventInvalidError": "event_invalid",
        "EventTooLargeError": "event_too_large", "ForkedHubError": "hub_forked", "HubClosedError": "hub_closed",
        "InvalidPositionError": "invalid_position", "Lagged": "lagged", "RunClosedError": "run_closed",
        "StreamBusyError": "stream_busy", "SubscriberOverflowError": "subscriber_overflow",
        "WrongLoopError": "wrong_loop",
    }  # fmt: skip
    assert {name: getattr(errors, name).code for name in known} == known


def test_an_llm_error_says_severity_error_and_is_final() -> None:
    event = llm_error("boom", stream_id="s")
    assert (event.phase, event.is_final, event.metadata["severity"]) == ("error", True, "error")


@clause("O5")
def test_the_end_of_an_answer_has_not_the_scope_of_the_end_of_a_run() -> None:
    """Trap of the original: an LLM final chunk carried the scope string of the end-of-run sentinel."""
    from weavegraph import STREAM_END_SCOPE

    for event in (llm_chunk("a"), llm_final("b"), llm_error("c")):
        assert event.scope == "llm_stream" != STREAM_END_SCOPE
        assert STREAM_END_SCOPE.encode() not in event.to_json(style="rust")


@clause("E4", "12.8")
@pytest.mark.parametrize("scope", [[], {}, None, 7, b"a"])
def test_a_scope_that_is_no_text_is_refused_by_name(scope: object) -> None:
    with pytest.raises(EventInvalidError, match="is no scope"):
        check_scope(scope)


def test_scopes_from_data_do_not_grow_what_is_remembered_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for remembered in ("_known_scopes", "_known_nodes"):
        monkeypatch.setattr(_admit, remembered, {f"known-{n}": "" for n in range(_admit.MAX_KNOWN)})
    assert check_scope("one more") == "one more"
    assert check_id("node_id", "one-more") == "one-more"
    assert len(_admit._known_scopes) == len(_admit._known_nodes) == _admit.MAX_KNOWN


def test_what_is_remembered_of_scopes_is_no_node_and_the_other_way_round() -> None:
    assert check_scope("with a space") == "with a space"
    assert check_id("node_id", "weavegraph.node") == "weavegraph.node"
    for _ in range(2):
        with pytest.raises(EventInvalidError, match="node_id"):
            admit(node_message("with a space", "m", node_id="with a space"))
        with pytest.raises(EventInvalidError, match="runtime's own"):
            admit(node_message("weavegraph.node", "m", node_id="weavegraph.node"))


@pytest.mark.parametrize("field", ["scope", "node_id"])
@pytest.mark.parametrize("value", [[], {}, {1}, bytearray(b"a")])
def test_what_cannot_be_looked_up_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(EventInvalidError) as caught:
        admit(NodeEvent(**{"scope": "a", "message": "m", field: value}))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_text_of_another_class_that_equals_a_known_one_is_not_taken_for_it() -> None:
    class Text(str):
        pass

    assert admit(node_message("scope", "m", node_id="node"))[0].node_id == "node"
    with pytest.raises(EventInvalidError, match="is no scope"):
        admit(node_message(Text("scope"), "m"))
    with pytest.raises(EventInvalidError, match="node_id"):
        admit(node_message("scope", "m", node_id=Text("node")))


def test_frozen_metadata_is_taken_as_it_is_and_only_a_mapping_is_metadata() -> None:
    frozen = freeze_metadata({"a": [1]})
    assert freeze_metadata(frozen) is frozen
    with pytest.raises(EventInvalidError, match="expected a mapping, got list"):
        freeze_metadata([("a", 1)])


class Str(str):
    pass


USUAL = [
    {}, {"number": 1}, {"a": "b", "c": None, "d": True, "e": 1.5}, {"n": 2**64 - 1, "m": -(2**63)}, {"text": "x" * 400},
    {"a" * 30: "b" * 20}, {"x": -1.7976931348623157e308, "y": 5e-324},
]  # fmt: skip
UNUSUAL = [
    {"n": 2**64}, {"n": -(2**63) - 1}, {"x": math.nan}, {"x": math.inf}, {"x": []}, {"x": {}}, {"x": (1,)}, {"x": "é"},
    {"é": 1}, {"x": Str("a")}, {"x": b"a"}, {"x": object()}, {"text": "x" * 600}, {"x": '"' * 300}, {"x": "\x01" * 90},
    {Str("a"): 1}, {1: 2}, {"x": 1 + 2j},
]  # fmt: skip


@pytest.mark.parametrize("message", ["", "item", "x" * 200, "\x01" * 80, "\x01" * 90, "é", Str("a"), b"a", "x" * 2000])
@pytest.mark.parametrize("metadata", [*USUAL, *UNUSUAL], ids=range(len(USUAL) + len(UNUSUAL)))
def test_what_is_taken_as_usual_is_what_admit_neither_changes_nor_charges(message: Any, metadata: Any) -> None:
    node = check_id("node_id", "n")
    check_scope("progress")
    for scope in ("progress", "weavegraph.own", "", 1, "never seen", None, []):
        frozen = freeze_usual(scope, message, dict(metadata), node)
        if frozen is not None:
            event, extra = admit(NodeEvent(scope, message, dict(metadata), node_id=node))  # type: ignore[arg-type]
            assert (event.metadata, type(event.metadata), extra) == (frozen, FrozenDict, 0)
            assert (event.scope, event.message) == (scope, message)
    taken = freeze_usual("progress", "item", dict(metadata), node) is not None
    assert taken is (metadata in USUAL)
    for other in ("unknown", "no id!", 1, []):
        assert freeze_usual("progress", "item", dict(metadata), other) is None
