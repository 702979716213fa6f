"""``weavegraph diff`` and ``graph``; and words that mean nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from tests.cli.support import FLOWS, cli, golden
from weavegraph.cli import main
from weavegraph.cli._diff import changed, first_difference
from weavegraph.cli._lines import Lines, duration
from weavegraph.cli._runs import table
from weavegraph.events import GAP_SCOPE, DiagnosticEvent, Event, NodeEvent, admit, llm_chunk, llm_error, llm_final
from weavegraph.log import SqliteLog
from weavegraph.testing import logged

URL = "sqlite:r.db"
KEEP = ("--log", URL, "--checkpointer", URL)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs in a log, and the output of a fourth."""
    for topic in ("tea", "tea", "coffee"):
        given = json.dumps({"topic": topic})
        assert cli("run", f"{FLOWS}:app", given, "--session", topic, *KEEP, cwd=tmp_path).code in (0, 1)
    out = cli("run", f"{FLOWS}:app", '{"topic": "tea"}', "--json", cwd=tmp_path).out
    (tmp_path / "tea.jsonl").write_text(out)
    return tmp_path


def ids(folder: Path) -> list[str]:
    return [json.loads(line)["run_id"] for line in cli("runs", URL, "--json", cwd=folder).out.splitlines()]


def test_two_runs_that_did_the_same_agree_wherever_they_are_kept(runs: Path) -> None:
    coffee, _, tea = ids(runs)
    done = cli("diff", f"{URL}#{tea}", "tea.jsonl", cwd=runs)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "19 events and the final state agree "
        "(default: timestamps, seq, epoch, ids, durations and checkpoints do not count).\n"
    )
    done = cli("diff", f"{URL}#{tea}", f"{URL}#{coffee}", cwd=runs)
    assert (done.code, done.err) == (1, "")
    golden("diff.txt", done.out)
    assert cli("diff", "tea.jsonl", "tea.jsonl", "--profile", "strict", cwd=runs).code == 0
    assert cli("diff", f"{URL}#{tea}", "tea.jsonl", "--profile", "strict", cwd=runs).code == 1


def test_a_state_that_differs_is_found_when_the_events_agree(runs: Path) -> None:
    text = (runs / "tea.jsonl").read_text()
    (runs / "other.jsonl").write_text(text.replace('"outline":["tea","more"]', '"outline":["tea","less"]'))
    done = cli("diff", "tea.jsonl", "other.jsonl", cwd=runs)
    assert done.code == 1
    assert done.out == 'The events agree; the final states differ:\n  state.outline[1]: "more" in A, "less" in B\n'


def test_a_run_that_ends_earlier_is_told(runs: Path) -> None:
    lines = (runs / "tea.jsonl").read_text().splitlines()
    (runs / "cut.jsonl").write_text("\n".join(lines[:12]))
    done = cli("diff", "cut.jsonl", "tea.jsonl", cwd=runs)
    assert done.code == 1 and done.out.startswith("A has ended here, B goes on:\n")


def test_the_order_of_parallel_nodes_counts_unless_told_otherwise(tmp_path: Path) -> None:
    for name, given in (("one", "{}"), ("two", '{"pace": 1}')):
        (tmp_path / f"{name}.jsonl").write_text(cli("run", f"{FLOWS}:fanning", given, "--json", cwd=tmp_path).out)
    text = (tmp_path / "two.jsonl").read_text().replace('"pace":1', '"x":1').replace('["pace"]', "[]")
    (tmp_path / "two.jsonl").write_text("\n".join(text.splitlines()[:-1]))
    assert cli("diff", "one.jsonl", "two.jsonl", cwd=tmp_path).code == 1
    done = cli("diff", "one.jsonl", "two.jsonl", "--profile", "order", cwd=tmp_path)
    assert done.code == 0, done.out


def test_graph_draws(tmp_path: Path) -> None:
    assert cli("graph", f"{FLOWS}:app", cwd=tmp_path).out.startswith("flowchart TD\n")
    assert cli("graph", f"{FLOWS}:app", "--format", "dot", cwd=tmp_path).out.startswith('digraph "writing" {\n')
    assert cli("graph", f"{FLOWS}:app", "--format", "ascii", cwd=tmp_path).out.startswith("(start)")
    wrong = cli("graph", f"{FLOWS}:app", "--format", "png", cwd=tmp_path)
    assert (wrong.code, wrong.out) == (2, "")
    assert "'png' is not one of 'mermaid', 'dot', 'ascii'" in wrong.err


def test_demo_is_the_demo(tmp_path: Path) -> None:
    done = cli("demo", "--help", cwd=tmp_path)
    assert done.code == 0 and "--words" in done.out
    assert cli("demo", "no-such-file.md", cwd=tmp_path).code == 2


# ── pieces ──────────────────────────────────────────────────────────────────────────────────────────


def in_step(names: list[str], events: list[Event]) -> list[Event]:
    start = DiagnosticEvent("weavegraph.step.started", "", {"step": 1, "nodes": names}, step=1)
    return [start, *events]


def test_tasks_of_one_node_in_one_step_cannot_be_told_apart() -> None:
    one = [NodeEvent("n", text, node_id="n", step=1) for text in "abc"]
    twice, once = ["n", "n"], ["n"]
    assert first_difference(in_step(twice, one), in_step(twice, one[::-1]), "order") is None
    assert first_difference(in_step(once, one), in_step(once, one[::-1]), "order") is not None
    assert first_difference(in_step(twice, one), in_step(twice, one[:2]), "order") is not None


def test_the_first_difference_is_the_first_in_the_run_not_in_a_lane() -> None:
    def events(a: str, b: str) -> list[Event]:
        return [NodeEvent("n", text, node_id=node, step=1) for node, text in (("a", "x"), ("b", b), ("a", a))]

    found = first_difference(events("1", "1"), events("2", "2"), "order")
    assert found is not None and found.left is not None and found.left.node_id == "b"


def test_changed_names_every_place() -> None:
    one, other = {"a": [1, {"b": 2}], "c": 1, "same": None}, {"a": [1, {"b": 3}, 4], "d": 1.0, "same": None}
    assert [path for path, _, _ in changed(one, other, "")] == ["a[1].b", "a[2]", "c", "d"]
    assert list(changed(1, 1.0, "x")) and list(changed(True, 1, "x"))


def test_lines_interleave_answers_and_events() -> None:
    lines = Lines()
    parts: list[Event] = [
        llm_chunk("He", stream_id="s"), llm_chunk("llo", stream_id="s", index=1), llm_chunk("other", stream_id="t"),
        NodeEvent("n", "between", node_id="a"), llm_chunk("!\r\nYou", stream_id="s", index=2),
        llm_final(stream_id="s", index=3), llm_final(stream_id="t", index=1), llm_error("gone", stream_id="u"),
    ]  # fmt: skip
    text = "".join(lines.feed(event) for event in parts) + lines.close()
    assert [line.strip() for line in text.splitlines()] == [
        "s ▸ Hello", "t ▸ other", "a  n: between", "s ▸ !", "│ You", "u  answer failed: gone",
    ]  # fmt: skip


def test_an_event_cannot_look_like_two(tmp_path: Path) -> None:
    evil = "x\n     9  run completed\r     9\u2028  run completed"
    lines = Lines()
    for event in (
        NodeEvent("a", evil, {"k": evil, evil: 1}, node_id="n"), NodeEvent(evil, "", node_id="n"),
        DiagnosticEvent("d", evil), DiagnosticEvent("weavegraph.stream.end", "", {"outcome": evil}),
        DiagnosticEvent("weavegraph.step.started", "", {"step": 1, "nodes": [evil]}),
        DiagnosticEvent("weavegraph.node.failed", evil, {"error": evil}, node_id="n"),
        DiagnosticEvent("weavegraph.node.paused", "", {"question": evil, "id": evil}, node_id="n"),
        DiagnosticEvent("weavegraph.run.started", "", {"graph": evil, "session": evil, "tags": [evil]}),
        DiagnosticEvent(GAP_SCOPE, "", {"count": 1, "first_seq": evil}),
    ):  # fmt: skip
        text = lines.feed(event)
        assert text.count("\n") == 1 and "\r" not in text and "\u2028" not in text, text
    text = lines.feed(llm_chunk(evil, stream_id="s")) + lines.close()
    assert [line[:8] for line in text.splitlines()] == [" " * 8, "      │ "]  # its lines are ours


def test_what_another_release_says_is_shown_as_it_is() -> None:
    event = DiagnosticEvent("weavegraph.checkpoint.saved", "in a new way", {"where": "there"})
    assert Lines().feed(event).strip() == "[weavegraph.checkpoint.saved]  in a new way  where=there"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_wide_characters_are_counted_when_a_line_is_cut(width: int) -> None:
    from rich.cells import cell_len

    text = Lines(width=width).feed(NodeEvent("茶", "緑茶" * 50, node_id="n"))
    assert cell_len(text.rstrip("\n")) <= max(width, 30)
    assert text.endswith("…\n")


def test_durations() -> None:
    seconds = (0.0, 0.0004, 0.0123, 0.9994, 1.26, 99.9, 119.7, 3725.0)
    assert list(map(duration, seconds)) == [
        "0.0 ms", "0.4 ms", "12 ms", "999 ms", "1.3 s", "99.9 s", "2 min 00 s", "1 h 02 min",
    ]  # fmt: skip


def test_a_table_keeps_the_beginning_of_ids() -> None:
    rows = [("RUN", "SESSION", "X"), ("r" * 32, "s" * 32, "x")]
    assert table(rows, None)[1] == f"{'r' * 32}  {'s' * 32}  x"
    assert len(table(rows, 40)[1]) == 40 and "…" in table(rows, 40)[1]
    assert table([("RUN", "SESSION", "X"), ("r" * 9, "s", "x")], 20)[1] == "rrrrrrrrr  s        x"


# ── words that mean nothing: one sentence, and 2 ────────────────────────────────────────────────────

WRONG = [
    (["run", "x"], "'x': write it as MODULE:APP"),
    (["run", f"{FLOWS}:nope"], "has no 'nope': it has app, builder"),
    (["run", f"{FLOWS}:answer"], "is of type int: give a compiled app"),
    (["run", f"{FLOWS}:broken"], "failed: RuntimeError: no graph today"),
    (["run", "no.such.module:app"], "there is no module 'no.such.module' here"),
    (["run", "none.py:app"], "there is no file 'none.py'"),
    (["run", f"{FLOWS}:app", "[1"], "INPUT is no JSON"),
    (["run", f"{FLOWS}:app", "[1]"], "INPUT is a mapping of state keys"),
    (["run", f"{FLOWS}:app", "@none.json"], "none.json: No such file or directory"),
    (["run", f"{FLOWS}:app", '{"colour": 1}'], "the input wrote 'colour'; the state has: topic"),
    (["run", f"{FLOWS}:app", "{}", "--session", "a b"], "session_id"),
    (["run", f"{FLOWS}:app", "{}", "--log", "nope:x"], "known are"),
    (["run", f"{FLOWS}:app", "--resume"], "--resume needs --session"),
    (["run", f"{FLOWS}:app", "--resume", "--session", "s"], "--resume needs what keeps the session: --checkpointer"),
    (["run", f"{FLOWS}:app", "--resume", "--session", "s", "--checkpointer", "memory:"], "no session 's' here"),
    (["tail", "r.db"], "write sqlite:r.db"),
    (["tail", "sqlite:none.db"], "there is no file 'none.db'"),
    (["tail", "memory:"], "ends with the process that made it"),
    (["tail", "sqlite:r.db", "--kind", "nodes"], "choose node, diagnostic or llm"),
    (["tail", "sqlite:r.db", "r", "--after", "99"], "has positions up to 3"),
    (["tail", "sqlite:r.db", "--after", "-1"], "weavegraph tail: Invalid value for '--after'"),
    (["tail", "sqlite:r.db", "a b"], "'a b' is no id of a run"),
    (["tail"], "weavegraph tail: Missing argument 'URL'"),
    (["runs", "sqlite:r.db", "--limit", "many"], "weavegraph runs: Invalid value for '--limit'"),
    (["replay", "sqlite:r.db", "zzz"], "there is no run 'zzz' in sqlite:r.db"),
    (["replay", "sqlite:r.db", "--speed", "fast"], "--speed fast: write 2x, 0.5x, or max"),
    (["diff", "a", "b"], "'a' is neither URL#RUN"),
    (["diff", "two.jsonl", "two.jsonl"], "two.jsonl holds 2 runs: name one as two.jsonl#RUN"),
    (["diff", "two.jsonl#x", "two.jsonl#one"], "two.jsonl holds no run 'x'"),
    (["diff", "bad.jsonl", "bad.jsonl"], "bad.jsonl, line 1: not a weavegraph event"),
    (["diff", "a", "b", "--profile", "loose"], "weavegraph diff: Invalid value for '--profile'"),
    (["serve", f"{FLOWS}:app", "--host", "0.0.0.0"], "can be reached from other machines: give an auth hook"),
    (["nocmd"], "weavegraph: No such command 'nocmd'"),
    (["run", "--colour"], "weavegraph run: No such option"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_words(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    async def write() -> None:
        log = SqliteLog("r.db")
        await log.append("r", logged("r", 1, 3))
        await log.aclose()

    asyncio.run(write())
    two = [event.to_json() for run in ("one", "two") for event in logged(run, 1, 1)]
    Path("two.jsonl").write_bytes(b"\n".join(two))
    Path("bad.jsonl").write_text("{}")
    assert main(words) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert sentence in found.err
    assert found.err.startswith("weavegraph") and found.err.count("\n") == 1 and "\x1b" not in found.err


def test_lines_of_admitted_events_are_those_of_the_wire() -> None:
    event, _ = admit(NodeEvent("a", "b", {"n": [1, None, 2.5], "s": "x y"}, node_id="n", step=2), reserved=True)
    assert Lines().feed(event).strip() == 'n@2  a: b  n=[1,null,2.5] s="x y"'
    assert msgspec.json.decode(event.to_json())["node_id"] == "n"
