"""What the SQLite event log keeps when everything goes wrong: D1, D2, D3, D5 and D8 of docs/design/contract.md.

    python tools/crash_log.py kill  --cycles 2000     kill -9 of a writer at random moments
    python tools/crash_log.py power --images 1000     power cuts: disks rebuilt from the writer's system calls (strace)
    python tools/crash_log.py flips --places 1000     one flipped bit in database, write-ahead log or mark
    python tools/crash_log.py speed                   group append against a bare executemany of the same rows

Each campaign prints its seed, progress and one line of figures, ends with 1 if anything is wrong, and adds the line to
a ledger with ``--ledger docs/ledger-log.md``. ``--seed`` repeats one.

Every cycle, image and flip is looked at in a forked child that opens the file as any program would, so a hang or a
crash of the reader is a finding, not the end of the campaign.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from weavegraph.errors import LogError
from weavegraph.events import Event, to_json
from weavegraph.log import SqliteLog
from weavegraph.storage import Schema, _open, _writer
from weavegraph.testing import logged

RUNS = ("run-a", "run-b", "run-c", "run-d")
SECTOR = 512
HANG = 20  # seconds until a look at a file counts as a hang
CHECKPOINTS = Schema("checkpoints", (("CREATE TABLE checkpoints(run_id TEXT PRIMARY KEY, position INTEGER) STRICT",),))
"""Stands for a checkpointer that shares the file: its row and the events commit together (D3)."""


def text_of(run_id: str, position: int) -> str:
    """What an event says, from its place alone, so that whoever reads it can tell whether it is right."""
    return f"{run_id}:{position}:" + "x" * (position * 37 % 400)


def batch(run_id: str, first: int, last: int, attempt: int, epoch: str) -> list[Event]:
    return [
        replace(event, message=text_of(run_id, event.run_seq or 0))
        for event in logged(run_id, first, last, attempt=attempt, epoch=epoch)
    ]


# ── the writer: a process that will be killed ───────────────────────────────────────────────────────


async def write(path: Path, acks: int, seed: int, appends: int, durability: Any) -> None:
    """Append to all runs at once; after each acknowledgement say so through ``acks``."""
    dice = random.Random(seed)
    log = SqliteLog(path, durability=durability)
    log.store.require_schema(CHECKPOINTS)

    def save(run_id: str, position: int) -> Callable[[sqlite3.Connection], Any]:
        return lambda db: db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (run_id, position))

    async def one(run_id: str) -> None:
        last = await log.last_position(run_id)
        known = {run.run_id: run.attempt for run in await log.runs()}
        attempt, epoch = known.get(run_id, 0) + 1, f"epoch-{seed}"
        for _ in range(appends):
            count = dice.choice((1, 1, 2, 5, 40))
            events = batch(run_id, last + 1, last + count, attempt, epoch)
            last += count
            await log.store.submit(log.appending(run_id, events), save(run_id, last))
            os.write(acks, f"{run_id} {last}\n".encode())

    await asyncio.gather(*map(one, RUNS))
    await log.aclose()


# ── looking at a file afterwards, in a child ────────────────────────────────────────────────────────


def look(path: Path) -> dict[str, Any]:
    """What a program finds: the last position of each run, or the name of the error. Wrong data is in ``wrong``."""

    async def found() -> dict[str, Any]:
        log = SqliteLog(path, busy_timeout=2.0)
        log.store.require_schema(CHECKPOINTS)
        result: dict[str, Any] = {"last": {}, "wrong": []}
        for run_id in RUNS:
            position = 0
            async for event in log.read(run_id):
                position += 1
                if event.run_seq != position or event.message != text_of(run_id, position):
                    result["wrong"].append(f"{run_id}: {event.run_seq} at {position}: {event.message[:30]!r}")
                    break
            result["last"][run_id] = position
            if position != await log.last_position(run_id):
                result["wrong"].append(f"{run_id}: {position} events, last position differs")
        saved = await log.store.query(
            lambda db: dict(db.execute("SELECT run_id, position FROM checkpoints").fetchall())
        )
        for run_id in RUNS:
            if saved.get(run_id, 0) != result["last"][run_id]:
                result["wrong"].append(f"D3: checkpoint of {run_id} at {saved.get(run_id)}, events {result['last']}")
        integrity = await log.store.query(lambda db: db.execute("PRAGMA integrity_check").fetchone()[0])
        if integrity != "ok":
            result["wrong"].append(f"integrity_check: {integrity}")
        await log.aclose()
        return result

    return asyncio.run(found())


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """``work`` in a forked child; its answer, or how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(HANG)
        try:
            try:
                answer = work()
            except LogError as exc:
                answer = {"error": type(exc).__name__}
            except BaseException:
                answer = {"crash": traceback.format_exc()}
            os.write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if not data:
        return {"crash": f"ended by signal {status & 127}" + (" (hang)" if status & 127 == signal.SIGALRM else "")}
    answer = json.loads(data)
    assert isinstance(answer, dict)
    return answer


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Findings:
    """What a campaign counts."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def judge(self, where: str, answer: dict[str, Any], acked: dict[str, int]) -> None:
        """Compare what was found with what was acknowledged."""
        if "error" in answer or "crash" in answer:
            self.counts["unreadable"] += 1
            self.problems.append(f"{where}: {answer}")
            return
        lost = {run_id: upto for run_id, upto in acked.items() if answer["last"].get(run_id, 0) < upto}
        self.counts["lost"] += len(lost)
        self.counts["wrong"] += len(answer["wrong"])
        if lost or answer["wrong"]:
            self.problems.append(f"{where}: acknowledged {acked}, found {answer}")


def kill(cycles: int, seed: int, folder: Path, seconds: float | None = None) -> Findings:
    """Cycles of: a writer starts on what the last one left, is killed, and the file is looked at."""
    dice, findings = random.Random(seed), Findings()
    acked: dict[str, int] = {}
    began = time.monotonic()
    for cycle in range(cycles):
        if seconds is not None and time.monotonic() - began > seconds:
            break
        path = folder / f"kill-{cycle // 20}.db"
        if cycle % 20 == 0:  # a new file now and then: creation and migration are killed too
            acked = {}
            shutil.rmtree(folder)
            folder.mkdir()
        pages, sync = dice.choice((1, 8, 64, 4000)), dice.choice(("durable", "durable", "relaxed"))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _open.WAL_PAGES = pages  # so that moving the write-ahead log into the database is hit as well
            try:
                asyncio.run(write(path, writing, seed * 1_000_003 + cycle, 10_000, sync))
            finally:
                os._exit(1)
        os.close(writing)
        acks = b""
        if dice.random() < 0.8:
            acks += os.read(reading, 64)  # wait for the first acknowledgement: later moments are hit more evenly
        time.sleep(dice.random() ** 2 * 0.08)
        os.kill(child, signal.SIGKILL)
        with os.fdopen(reading, "rb") as pipe:
            acks += pipe.read()
        os.waitpid(child, 0)
        before = sum(acked.values())
        for line in acks.decode().split("\n")[:-1]:
            run_id, position = line.split()
            acked[run_id] = int(position)
        findings.counts["acknowledged"] += sum(acked.values()) - before
        findings.counts["cycles"] += 1
        findings.judge(f"cycle {cycle}", in_child(lambda path=path: look(path)), acked)  # type: ignore[misc]
        progress("kill", cycle + 1, cycles, findings)
    return findings


# ── power cuts ──────────────────────────────────────────────────────────────────────────────────────

_LINE = re.compile(r"^(\d+)\s+(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)$", re.S)
_FD = re.compile(r"^(\d+)<([^>]*)>")


@dataclass(frozen=True)
class Step:
    """One system call: write, sync, truncate, create, unlink, or an acknowledgement."""

    kind: str
    file: str
    at: int = 0
    data: bytes = b""


def parse(trace: Path, folder: Path) -> list[Step]:
    """The steps of a trace that concern ``folder``. A write counts from its start, a sync from its end."""
    steps: list[Step] = []
    offsets: dict[str, int] = {}
    waiting: dict[str, str] = {}
    for raw in trace.read_text("ascii").splitlines():
        found = _LINE.match(raw)
        if found is None:
            continue
        thread, text = found.groups()
        begun = ended = True
        if text.endswith("<unfinished ...>"):
            waiting[thread] = text = text.removesuffix(" <unfinished ...>")
            ended = False
        elif text.startswith("<... "):
            text, begun = waiting.pop(thread, ""), False
        steps.extend(_steps(text, begun, ended, offsets, str(folder)))
    return steps


def _steps(text: str, begun: bool, ended: bool, offsets: dict[str, int], folder: str) -> Iterator[Step]:
    call = _CALL.match(text)
    if call is None or re.search(r"= -1 E", text):
        return
    name, rest = call.groups()
    if name in ("openat", "unlink", "unlinkat"):
        strings = re.findall(r'"([^"]*)"', rest)
        path = _plain(strings[0]) if strings else ""
        if path.startswith(folder + "/") and ended:
            file = path.rpartition("/")[2]
            if name == "openat":
                offsets[file] = 0
                if "O_CREAT" in rest:
                    yield Step("create", file)
            else:
                yield Step("unlink", file)
        return
    fd = _FD.match(rest)
    path = _plain(fd.group(2)) if fd else ""
    if path == folder and name in ("fsync", "fdatasync") and ended:
        yield Step("syncdir", "")
    if not path.startswith(folder + "/"):
        return
    file = path.rpartition("/")[2].removesuffix(" (deleted)")
    if name in ("fsync", "fdatasync"):
        if ended:
            yield Step("sync", file)
    elif name == "ftruncate" and begun:
        yield Step("truncate", file, int(rest.rpartition(",")[2].partition(")")[0]))
    elif name == "lseek" and begun:
        offsets[file] = int(rest.split(", ")[1])
    elif name in ("write", "pwrite64") and begun:
        data = bytes.fromhex(rest[rest.index('"') + 1 : rest.rindex('"')].replace("\\x", ""))
        tail = rest[rest.rindex('"') :]
        at = int(tail.split(", ")[2].partition(")")[0]) if name == "pwrite64" else offsets.get(file, 0)
        if name == "write":
            offsets[file] = at + len(data)
        yield Step("ack" if file == "acks" else "write", file, at, data)


def _plain(text: str) -> str:
    return bytes.fromhex(text.replace("\\x", "")).decode() if text.startswith("\\x") else text


class Disk:
    """What is surely on the platter, and what may be."""

    def __init__(self) -> None:
        self.sure: dict[str, bytearray] = {}
        self.perhaps: list[Step] = []
        self.acked: dict[str, int] = {}

    def take(self, step: Step) -> None:
        if step.kind == "ack":
            for line in step.data.decode().split("\n")[:-1]:
                run_id, position = line.split()
                self.acked[run_id] = int(position)
        elif step.kind in ("sync", "syncdir"):
            # A sync of a file takes its data, and with it the name it was created under (as ext4 does).
            mine = [other for other in self.perhaps if self._covers(step, other)]
            self.perhaps = [other for other in self.perhaps if other not in mine]
            for other in mine:
                apply(self.sure, other)
        elif step.file != "acks" and not step.file.endswith("-shm"):
            self.perhaps.append(step)

    @staticmethod
    def _covers(sync: Step, other: Step) -> bool:
        return other.kind in ("create", "unlink") if sync.kind == "syncdir" else other.file == sync.file

    def image(self, dice: random.Random) -> dict[str, bytearray]:
        """One disk that the cut may leave: what is sure, and a random part of the rest, torn at sectors."""
        files = {name: bytearray(data) for name, data in self.sure.items()}
        mood = dice.choice(("none", "all", "prefix", "writes", "sectors"))
        until = dice.randrange(len(self.perhaps) + 1)
        for n, step in enumerate(self.perhaps):
            if mood == "all" or (mood == "prefix" and n < until) or (mood == "writes" and dice.random() < 0.5):
                apply(files, step)
            elif mood == "sectors" or (mood == "prefix" and n == until):
                if step.kind == "write":
                    for piece in sectors(step):
                        if dice.random() < 0.5:
                            apply(files, piece)
                elif dice.random() < 0.5:
                    apply(files, step)
        return files


def sectors(step: Step) -> Iterator[Step]:
    at, data = step.at, step.data
    while data:
        size = SECTOR - at % SECTOR
        yield Step("write", step.file, at, data[:size])
        at, data = at + size, data[size:]


def apply(files: dict[str, bytearray], step: Step) -> None:
    if step.kind == "unlink":
        files.pop(step.file, None)
        return
    content = files.setdefault(step.file, bytearray())
    if step.kind == "truncate":
        del content[step.at :]
        content.extend(bytes(step.at - len(content)))
    elif step.kind == "write":
        content.extend(bytes(max(0, step.at - len(content))))
        content[step.at : step.at + len(step.data)] = step.data


def record(folder: Path, seed: int, appends: int, mode: str) -> list[Step]:
    """Run a writer under strace; ``mode`` is a durability, or ``off``: synchronous=OFF behind the library's back."""
    work = folder / f"recorded-{mode}"
    work.mkdir()
    trace = folder / f"trace-{mode}"
    command = [
        *("strace", "-f", "-y", "-xx", "-s", "10000000", "-o", str(trace)),
        *("-e", "trace=openat,write,pwrite64,fsync,fdatasync,ftruncate,unlink,unlinkat,lseek"),
        *(sys.executable, __file__, "_write", str(work), str(seed), str(appends), mode),
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    return parse(trace, work)


def _write(folder: str, seed: str, appends: str, mode: str) -> None:
    _open.WAL_PAGES = 40  # several rounds of the write-ahead log within one recording
    if mode == "off":
        normal = _writer.Writer._synchronize
        _writer.Writer._synchronize = lambda self, db, level: normal(self, db, "OFF")  # type: ignore[method-assign]
    acks = os.open(f"{folder}/acks", os.O_WRONLY | os.O_CREAT)
    durability = "relaxed" if mode == "relaxed" else "durable"
    asyncio.run(write(Path(folder) / "power.db", acks, int(seed), int(appends), durability))


def power(images: int, seed: int, folder: Path, mode: str = "durable", appends: int = 60) -> Findings:
    """Cut the power at random points of a recording; look at each disk that may be left."""
    dice, findings = random.Random(seed), Findings()
    steps = record(folder, seed, appends, mode)
    findings.counts["system calls"] = len(steps)
    cuts = sorted(dice.randrange(1, len(steps) + 1) for _ in range(images))
    disk, taken = Disk(), 0
    for n, cut in enumerate(cuts, 1):
        while taken < cut:
            disk.take(steps[taken])
            taken += 1
        place = folder / "image"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, data in disk.image(dice).items():
            (place / name).write_bytes(data)
        acked = {} if mode == "relaxed" else dict(disk.acked)
        answer = in_child(lambda: look(place / "power.db"))  # noqa: B023
        findings.counts["images"] += 1
        findings.judge(f"{mode}, image {n}, cut at {cut}", answer, acked)
        progress(f"power {mode}", n, images, findings)
    return findings


# ── one flipped bit ─────────────────────────────────────────────────────────────────────────────────


def leave_behind(folder: Path, name: str, crash: bool) -> dict[str, bytes]:
    """The files of a store: closed, or left by a writer that was killed after its last acknowledgement."""
    path = folder / name / "flip.db"
    path.parent.mkdir()
    child = os.fork()
    if child == 0:
        if crash:
            closing: Any = SqliteLog.aclose

            async def die(self: SqliteLog) -> None:
                os.kill(os.getpid(), signal.SIGKILL)

            assert closing
            SqliteLog.aclose = die  # type: ignore[method-assign]
        try:
            asyncio.run(write(path, os.open(os.devnull, os.O_WRONLY), 7, 25, "durable"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return {p.name: p.read_bytes() for p in path.parent.iterdir() if not p.name.endswith("-shm")}


def flips(places: int, seed: int, folder: Path) -> Findings:
    """Flip one bit somewhere, and expect every event or an error by name: never wrong data, never a hang."""
    dice, findings = random.Random(seed), Findings()
    states = [leave_behind(folder, "closed", False), leave_behind(folder, "crashed", True)]
    truths = []
    for state in states:
        truths.append(in_child(lambda: _flipped(folder, state, "", 0)))  # noqa: B023
        if truths[-1].get("errors") != [] or truths[-1]["wrong"]:
            raise SystemExit(f"the unharmed files are unreadable: {truths[-1]}")
    for n in range(places):
        which = n % 2
        state = states[which]
        sizes = {name: len(data.rstrip(b"\0")) for name, data in state.items()}  # zeros at an end mean nothing
        name = dice.choices(list(sizes), list(sizes.values()))[0]
        if dice.random() < 0.05:
            name = "flip.db-mark"
        bit = _place(dice, sizes[name])
        answer = in_child(lambda: _flipped(folder, state, name, bit))  # noqa: B023
        where = f"{('closed', 'crashed')[which]} {name} byte {bit // 8} bit {bit % 8}"
        findings.counts["places"] += 1
        if "crash" in answer or "error" in answer:
            findings.counts["unnamed"] += 1
            findings.problems.append(f"{where}: {answer}")
        elif answer["wrong"] or any(
            last is not None and last != truths[which]["last"][run_id] for run_id, last in answer["last"].items()
        ):
            findings.counts["wrong data"] += 1
            findings.problems.append(f"{where}: {answer}, expected {truths[which]}")
        else:
            findings.counts[" + ".join(answer["errors"]) or "all there"] += 1
        progress("flips", n + 1, places, findings)
    return findings


def _place(dice: random.Random, size: int) -> int:
    """A random bit; every third one in the first bytes of a page or a frame, where little says much."""
    if dice.random() < 0.33:
        page = dice.randrange(size // 4096 + 1) * 4096
        return 8 * min(page + dice.randrange(120), size - 1) + dice.randrange(8)
    return dice.randrange(8 * size)


def _flipped(folder: Path, state: dict[str, bytes], name: str, bit: int) -> dict[str, Any]:
    place = folder / "flipped"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for other, data in state.items():
        content = bytearray(data)
        if other == name:
            content[bit // 8] ^= 1 << bit % 8
        (place / other).write_bytes(content)
    return look_piecewise(place / "flip.db")


def look_piecewise(path: Path) -> dict[str, Any]:
    """As ``look``, but without asking SQLite for its own opinion, which no program asks for either."""

    async def found() -> dict[str, Any]:
        log = SqliteLog(path, busy_timeout=2.0)
        result: dict[str, Any] = {"last": {}, "wrong": []}
        errors = set()

        async def attempt(work: Any) -> Any:
            try:
                return await work
            except LogError as exc:
                errors.add(type(exc).__name__)
                return None

        async def read(run_id: str) -> int:
            position = 0
            async for event in log.read(run_id):
                position += 1
                if event.run_seq != position or event.message != text_of(run_id, position):
                    result["wrong"].append(f"{run_id}: {event.run_seq} at {position}: {event.message[:30]!r}")
                    break
            return position

        for run_id in RUNS:
            result["last"][run_id] = await attempt(read(run_id))
            last = await attempt(log.last_position(run_id))
            if None not in (last, result["last"][run_id]) and last != result["last"][run_id]:
                result["wrong"].append(f"{run_id}: last position {last}, events {result['last'][run_id]}")
        listed = await attempt(log.runs())
        if listed is not None and {run.run_id: run.last_position for run in listed} != {
            run_id: last for run_id, last in result["last"].items() if last is not None
        }:
            if not errors:
                result["wrong"].append(f"listed {listed}")
            elif {run.run_id for run in listed} != set(RUNS):
                result["wrong"].append(f"listed {[run.run_id for run in listed]}")
        await log.aclose()
        return {**result, "errors": sorted(errors)}

    return asyncio.run(found())


# ── speed ───────────────────────────────────────────────────────────────────────────────────────────


def speed(rounds: int, folder: Path) -> dict[str, float]:
    """Group append of 10 runs × 100 events at once, against executemany of the same 1,000 rows with one commit."""
    events = [batch(f"run-{n}", 1, 2000, 1, "epoch") for n in range(10)]
    events = [[replace(event, message="drafting the answer") for event in run] for run in events]
    rows = [(n << 36 | e.run_seq, 0, to_json(e)) for n, run in enumerate(events, 1) for e in run]  # type: ignore[operator]

    async def ours(path: Path) -> tuple[float, float]:
        log = SqliteLog(path)
        await log.start()
        began, cpu = time.perf_counter(), time.thread_time()
        for at in range(0, 2000, 100):
            await asyncio.gather(*(log.append(run[0].run_id, run[at : at + 100]) for run in events))
        times = time.perf_counter() - began, time.thread_time() - cpu
        await log.aclose()
        return times

    def bare(path: Path) -> float:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_open.WAL_PAGES}")
        db.execute("CREATE TABLE log_events(id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, body BLOB NOT NULL) STRICT")
        began = time.perf_counter()
        for at in range(0, 2000, 100):
            db.execute("BEGIN IMMEDIATE")
            for run in range(10):
                db.executemany("INSERT INTO log_events VALUES (?, ?, ?)", rows[run * 2000 + at : run * 2000 + at + 100])
            db.execute("COMMIT")
        took = time.perf_counter() - began
        db.close()
        return took

    results = []
    for n in range(rounds):
        wall, cpu = asyncio.run(ours(folder / f"ours-{n}.db"))
        results.append((wall, bare(folder / f"bare-{n}.db"), cpu))
    return {
        "ratio": statistics.median(floor / wall for wall, floor, _ in results),
        "append_us": statistics.median(wall for wall, _, _ in results) / 20_000 * 1e6,
        "bare_us": statistics.median(floor for _, floor, _ in results) / 20_000 * 1e6,
        "emitter_cpu_us": statistics.median(cpu for _, _, cpu in results) / 20_000 * 1e6,
    }


# ── the shell ───────────────────────────────────────────────────────────────────────────────────────

QUIET = False


def progress(what: str, done: int, of: int, findings: Findings) -> None:
    if not QUIET and (done % max(of // 20, 1) == 0 or done == of):
        print(f"{what} {done}/{of}: {figures(findings)}", flush=True)


def figures(findings: Findings) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in findings.counts.items())


def main() -> int:
    if sys.argv[1:2] == ["_write"]:
        _write(*sys.argv[2:6])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=("kill", "power", "flips", "speed"))
    parser.add_argument("--cycles", type=int, default=2000)
    parser.add_argument("--seconds", type=float, help="kill: stop after that many, whatever the cycles")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--appends", type=int, default=60, help="power: of each run in the recording")
    parser.add_argument("--places", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--folder", type=Path, help="where the files are made; default: a temporary folder")
    parser.add_argument("--ledger", type=Path, help="add the figures to this file")
    options = parser.parse_args()
    print(f"{options.campaign}: seed {options.seed}", flush=True)
    lines: list[str] = []
    wrong: list[str] = []

    def note(what: str, findings: Findings) -> None:
        lines.append(f"{what}: seed {options.seed}: {figures(findings)}; problems {len(findings.problems)}")
        wrong.extend(findings.problems)

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "work"
        folder.mkdir()
        if options.campaign == "kill":
            note("kill -9", kill(options.cycles, options.seed, folder, options.seconds))
        elif options.campaign == "power":
            note("power cut, durable", power(options.images, options.seed, folder, appends=options.appends))
            note("power cut, relaxed", power(options.images, options.seed, folder, "relaxed", options.appends))
            control = power(max(options.images // 4, 20), options.seed, folder, "off", options.appends)
            lines.append(f"power cut, control with synchronous=OFF: {figures(control)}")
            if not control.problems:
                wrong.append("the control lost nothing: this campaign proves nothing")
        elif options.campaign == "flips":
            note("one flipped bit", flips(options.places, options.seed, folder))
        else:
            result = speed(options.rounds, folder)
            lines.append("speed: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items()))
            if result["ratio"] < 0.5:
                wrong.append(f"append reaches {result['ratio']:.2f} of a bare executemany; 0.5 is the goal")
    for line in lines:
        print(line)
    for problem in wrong[:20]:
        print("WRONG", problem)
    if options.ledger is not None:
        machine = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.system()}"
        with options.ledger.open("a", encoding="utf-8") as ledger:
            ledger.writelines(f"- {datetime.now(UTC):%Y-%m-%d}, {machine}. {line}\n" for line in lines)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
