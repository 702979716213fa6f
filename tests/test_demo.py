"""The demo, as a user runs it: as a process."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import clause
from weavegraph.demo._summary import split_sections
from weavegraph.sinks import read_jsonlines

COMMAND = [sys.executable, "-W", "error", "-m", "weavegraph.demo"]


def demo(tmp_path: Path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """The first act."""
    command = [*COMMAND, "--out", str(tmp_path / "out"), "--pace", "0", "--act", "1", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=50, check=False)


def rows(output: str) -> dict[str, list[int]]:
    table = output.partition("The ledger\n")[2].splitlines()[1:9]
    cells = [re.fullmatch(r"  (.*?)\s{2,}((?:\s*-?\d+){7})", line) for line in table]
    return {cell[1]: list(map(int, cell[2].split())) for cell in cells if cell}


def test_the_sample_is_digested_and_every_event_is_accounted_for(tmp_path: Path) -> None:
    done = demo(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    ledger = rows(done.stdout)
    emitted = ledger["sink jsonl"][0]
    assert len(ledger) == 8
    assert all(row[0] == emitted and row[-1] == 0 for row in ledger.values())
    for reader in ("terminal", "fast async", "thread", "sink memory", "sink jsonl"):
        assert ledger[reader][1] == emitted
    assert ledger["slow, capacity 16"][3] > 0
    assert sum(ledger["slow, capacity 16"][1:6]) == emitted
    assert ledger["sink picky"][4] > 0
    assert done.stdout.endswith("unaccounted for: 0\n")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 200
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert report.startswith("# Digest of the sample\n")
    assert "extractive summariser" in report
    assert "```mermaid\nflowchart TD\n" in report
    assert [line.split(" | ")[0] for line in report.partition("| node |")[2].splitlines()[2:]] == [
        "| split", "| section", "| rank", "| shorten", "| write",
    ]  # fmt: skip
    events = read_jsonlines(tmp_path / "out/events.jsonl").events
    assert [event.run_seq for event in events] == list(range(1, emitted + 1))
    quoted = "".join(event.message for event in events if event.scope == "llm_stream")
    assert quoted in report
    assert len(quoted.split()) <= 160


def test_a_users_file_and_standard_input(tmp_path: Path) -> None:
    document = tmp_path / "mine.txt"
    document.write_text("One thing happened. Then 12 more did.\n\nA second part begins here.", encoding="utf-8")
    from_file = demo(tmp_path, str(document))
    from_input = demo(tmp_path, "-", text=document.read_text(encoding="utf-8"))
    assert (from_file.returncode, from_input.returncode) == (0, 0)
    assert "A digest of mine.txt" in from_file.stdout
    assert "A digest of standard input" in from_input.stdout
    assert "unaccounted for: 0" in from_input.stdout


def test_hostile_text_reaches_the_terminal_escaped(tmp_path: Path) -> None:
    done = demo(tmp_path, "-", text="# \x1b[2J title\n\nRed \x1b[31m text here.")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\\x1b[31m" in done.stdout


def test_an_empty_document_fails_the_run_in_one_sentence_and_still_adds_up(tmp_path: Path) -> None:
    done = demo(tmp_path, "-", text="")
    assert done.returncode == 1
    assert done.stderr.strip() == "the run failed: standard input has no sentences to work on"
    assert "unaccounted for: 0" in done.stdout


@pytest.mark.parametrize("arguments", [["no-such-file"], ["--words", "0"], ["--pace", "-1"], ["--words", "x"], ["."]])
def test_wrong_usage_is_one_clear_sentence(tmp_path: Path, arguments: list[str]) -> None:
    done = demo(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "weavegraph.demo: " in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_cancels_cleanly(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [*COMMAND, "--out", str(tmp_path), "--pace", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "sections" in line:
                break
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert errors.strip() == "interrupted: the run was cancelled, its sinks are drained"
    last = read_jsonlines(tmp_path / "events.jsonl").events[-1]
    assert (last.scope, last.metadata["outcome"]) == ("weavegraph.stream.end", "cancelled")


@clause("8.kill", "O3.resume", "10.valid")
def test_the_run_is_killed_and_resumed_and_a_third_process_sees_each_event_once(tmp_path: Path) -> None:
    command = [*COMMAND, "--out", str(tmp_path), "--pace", "0.002", "--act", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"killed at event \d+, with SIGKILL", done.stdout)
    assert "attempts: interrupted (attempt 1), completed (attempt 2)" in done.stdout
    assert re.search(r"saw \d+ events: 0 missing, 0 twice", done.stdout)


class FakeModel:
    """An OpenAI-compatible endpoint that streams three words."""

    def __enter__(self) -> str:
        model = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.asked = asked["messages"][0]["content"]
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for word in ("From ", "a ", "model."):
                    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": asked["model"],
                             "choices": [{"index": 0, "delta": {"content": word}}]}  # fmt: skip
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")

            def log_message(self, *args: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_an_openai_compatible_endpoint_writes_when_the_environment_names_one(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    fake = FakeModel()
    with fake as address:
        environment = {**os.environ, "OPENAI_BASE_URL": address, "WEAVEGRAPH_DEMO_MODEL": "tiny"}
        command = [sys.executable, "-m", "weavegraph.demo", "--out", str(tmp_path), "--pace", "0", "--act", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=55, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert f"the model tiny at {address}" in done.stdout
    assert "at most 160 words" in fake.asked
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "From a model." in report and "Made by the model tiny" in report


def test_sections_come_from_headings_or_from_paragraphs() -> None:
    headed = split_sections("intro first.\n\n# A\n\nOne. Two 2.\n\n## Empty\n\n# B\nThree!")
    assert [(s.title, [t.text for t in s.sentences]) for s in headed] == [
        ("Part 1", ["intro first."]),
        ("A", ["One.", "Two 2."]),
        ("B", ["Three!"]),
    ]
    plain = split_sections("One.\ntwo lines.\n\nNext.")
    assert [(s.title, [t.text for t in s.sentences]) for s in plain] == [
        ("Part 1", ["One. two lines."]),
        ("Part 2", ["Next."]),
    ]
    assert split_sections(" \n\n ") == ()
