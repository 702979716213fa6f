"""The second act: the run is killed in the middle, another process resumes it, and a third one watched all of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TextIO

from weavegraph import STREAM_END_SCOPE, EventBusConfig, LLMStreamingEvent, RuntimeConfig
from weavegraph.demo._workflow import build
from weavegraph.demo._writers import choose_writer

__all__ = ["second_act", "work"]

SESSION, RUN = "demo-session", "demo-run"
KILL_AFTER = 25
"""Words of the digest after which the first process is killed."""
PATIENCE = 60.0


def durable(folder: Path) -> RuntimeConfig:
    """Events and checkpoints in one SQLite file."""
    store = f"sqlite:{folder / 'runs.db'}"
    return RuntimeConfig(log=store, checkpointer=store, event_bus=EventBusConfig(keep_runs=1))


async def work(folder: Path, how: str, name: str, limit: int, pace: float) -> None:
    """What the two processes do: start the run, or resume it."""
    async with build(durable(folder), pace) as app:
        writer = choose_writer(pace)
        if how == "start":
            text = (folder / "document.md").read_text(encoding="utf-8")
            run = app.start({"name": name, "text": text, "limit": limit}, session_id=SESSION, run_id=RUN, deps=writer)
        else:
            run = app.resume(SESSION, deps=writer)
        await run


async def second_act(name: str, text: str, limit: int, folder: Path, pace: float, out: TextIO) -> int:
    """Watch from here, a process of its own, while one process is killed and another goes on. The exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("runs.db*"):
        old.unlink()
    (folder / "document.md").write_text(text, encoding="utf-8")

    def spawn(how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "weavegraph.demo", "--work", how, "--out", str(folder)]
        return subprocess.Popen([*command, "--name", name, "--words", str(limit), "--pace", str(pace)])

    print("\nThe second act: the same work, with a log. A process starts it, and is killed in the middle.", file=out)
    worker, words, seen, repeats, gaps, killed_at, last, outcomes = spawn("start"), 0, 0, 0, 0, 0, 0, []
    try:
        async with build(durable(folder), pace) as app:
            events = app.event_stream(run_id=RUN, follow=True)
            while (event := await events.next_timeout(PATIENCE)) is not None:
                position = event.run_seq or 0
                seen += 1
                repeats += position <= last
                gaps += max(position - last - 1, 0)
                last = max(last, position)
                words += isinstance(event, LLMStreamingEvent)
                if event.scope == STREAM_END_SCOPE:
                    outcomes.append(f"{event.metadata['outcome']} (attempt {event.attempt})")
                    if event.metadata["outcome"] in ("completed", "failed", "cancelled"):
                        break
                if words == KILL_AFTER and not killed_at:
                    worker.kill()
                    await asyncio.to_thread(worker.wait)
                    killed_at = position
                    print(
                        f"  killed at event {position}, with SIGKILL; another process resumes it", file=out, flush=True
                    )
                    worker = spawn("resume")
            events.close()
        code = await asyncio.to_thread(worker.wait, PATIENCE)
    finally:
        if worker.poll() is None:
            worker.kill()
    print(f"  the run's attempts: {', '.join(outcomes)}", file=out)
    print(f"  the watcher, a third process, saw {seen} events: {gaps} missing, {repeats} twice", file=out)
    return 1 if gaps or repeats or code or seen != last else 0
