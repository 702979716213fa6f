"""The terminal sink: one line an event, and nothing that a terminal would obey."""

from __future__ import annotations

import io
import sys

import pytest

from tests.support import clause
from weavegraph import StdOutSink, llm_chunk, llm_error, node_message
from weavegraph.sinks import escape_controls


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(*messages: str, stream: io.StringIO | None = None, **options: object) -> str:
    stream = stream or io.StringIO()
    StdOutSink(stream, **options).handle([node_message("a", message) for message in messages])  # type: ignore[arg-type]
    return stream.getvalue()


@clause("12.4", "S6")
@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x1b]0;title\x1b\\", "\\x1b]0;title\\x1b\\"),
        ("ok\rhidden", "ok\\rhidden"),
        ("two\nlines", "two\\nlines"),
        ("back\x08space", "back\\x08space"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil", "\\u202eevil"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\u061cmark", "\\u061cmark"),
        ("\u180evowel", "\\u180evowel"),
        ("a\ufff9b\ufffac\ufffb", "a\\ufff9b\\ufffac\\ufffb"),
        ("tag\U000e0041\U000e007f", "tag\\U000e0041\\U000e007f"),
        ("\u206a\u206f", "\\u206a\\u206f"),
        ("plain é 😀 漢", "plain é 😀 漢"),
    ],
)
def test_control_characters_never_reach_a_terminal(hostile: str, shown: str) -> None:
    assert written(hostile) == shown + "\n"


@clause("12.4")
def test_every_control_character_is_escaped() -> None:
    for code in (*range(32), *range(0x7F, 0xA0)):
        escaped = escape_controls(chr(code))
        assert escaped.isascii() and escaped.isprintable(), code


def test_one_line_an_event_in_order() -> None:
    assert written("one", "two") == "one\ntwo\n"


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" not in written("plain")
    assert "\x1b[" in written("plain", stream=Terminal())
    assert "\x1b[" in written("plain", color=True)
    assert "\x1b[" not in written("plain", stream=Terminal(), color=False)


@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_when_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, rich: bool
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in written("plain", stream=Terminal())
    monkeypatch.setenv(variable, value)
    assert "\x1b[" not in written("plain", stream=Terminal())


def test_what_a_formatter_returns_is_escaped_too() -> None:
    assert written("x", format=lambda event: f"\x1b[1m{event.message}") == "\\x1b[1mx\n"


def test_colours_tell_the_kinds_apart() -> None:
    stream = io.StringIO()
    StdOutSink(stream, color=True).handle([llm_chunk("tok", stream_id="s"), llm_error("bad", stream_id="s")])
    assert stream.getvalue() == "\x1b[32m[LLM s] \x1b[0mtok\n\x1b[31m[LLM s] \x1b[0mbad\n"


def test_what_the_stream_cannot_encode_is_shown_as_an_escape() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    StdOutSink(stream).handle([node_message("a", "é")])
    assert raw.getvalue() == b"\\xe9\n"
