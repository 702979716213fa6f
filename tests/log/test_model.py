"""Random histories, given to a plain model and to the logs we ship: every answer and every refusal is the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.support import clause, examples
from weavegraph.errors import InvalidPositionError, LogError, LogFencedError, LogHoleError
from weavegraph.events import Event
from weavegraph.log import MemoryLog, SqliteLog
from weavegraph.testing import logged
from weavegraph.testing._log_kit import collected, positions

RUNS = ("a", "b")


class Model:
    """A log as one would explain it: a list of events for each run, how many of them are gone, and the writer."""

    def __init__(self) -> None:
        self.runs: dict[str, tuple[list[Event], int, tuple[int, str]]] = {}

    def append(self, run_id: str, batch: list[Event]) -> int:
        events, gone, owner = self.runs.get(run_id, ([], 0, (0, "")))
        first = batch[0].run_seq or 0
        for event in batch[: max(len(events) - first + 1, 0)]:
            at = (event.run_seq or 0) - 1
            if at >= gone and events[at] != event:
                raise LogFencedError(run_id, 0, 0)
        new = batch[max(len(events) - first + 1, 0) :]
        if new:
            writer = (new[-1].attempt or 1, new[-1].epoch or "")
            if events and (writer[0] < owner[0] or (writer[0] == owner[0] and writer[1] != owner[1])):
                raise LogFencedError(run_id, 0, 0)
            if new[0].run_seq != len(events) + 1:
                raise LogHoleError(run_id, 0, 0)
            events, owner = [*events, *new], writer
            self.runs[run_id] = (events, gone, owner)
        return len(events)

    def trim(self, run_id: str, upto: int) -> int:
        events, gone, owner = self.runs.get(run_id, ([], 0, (0, "")))
        if run_id not in self.runs:
            return 0
        if upto > len(events):
            raise InvalidPositionError(upto, len(events))
        self.runs[run_id] = (events, max(gone, upto), owner)
        return max(upto - gone, 0)

    def read(self, run_id: str, after: int) -> list[int | tuple[int, int]]:
        events, gone, _ = self.runs.get(run_id, ([], 0, (0, "")))
        if after > len(events):
            raise InvalidPositionError(after, len(events))
        gap: list[int | tuple[int, int]] = [(after + 1, gone)] if after < gone else []
        return [*gap, *range(max(after, gone) + 1, len(events) + 1)]


async def both(model: Any, log: Any) -> tuple[Any, Any]:
    """What each says: a value, or the kind of its error."""
    answers = []
    for work in (model, log):
        try:
            found = work()
            answers.append(await found if hasattr(found, "__await__") else found)
        except (LogError, InvalidPositionError) as error:
            answers.append(type(error))
    return answers[0], answers[1]


@clause("D2", "D6", "10.valid", "10.trimmed", "10.malformed")
@pytest.mark.parametrize("kind", [MemoryLog, SqliteLog])
async def test_a_log_is_what_its_model_is(kind: type, tmp_path: Path) -> None:
    for seed in range(examples(40)):
        dice, model = random.Random(seed), Model()
        log: Any = MemoryLog() if kind is MemoryLog else SqliteLog(tmp_path / f"{seed}.db", durability="relaxed")
        try:
            for step in range(40):
                run_id = dice.choice(RUNS)
                end = len(model.runs.get(run_id, ([], 0, (0, "")))[0])
                act = dice.random()
                if act < 0.6:
                    first = max(1, end + dice.choice((1, 1, 1, 1, 0, -2, -7, 2)))
                    batch = logged(
                        run_id,
                        first,
                        first + dice.randrange(8),
                        attempt=dice.choice((1, 1, 1, 2, 3)),
                        epoch=dice.choice(("x", "x", "x", "y")),
                    )
                    answers = await both(
                        lambda: model.append(run_id, batch),  # noqa: B023
                        lambda: log.append(run_id, batch),  # noqa: B023
                    )
                elif act < 0.75:
                    upto = dice.randrange(end + 3)
                    answers = await both(lambda: model.trim(run_id, upto), lambda: log.trim(run_id, upto))  # noqa: B023
                else:
                    after = dice.randrange(end + 3)

                    async def read() -> list[int | tuple[int, int]]:
                        return positions(await collected(log.read(run_id, after)))  # noqa: B023

                    answers = await both(lambda: model.read(run_id, after), read)  # noqa: B023
                assert answers[0] == answers[1], (seed, step)
            for run_id in RUNS:
                events, gone, _ = model.runs.get(run_id, ([], 0, (0, "")))
                assert [e for e in await collected(log.read(run_id)) if e.run_seq] == events[gone:], seed
        finally:
            await log.aclose()
