"""Run the demo's workflow, with its watchers, and print the ledger; then kill it and watch it go on."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
import textwrap
from importlib.resources import files
from pathlib import Path

from weavegraph import EventBusConfig, EventFilter, RuntimeConfig
from weavegraph.demo._crash import second_act, work
from weavegraph.demo._ledger import ledger, unaccounted
from weavegraph.demo._report import render
from weavegraph.demo._screen import screen_for
from weavegraph.demo._watchers import PickySink, blocking_reader, fast_reader, slow_reader
from weavegraph.demo._workflow import PACE, build
from weavegraph.demo._writers import choose_writer

__all__ = ["main"]

SLOW_CAPACITY = 16


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done and every event accounted for, 1 the run failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="weavegraph.demo",
        description="Make a digest of a text or Markdown file, and watch the run from seven places at once; then kill "
        "the process that runs it, and see another go on.",
    )
    parser.add_argument("file", nargs="?", help="the document; '-' reads standard input; none: a sample")
    parser.add_argument("--words", type=int, default=160, help="the digest's length limit in words (default 160)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for report.md and events.jsonl")
    parser.add_argument("--pace", type=float, default=PACE, help=f"seconds between two words (default {PACE})")
    parser.add_argument("--act", type=int, choices=(1, 2), help="only the watched run, or only the crash")
    parser.add_argument("--work", choices=("start", "resume"), help=argparse.SUPPRESS)
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.words < 1 or options.pace < 0:
        parser.error("--words takes a number from 1, --pace seconds from 0")
    if options.work:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(work(options.out, options.work, options.name, options.words, options.pace))
        return 0
    try:
        name, text = read_document(options.file)
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, UnicodeDecodeError) as exc:
        print(f"weavegraph.demo: {options.file or options.out}: {exc}", file=sys.stderr)
        return 2
    # The slow reader lags on purpose and says so itself; the library's warning would cut into the digest.
    logging.getLogger("weavegraph.event_bus").addHandler(logging.NullHandler())
    try:
        code = 0
        if options.act != 2:
            code = asyncio.run(watch(name, text, options.words, options.out, options.pace))
        if options.act != 1 and not code:
            folder = options.out / "crash"
            code = asyncio.run(second_act(name, text, options.words, folder, options.pace / 2, sys.stdout))
        return code
    except KeyboardInterrupt:
        print("\ninterrupted: the run was cancelled, its sinks are drained", file=sys.stderr)
        return 130


def read_document(file: str | None) -> tuple[str, str]:
    """The document's name and text. Raises ``OSError`` or ``UnicodeDecodeError``."""
    if file is None:
        return "the sample", files("weavegraph.demo").joinpath("sample.md").read_text(encoding="utf-8")
    if file == "-":
        return "standard input", sys.stdin.buffer.read().decode("utf-8")
    return Path(file).name, Path(file).read_text(encoding="utf-8")


async def watch(name: str, text: str, limit: int, out: Path, pace: float) -> int:
    """One run, watched; returns the exit code."""
    events_path, report_path = out / "events.jsonl", out / "report.md"
    bus = EventBusConfig(sinks=("memory:", f"jsonl:{events_path}", PickySink()))
    app, writer = build(RuntimeConfig(event_bus=bus), pace), choose_writer(pace)
    print(f"A digest of {name}, at most {limit} words; one run, watched from seven places.\n", flush=True)
    failure: Exception | None = None
    async with app:
        run = app.start({"name": name, "text": text, "limit": limit}, deps=writer)
        terminal, fast = run.events(name="terminal"), run.events(name="fast async")
        slow = run.events(name="slow, capacity 16", capacity=SLOW_CAPACITY)
        threaded = run.events(name="thread")
        tokens = run.events(name="tokens only", filter=EventFilter(kinds=("llm",)))
        readers = (terminal, fast, slow, threaded, tokens)
        thread = blocking_reader(threaded)
        async with asyncio.TaskGroup() as watching, run:
            watching.create_task(screen_for(sys.stdout).watch(terminal))
            watching.create_task(fast_reader(fast))
            watching.create_task(fast_reader(tokens))
            slowly = watching.create_task(slow_reader(slow, pace * 3))
            try:
                state = await run
            except Exception as exc:
                failure = exc
        gaps = slowly.result()
        await asyncio.to_thread(thread.join)
        await app.event_bus.flush(timeout=10)
        if failure is None:
            events = app.event_bus.sinks["memory"].snapshot()
            report_path.write_text(render(state, writer.about, app.to_mermaid(), events), encoding="utf-8")
        letters = app.event_bus.dead_letters()
        reports = [stream.stats() for stream in readers]
    sinks = app.event_bus.metrics().sinks
    if failure is not None:
        print(f"\nthe run failed: {failure}", file=sys.stderr)
    shown = ", ".join(gaps[:3]) + (f" and {len(gaps) - 3} more gaps" if len(gaps) > 3 else "")
    print("\n" + textwrap.fill(f"The slow reader was told what it missed: {shown or 'nothing'}", 79))
    print(f"The picky sink refused {len(letters)} events; nobody else noticed.")
    print(f"Files: {report_path} and {events_path}\n\nThe ledger\n{ledger(reports, sinks)}\n")
    missing = unaccounted(reports, sinks)
    print(f"unaccounted for: {missing}", flush=True)
    return 1 if missing or failure else 0
