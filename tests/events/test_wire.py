"""Events as JSON, both ways (contract 12.1–12.3, E4, E5, D8 as far as events are decoded)."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import clause, examples
from weavegraph import (
    DiagnosticEvent,
    EventDecodeError,
    EventHub,
    EventInvalidError,
    LLMStreamingEvent,
    NodeEvent,
    diagnostic,
    from_json,
    llm_chunk,
    llm_error,
    llm_final,
    node_message,
)
from weavegraph.events import MAX_EVENT_BYTES, admit, to_json

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

text = st.text(st.characters(codec=None), max_size=30)  # lone surrogates too
ids = st.none() | st.from_regex(r"[A-Za-z0-9_.:-]{1,20}", fullmatch=True)
scopes = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=30)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)
metadata = st.dictionaries(text, values, max_size=3)
whole = st.none() | st.integers(1, 2**63 - 1)
stamps = st.fixed_dictionaries(
    {
        "timestamp": st.datetimes(timezones=st.just(UTC)),
        "seq": st.integers(0, 2**63 - 1),
        "epoch": ids,
        "session_id": ids,
        "run_id": ids,
        "run_seq": whole,
        "node_id": ids,
        "step": st.none() | st.integers(0, 2**63 - 1),
        "attempt": whole,
        "path": st.lists(ids.filter(bool), max_size=3).map(tuple),
    }
)


@st.composite
def events(draw: st.DrawFn) -> Any:
    scope, message, data, stamp = draw(scopes), draw(text), draw(metadata), draw(stamps)
    kind = draw(st.sampled_from([NodeEvent, DiagnosticEvent, LLMStreamingEvent]))
    if kind is not LLMStreamingEvent:
        return kind(scope, message, data, **stamp)
    phase = draw(st.sampled_from(["chunk", "final", "error", "cancelled"]))
    return LLMStreamingEvent(
        scope, message, data, chunk=message, phase=phase, is_final=phase != "chunk",  # type: ignore[arg-type]
        index=draw(st.integers(0, 2**63 - 1)), stream_id=draw(ids), **stamp,
    )  # fmt: skip


def same_types(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return type(one) is type(two) and one.keys() == two.keys() and all(same_types(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return type(one) is type(two) and len(one) == len(two) and all(map(same_types, one, two))
    return type(one) is type(two) and repr(one) == repr(two)  # repr: -0.0 is not 0.0


@clause("E4", "E5", "12.3")
@given(events())
@settings(max_examples=examples(150), deadline=None)
def test_whatever_is_admitted_survives_the_round_trip(event: Any) -> None:
    admitted = admit(event, reserved=True)[0]
    raw = to_json(admitted)
    assert b"\n" not in raw
    back = from_json(raw)
    assert back == admitted
    assert same_types(back.metadata, admitted.metadata)
    assert type(back) is type(admitted)
    assert from_json(raw.decode()) == back
    assert to_json(back) == raw
    json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@clause("12.3")
@given(events())
@settings(max_examples=examples(100), deadline=None)
def test_the_rust_form_has_its_five_keys_for_every_event(event: Any) -> None:
    form = json.loads(event.to_json(style="rust"))
    assert list(form) == ["type", "scope", "message", "timestamp", "metadata"]
    assert list(form["metadata"]) == sorted(form["metadata"])


GOOD = (
    b'{"type":"llm","scope":"llm_stream","message":"h\xc3\xa9","metadata":{"a":[1,2.5,{"b":null}]},'
    b'"timestamp":"2026-01-02T03:04:05.678901Z","v":1,"seq":7,"epoch":"e","session_id":"s","run_id":"r","run_seq":3,'
    b'"node_id":"n","step":2,"attempt":1,"path":["p"],"chunk":"h\xc3\xa9","phase":"final","is_final":true,"index":4,'
    b'"stream_id":"t"}'
)


@clause("12.3")
def test_the_wire_form_is_exactly_this() -> None:
    event = LLMStreamingEvent(
        "llm_stream", "hé", {"a": [1, 2.5, {"b": None}]}, AT, seq=7, epoch="e", session_id="s", run_id="r", run_seq=3,
        node_id="n", step=2, attempt=1, path=("p",), chunk="hé", phase="final", is_final=True, index=4, stream_id="t",
    )  # fmt: skip
    assert event.to_json() == GOOD
    assert from_json(GOOD) == event
    assert NodeEvent("a", "m", {}, AT).to_json() == (
        b'{"type":"node","scope":"a","message":"m","metadata":{},"timestamp":"2026-01-02T03:04:05.678901Z","v":1}'
    )


def altered(**changes: Any) -> bytes:
    return json.dumps({**json.loads(GOOD), **changes}).encode()


def without(key: str) -> bytes:
    return json.dumps({k: v for k, v in json.loads(GOOD).items() if k != key}).encode()


DEEP = 200_000
HOSTILE: dict[str, Any] = {
    "nothing": b"",
    "a number": b"5",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep metadata": GOOD.replace(b'{"b":null}', b"[" * 100_000 + b"]" * 100_000),
    "metadata 33 deep": GOOD.replace(b'{"b":null}', b"[" * 31 + b"]" * 31),
    "deep unknown key": GOOD[:-1] + b',"z":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": GOOD.replace(b"2.5", b"NaN"),
    "Infinity": GOOD.replace(b"2.5", b"-Infinity"),
    "1e400": GOOD.replace(b"2.5", b"1e400"),
    "a huge integer": GOOD.replace(b"2.5", b"9" * 5000),
    "an integer of 65 bits": GOOD.replace(b"2.5", str(2**64).encode()),
    "a huge seq": GOOD.replace(b'"seq":7', b'"seq":' + str(2**63).encode()),
    "a negative seq": GOOD.replace(b'"seq":7', b'"seq":-1'),
    "run_seq 0": GOOD.replace(b'"run_seq":3', b'"run_seq":0'),
    "a BOM": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without BOM": GOOD.decode().encode("utf-16-le"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "latin-1": GOOD.decode().encode("latin-1"),
    "a broken UTF-8 sequence": GOOD.replace(b"\xc3\xa9", b"\xc3"),
    "an overlong UTF-8 sequence": GOOD.replace(b"\xc3\xa9", b"\xc0\xaf"),
    "a surrogate in UTF-8": GOOD.replace(b"\xc3\xa9", b"\xed\xa0\x80"),
    "a str with a lone surrogate": GOOD.decode().replace("é", "\ud800"),
    "two events": GOOD + GOOD,
    "a comma at the end": GOOD[:-1] + b",}",
    "single quotes": GOOD.replace(b'"', b"'"),
    "a comment": GOOD[:-1] + b"/**/}",
    "an unknown type": altered(type="other"),
    "no type": without("type"),
    "type null": altered(type=None),
    "type as a list": altered(type=["node"]),
    "no scope": without("scope"),
    "no message": without("message"),
    "no version": without("v"),
    "version 2": altered(v=2),
    "version 0": altered(v=0),
    "version as text": altered(v="1"),
    "version true": altered(v=True),
    "an unknown key": altered(extra=1),
    "a key of Python's": altered(__class__="os.system"),
    "no time zone": altered(timestamp="2026-01-02T03:04:05"),
    "a timestamp as a number": altered(timestamp=0),
    "the 31st of February": altered(timestamp="2026-02-31T00:00:00Z"),
    "before year 1 in UTC": altered(timestamp="0001-01-01T00:00:00+23:59"),
    "after year 9999 in UTC": altered(timestamp="9999-12-31T23:59:59-23:59"),
    "metadata as a list": altered(metadata=[]),
    "metadata null": altered(metadata=None),
    "message as a number": altered(message=5),
    "scope null": altered(scope=None),
    "an empty scope": altered(scope=""),
    "a scope with an escape sequence": altered(scope="\x1b[31m"),
    "a reserved scope with an escape sequence": altered(scope="weavegraph.\x1b[31m"),
    "a long reserved scope": altered(scope="weavegraph." + "x" * 300),
    "a hostile run_id": altered(run_id="../../etc/passwd"),
    "a hostile session_id": altered(session_id="a\nb"),
    "a hostile node_id": altered(node_id="x" * 129),
    "a hostile stream_id": altered(stream_id="*"),
    "a hostile epoch": altered(epoch=" "),
    "a hostile path": altered(path=["/"]),
    "path as text": altered(path="abc"),
    "step as a float": altered(step=1.5),
    "step -1": altered(step=-1),
    "attempt 0": altered(attempt=0),
    "an unknown phase": altered(phase="done"),
    "is_final against the phase": altered(is_final=False),
    "chunk is not the message": altered(chunk="other"),
    "index -1": altered(index=-1),
    "a node event with a chunk": altered(type="node"),
    "too large": altered(message="x" * MAX_EVENT_BYTES, chunk="x" * MAX_EVENT_BYTES),
    "a number as data": 5,
    "a huge number as data": 10**12,
    "None as data": None,
    "a list as data": [1, 2],
    "an object as data": object(),
}  # fmt: skip


@clause("12.1", "12.2", "12.3", "E4")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_data_is_refused_by_name_and_with_nothing_else(name: str) -> None:
    with pytest.raises(EventDecodeError) as caught:
        from_json(HOSTILE[name])
    assert caught.value.code == "event_decode"
    assert len(str(caught.value)) < 1000


@clause("12.3")
def test_duplicate_keys_give_the_last_one_or_an_error_and_never_two_readings() -> None:
    raw = GOOD.replace(b'"seq":7', b'"seq":7,"seq":8').replace(b'"a":[1', b'"a":0,"a":[1')
    event = from_json(raw)
    assert (event.seq, event.metadata) == (8, {"a": [1, 2.5, {"b": None}]})
    for other in (b'"v":1,"v":2', b'"v":2,"v":1'):
        doubled = GOOD.replace(b'"v":1', other)
        if other.endswith(b"2"):
            with pytest.raises(EventDecodeError):
                from_json(doubled)
        else:
            assert from_json(doubled).v == 1


@clause("12.3")
def test_every_truncation_and_every_flipped_byte_is_an_event_or_the_named_error() -> None:
    for end in range(len(GOOD)):
        with pytest.raises(EventDecodeError):
            from_json(GOOD[:end])
    for at in range(len(GOOD)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            raw = bytearray(GOOD)
            raw[at] ^= mask
            try:
                again = from_json(bytes(raw))
            except EventDecodeError:
                continue
            assert from_json(again.to_json()) == again


@clause("12.3")
@given(st.binary(max_size=200) | st.text(max_size=200))
@settings(max_examples=examples(150), deadline=None)
def test_any_data_at_all_is_an_event_or_the_named_error(data: bytes | str) -> None:
    with pytest.raises(EventDecodeError):
        from_json(data)


@clause("12.3")
@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(
    ["type", "scope", "message", "metadata", "timestamp", "v", "seq", "path", "phase", "chunk"]), inner)))  # fmt: skip
@settings(max_examples=examples(100), deadline=None)
def test_any_json_at_all_is_an_event_or_the_named_error(value: Any) -> None:
    try:
        raw = msgspec.json.encode(value)
    except (UnicodeEncodeError, msgspec.MsgspecError):
        return
    try:
        from_json(raw)
    except EventDecodeError:
        pass


@clause("12.3")
def test_other_time_zones_and_buffers_are_read() -> None:
    raw = altered(timestamp="2026-01-02T05:04:05.678901+02:00")
    event = from_json(raw)
    assert event.timestamp == AT
    assert event.timestamp.utcoffset() == timedelta(0)
    assert from_json(bytearray(raw)) == from_json(memoryview(raw)) == event  # type: ignore[arg-type]
    assert timezone(timedelta(hours=2)).utcoffset(None) == timedelta(hours=2)


AUDIT = """
import sys
from weavegraph import from_json
from weavegraph.errors import EventDecodeError
good, hostile = {good!r}, {hostile!r}
from_json(good)
for data in hostile:
    try: from_json(data)
    except EventDecodeError: pass
seen = set()
sys.addaudithook(lambda name, arguments: seen.add(name))
from_json(good)
for data in hostile:
    try: from_json(data)
    except EventDecodeError: pass
allowed = {{"object.__getattr__", "sys._getframe"}}
print(sorted(seen - allowed))
"""


@clause("12.3", "E4")
def test_decoding_imports_opens_compiles_and_executes_nothing() -> None:
    hostile = [data for name, data in HOSTILE.items() if isinstance(data, bytes) and len(data) < 10_000]
    script = AUDIT.format(good=GOOD, hostile=hostile)
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@clause("E4")
@pytest.mark.parametrize("seq", [0, 5])
@pytest.mark.parametrize("value", [float("nan"), object(), 2**70])
def test_an_event_that_was_never_admitted_cannot_write_what_json_cannot_say(seq: int, value: object) -> None:
    with pytest.raises(EventInvalidError):
        NodeEvent("a", "m", {"x": value}, seq=seq).to_json()


@clause("E4")
def test_a_message_with_a_lone_surrogate_encodes_also_before_it_is_emitted() -> None:
    assert from_json(NodeEvent("a", "\ud800", seq=0).to_json()).message == "\ufffd"


@clause("12.3")
@pytest.mark.parametrize(
    ("event", "form"),
    [
        (
            NodeEvent("s", "m", {"step": 9, "b": 1, "node_id": "mine"}, AT, node_id="n", step=2),
            {"type": "node", "scope": "s", "message": "m", "metadata": {"b": 1, "node_id": "n", "step": 2}},
        ),
        (NodeEvent("s", "m", {}, AT), {"type": "node", "scope": "s", "message": "m", "metadata": {}}),
        (DiagnosticEvent("s", "m", {}, AT), {"type": "diagnostic", "scope": "s", "message": "m", "metadata": {}}),
        (
            LLMStreamingEvent(
                "llm_stream", "c", {"is_final": "user", "x": 1}, AT, chunk="c", session_id="se", node_id="n",
                stream_id="t",
            ),
            {
                "type": "llm", "scope": "chunk", "message": "c",
                "metadata": {"is_final": "user", "node_id": "n", "session_id": "se", "stream_id": "t", "x": 1},
            },
        ),
        (
            LLMStreamingEvent("llm_stream", "", {}, AT, phase="final", is_final=True),
            {"type": "llm", "scope": "final", "message": "", "metadata": {"is_final": True}},
        ),
        (
            LLMStreamingEvent("llm_stream", "e", {"severity": "error"}, AT, chunk="e", phase="error", is_final=True),
            {"type": "llm", "scope": "error", "message": "e", "metadata": {"is_final": True, "severity": "error"}},
        ),
    ],
    ids=["node", "bare node", "diagnostic", "chunk", "final", "error"],
)  # fmt: skip
def test_the_rust_form_folds_ids_node_ids_win_and_for_llm_the_user_wins(event: Any, form: dict[str, Any]) -> None:
    """The golden cases of the original's normalised form; its end-of-run scope of LLM finals is not copied."""
    expected = {**form, "timestamp": "2026-01-02T03:04:05.678901Z"}
    written = json.loads(event.to_json(style="rust"))
    assert written == expected


def test_another_style_is_refused() -> None:
    with pytest.raises(ValueError, match="style"):
        node_message("a", "m").to_json(style="xml")  # type: ignore[arg-type]


@clause("O7")
def test_the_timestamp_is_the_emissions_on_every_wire_and_for_every_reader() -> None:
    """Trap of the original: the instant of serialisation was written, so sinks disagreed and a replay changed."""
    with EventHub() as hub:
        stamped = hub.emitter().emit(diagnostic("d", "m"))
        assert stamped is not None
        assert stamped.to_json() == stamped.to_json()
        rust = [json.loads(stamped.to_json(style="rust")) for _ in range(2)]
        assert rust[0] == rust[1]
        assert (
            datetime.fromisoformat(rust[0]["timestamp"]) == stamped.timestamp == from_json(stamped.to_json()).timestamp
        )


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (node_message("s", "m", node_id="n", step=2), "[n@2] m"),
        (node_message("s", "m", node_id="n"), "[n] m"),
        (node_message("s", "m", step=2), "[step 2] m"),
        (node_message("s", "m"), "m"),
        (diagnostic("d", "m"), "[d] m"),
        (diagnostic("d", ""), "[d]"),
        (llm_chunk("c", stream_id="t", node_id="n"), "[LLM t] c"),
        (llm_chunk("c", node_id="n"), "[LLM n] c"),
        (llm_final("c"), "c"),
        (llm_error("boom", stream_id="t"), "[LLM t] boom"),
    ],
)
def test_an_event_as_text(event: Any, shown: str) -> None:
    assert str(event) == shown


def test_the_generated_schema_describes_every_line(tmp_path: object) -> None:
    """Trap of the original: its schema forbade metadata that its code wrote."""
    import jsonschema

    from weavegraph.events.schema import event_schema

    validator = jsonschema.Draft202012Validator(event_schema())
    for event in (node_message("s", "m", node_id="n", step=2, x={"y": [1]}), diagnostic("d", "m", k=1), llm_final("c")):
        validator.validate(json.loads(event.to_json()))
    validator.validate(json.loads(GOOD))
    assert not validator.is_valid(json.loads(altered(v=2)))
    assert not validator.is_valid(json.loads(altered(extra=1)))
