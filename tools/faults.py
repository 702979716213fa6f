"""Plants faults in copies of the source, one at a time; the tests named beside each must turn red.

    make faults                            # all, two at a time, some minutes
    make faults ARGS="--list"
    make faults ARGS="gap-count filter"    # those whose name contains one of the words

A fault that no test notices is a hole in the tests. A fault whose text is no longer in the source must be written anew.
Ends with 0 when every fault was found, 1 when one was not, 2 when the tests fail without any fault.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tests", "docs", "tools", "changes", "pyproject.toml", "README.md", "CHANGELOG.md")
PATIENCE = 150.0  # seconds for the tests of one fault; a fault that makes them hang is found as well

BUS, EVENTS = "src/weavegraph/bus/", "src/weavegraph/events/"
BOOKS = ("tests/contract/test_order_and_books.py",)
CAPACITY = ("tests/contract/test_capacity.py",)
CLOSE = ("tests/contract/test_emit_and_close.py",)
RECEIVE = ("tests/contract/test_receiving.py",)
SINKS = ("tests/contract/test_sinks_on_a_bus.py", "tests/contract/test_sinks_that_misbehave.py", "tests/bus")
FLUSH = ("tests/contract/test_flush_and_shutdown.py",)
ADMIT = ("tests/events", *CLOSE)


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "gap-count: off by one",
        BUS + "_stream.py",
        'freeze_metadata({"count": count, ',
        'freeze_metadata({"count": count + 1, ',
        BOOKS + CAPACITY,
    ),
    Fault(
        "gap-range: begins one too late",
        BUS + "_stream.py",
        "first, count = self._base + 1, floor - self._base",
        "first, count = self._base + 2, floor - self._base",
        BOOKS + CAPACITY,
    ),
    Fault(
        "cursor: moved before an await of recv",
        BUS + "_stream.py",
        """            if event is not None:
                return event
            await self._park()
""",
        """            if event is not None:
                await asyncio.sleep(0)
                return event
            await self._park()
""",
        RECEIVE,
    ),
    Fault(
        "cursor: moved before an await of recv_many",
        BUS + "_stream.py",
        """                if batch:
                    return batch
            elif""",
        """                if batch:
                    await asyncio.sleep(0)
                    return batch
            elif""",
        RECEIVE,
    ),
    Fault(
        "wake-up: no second look after arming, in a loop",
        BUS + "_stream.py",
        "        if (self._ring.head != self._base or self._special) and self._changed():\n",
        "        if self._closed_at is not None:\n",
        RECEIVE + CLOSE + BOOKS + ("tests/bus",),
    ),
    Fault(
        "wake-up: no second look after arming, in a thread",
        BUS + "_blocking.py",
        "if not stream._changed():",
        "if not stream.closed:",
        RECEIVE + CLOSE + BOOKS + ("tests/bus",),
    ),
    Fault(
        "wake-up: close wakes nobody",
        BUS + "_hub.py",
        """        self._wakeups.notify()
        self._room_freed()
""",
        """        self._room_freed()
""",
        CLOSE + RECEIVE,
    ),
    Fault(
        "end: of the stream before the last gap notice",
        BUS + "_stream.py",
        "            if floor > position:\n",
        """            if floor > position and hub._closed:
                self._finish()
                self._raise_end()
            if floor > position:
""",
        BOOKS + CLOSE,
    ),
    Fault(
        "dropped: counted twice",
        BUS + "_stream.py",
        """            self._dropped += count
            self._reported += count
""",
        """            self._dropped += 2 * count
            self._reported += 2 * count
""",
        BOOKS + CAPACITY,
    ),
    Fault(
        "dropped: not counted when the reader leaves",
        BUS + "_stream.py",
        """        self._dropped += lost
        self._reported += lost
        self._base += lost
""",
        """        self._base += lost
""",
        BOOKS + CAPACITY,
    ),
    Fault(
        "filter: count missed by recv",
        BUS + "_stream.py",
        """                self._filtered += 1
                self._base += 1
""",
        """                self._base += 1
""",
        BOOKS + CAPACITY + RECEIVE,
    ),
    Fault(
        "filter: count missed by recv_many",
        BUS + "_stream.py",
        "            self._filtered += len(batch) - len(kept)\n",
        "",
        BOOKS + CAPACITY + RECEIVE + ("tests/bus",),
    ),
    Fault(
        "filter: count missed by async for",
        BUS + "_stream.py",
        """                    if not matches:
                        self._filtered += 1
""",
        "",
        BOOKS + CAPACITY + RECEIVE + ("tests/bus",),
    ),
    Fault(
        "block: the refused event is stored anyway",
        BUS + "_hub.py",
        """                    self._make_room(seq, extra, self._ask(seq, extra, reserved))
""",
        """                    try:
                        self._make_room(seq, extra, self._ask(seq, extra, reserved))
                    except BackpressureError:
                        ring.slots[seq % ring.size] = replace(event, seq=seq)
                        ring.head = seq
                        raise
""",
        CAPACITY + BOOKS,
    ),
    Fault(
        "block: the run has the event that its bus refused",
        BUS + "_lane.py",
        """                    plan, bus_plan = self._ask(run_seq, extra, reserved), bus._ask(seq, extra, reserved)
""",
        """                    plan = self._ask(run_seq, extra, reserved)
                    try:
                        bus_plan = bus._ask(seq, extra, reserved)
                    except Exception:
                        ring.slots[run_seq % ring.size] = replace(event, run_seq=run_seq)
                        ring.head = run_seq
                        raise
""",
        CAPACITY + BOOKS,
    ),
    Fault(
        "block: a cancelled wait is not counted",
        BUS + "_hub.py",
        "                self._cancelled += 1\n",
        "                pass\n",
        BOOKS,
    ),
    Fault(
        "close: a closed hub accepts",
        BUS + "_hub.py",
        """        if self._closed or self._resting:
            raise""",
        """        if self._resting:
            raise""",
        CLOSE,
    ),
    Fault(
        "nested: an emit inside of an emit is not looked for, in a hub",
        BUS + "_hub.py",
        "if ring.head == head and seq <= self._limit:",
        "if seq <= self._limit:",
        CLOSE,
    ),
    Fault(
        "nested: an emit inside of an emit is not looked for, in a run",
        BUS + "_lane.py",
        """                    ring.head + 1 == run_seq
                    and bus_ring.head + 1 == seq
                    and run_seq""",
        """                    run_seq""",
        CLOSE,
    ),
    Fault(
        "books: the slice in hand is counted as lost",
        BUS + "_stream.py",
        "            return floor - position + min(ring.lost_after(in_hand), head - in_hand)\n",
        "            return floor - position + min(ring.lost_after(floor), head - floor)\n",
        BOOKS + CAPACITY + ("tests/bus",),
    ),
    Fault(
        "books: totals forget who left",
        BUS + "_hub.py",
        "            self._past.add(stream._stats())\n",
        "            pass\n",
        BOOKS,
    ),
    Fault(
        "capacity: one too few",
        BUS + "_stream.py",
        "floor = max(head - self._limit, self._history_floor)",
        "floor = max(head - self._limit + 1, self._history_floor)",
        CAPACITY,
    ),
    Fault(
        "busy: two receives at once",
        BUS + "_stream.py",
        """        if self._waiting:
            raise StreamBusyError
        return self._take()
""",
        """        return self._take()
""",
        RECEIVE,
    ),
    Fault(
        "sink: dead letters for the whole batch",
        BUS + "_worker.py",
        "        if len(batch) == 1:\n            self._bury",
        "        if batch:\n            self._bury",
        SINKS,
    ),
    Fault(
        "sink: reads from the head at its start instead of 0",
        BUS + "_worker.py",
        """    def _start(self) -> Life:
        self._begun = True
""",
        """    def _start(self) -> Life:
        self._begun = True
        self.stream._base = self.stream._ring.head
""",
        SINKS + CLOSE,
    ),
    Fault(
        "sink: a permanent error is tried again",
        BUS + "_worker.py",
        """                if isinstance(error, PermanentSinkError) or failures >= self._retry.tries:
                    yield""",
        """                if failures >= self._retry.tries:
                    yield""",
        SINKS,
    ),
    Fault(
        "sink: one that delivers at most once is tried again",
        BUS + "_worker.py",
        '                if self.delivery == "at_most_once":\n',
        '                if self.delivery == "at most once":\n',
        SINKS,
    ),
    Fault(
        "sink: its SystemExit gets through, on a thread",
        BUS + "_worker.py",
        "        except BaseException as raised:\n            return as_error(raised)\n        finally:",
        "        except Exception as raised:\n            return as_error(raised)\n        finally:",
        SINKS,
    ),
    Fault(
        "sink: an await of its own that was cancelled ends it",
        BUS + "_worker.py",
        "if isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling():",
        "if isinstance(raised, asyncio.CancelledError) and task is not None:",
        SINKS,
    ),
    Fault(
        "sink: what it does after it was cut off counts",
        BUS + "_worker.py",
        "        if self._take_cut():\n            outcome = Cut()\n",
        "",
        SINKS + FLUSH,
    ),
    Fault(
        "flush: answered before the sink has the events",
        BUS + "_worker.py",
        """            if batch:
                yield from self._deliver(batch)
            yield from self._answer(self.stream._position)
""",
        """            yield from self._answer(self.stream._position)
            if batch:
                yield from self._deliver(batch)
""",
        SINKS + FLUSH,
    ),
    Fault(
        "flush: nobody is told when the last event was filtered",
        BUS + "_worker.py",
        """            yield from self._answer(self.stream._position)
            if not batch""",
        """            if batch:
                yield from self._answer(self.stream._position)
            if not batch""",
        SINKS + FLUSH,
    ),
    Fault(
        "flush: one that was given up stays with its sink",
        BUS + "_sinks.py",
        "                future.cancel()  # takes those that are late off their worker\n",
        "                pass\n",
        FLUSH,
    ),
    Fault(
        "pump: a stale look hands over",
        BUS + "_pump.py",
        "if self._turns is not seen[0] or length_hint(self._turns) != seen[1]:",
        "if self._turns is not seen[0]:",
        ("tests/bus/test_pump.py",),
    ),
    Fault(
        "pump: the thread goes on with those that were given away",
        BUS + "_pump.py",
        "served, rest = self._served, list(self._turns)",
        "served, rest = self._served, self._served[len(self._served) - length_hint(self._turns) :]",
        ("tests/bus/test_pump.py",),
    ),
    Fault(
        "block: the bus's bound takes from a block reader",
        BUS + "_hub.py",
        "        last = min(ring.head - 1, self._held(streams))\n",
        "        last = ring.head - 1\n",
        CAPACITY,
    ),
    Fault(
        "block: the bytes take from a block reader",
        BUS + "_hub.py",
        "        if lost > held:  # somebody",
        "        if lost > held and not self._budget:  # somebody",
        CAPACITY,
    ),
    Fault(
        "fork: the sinks of an unused bus stay those of the parent",
        BUS + "_sinks.py",
        "        self.started = False\n        self._hub._on_first = self.start\n        for",
        "        for",
        FLUSH,
    ),
    Fault(
        "exit: each bus has two seconds",
        BUS + "_sinks.py",
        "            sinks.end(until - time.monotonic(), here=True)",
        "            sinks.end(EXIT_DRAIN, here=True)",
        SINKS,
    ),
    Fault(
        "door: the reserved prefix is allowed",
        EVENTS + "_admit.py",
        "    if scope.startswith(RESERVED_PREFIX):\n",
        "    if scope.startswith(RESERVED_PREFIX) and not scope:\n",
        ADMIT,
    ),
    Fault(
        "door: NaN is let through",
        EVENTS + "_admit.py",
        "        if not math.isfinite(value):\n",
        "        if math.isinf(value):\n",
        ADMIT,
    ),
    Fault(
        "door: the author's own metadata is kept",
        EVENTS + "_admit.py",
        '        changes["metadata"] = metadata = freeze_metadata(metadata)\n',
        "        freeze_metadata(metadata)\n",
        ADMIT,
    ),
)


class Copy:
    """A copy of the tree in which one fault at a time is planted."""

    def __init__(self, place: Path) -> None:
        self.place = place
        leave_out = shutil.ignore_patterns("__pycache__", "*.pyc", ".mypy_cache")
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=leave_out)
            elif source.exists():
                shutil.copy2(source, place / name)

    def run(self, tests: tuple[str, ...]) -> tuple[bool, str]:
        """Whether the tests are green, and pytest's last words."""
        there = [name for name in tests if self.has_tests(name)]
        if not there:
            return True, "none of its tests exists"
        options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", "30", "--tb", "no"]
        # No byte code: two faults of one length within a second would otherwise run the first one twice.
        environment = {**os.environ, "PYTHONPATH": str(self.place / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", *options, *there]
        try:
            done = subprocess.run(
                command, cwd=self.place, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            return False, "the tests hung"
        if done.returncode not in (0, 1):  # timeouts of pytest-timeout end the process with 1
            return False, f"BROKEN: pytest ended with {done.returncode}: {done.stdout[-500:]}"
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return done.returncode == 0, failed[0].partition(" ")[2].partition(" - ")[0] if failed else "a test hung"

    def has_tests(self, name: str) -> bool:
        path = self.place / name
        return path.is_file() or any(path.rglob("test_*.py"))

    def imports(self) -> str:
        """Where the package is imported from."""
        command = [sys.executable, "-c", "import weavegraph; print(weavegraph.__file__)"]
        environment = {**os.environ, "PYTHONPATH": str(self.place / "src")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def plant(self, fault: Fault) -> tuple[str, str]:
        """``found``, ``SURVIVED`` or ``OUTDATED``, and by what."""
        path = self.place / fault.file
        source = path.read_text(encoding="utf-8")
        if source.count(fault.old) != 1:
            return "OUTDATED", f"its text stands {source.count(fault.old)} times in {fault.file}"
        path.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
        try:
            green, why = self.run(fault.tests)
        finally:
            path.write_text(source, encoding="utf-8")
        if why.startswith("BROKEN"):
            return "OUTDATED", why
        return ("SURVIVED", " ".join(fault.tests)) if green else ("found", why)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/faults.py", description="Plant faults; the tests must notice each.")
    parser.add_argument("words", nargs="*", help="only faults whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="print the faults and end")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="copies at a time; default 2")
    options = parser.parse_args(argv)
    faults = [fault for fault in FAULTS if not options.words or any(word in fault.name for word in options.words)]
    if options.list or not faults:
        print("\n".join(f"{fault.name}  ({fault.file})" for fault in (faults or FAULTS)))
        return 0 if faults else 2
    with tempfile.TemporaryDirectory(prefix="weavegraph-faults-") as folder:
        return plant_all(faults, Path(folder), max(1, options.jobs))


def plant_all(faults: list[Fault], folder: Path, jobs: int) -> int:
    began = time.monotonic()
    copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for number in range(jobs):
        copies.put(Copy(folder / str(number)))
    first = copies.get()
    if str(first.place) not in first.imports():
        print(f"the copy would test the package from elsewhere: {first.imports()}")
        return 2
    green, why = first.run(tuple(dict.fromkeys(name for fault in faults for name in fault.tests)))
    copies.put(first)
    if not green:
        print(f"without any fault the tests fail: {why}")
        return 2
    print(f"without a fault the tests are green; planting {len(faults)}", flush=True)
    counts = {"found": 0, "SURVIVED": 0, "OUTDATED": 0}

    def plant(fault: Fault) -> tuple[str, str]:
        copy = copies.get()
        try:
            return copy.plant(fault)
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(jobs) as pool:
        for fault, (verdict, why) in zip(faults, pool.map(plant, faults), strict=True):
            counts[verdict] += 1
            print(f"{verdict:<8}  {fault.name}\n          {why}", flush=True)
    seconds = time.monotonic() - began
    print(f"{counts['found']} found, {counts['SURVIVED']} survived, {counts['OUTDATED']} outdated; {seconds:.0f} s")
    return 0 if counts["found"] == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
