"""The file sink: append, one line an event, at most one torn line after a crash."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from tests.support import clause
from weavegraph import Event, EventBus, JsonLinesSink, NodeEvent, node_message
from weavegraph.errors import ConfigError, PermanentSinkError
from weavegraph.sinks import read_jsonlines


def events(*messages: str) -> list[Event]:
    return [NodeEvent("a", message, {"text": message}, seq=n) for n, message in enumerate(messages, 1)]


def write(path: Path, *batches: list[Event], **options: object) -> JsonLinesSink:
    sink = JsonLinesSink(path, **options)  # type: ignore[arg-type]
    sink.start()
    for batch in batches:
        sink.handle(batch)
    sink.flush()
    sink.close()
    return sink


@clause("S6", "S4")
def test_what_was_written_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    batch = events("one", "two\nlines", "\u2028\u2029\x85 separators", "\x1b[2J", "é😀", "")
    write(path, batch)
    assert read_jsonlines(path).events == batch
    assert path.read_bytes().count(b"\n") == len(batch)
    assert JsonLinesSink.delivery == "at_least_once"


@clause("S6")
def test_an_existing_file_is_appended_to_never_truncated(tmp_path: Path) -> None:
    """Trap: the original's ``to_file`` truncates."""
    path = tmp_path / "e.jsonl"
    write(path, events("one"))
    write(path, events("two"))
    assert [event.message for event in read_jsonlines(path).events] == ["one", "two"]


@clause("S6")
def test_a_torn_last_line_at_every_byte_is_skipped_with_a_count(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, events("one", "two"))
    whole = path.read_bytes()
    start_of_second = whole.index(b"\n") + 1
    for cut in range(start_of_second + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        found = read_jsonlines(path)
        assert ([event.message for event in found.events], found.torn, found.invalid) == (["one"], 1, 0)
        write(path, events("three"))
        found = read_jsonlines(path)
        assert [event.message for event in found.events] == ["one", "three"]
        assert (found.torn, found.invalid) == (0, 1)


@clause("S6")
def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, events("one"))
    path.write_bytes(path.read_bytes()[:-1])
    write(path, events("two"))
    assert [event.message for event in read_jsonlines(path).events] == ["one", "two"]


@clause("S6")
def test_a_batch_that_failed_half_way_is_written_again_on_lines_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.jsonl"
    sink = JsonLinesSink(path)
    sink.start()
    real, failed = os.write, []

    def fails_once(file: int, data: bytes) -> int:
        if not failed:
            failed.append(True)
            real(file, bytes(data)[:20])
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", fails_once)
    with pytest.raises(OSError, match="No space left"):
        sink.handle(events("one"))
    sink.handle(events("one"))
    sink.close()
    found = read_jsonlines(path)
    assert ([event.message for event in found.events], found.invalid) == (["one"], 1)


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:7]))
    batch = events("one", "two", "three")
    write(tmp_path / "e.jsonl", batch)
    assert read_jsonlines(tmp_path / "e.jsonl").events == batch


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, events("secret"), rotate_bytes=1)
    write(path, events("secret"), rotate_bytes=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.jsonl", "e.jsonl.1"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_rotation_by_size_loses_nothing_and_keeps_as_many_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, *(events(f"{n}") for n in range(6)), rotate_bytes=10, keep=3)
    files = ["e.jsonl.3", "e.jsonl.2", "e.jsonl.1", "e.jsonl"]
    assert [read_jsonlines(tmp_path / name).events[0].message for name in files] == ["2", "3", "4", "5"]
    assert len(list(tmp_path.iterdir())) == 4


def test_the_rust_style(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, events("one"), style="rust")
    line = path.read_text()
    assert line.startswith('{"type":"node","scope":"a","message":"one","timestamp":"')
    assert line.endswith('"metadata":{"text":"one"}}\n')


@pytest.mark.parametrize(
    "options",
    [{"rotate_bytes": 0}, {"rotate_bytes": True}, {"keep": 0}, {"style": "xml"}, {"path": ""}, {"sync": "yes"}],
)
def test_wrong_options_are_refused_at_the_door(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        JsonLinesSink(**{"path": tmp_path / "e", **options})  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_is_a_permanent_error(tmp_path: Path) -> None:
    with pytest.raises(PermanentSinkError, match="No such file"):
        JsonLinesSink(tmp_path / "no" / "e.jsonl").start()


def test_other_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, events("one"))
    path.write_bytes(b'{"not": "an event"}\n\n[1]\n' + path.read_bytes())
    found = read_jsonlines(path)
    assert ([event.message for event in found.events], found.torn, found.invalid) == (["one"], 0, 2)


async def test_on_a_bus_everything_that_was_flushed_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    async with EventBus([JsonLinesSink(path, sync=True)]) as bus:
        for n in range(500):
            bus.emitter().emit(node_message("a", str(n)))
        assert (await bus.flush(timeout=30)).complete
        assert [event.message for event in read_jsonlines(path).events] == [str(n) for n in range(500)]
    assert [event.seq for event in read_jsonlines(path).events] == list(range(1, 501))


def names(folder: Path) -> dict[str, str]:
    return {file.name: read_jsonlines(file).events[0].message for file in sorted(folder.iterdir())}


def test_a_rotation_that_fails_costs_no_older_file_and_the_events_are_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e.jsonl"
    sink = JsonLinesSink(path, rotate_bytes=1, keep=3)
    for n in range(5):
        sink.handle(events(str(n)))
    assert names(tmp_path) == {"e.jsonl": "4", "e.jsonl.1": "3", "e.jsonl.2": "2", "e.jsonl.3": "1"}
    real = Path.replace

    def busy(self: Path, target: Path) -> Path:
        if self == path:
            raise PermissionError(13, "in use")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", busy)
        for n in range(5, 8):
            sink.handle(events(str(n)))
    # The place for it was made once, as for any rotation; the failures after that took nothing more.
    assert names(tmp_path) == {"e.jsonl": "4", "e.jsonl.2": "3", "e.jsonl.3": "2"}
    assert [event.message for event in read_jsonlines(path).events] == ["4", "5", "6", "7"]
    assert [record.message for record in caplog.records] == [
        f"{path} cannot be rotated and is written on: [Errno 13] in use"
    ]
    sink.handle(events("8"))
    assert names(tmp_path) == {"e.jsonl": "8", "e.jsonl.1": "4", "e.jsonl.2": "3", "e.jsonl.3": "2"}
    sink.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_pipe_is_never_renamed(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    sink = JsonLinesSink(path, rotate_bytes=1)
    for n in range(3):
        sink.handle(events(str(n)))
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]
    assert os.read(reader, 100_000).count(b"\n") == 3
    sink.close()
    os.close(reader)


@clause("S6")
def test_a_line_that_is_too_long_is_counted_once_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, events("one"))
    line = path.read_bytes()
    for length in (4 * 2**20 - 1, 4 * 2**20, 4 * 2**20 + 1, 9 * 2**20, 12 * 2**20):
        path.write_bytes(b"x" * length + b"\n" + line)
        found = read_jsonlines(path)
        assert (len(found.events), found.invalid, found.torn) == (1, 1, 0), length
        path.write_bytes(line + b"x" * length)
        found = read_jsonlines(path)
        assert (len(found.events), found.invalid, found.torn) == (1, 0, 1), length


def test_lines_of_the_rust_style_are_for_other_readers(tmp_path: Path) -> None:
    write(tmp_path / "e.jsonl", events("one", "two"), style="rust")
    found = read_jsonlines(tmp_path / "e.jsonl")
    assert (found.events, found.invalid, found.torn) == ([], 2, 0)
