"""``weavegraph run``, as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import COMMAND, FLOWS, Done, Terminal, cli, environment, finished, golden, read_until, started
from tests.support import clause, wait_until
from weavegraph.events import from_json

TEA = '{"topic": "tea"}'


def test_events_as_they_come_then_the_final_state(tmp_path: Path) -> None:
    done = cli("run", f"{FLOWS}:app", TEA, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    golden("run.txt", done.out)


@pytest.mark.parametrize("words", [["--json"], ["--events", "jsonl"]])
def test_json_is_one_event_a_line_and_the_state_last(tmp_path: Path, words: list[str]) -> None:
    done = cli("run", f"{FLOWS}:app", "-", *words, cwd=tmp_path, stdin=TEA.encode())
    assert done.code == 0
    *lines, last = done.out.splitlines()
    assert [from_json(line).run_seq for line in lines] == [*range(1, len(lines) + 1)]
    state = json.loads(last)
    assert (state["type"], state["outcome"]) == ("state", "completed")
    assert state["state"]["parts"] == ["tea is\ngreen.\nAnd \x1b[31mhot."]
    assert state["run_id"] == from_json(lines[0]).run_id


def test_the_input_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"topic": "oolong"}')
    assert "topic=oolong" in cli("run", f"{FLOWS}:builder", "@in.json", cwd=tmp_path).out


def test_an_app_may_be_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from weavegraph import END, START, GraphBuilder\n"
        "builder = GraphBuilder()\n"
        "builder.add_node('n', lambda state: {'extra': {'done': True}})\n"
        "builder.add_edge(START, 'n').add_edge('n', END)\n"
    )
    done = cli("run", "mine.py:builder", cwd=tmp_path)
    assert done.code == 0 and '"done": true' in done.out


def test_a_failed_run_ends_with_1_and_says_why(tmp_path: Path) -> None:
    done = cli("run", f"{FLOWS}:failing", cwd=tmp_path)
    assert done.code == 1
    golden("failed.txt", done.err.rpartition("line ")[0])
    assert "\x1b" not in done.out + done.err


@clause("D4")
def test_a_paused_run_is_answered_by_another_process(tmp_path: Path) -> None:
    keep = ("--session", "s", "--log", "sqlite:r.db", "--checkpointer", "sqlite:r.db")
    first = cli("run", f"{FLOWS}:asking", *keep, cwd=tmp_path)
    assert first.code == 3
    assert 'ask asks: "Which tea?"' in first.err and "--session s --resume" in first.err
    second = cli("run", f"{FLOWS}:asking", '"oolong"', "--resume", *keep, cwd=tmp_path)
    assert second.code == 0
    assert '"answer": "oolong"' in second.out
    assert "run paused" not in second.out  # only what the second attempt did
    third = cli("run", f"{FLOWS}:asking", "--resume", *keep, cwd=tmp_path)
    assert (third.code, third.out) == (2, "") and "no run to resume" in third.err


@pytest.mark.parametrize("log", [(), ("--log", "sqlite:r.db")], ids=["without a log", "with a log"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@clause("8.sigterm", "8.cancel")
def test_a_signal_cancels_the_run_which_says_so(tmp_path: Path, number: signal.Signals, log: tuple[str, ...]) -> None:
    with started("run", f"{FLOWS}:endless", *log, cwd=tmp_path) as process:
        out = read_until(process, "tick: 3")
        process.send_signal(number)
        done = finished(process)
    assert done.code == 128 + number
    reason = "interrupted" if number == signal.SIGINT else "terminated"
    assert f"run cancelled: {reason}" in out + done.out
    assert f"the run was cancelled: {reason}" in done.err
    positions = [int(line[:6]) for line in (out + done.out).splitlines() if line[:6].strip().isdigit()]
    assert positions == [*range(1, len(positions) + 1)]


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with started("run", f"{FLOWS}:stubborn", cwd=tmp_path) as process:
        read_until(process, "blocking: now")
        (tmp_path / "printed").touch()
        wait_until((tmp_path / "blocked").exists)  # the node blocks its loop now, for a minute

        def ended() -> bool:
            process.send_signal(signal.SIGINT)  # two that come at once are one
            return process.poll() is not None

        wait_until(ended, 5)
        assert process.returncode == 130


@clause("8.sigterm")
def test_an_interrupted_run_goes_on_later(tmp_path: Path) -> None:
    keep = ("--session", "s", "--log", "sqlite:r.db", "--checkpointer", "sqlite:r.db")
    work = {"WORKED": str(tmp_path / "worked")}
    given = json.dumps({"gate": str(tmp_path / "gate")})
    with started("run", f"{FLOWS}:stepping", given, *keep, cwd=tmp_path, env=work) as process:
        read_until(process, "step 6: work")
        process.send_signal(signal.SIGTERM)
        done = finished(process)
    assert done.code == 143 and "--session s --resume" in done.err
    (tmp_path / "gate").touch()
    assert cli("run", f"{FLOWS}:stepping", "--resume", *keep, cwd=tmp_path, **work).code == 0
    assert (tmp_path / "worked").read_text().split() == list("0123456789")


def test_nobody_reads_any_more_ends_it_quietly(tmp_path: Path) -> None:
    with started("run", f"{FLOWS}:endless", cwd=tmp_path) as process:
        read_until(process, "tick: 3")
        process.stdout.close()
        process.stdout = None
        done = Done(process.wait(20), "", process.stderr.read().decode())
    assert (done.code, done.err) == (141, "")


@clause("L7")
def test_a_reader_that_stands_still_does_not_stop_the_run(tmp_path: Path) -> None:
    """The pipe is full after some thousand events; the log gets them all the same."""
    script = f"""
from weavegraph import END, START, GraphBuilder
def flood():
    builder = GraphBuilder()
    async def node(state, ctx):
        for n in range(20_000):
            ctx.emit("n", str(n))
        open({str(tmp_path / "done")!r}, "w").close()
    builder.add_node("n", node).add_edge(START, "n").add_edge("n", END)
    return builder
"""
    (tmp_path / "flooding.py").write_text(script)
    with started("run", "flooding:flood", cwd=tmp_path) as process:
        wait_until((tmp_path / "done").exists)
        done = finished(process)
    assert done.code == 0
    assert done.out.count(" n: ") == 20_000


@clause("D7")
def test_what_cannot_be_opened_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "garbage.db").write_text("no database")
    for url, sentence in (("sqlite:none/r.db", "cannot be created"), ("sqlite:garbage.db", "is not a database")):
        for option in ("--log", "--checkpointer"):
            done = cli("run", f"{FLOWS}:app", TEA, option, url, cwd=tmp_path)
            assert (done.code, done.out) == (1, "")
            assert sentence in done.err and done.err.count("\n") == 1


def test_a_log_that_does_not_take_the_run_is_told_and_makes_it_fail(tmp_path: Path) -> None:
    (tmp_path / "ailing.py").write_text(
        "from tests.cli.flows import writing\n"
        "from weavegraph import RuntimeConfig\n"
        "from weavegraph.errors import LogUnavailableError\n"
        "from weavegraph.log import MemoryLog\n"
        "from weavegraph.runtime import _execution\n"
        "_execution.SINK_GRACE = 0.2\n"
        "class Ailing(MemoryLog):\n"
        "    async def append(self, run_id, events, /):\n"
        "        if events[-1].run_seq > 5: raise LogUnavailableError('the log', 'disk full')\n"
        "        return await super().append(run_id, events)\n"
        "def app():\n"
        "    return writing().compile(RuntimeConfig(log=Ailing()))\n"
    )
    done = cli("run", "ailing:app", TEA, cwd=tmp_path)
    assert done.code == 1
    assert "the log does not hold what follows position" in done.err
    assert "16  run completed" in done.out


# ── on a terminal ───────────────────────────────────────────────────────────────────────────────────


@clause("12.4")
def test_on_a_terminal_lines_fit_and_nothing_of_an_event_is_obeyed(tmp_path: Path) -> None:
    done = Terminal("run", f"{FLOWS}:app", '{"topic": "' + "tea " * 40 + '"}', cwd=tmp_path).to_the_end()
    assert done.code == 0
    assert "\x1b[36moutline@1\x1b[0m" in done.out
    assert "And \\x1b[31mhot." in done.out
    golden("terminal.txt", done.out.replace("\x1b", "<esc>"))
    rows = [line for line in bare(done.out).splitlines() if line[:6].strip().isdigit() and "▸" not in line]
    assert max(map(len, rows)) == 80


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["a dumb terminal", "NO_COLOR"])
def test_without_colour(tmp_path: Path, env: dict[str, str]) -> None:
    done = Terminal("run", f"{FLOWS}:app", TEA, cwd=tmp_path, **env).to_the_end()
    assert (done.code, "\x1b" in done.out) == (0, False)
    piped = cli("run", f"{FLOWS}:app", TEA, cwd=tmp_path)
    assert [line[:20] for line in done.out.splitlines()] == [line[:20] for line in piped.out.splitlines()]


def test_tokens_are_shown_when_they_come_and_not_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "gated.py").write_text(
        "import asyncio\n"
        "from pathlib import Path\n"
        "from weavegraph import END, START, GraphBuilder\n"
        "builder = GraphBuilder()\n"
        "async def tokens():\n"
        "    yield 'one '\n"
        "    yield 'two '\n"
        "    while not Path('gate').exists(): await asyncio.sleep(0.01)  # sleeps: between two looks\n"
        "    yield 'three'\n"
        "@builder.node\n"
        "async def n(state, ctx):\n"
        "    await ctx.stream_llm(tokens(), stream_id='s')\n"
        "builder.add_edge(START, 'n').add_edge('n', END)\n"
    )
    terminal = Terminal("run", "gated:builder", cwd=tmp_path)
    assert "three" not in terminal.read_until("one two ")
    (tmp_path / "gate").touch()
    assert "one two three\n" in bare(terminal.to_the_end().out)


@clause("12.4")
def test_json_on_a_terminal_is_the_same_without_control_characters(tmp_path: Path) -> None:
    evil = "a\u009b31m\u202eb\x7f"
    done = Terminal("run", f"{FLOWS}:app", json.dumps({"topic": evil}), "--json", cwd=tmp_path).to_the_end()
    assert done.code == 0
    assert not {"\u009b", "\u202e", "\x7f", "\x1b"} & set(done.out)
    assert json.loads(done.out.splitlines()[-1])["state"]["topic"] == evil


def test_an_output_that_cannot_say_everything_is_written_all_the_same(tmp_path: Path) -> None:
    done = cli("run", f"{FLOWS}:app", '{"topic": "Öl"}', cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert "draft > \\xd6l is" in done.out


# ── the command itself ──────────────────────────────────────────────────────────────────────────────


def test_the_script_and_the_module_are_the_same_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("weavegraph")
    if not script.exists():
        pytest.skip("not installed")
    one = subprocess.run([script, "--help"], capture_output=True, text=True, env=environment(), timeout=20)
    other = subprocess.run([*COMMAND], capture_output=True, text=True, env=environment(), timeout=20)
    assert one.stdout.strip() == other.stdout.strip()
    golden("help.txt", one.stdout)


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('no', name='typer')")
    found = subprocess.run(
        COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=20,
        env={**environment(), "PYTHONPATH": os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))},
    )  # fmt: skip
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "weavegraph's command line needs typer and rich: pip install 'weavegraph[cli]'\n"
