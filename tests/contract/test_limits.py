"""Contract section 12, the part about events: limits, ids, strict JSON, stable codes."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import clause, examples
from weavegraph import (
    DiagnosticEvent,
    Event,
    EventHub,
    LLMStreamingEvent,
    NodeEvent,
    WeavegraphError,
    diagnostic,
    errors,
    from_json,
    llm_chunk,
    llm_error,
    llm_final,
    node_message,
    to_json,
)
from weavegraph.errors import EventDecodeError, EventInvalidError, EventTooLargeError
from weavegraph.events import MAX_DEPTH, MAX_EVENT_BYTES, admit
from weavegraph.events.schema import event_schema

texts = st.text(st.characters(codec=None), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(texts | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
metadata = st.dictionaries(texts, values, max_size=5)


@st.composite
def events(draw: st.DrawFn) -> Event:
    build: Any = draw(st.sampled_from([NodeEvent, DiagnosticEvent, llm_chunk, llm_final, llm_error]))
    message, extra = draw(texts), draw(metadata)
    if build in (NodeEvent, DiagnosticEvent):
        event: Event = build(
            draw(texts), message, extra, node_id=draw(st.none() | texts), step=draw(st.none() | st.integers())
        )
        return event
    return build(message, stream_id=draw(st.none() | texts), index=draw(st.integers(-1, 2**64)), **{"k": extra})


@clause("12.3", "E4")
@settings(max_examples=examples(600), deadline=None)
@given(events())
def test_whatever_is_accepted_survives_the_round_trip_and_fulfils_the_schema(event: Event) -> None:
    with EventHub() as hub:
        try:
            stamped = hub.emitter().emit(event)
        except (EventInvalidError, EventTooLargeError):
            assert hub.head == 0
            return
        assert stamped is not None
        wire = to_json(stamped)
        again = from_json(wire)
        assert again == stamped
        assert to_json(again) == wire
        assert b"\n" not in wire
        VALIDATOR.validate(_load(wire))


VALIDATOR = jsonschema.Draft202012Validator(event_schema())


def _load(wire: bytes) -> Any:
    import json

    return json.loads(wire)


@clause("12.3")
@settings(max_examples=examples(600), deadline=None)
@given(st.binary(max_size=200) | texts | values.map(lambda value: repr(value).replace("'", '"')))
def test_hostile_input_gives_a_named_error_or_an_event(data: bytes | str) -> None:
    try:
        event = from_json(data)
    except EventDecodeError:
        return
    assert from_json(to_json(event)) == event


GOOD = to_json(node_message("a", "m", k=[1, {"x": None}]))
HOSTILE = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "deep": b"[" * 200_000,
    "deep metadata": GOOD.replace(b'{"k":', b'{"k":' + b"[" * 40).replace(b'},"timestamp', b"]" * 40 + b'},"timestamp'),
    "nan": GOOD.replace(b"null", b"NaN"),
    "infinity": GOOD.replace(b"null", b"1e400"),
    "huge integer": GOOD.replace(b"null", b"9" * 5000),
    "integer beyond 64 bits": GOOD.replace(b"null", b"99999999999999999999"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "bad utf-8": GOOD.replace(b'"m"', b'"\xff"'),
    "lone surrogate": GOOD.replace(b'"m"', b'"\\ud800"'),
    "unknown type": GOOD.replace(b'"node"', b'"nodes"'),
    "no type": GOOD.replace(b'"type":"node",', b""),
    "unknown key": GOOD.replace(b'"v":1', b'"v":1,"x":1'),
    "unknown version": GOOD.replace(b'"v":1', b'"v":2'),
    "no version": GOOD.replace(b',"v":1', b""),
    "version as text": GOOD.replace(b'"v":1', b'"v":"1"'),
    "scope missing": GOOD.replace(b'"scope":"a",', b""),
    "scope empty": GOOD.replace(b'"scope":"a"', b'"scope":""'),
    "message a number": GOOD.replace(b'"m"', b"7"),
    "metadata a list": GOOD.replace(b'"metadata":{', b'"metadata":[],"x":{'),
    "no time zone": GOOD.replace(b'Z"', b'"'),
    "bad time": GOOD.replace(b'"timestamp":"2', b'"timestamp":"x'),
    "seq negative": GOOD.replace(b'"v":1', b'"v":1,"seq":-1'),
    "seq a fraction": GOOD.replace(b'"v":1', b'"v":1,"seq":1.5'),
    "run_seq zero": GOOD.replace(b'"v":1', b'"v":1,"run_seq":0'),
    "bad node": GOOD.replace(b'"v":1', b'"v":1,"node_id":"../x"'),
    "two documents": GOOD + GOOD,
    "too large": b" " * (MAX_EVENT_BYTES + 1),
    "llm without phase of its own": to_json(llm_chunk("x")).replace(
        b'"chunk","is_final":false', b'"final","is_final":false'
    ),
    "llm chunk differs": to_json(llm_chunk("x")).replace(b'"chunk":"x"', b'"chunk":"y"'),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
}


@clause("12.3")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused_by_name(name: str) -> None:
    with pytest.raises(EventDecodeError) as caught:
        from_json(HOSTILE[name])
    assert str(caught.value).startswith("not a weavegraph event: ")


@clause("12.3")
def test_an_event_cut_at_each_byte_is_refused() -> None:
    for cut in range(len(GOOD)):
        with pytest.raises(EventDecodeError):
            from_json(GOOD[:cut])
    assert from_json(GOOD.decode()) == from_json(GOOD)


@clause("12.3")
def test_keys_that_name_classes_stay_plain_data() -> None:
    hostile = {
        "lc": 2,
        "type": "constructor",
        "__class__": "os.system",
        "py/object": "x",
        "$type": "y",
        "__reduce__": [],
    }
    event = from_json(to_json(node_message("a", "m", payload=hostile)))
    assert event.metadata == {"payload": hostile}


@clause("12.3")
def test_decoding_imports_opens_and_runs_nothing() -> None:
    script = textwrap.dedent(
        """
        import sys
        from tests.contract.test_limits import GOOD, HOSTILE
        from weavegraph import from_json, to_json
        from weavegraph.errors import EventDecodeError
        from_json(GOOD)
        watched = ("import", "open", "exec", "compile", "pickle.find_class", "os.system", "subprocess.Popen",
                   "socket.connect", "ctypes.dlopen")
        seen = []
        on = False
        def hook(event, arguments):
            if on and event in watched:
                seen.append((event, str(arguments)[:80]))
        sys.addaudithook(hook)
        on = True
        for data in [GOOD, *HOSTILE.values()]:
            try:
                to_json(from_json(data))
            except EventDecodeError:
                pass
        on = False
        print(seen)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@clause("12.1")
def test_an_event_may_be_one_mebibyte_and_thirty_two_deep() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth - 1):
            value = [value]
        return value

    with EventHub() as hub:
        assert hub.publish(node_message("a", "m", x=nested(MAX_DEPTH))) == 1
        with pytest.raises(EventTooLargeError) as deep:
            hub.publish(node_message("a", "m", x=nested(MAX_DEPTH + 1)))
        assert (deep.value.limit, deep.value.size) == (32, 33)
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(EventTooLargeError):
            hub.publish(node_message("a", "m", x=loop))
        assert hub.publish(node_message("a", "x" * (MAX_EVENT_BYTES - 2000))) == 2
        for message, extra in (("x" * MAX_EVENT_BYTES, {}), ("", {"k": ["v" * 1000] * 1100}), ("\x00" * 200_000, {})):
            with pytest.raises(EventTooLargeError) as large:
                hub.publish(node_message("a", message, **extra))
            assert large.value.limit == MAX_EVENT_BYTES


@clause("12.2")
@pytest.mark.parametrize("field", ["node_id", "session_id", "stream_id"])
@pytest.mark.parametrize("bad", ["", "a b", "a/b", "../x", "é", "x" * 129, "a\n", "\x00", "a;--", 7])
def test_ids_are_plain(field: str, bad: object) -> None:
    with EventHub() as hub:
        with pytest.raises(EventInvalidError, match=field):
            hub.publish(llm_chunk("x", **{field: bad}))  # type: ignore[arg-type]
        assert hub.publish(llm_chunk("x", **{field: "A-z_0.9:" + "x" * 120})) == 1  # type: ignore[arg-type]


@clause("12.8")
def test_every_refusal_has_a_stable_code_of_its_own() -> None:
    classes = [thing for name, thing in vars(errors).items() if inspect.isclass(thing) and issubclass(thing, Exception)]
    codes = [kind.code for kind in classes if "code" in vars(kind)]
    assert len(classes) == len(codes) == len(set(codes))
    assert sorted(errors.__all__) == sorted(kind.__name__ for kind in classes)
    assert all(issubclass(kind, WeavegraphError) for kind in classes if kind.__name__ not in ("Lagged", "EndOfStream"))


def test_events_print_in_the_blueprints_forms() -> None:
    assert str(node_message("s", "message", node_id="node", step=2)) == "[node@2] message"
    assert str(node_message("s", "message", node_id="node")) == "[node] message"
    assert str(node_message("s", "message", step=2)) == "[step 2] message"
    assert str(node_message("s", "message")) == "message"
    assert str(llm_chunk("chunk", stream_id="stream", node_id="node")) == "[LLM stream] chunk"
    assert str(llm_chunk("chunk", node_id="node")) == "[LLM node] chunk"
    assert str(llm_chunk("chunk")) == "chunk"
    assert str(diagnostic("scope", "message")) == "[scope] message"


def test_the_rust_librarys_form() -> None:
    """Golden cases; where the original gives an LLM final the scope of the end of the run, ours is ``final``."""

    def rust(event: Event) -> str:
        text = event.to_json(style="rust").decode()
        before, _, rest = text.partition('"timestamp":"')
        return before + rest.partition('",')[2]

    assert rust(node_message("s", "m", node_id="n", step=3, node_id_="x", z=1, a=2)) == (
        '{"type":"node","scope":"s","message":"m","metadata":{"a":2,"node_id":"n","node_id_":"x","step":3,"z":1}}'
    )
    assert rust(NodeEvent("s", "m", {"step": "user"}, step=3)).endswith('"metadata":{"step":3}}')
    assert rust(diagnostic("s", "m", k=1)) == '{"type":"diagnostic","scope":"s","message":"m","metadata":{}}'
    assert rust(llm_final("", stream_id="x", session_id="y")) == (
        '{"type":"llm","scope":"final","message":"","metadata":{"is_final":true,"session_id":"y","stream_id":"x"}}'
    )
    assert rust(llm_chunk("c", is_final="user")).endswith('"metadata":{"is_final":"user"}}')
    assert '"severity":"error"' in rust(llm_error("bad"))
    assert isinstance(from_json(llm_error("bad").to_json()), LLMStreamingEvent)
    with pytest.raises(ValueError, match="'weavegraph' or 'rust'"):
        llm_error("bad").to_json(style="xml")  # type: ignore[arg-type]


def test_an_event_that_was_never_emitted_is_checked_when_it_is_encoded() -> None:
    with pytest.raises(EventInvalidError, match="nan"):
        to_json(node_message("a", "m", x=float("nan")))
    assert from_json(to_json(node_message("a", "\ud800"))).message == "\ufffd"
    assert admit(node_message("a", "\ud83d\ude00"))[0].message == "😀"


def test_the_schema_command_prints_what_the_function_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weavegraph.events.schema"], capture_output=True, text=True, timeout=50, check=True
    )
    assert _load(done.stdout.encode()) == event_schema()
    for bad in ({}, {"type": "node"}, _load(GOOD) | {"v": 2}, _load(GOOD) | {"x": 1}):
        assert not VALIDATOR.is_valid(bad)
