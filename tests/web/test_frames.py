"""Bytes of the wire, against a reader that was written from the standard."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import clause
from tests.web.support import Frame, Parser
from weavegraph.errors import EventInvalidError, InvalidCursorError, RunNotFoundError
from weavegraph.events import node_message, to_json
from weavegraph.web._frames import HEARTBEAT, ndjson_line, sse_comment, sse_frame
from weavegraph.web._ids import Cursor, WireIds

HOSTILE = [
    "\r",
    "\n",
    "\r\n",
    "\0",
    "\u2028",
    "\u2029",
    "\x85",
    "data: x",
    "id: 9",
    "\nid: 9\n",
    "retry: 0",
    ":",
    "\x1b[2J",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("field", ["id", "event"])
def test_what_could_begin_another_field_is_refused(field: str, text: str) -> None:
    for value in (text, f"a{text}", f"{text}a"):
        if field == "event" and set(value) <= {"a", ":"}:
            continue
        if field == "id" and value.isascii() and value.isprintable() and " " not in value:
            continue
        with pytest.raises(EventInvalidError):
            sse_frame(b"{}", **{field: value})
        with pytest.raises(EventInvalidError):
            ndjson_line(b"{}", **{"event": "node", field: value})


@pytest.mark.parametrize("text", ["\n", "\r", "\0", "é", "\x7f", "x" * 200])
def test_comments_are_one_line(text: str) -> None:
    with pytest.raises(EventInvalidError):
        sse_comment(text)


@given(st.lists(st.one_of(st.text(), st.sampled_from(HOSTILE)), max_size=5), st.integers(1, 40))
def test_one_frame_an_event_whatever_it_says(texts: list[str], piece: int) -> None:
    events = [node_message("say", text, text=text) for text in texts]
    sent = b"".join(HEARTBEAT + sse_frame(to_json(event), id=str(n), event="node") for n, event in enumerate(events))
    parser = Parser()
    for at in range(0, len(sent), piece):
        parser.feed(sent[at : at + piece])
    assert [(frame.id, frame.event) for frame in parser.frames] == [(str(n), "node") for n in range(len(events))]
    assert [frame.data.encode() for frame in parser.frames] == [to_json(event) for event in events]


@given(st.binary(max_size=60).map(lambda data: data.replace(b"\xff", b"\n")))
def test_data_of_many_lines_is_one_frame(data: bytes) -> None:
    text = data.decode("latin-1").encode()
    parser = Parser()
    parser.feed(sse_frame(text, id="1"))
    (frame,) = parser.frames
    assert frame == Frame("1", "message", text.decode().replace("\r\n", "\n").replace("\r", "\n"))


def test_a_line_of_ndjson_is_one_line() -> None:
    assert json.loads(ndjson_line(b'{"a":1}', id="a.1", event="node")) == {
        "id": "a.1",
        "event": "node",
        "data": {"a": 1},
    }
    with pytest.raises(EventInvalidError):
        ndjson_line(b"{}\n{}", event="node")


@clause("10.malformed")
@given(st.one_of(st.text(max_size=140), st.from_regex(r"[0-9a-f]{7,9}\.[0-9]{11,20}(\.[0-9a-f]{8})?", fullmatch=True)))
def test_no_text_is_taken_for_a_position_by_mistake(text: str) -> None:
    for ids in (WireIds("r", None), WireIds("r", "epoch")):
        try:
            position = ids.parse(text).position
        except (InvalidCursorError, RunNotFoundError):
            continue
        assert text == "0" or text.split(".")[1] == f"{position:012d}" and text.split(".")[0] == ids.of(1)[:8]


@given(st.lists(st.integers(1, 10**11), min_size=2, max_size=2, unique=True))
def test_ids_are_strictly_increasing_and_name_their_run(positions: list[int]) -> None:
    one, other = sorted(positions)
    for epoch in (None, "e"):
        ids = WireIds("run", epoch)
        assert ids.of(one) < ids.of(other)
        assert ids.parse(ids.of(one)) == Cursor(one)
        assert len(ids.of(other)) <= 128
    assert WireIds("run", "later").parse(WireIds("run", "e").of(one)) == Cursor(one, foreign=True)
    with pytest.raises(RunNotFoundError):
        WireIds("another", None).parse(WireIds("run", None).of(one))
