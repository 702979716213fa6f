"""The campaigns of tools/crash_runs.py, small. Figures of the large ones: docs/ledger-runs.md."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.support import clause, examples
from weavegraph.events import GAP_SCOPE
from weavegraph.log import MemoryLog, SqliteLog
from weavegraph.testing import logged

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "crash_runs.py"


def campaign(*arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True, text=True, timeout=58,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@clause("O3", "O3.resume", "O5", "8.kill", "D1", "D2", "D3", "D4", "D9")
def test_killed_runs_are_resumed_to_the_state_of_undisturbed_ones() -> None:
    assert "problems 0" in campaign("kill", "--runs", "30", "--seconds", "20", "--seed", "1").splitlines()[-1]


@clause("10.valid", "10.none", "E2", "R1")
def test_readers_that_leave_and_come_back_miss_nothing() -> None:
    assert "problems 0" in campaign("resume", "--sequences", "80", "--seconds", "15", "--seed", "1").splitlines()[-1]


class ComingAndGoing(RuleBasedStateMachine):
    """Readers of one log, who begin anywhere, leave at any moment and come back after their last position."""

    readers: Any = Bundle("readers")
    durable = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory() if self.durable else None
        self.log: Any = SqliteLog(f"{self.folder.name}/r.db", durability="relaxed") if self.folder else MemoryLog()
        self.last = self.trimmed = 0
        self.names = itertools.count()
        self.following: dict[int, Any] = {}
        self.position: dict[int, int] = {}

    def teardown(self) -> None:
        for events in self.following.values():
            self.run(events.aclose())
        self.run(self.log.aclose())
        self.loop.close()
        if self.folder:
            self.folder.cleanup()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @rule(count=st.integers(1, 12))
    def write(self, count: int) -> None:
        self.run(self.log.append("r", logged("r", self.last + 1, self.last + count)))
        self.last += count

    @rule(upto=st.floats(0, 1))
    def trim(self, upto: float) -> None:
        at = int(upto * self.last)
        gone = self.run(self.log.trim("r", at)) if self.last else 0
        assert gone == max(at - self.trimmed, 0)
        self.trimmed = max(self.trimmed, at)

    @rule(target=readers, after=st.floats(0, 1))
    def come(self, after: float) -> Any:
        name = next(self.names)
        self.position[name] = int(after * self.last)
        return name

    @rule(target=readers, name=consumes(readers))
    def leave(self, name: int) -> Any:
        if name in self.following:
            self.run(self.following.pop(name).aclose())
        return multiple(name)

    @rule(name=readers, most=st.integers(1, 15))
    def read(self, name: int, most: int) -> None:
        """Take what is there, at most so much: exactly what follows, or exactly what is gone."""
        events = self.following.get(name)
        if events is None:
            events = self.following[name] = self.log.follow("r", self.position[name])
        for _ in range(most):
            if self.position[name] >= self.last:
                return
            event = self.run(anext(events))
            if event.scope == GAP_SCOPE:
                first, last = event.metadata["first_seq"], event.metadata["last_seq"]
                assert (first, event.metadata["count"]) == (self.position[name] + 1, last - first + 1)
                assert last <= self.trimmed
                self.position[name] = last
            else:
                assert event == logged("r", self.position[name] + 1, self.position[name] + 1)[0]
                self.position[name] += 1

    @rule(name=readers)
    def leave_while_waiting(self, name: int) -> None:
        """Whatever a cancelled wait was about to give comes to who comes back."""
        self.read(name, 10_000)
        events = self.following.pop(name, None) or self.log.follow("r", self.position[name])

        async def give_up() -> None:
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)  # lets it begin to wait
            waiting.cancel()
            await asyncio.wait((waiting,))
            await events.aclose()

        self.run(give_up())

    @invariant()
    def the_log_ends_where_it_was_written(self) -> None:
        assert self.run(self.log.last_position("r")) == self.last


class ComingAndGoingOnDisk(ComingAndGoing):
    durable = True


@clause("10.valid", "10.trimmed", "E2", "R1")
def test_a_reader_has_every_event_once_or_an_exact_gap_whatever_happens() -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    for machine, count in ((ComingAndGoing, 40), (ComingAndGoingOnDisk, 12)):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples(count), stateful_step_count=25, deadline=None, suppress_health_check=checks
            ),
        )
