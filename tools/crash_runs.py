"""What runs keep when their process is killed: O3, O5, 8.kill, 10.valid, D1 to D4, D9 of docs/design/contract.md.

    python tools/crash_runs.py kill   --runs 300         kill -9 of graph runs at random moments, resumed to the end
    python tools/crash_runs.py resume --sequences 2000   readers that leave and come back while the log is written
    python tools/crash_runs.py speed                     a checkpointed step, an emit with a log, the loop's blocks

Each campaign prints its seed, progress and one line of figures, ends with 1 if anything is wrong, and adds the line to
a ledger with ``--ledger docs/ledger-runs.md``. ``--seed`` repeats one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import operator
import os
import platform
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec.structs import replace

from weavegraph import END, START, STREAM_END_SCOPE, App, Command, GraphBuilder, NodeContext, RuntimeConfig, Send
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.checkpoint.sqlite import SqliteCheckpointer
from weavegraph.errors import SessionError
from weavegraph.events import GAP_SCOPE, DiagnosticEvent, Event, LLMStreamingEvent, admit, to_json
from weavegraph.log import SqliteLog
from weavegraph.state import append
from weavegraph.testing import logged

HANG = 25  # seconds until what should have ended counts as a hang
SESSION, RUN = "session", "run"


@dataclass
class Findings:
    """What a campaign counts."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


# ── the graphs ──────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Note:
    text: str
    at: datetime


class State(TypedDict, total=False):
    trail: Annotated[list[str], append]
    notes: Annotated[list[Note], append]
    total: Annotated[int, operator.add]
    rounds: Annotated[int, operator.add]
    pair: tuple[int, str]


def build(seed: int, config: RuntimeConfig, diary: int | None = None) -> App[State]:
    """A graph of the seed's own: a loop over a fan-out with models' answers, perhaps a sub-graph, commands, questions.

    Its final state depends on the seed alone. ``diary``: a file where each node notes that it has begun.
    """
    dice = random.Random(seed)
    rounds, width, branches, asks = dice.randint(1, 3), dice.randint(1, 5), dice.randint(0, 3), dice.randint(0, 2)
    commands, nested, pace = dice.random() < 0.5, dice.random() < 0.6, dice.choice((0.0, 0.001, 0.004))
    builder = GraphBuilder(State, name=f"crash-{seed}")

    def began(ctx: NodeContext[Any, None], what: object = "") -> None:
        if diary is not None and not ctx.path:
            os.write(diary, f"{ctx.attempt} {ctx.step} {ctx.node_id} {what}\n".encode())

    async def tokens(text: str) -> AsyncIterator[str]:
        for word in text.split():
            await asyncio.sleep(pace * dice_of_pace())
            yield f"{word} "

    def dice_of_pace() -> float:
        return random.random()

    @builder.node
    async def plan(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        began(ctx)
        number = state.get("rounds", 0)
        reply = await ctx.stream_llm(tokens(f"plan of round {number} with {width} parts"), stream_id="plan")
        return {"trail": [reply.text], "rounds": 1, "pair": (number, "ü")}

    def split(state: State, ctx: NodeContext[State, None]) -> list[Send]:
        began(ctx)
        return [Send("work", {"n": n, "round": state["rounds"]}) for n in range(width)]

    async def work(payload: Any, ctx: NodeContext[Any, None]) -> dict[str, Any]:
        began(ctx, payload["n"])
        ctx.emit("working", str(payload["n"]), round=payload["round"])
        await asyncio.sleep(pace * random.random() * 3)
        name = f"{payload['round']}/{payload['n']}"
        if payload["n"] % 2 == 0:
            await ctx.stream_llm(tokens(f"part {name} is done"), stream_id=f"w{payload['n']}")
        return {"trail": [name], "total": payload["n"] + 1, "notes": [Note(name, datetime(2026, 1, 1, tzinfo=UTC))]}

    def onward(state: State) -> str | list[str]:
        if state["rounds"] < rounds:
            return "plan"
        return "inner" if nested else after_inner(state)

    def after_inner(state: State) -> str | list[str]:
        return [f"ask{n}" for n in range(asks)] or "finish"

    def gather(state: State, ctx: NodeContext[State, None]) -> Any:
        began(ctx)
        update = {"trail": [f"gathered {state['total']}"]}
        return Command(goto=onward(state), update=update) if commands else update

    async def finish(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        began(ctx)
        assert isinstance(state["notes"][0], Note) and isinstance(state["pair"], tuple)
        return {"trail": ["finished"]}

    last = [f"ask{n}" for n in range(asks)] or ["finish"]
    targets = ["plan", *(["inner"] if nested else last)]
    builder.add_edge(START, "plan")
    for name in ("split", *(f"branch{n}" for n in range(branches))):
        builder.add_edge("plan", name)
    builder.add_node("split", split, to=["work"])
    for n in range(branches):

        async def branch(state: State, ctx: NodeContext[State, None], n: int = n) -> dict[str, Any]:
            began(ctx)
            await asyncio.sleep(pace * random.random() * 2)
            ctx.emit("branching", str(n))
            return {"trail": [f"branch {n} of {state['rounds']}"]}

        builder.add_node(f"branch{n}", branch).add_edge(f"branch{n}", END)
    builder.add_node("work", work).add_edge("work", "gather")
    if commands:
        builder.add_node("gather", gather, to=targets)
    else:
        builder.add_node("gather", gather).add_conditional_edge("gather", onward, to=targets)
    if nested:
        builder.add_node("inner", inner(pace)).add_conditional_edge("inner", after_inner, to=last)
    for n in range(asks):

        async def ask(state: State, ctx: NodeContext[State, None], n: int = n) -> dict[str, Any]:
            began(ctx)
            answers = [await ctx.interrupt(f"question {n}.{k}") for k in range(n + 1)]
            return {"trail": [f"answered {answers}"]}

        builder.add_node(f"ask{n}", ask).add_edge(f"ask{n}", "finish")
    builder.add_node("finish", finish).add_edge("finish", END)
    return builder.compile(config)


def inner(pace: float) -> App[State]:
    """A sub-graph with a loop of its own."""
    builder = GraphBuilder(State, name="inner")

    async def one(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        await asyncio.sleep(pace * random.random())
        await ctx.stream_llm(["in", "side"], stream_id="inner")
        return {"total": 10}

    def two(state: State) -> dict[str, Any]:
        return {"trail": [f"inner {state['total']}"]}

    def again(state: State) -> str:
        return "one" if state["total"] % 3 else END

    builder.add_node("one", one).add_node("two", two).add_edge(START, "one").add_edge("one", "two")
    builder.add_conditional_edge("two", again, to=["one", END])
    return builder.compile()


def answers_to(questions: Sequence[Any]) -> dict[str, str] | None:
    return {question.id: f"answer to {question.question}" for question in questions} or None


def shown(state: Any) -> str:
    """A state as text, types included."""
    return repr(dict(state))


async def undisturbed(seed: int) -> str:
    """The final state of a run that nobody disturbs."""
    async with build(seed, RuntimeConfig(checkpointer=MemoryCheckpointer())) as app:
        run = app.start({}, session_id=SESSION)
        while True:
            state = await run
            if run.status == "completed":
                return shown(state)
            run = app.resume(SESSION, answers_to(run.questions))


# ── the processes ───────────────────────────────────────────────────────────────────────────────────


def child(work: Callable[[int], Any]) -> tuple[int, int]:
    """Fork; the child runs ``work(pipe)`` and ends. Its id, and where its output can be read."""
    reading, writing = os.pipe()
    found = os.fork()
    if found:
        os.close(writing)
        return found, reading
    os.close(reading)
    signal.alarm(HANG)
    try:
        work(writing)
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(writing, json.dumps({"crash": traceback.format_exc()[-600:]}).encode())
    finally:
        os._exit(0)


def answer(process: int, reading: int) -> dict[str, Any]:
    """What a child wrote until it ended."""
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(process, 0)
    lines = [line for line in data.splitlines() if line.startswith(b"{")]
    if lines:
        found = json.loads(lines[-1])
        assert isinstance(found, dict)
        return found
    killed = status & 127
    return {"killed": killed} if killed == signal.SIGKILL else {"crash": f"ended by signal {killed}, {data[-2000:]!r}"}


def in_child(work: Callable[[], Any]) -> dict[str, Any]:
    """The answer of a coroutine function, run in a process of its own."""
    return answer(*child(lambda pipe: os.write(pipe, json.dumps(asyncio.run(work())).encode())))


def configured(path: Path) -> RuntimeConfig:
    return RuntimeConfig(log=SqliteLog(path), checkpointer=SqliteCheckpointer(path), cancel_grace=0.05)


async def drive(path: Path, seed: int, pipe: int) -> None:
    """Bring the session's run to its end, from wherever it stands: what a service does when it is started again."""
    diary = os.open(path.with_suffix(".diary"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with build(seed, configured(path), diary) as app:
        assert app.checkpointer is not None and app.log is not None
        os.write(pipe, b"started\n")
        while True:
            latest = await app.checkpointer.latest(SESSION)
            if latest is None:  # whatever it had begun with, it has left nothing: its first commit holds its input
                run = app.start({}, session_id=SESSION, run_id=RUN)
            else:
                try:
                    run = app.resume(SESSION, answers_to(latest.questions))
                except SessionError:  # it is over: killed after its very last event
                    os.write(pipe, json.dumps({"done": shown((await app.get_state(SESSION)).values)}).encode())
                    return
            state = await run
            if run.status == "completed":
                os.write(pipe, json.dumps({"done": shown(state)}).encode())
                return


async def watch(path: Path, through_app: bool) -> dict[str, Any]:
    """What somebody in another process sees: positions and checksums, from the first event to the end."""
    seen: list[tuple[int, int]] = []
    if through_app:
        async with build(0, configured(path)) as app:
            async for event in app.event_stream(run_id=RUN, after=0, follow=True):
                seen.append((event.run_seq or -1, zlib.crc32(to_json(event))))
    else:
        log = SqliteLog(path)
        async for event in log.follow(RUN):
            seen.append((event.run_seq or -1, zlib.crc32(to_json(event))))
        await log.aclose()
    return {"seen": seen}


# ── looking at what is left ─────────────────────────────────────────────────────────────────────────


async def examine(path: Path) -> dict[str, Any]:
    """Everything that can be said of the file: what is wrong, and what was counted."""
    log, checkpointer = SqliteLog(path), SqliteCheckpointer(path)
    events = [event async for event in log.read(RUN)]
    latest = await checkpointer.latest(SESSION)
    (logged_run,) = await log.runs()
    integrity = await log.store.query(lambda db: db.execute("PRAGMA integrity_check").fetchone()[0])
    diary = path.with_suffix(".diary").read_text().splitlines()
    await log.aclose()
    await checkpointer.aclose()
    wrong: list[str] = []
    if [event.run_seq for event in events] != [*range(1, len(events) + 1)]:
        wrong.append(f"positions {[event.run_seq for event in events]}")
    if integrity != "ok":
        wrong.append(f"integrity_check: {integrity}")
    if latest is None or latest.status != "completed" or logged_run.outcome != "completed":
        wrong.append(f"the latest checkpoint is {latest and latest.status}, the log says {logged_run.outcome}")
    counts = Counter(attempts(events, wrong))
    streams(events, counts, wrong)
    announced = [e.metadata["number"] for e in events if e.scope == "weavegraph.checkpoint.saved"]
    if latest is not None and (announced != [*range(1, latest.number + 1)]):
        wrong.append(f"D3: checkpoints {announced} are announced, {latest.number} is the last")
    finished_steps(events, diary, counts, wrong)
    checks = [(event.run_seq, zlib.crc32(to_json(event))) for event in events]
    return {"wrong": wrong, "counts": counts, "checks": checks}


def attempts(events: Sequence[Event], wrong: list[str]) -> dict[str, int]:
    """O3: each attempt is opened by one event and closed by one, and no event is outside."""
    outcomes: Counter[str] = Counter()
    groups: list[list[Event]] = []
    for event in events:
        if not groups or groups[-1][0].attempt != event.attempt:
            groups.append([])
        groups[-1].append(event)
    for number, group in enumerate(groups, 1):
        starts = [n for n, event in enumerate(group) if event.scope == "weavegraph.run.started"]
        ends = [n for n, event in enumerate(group) if event.scope == STREAM_END_SCOPE]
        if group[0].attempt != number or starts != [0] or ends != [len(group) - 1]:
            wrong.append(f"O3: attempt {number} ({group[0].attempt}): starts {starts}, ends {ends} of {len(group)}")
            continue
        outcomes[group[-1].metadata["outcome"]] += 1
    expected = [*(["interrupted", "paused"] * len(groups)), "completed"]
    if groups and groups[-1][-1].metadata.get("outcome") != "completed":
        wrong.append("the last attempt is not the completed one")
    if set(outcomes) - set(expected) or outcomes["completed"] != 1:
        wrong.append(f"outcomes {dict(outcomes)}")
    return {f"{name} attempts": count for name, count in outcomes.items()}


def streams(events: Sequence[Event], counts: Counter[str], wrong: list[str]) -> None:
    """O5: chunks of each answer count 0, 1, 2 …, and it ends once, also where its process was killed."""
    cut = [
        position
        for position, event in enumerate(events)
        if event.scope == STREAM_END_SCOPE and event.metadata.get("code") == "died"
    ]
    found: dict[str | None, list[LLMStreamingEvent]] = {}
    for event in events:
        if isinstance(event, LLMStreamingEvent):
            found.setdefault(event.stream_id, []).append(event)
    for name, parts in found.items():
        ends = [part for part in parts if part.phase != "chunk"]
        attempts = {part.attempt for part in parts}
        if [part.index for part in parts] != [*range(len(parts))] or ends != parts[-1:] or len(attempts) > 1:
            wrong.append(f"O5: stream {name} of attempts {attempts}: {[(part.index, part.phase) for part in parts]}")
    for position in cut:
        before = position - 1
        while before >= 0 and isinstance(events[before], LLMStreamingEvent) and events[before].phase == "cancelled":  # type: ignore[union-attr]
            counts["answers cut by a kill"] += 1
            before -= 1


def finished_steps(events: Sequence[Event], diary: Sequence[str], counts: Counter[str], wrong: list[str]) -> None:
    """D4: what a committed step ran is not run again, by the events and by what the nodes noted themselves."""
    committed, since = 0, {}  # the last committed step; and where it stood when each attempt began
    for event in events:
        if event.scope == "weavegraph.run.started":
            since[event.attempt] = committed
        if event.path:
            continue
        if event.scope == "weavegraph.checkpoint.saved":
            committed = event.metadata["step"]
        elif event.scope == "weavegraph.node.started" and (event.step or 0) <= committed:
            wrong.append(f"D4: {event.node_id} of step {event.step} began again after the step was committed")
    runs: Counter[tuple[str, ...]] = Counter()
    for line in diary:
        attempt, step, *node = line.split(" ")
        if int(step) <= since.get(int(attempt), 0):
            wrong.append(f"D4: {line!r} was run in attempt {attempt}, which began after step {since.get(int(attempt))}")
        runs[step, *node] += 1
    counts["nodes run"] += len(diary)
    counts["of them again, in an open step"] += len(diary) - len(runs)


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────────


def kill(runs: int, seed: int, folder: Path, seconds: float | None = None) -> Findings:
    """Runs that are killed several times each, and resumed by other processes until they are complete."""
    dice, findings = random.Random(seed), Findings()
    began = time.monotonic()
    for number in range(runs):
        if seconds is not None and time.monotonic() - began > seconds:
            break
        one_run(dice.randrange(1 << 30), dice, folder / f"{number}", findings, f"run {number}")
        shutil.rmtree(folder / f"{number}", ignore_errors=True)
        progress("kill", number + 1, runs, findings)
    return findings


def one_run(seed: int, dice: random.Random, folder: Path, findings: Findings, where: str) -> None:
    timed = time.monotonic()
    truth = in_child(lambda: _truth(seed))
    length = time.monotonic() - timed
    if "truth" not in truth:
        findings.problems.append(f"{where}, seed {seed}: undisturbed: {truth}")
        return
    folder.mkdir(parents=True)
    path = folder / "runs.db"
    watcher = child(lambda pipe: _watched(path, seed, pipe))
    found, kills = until_complete(path, seed, dice, length)
    findings.counts["runs"] += 1
    findings.counts["kills"] += kills
    if found.get("done") != truth["truth"]:
        findings.problems.append(f"{where}, seed {seed}: {found}, undisturbed {truth}")
        os.kill(watcher[0], signal.SIGKILL)
        answer(*watcher)
        return
    seen, held = answer(*watcher), in_child(lambda: examine(path))
    if "wrong" not in held:
        findings.problems.append(f"{where}, seed {seed}: {held}")
        return
    findings.counts.update(held["counts"])
    findings.problems.extend(f"{where}, seed {seed}: {problem}" for problem in held["wrong"])
    if seen.get("seen") != held["checks"]:
        positions = [position for position, _ in seen.get("seen", ())]
        findings.problems.append(
            f"{where}, seed {seed}: the watcher saw {positions or seen}, the log holds {len(held['checks'])}"
        )
    findings.counts["events seen by watchers"] += len(held["checks"])


async def _truth(seed: int) -> dict[str, str]:
    return {"truth": await undisturbed(seed)}


def _watched(path: Path, seed: int, pipe: int) -> None:
    os.write(pipe, json.dumps(asyncio.run(watch(path, seed % 2 == 0))).encode())


def until_complete(path: Path, seed: int, dice: random.Random, length: float) -> tuple[dict[str, Any], int]:
    """Start a process for the run, kill it, start the next, …, until one is let live; how many were killed."""
    kills = 0
    for left in range(dice.choice((1, 2, 3, 4, 6)), -1, -1):
        process, reading = child(lambda pipe: asyncio.run(drive(path, seed, pipe)))
        if left:
            if dice.random() < 0.85:
                os.read(reading, 8)  # it has opened its files: later moments are hit more evenly
            time.sleep(dice.random() * length * dice.choice((0.2, 0.6, 1.0)))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        found = answer(process, reading)
        if "killed" not in found:
            return found, kills
        kills += 1
    return found, kills


# ── readers that leave and come back ────────────────────────────────────────────────────────────────


def text_of(position: int) -> str:
    return f"{position}:" + "x" * (position * 37 % 200)


def written(run_id: str, first: int, last: int, over: bool) -> list[Event]:
    """Events of a run from its positions alone; with ``over`` the last one ends it."""
    events = [replace(event, message=text_of(event.run_seq or 0)) for event in logged(run_id, first, last)]
    if over:
        end = DiagnosticEvent(STREAM_END_SCOPE, "completed", {"outcome": "completed"})
        events[-1] = admit(
            replace(
                end, seq=last, epoch="epoch-1", run_id=run_id, session_id="session-1", run_seq=last, attempt=1,
                timestamp=events[-1].timestamp + timedelta(milliseconds=1),
            ),
            reserved=True,
        )[0]  # fmt: skip
    return events


async def write_runs(path: Path, run_ids: Sequence[str], length: int, seed: int) -> None:
    """Write runs at once, in batches and with rests of random size."""
    dice = random.Random(seed)
    log = SqliteLog(path)

    async def one(run_id: str) -> None:
        last = 0
        while last < length:
            count = min(dice.choice((1, 1, 2, 5, 30)), length - last)
            await log.append(run_id, written(run_id, last + 1, last + count, last + count == length))
            last += count
            await asyncio.sleep(dice.choice((0.0, 0.0, 0.002, 0.01)))

    await asyncio.gather(*map(one, run_ids))
    await log.aclose()


async def read_on(source: Callable[[int], AsyncIterator[Event]], dice: random.Random, begin: int) -> dict[str, Any]:
    """Read a run from ``begin`` to its end, leaving and coming back at random; what is wrong, and how often it left."""
    position, left, wrong = begin, 0, []
    over = False
    while not over and not wrong:
        events, budget = source(position), dice.choice((0, 1, 3, 20, 100, 10**6))
        try:
            while True:
                if budget == 0:
                    break
                budget -= 1
                try:
                    coming = asyncio.ensure_future(anext(events))  # type: ignore[arg-type]
                    if dice.random() < 0.02:  # leaves in the middle of waiting
                        await asyncio.wait((coming,), timeout=dice.random() * 0.01)
                        if not coming.done():
                            coming.cancel()
                            await asyncio.wait((coming,))
                            break
                    event = await asyncio.wait_for(coming, HANG)
                except StopAsyncIteration:
                    over = True
                    break
                except TimeoutError:
                    wrong.append(f"nothing came after position {position}")
                    break
                if event.run_seq != position + 1 or (
                    event.scope != STREAM_END_SCOPE and event.message != text_of(position + 1)
                ):
                    wrong.append(f"after {position} came {event.run_seq} {event.scope} {event.message[:20]!r}")
                    break
                position += 1
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()
        left += not over
    return {"position": position, "left": left, "wrong": wrong}


def resume(sequences: int, seed: int, folder: Path, seconds: float | None = None) -> Findings:
    """Rounds of: a process writes four runs, this one has forty readers of them, which come and go."""
    dice, findings = random.Random(seed), Findings()
    began = time.monotonic()
    round_number = 0
    while findings.counts["sequences"] < sequences and (seconds is None or time.monotonic() - began < seconds):
        path, length = folder / f"resume-{round_number}.db", dice.randint(100, 500)
        run_ids = [f"run-{n}" for n in range(4)]
        own = dice.randrange(1 << 30)
        writer = child(lambda pipe: _written(path, run_ids, length, own, pipe))  # noqa: B023
        found = in_child(lambda: _readers(path, run_ids, length, own))  # noqa: B023
        end = answer(*writer)
        if "wrong" not in found or "crash" in end:
            findings.problems.append(f"round {round_number}: {found} {end}")
            findings.counts["sequences"] += 1
        else:
            findings.counts.update(found["counts"])
            findings.problems += [f"round {round_number}: {problem}" for problem in found["wrong"]]
        for file in folder.glob(f"resume-{round_number}.db*"):
            file.unlink()
        round_number += 1
        progress("resume", findings.counts["sequences"], sequences, findings)
    return findings


def _written(path: Path, run_ids: Sequence[str], length: int, seed: int, pipe: int) -> None:
    asyncio.run(write_runs(path, run_ids, length, seed))
    os.write(pipe, b'{"written": true}')


async def _readers(path: Path, run_ids: Sequence[str], length: int, seed: int) -> dict[str, Any]:
    """Forty readers: half of them follow the log, half a stream of an app."""
    log = SqliteLog(path)
    apps = [build(0, RuntimeConfig(log=SqliteLog(path))) for _ in range(2)]

    def source(which: int, run_id: str) -> Callable[[int], AsyncIterator[Event]]:
        if which % 2:
            return lambda after: log.follow(run_id, after)
        app = apps[which // 2 % 2]
        return lambda after: _stream(app, run_id, after)

    async def one(which: int) -> dict[str, Any]:
        dice = random.Random(seed * 1000 + which)
        run_id = run_ids[which % 4]
        await asyncio.sleep(dice.random() * 0.2)
        last = await log.last_position(run_id)
        begin = dice.choice((0, last, dice.randint(0, last)))
        found = await read_on(source(which // 4, run_id), dice, begin)
        if not found["wrong"] and found["position"] != length:
            found["wrong"].append(f"ended at {found['position']} of {length}")
        return {**found, "events": found["position"] - begin}

    results = await asyncio.gather(*map(one, range(40)))
    for app in apps:
        await app.aclose()
    await log.aclose()
    return {
        "wrong": [f"reader {n}: {problem}" for n, each in enumerate(results) for problem in each["wrong"]],
        "counts": {
            "sequences": len(results),
            "returns": sum(each["left"] for each in results),
            "events": sum(each["events"] for each in results),
        },
    }


async def _stream(app: App[Any], run_id: str, after: int) -> AsyncIterator[Event]:
    with app.event_stream(run_id=run_id, after=after, follow=True) as events:
        async for event in events:
            assert event.scope != GAP_SCOPE, event
            yield event


# ── speed ───────────────────────────────────────────────────────────────────────────────────────────


class Counting(TypedDict, total=False):
    n: int
    text: str


def counting(steps: int, config: RuntimeConfig, emits: int = 0) -> App[Counting]:
    """A loop of one node; ``emits`` events in each step."""
    builder = GraphBuilder(Counting)

    async def step(state: Counting, ctx: NodeContext[Counting, None]) -> dict[str, Any]:
        for n in range(emits):
            ctx.emit("working", "drafting the answer", n=n)
        return {"n": state.get("n", 0) + 1}

    builder.add_node("step", step).add_edge(START, "step")
    builder.add_conditional_edge("step", lambda state: END if state["n"] >= steps else "step", to=["step", END])
    return builder.compile(config)


def speed(rounds: int, folder: Path) -> dict[str, float]:
    """Medians over rounds in which everything is measured in turns."""
    found: dict[str, list[float]] = {}
    for n in range(rounds):
        place = folder / f"speed-{n}"
        place.mkdir()
        for name, value in one_round(place).items():
            found.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def one_round(place: Path) -> dict[str, float]:
    keep = {"checkpointer": f"sqlite:{place}/a.db"}
    both = {"log": f"sqlite:{place}/b.db", "checkpointer": f"sqlite:{place}/b.db"}
    grouped, steps = 100, 50
    result = {
        "memory_step_us": asyncio.run(stepping({}, grouped, steps)),
        "grouped_step_us": asyncio.run(stepping(keep, grouped, steps)),
        "grouped_step_with_log_us": asyncio.run(stepping(both, grouped, steps)),
        "step_us": asyncio.run(stepping({}, 1, 300)),
        "committed_step_us": asyncio.run(stepping({"checkpointer": f"sqlite:{place}/c.db"}, 1, 300)),
        "committed_step_with_log_us": asyncio.run(
            stepping({"log": f"sqlite:{place}/d.db", "checkpointer": f"sqlite:{place}/d.db"}, 1, 300)
        ),
        "bare_commit_us": bare_commits(place / "bare.db", 300),
    }
    result["ratio"] = result["committed_step_us"] / result["bare_commit_us"]
    result["ratio_with_log"] = result["committed_step_with_log_us"] / result["bare_commit_us"]
    bare = asyncio.run(emitting({}))
    kept = asyncio.run(emitting({"log": f"sqlite:{place}/e.db"}))
    result |= {"emit_us": bare[0], "emit_with_log_us": kept[0], "emit_more_us": kept[0] - bare[0]}
    result |= {"process_more_us": kept[1] - bare[1]}
    both = {"log": f"sqlite:{place}/f.db", "checkpointer": f"sqlite:{place}/f.db"}
    for name, settings in (("loop_block", {}), ("loop_block_with_log", both)):
        result[f"{name}_ms"], result[f"{name}_cpu_ms"] = asyncio.run(blocking(settings))
    return result


async def stepping(settings: dict[str, str], runs: int, steps: int) -> float:
    """Microseconds a step, of ``runs`` at once."""
    async with counting(steps, RuntimeConfig(step_limit=10_000, **settings)) as app:  # type: ignore[arg-type]
        await app.invoke({"n": steps - 1})  # files are open, and what is lazy is there
        began = time.perf_counter()
        await asyncio.gather(*(app.invoke({}) for _ in range(runs)))
        return (time.perf_counter() - began) / (runs * steps) * 1e6


def bare_commits(path: Path, count: int) -> float:
    """Microseconds a commit of a row of the size of a checkpoint, with nothing around it."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE rows(id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")
    body = os.urandom(900)
    db.execute("INSERT INTO rows(body) VALUES (?)", (body,))
    began = time.perf_counter()
    for _ in range(count):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO rows(body) VALUES (?)", (body,))
        db.execute("COMMIT")
    took = (time.perf_counter() - began) / count * 1e6
    db.close()
    return took


async def emitting(settings: dict[str, str]) -> tuple[float, float]:
    """CPU of the emitting thread, and of the whole process, in microseconds an event."""
    times: list[float] = []

    async def burst(state: Any, ctx: NodeContext[Any, None]) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
            began = time.thread_time()
            for n in range(500):
                ctx.emit("working", "drafting the answer", n=n)
            times.append(time.thread_time() - began)

    builder = GraphBuilder()
    builder.add_node("burst", burst).add_edge(START, "burst").add_edge("burst", END)
    async with builder.compile(RuntimeConfig(**settings)) as app:  # type: ignore[arg-type]
        await app.invoke()
        times.clear()
        began = time.process_time()
        await app.invoke()
        whole = time.process_time() - began
    return statistics.median(times) / 500 * 1e6, whole / 10_000 * 1e6


async def blocking(settings: dict[str, str]) -> tuple[float, float]:
    """The longest single callback of the loop, in milliseconds, while twenty runs step and emit: by the clock, and in
    CPU time, which leaves out what other programs took."""
    longest, busiest, thread = 0.0, 0.0, threading.get_ident()
    run = asyncio.Handle._run

    def timed(self: asyncio.Handle) -> None:
        nonlocal longest, busiest
        began, cpu = time.perf_counter(), time.thread_time()
        run(self)
        if threading.get_ident() == thread:
            longest = max(longest, time.perf_counter() - began)
            busiest = max(busiest, time.thread_time() - cpu)

    async with counting(20, RuntimeConfig(**settings), emits=5) as app:  # type: ignore[arg-type]
        await app.invoke({"n": 19})
        asyncio.Handle._run = timed  # type: ignore[method-assign]
        try:
            await asyncio.gather(*(app.invoke({}) for _ in range(20)))
        finally:
            asyncio.Handle._run = run  # type: ignore[method-assign]
    return longest * 1e3, busiest * 1e3


# ── the shell ───────────────────────────────────────────────────────────────────────────────────────

TARGETS = {"grouped_step_us": 60.0, "ratio": 1.3, "emit_more_us": 3.0, "loop_block_with_log_cpu_ms": 5.0}
_printed = _told = 0


def progress(what: str, done: int, of: int, findings: Findings) -> None:
    global _printed, _told
    for problem in findings.problems[_told:]:
        print("WRONG", problem, flush=True)
    _told = len(findings.problems)
    if done * 20 // max(of, 1) > _printed:
        _printed = done * 20 // max(of, 1)
        print(f"{what} {done}/{of}: {figures(findings)}; problems {len(findings.problems)}", flush=True)


def figures(findings: Findings) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in findings.counts.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=("kill", "resume", "speed"))
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, help="stop after that many, whatever the number")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--folder", type=Path, help="where the files are made; default: a temporary folder")
    parser.add_argument("--ledger", type=Path, help="add the figures to this file")
    options = parser.parse_args()
    print(f"{options.campaign}: seed {options.seed}", flush=True)
    wrong: list[str] = []
    failed = False
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.campaign == "speed":
            result = speed(options.rounds, folder)
            line = "speed: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items())
            wrong += [
                f"{name} is {result[name]:.2f}; {most:g} is the goal"
                for name, most in TARGETS.items()
                if result[name] > most
            ]
        else:
            campaign, count = (kill, options.runs) if options.campaign == "kill" else (resume, options.sequences)
            findings = campaign(count, options.seed, folder, options.seconds)
            line = f"{options.campaign}: seed {options.seed}: {figures(findings)}; problems {len(findings.problems)}"
            failed = bool(findings.problems)
    print(line)
    for problem in wrong:
        print("WRONG", problem)
    if options.ledger is not None:
        machine = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.system()}"
        with options.ledger.open("a", encoding="utf-8") as ledger:
            ledger.write(f"- {datetime.now(UTC):%Y-%m-%d}, {machine}. {line}\n")
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
