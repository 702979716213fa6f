"""Every example runs to its end by itself and prints what its golden file holds; the SSE ones serve whole frames."""

from __future__ import annotations

import ast
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import clause
from weavegraph import from_json

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))
SERVERS = [path for path in EXAMPLES if "_sse_" in path.name]
NEEDS = {"16_sse_resume.py": "starlette"}


def names(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


@names(EXAMPLES)
def test_it_prints_its_golden_output(path: Path) -> None:
    if path.name in NEEDS:
        pytest.importorskip(NEEDS[path.name])
    done = subprocess.run(
        [sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=50, check=False
    )
    golden = path.parent / "golden" / f"{path.stem}.txt"
    if os.environ.get("WEAVEGRAPH_GOLDEN") == "write":
        golden.write_text(done.stdout, encoding="utf-8")
    assert (done.stdout, done.stderr, done.returncode) == (golden.read_text(encoding="utf-8"), "", 0)


@names(EXAMPLES)
def test_its_events_are_the_golden_ones_under_a_clock_that_stands_still(path: Path, tmp_path: Path) -> None:
    """Blueprint, step 2: what the runtime says is pinned, event by event."""
    if path.name in NEEDS:
        pytest.importorskip(NEEDS[path.name])
    found, golden = tmp_path / "events.jsonl", path.parent / "golden" / f"{path.stem}.jsonl"
    command = [sys.executable, "-W", "error", "-m", "tests.recorded", str(path), str(found)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=50, check=True)
    if os.environ.get("WEAVEGRAPH_GOLDEN") == "write":
        golden.write_bytes(found.read_bytes())
    assert found.read_text(encoding="utf-8").splitlines() == golden.read_text(encoding="utf-8").splitlines()


@names(EXAMPLES)
def test_it_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    assert "Expect: " in (ast.get_docstring(ast.parse(text)) or "")


def test_they_are_numbered_and_every_golden_file_has_an_example() -> None:
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
    golden = {path.stem for path in (ROOT / "examples" / "golden").iterdir()}
    assert golden == {path.stem for path in EXAMPLES}


# ── frames on the wire (blueprint E1) ─────────────────────────────────────────────────────────────────


@contextmanager
def serving(path: Path) -> Iterator[tuple[http.client.HTTPConnection, subprocess.Popen[str]]]:
    if path.name in NEEDS:
        pytest.importorskip(NEEDS[path.name])
    server = subprocess.Popen([sys.executable, "-W", "error", path, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", server.stdout.readline())
        assert found, "it binds to loopback and says where"
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        yield connection, server
        connection.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=20)


def frames(response: http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    """The fields of each frame, as a browser's EventSource reads them."""
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "no-cache" in response.headers["cache-control"]
    fields: dict[str, str] = {}
    for line in response:
        assert line.endswith(b"\n") and b"\r" not in line
        if line == b"\n":
            yield fields
            fields = {}
        else:
            name, colon, value = line.decode("utf-8").rstrip("\n").partition(": ")
            assert colon and name in ("id", "event", "data") and name not in fields
            fields[name] = value
    assert not fields, "the last frame is whole"


def address(connection: http.client.HTTPConnection, path: Path) -> str:
    if "stdlib" in path.name:
        return "/"
    connection.request("POST", "/runs", "{}")
    return f"/runs/{connection.getresponse().read().decode()}/events"


@names(SERVERS)
def test_every_frame_holds_one_event_with_its_position(path: Path) -> None:
    with serving(path) as (connection, _):
        connection.request("GET", address(connection, path))
        found = list(frames(connection.getresponse()))
    assert all(frame.keys() == {"id", "event", "data"} for frame in found)
    events = [from_json(frame["data"]) for frame in found]
    assert [int(frame["id"]) for frame in found] == [event.run_seq for event in events] == list(range(1, 12))
    assert events[0].scope == "weavegraph.run.started"
    assert events[-1].scope == "weavegraph.stream.end" and events[-1].metadata["outcome"] == "completed"
    for frame in found:
        assert {"type", "scope", "message", "timestamp", "metadata", "v", "run_id"} <= json.loads(frame["data"]).keys()


@clause("8.with")
def test_hanging_up_cancels_the_run_of_the_standard_library_example() -> None:
    (path,) = (path for path in SERVERS if "stdlib" in path.name)
    with serving(path) as (connection, server):
        connection.request("GET", "/")
        response = connection.getresponse()
        assert next(frames(response))["id"] == "1"
        response.close()
        connection.close()
        assert server.stdout is not None
        assert "run cancelled\n" in (server.stdout.readline(), server.stdout.readline())


def test_a_viewer_of_the_starlette_example_resumes_and_is_refused_by_name() -> None:
    (path,) = (path for path in SERVERS if "resume" in path.name)
    with serving(path) as (connection, _):
        where = address(connection, path)

        def ask(last: str, where: str = where) -> http.client.HTTPResponse:
            connection.close()
            connection.request("GET", where, headers={"last-event-id": last})
            return connection.getresponse()

        assert [frame["id"] for frame in frames(ask("0"))] == [str(number) for number in range(1, 12)]
        assert [frame["id"] for frame in frames(ask("7"))] == ["8", "9", "10", "11"]
        assert ask("11").status == 204
        assert ask("12").status == ask("x").status == ask("-1").status == 400
        assert ask("0", "/runs/nobody/events").status == 404
