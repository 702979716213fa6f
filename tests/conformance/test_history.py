"""The judge is judged first: a broker double that loses, repeats, reorders or invents, and wrong gaps, are found."""

from __future__ import annotations

import random

import pytest

from weavegraph.testing import History


class Broker:
    """Keeps entries of one run; ``faults`` of it happen at random."""

    def __init__(self, seed: int, **chances: float) -> None:
        self._random, self._chances = random.Random(seed), chances
        self.entries: list[int] = []
        self.done: dict[str, int] = {}

    def _now(self, fault: str) -> bool:
        if self._random.random() >= self._chances.get(fault, 0.0):
            return False
        self.done[fault] = self.done.get(fault, 0) + 1
        return True

    def publish(self, position: int) -> str:
        if self._now("refuse"):
            return "refused"
        lost_answer = self._now("unknown")
        if lost_answer and self._random.random() < 0.5:
            return "unknown"
        if not self._now("lose"):
            self.entries.append(position)
            if self._now("repeat"):
                self.entries.append(position)
            if len(self.entries) > 2 and self._now("reorder"):
                self.entries[-1], self.entries[-2] = self.entries[-2], self.entries[-1]
            if self._now("invent"):
                self.entries.append(position + 100_000)
        return "unknown" if lost_answer else "ok"


def judged(broker: Broker, count: int = 2000) -> tuple[History, list[str]]:
    history = History()
    for position in range(1, count + 1):
        history.given("r", position, broker.publish(position))  # type: ignore[arg-type]
    for position in broker.entries:
        history.delivered("reader", "r", position)
    history.ended("reader", "r")
    return history, sorted({problem.kind for problem in history.problems()})


@pytest.mark.parametrize("seed", range(5))
def test_an_honest_broker_has_no_problems(seed: int) -> None:
    broker = Broker(seed, refuse=0.02, unknown=0.05)
    history, found = judged(broker)
    assert found == []
    counts = history.counts()
    assert counts["refused"] == broker.done["refuse"] and counts["unknown"] == broker.done["unknown"]
    assert counts["ok"] + counts["unknown"] + counts["refused"] == 2000


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("lose", ["lost"]),
        ("repeat", ["repeated"]),
        ("reorder", ["reordered"]),
        ("invent", ["phantom", "reordered"]),
    ],
)
def test_each_fault_is_found(fault: str, kinds: list[str], seed: int) -> None:
    broker = Broker(seed, **{fault: 0.01})
    _, found = judged(broker)
    assert broker.done[fault] > 0
    assert found == kinds


@pytest.mark.parametrize("seed", range(5))
def test_every_lost_event_is_counted(seed: int) -> None:
    broker = Broker(seed, lose=0.05, unknown=0.05)
    history, _ = judged(broker)
    missing = set(range(1, 2001)) - set(broker.entries)
    lost = {problem.position for problem in history.problems() if problem.kind == "lost"}
    assert lost <= missing
    assert len(lost) >= broker.done["lose"] * 0.7  # the rest were publishes without an answer, which may be gone


def test_a_gap_that_a_trim_explains_is_no_problem() -> None:
    history = History()
    for n in range(1, 11):
        history.given("r", n, "ok")
    history.trimmed("r", 4)
    history.missing("reader", "r", 1, 4)
    for n in range(5, 11):
        history.delivered("reader", "r", n)
    history.ended("reader", "r")
    assert history.problems() == []


@pytest.mark.parametrize(("first", "last", "start"), [(1, 5, 6), (1, 3, 5), (2, 4, 5)])
def test_a_gap_that_is_off_by_one_is_found(first: int, last: int, start: int) -> None:
    history = History()
    for n in range(1, 11):
        history.given("r", n, "ok")
    history.trimmed("r", 4)
    history.missing("reader", "r", first, last)
    for n in range(start, 11):
        history.delivered("reader", "r", n)
    history.ended("reader", "r")
    assert {problem.kind for problem in history.problems()} & {"wrong gap", "lost"}


def test_a_reader_that_goes_on_is_not_asked_for_the_rest() -> None:
    history = History()
    for n in range(1, 11):
        history.given("r", n, "ok")
    history.delivered("reader", "r", 1)
    assert history.problems() == []
    history.ended("reader", "r")
    assert len(history.problems()) == 9


def test_a_refused_publish_that_arrives_is_a_phantom_and_an_unknown_one_is_not() -> None:
    history = History()
    history.given("r", 1, "refused")
    history.given("r", 2, "unknown")
    history.delivered("reader", "r", 1)
    history.delivered("reader", "r", 2)
    assert [(problem.kind, problem.position) for problem in history.problems()] == [("phantom", 1)]


def test_the_clearest_of_several_answers_counts() -> None:
    history = History()
    for answers in (["unknown", "ok"], ["ok", "unknown"], ["unknown", "refused"], ["refused", "unknown"]):
        history = History()
        for answer in answers:
            history.given("r", 1, answer)  # type: ignore[arg-type]
        assert history.counts()["ok" if "ok" in answers else "unknown"] == 1


def test_readers_that_disagree_about_an_unknown_publish_are_found() -> None:
    history = History()
    history.given("r", 1, "ok")
    history.given("r", 2, "unknown")
    for reader, last in (("a", 2), ("b", 1)):
        for n in range(1, last + 1):
            history.delivered(reader, "r", n)
        history.ended(reader, "r")
    assert [(p.kind, p.reader, p.position) for p in history.problems()] == [("contradiction", "b", 2)]


def test_runs_are_judged_apart() -> None:
    history = History()
    for run_id in ("a", "b"):
        history.given(run_id, 1, "ok")
        history.delivered("reader", run_id, 1)
        history.ended("reader", run_id)
    assert history.problems() == []
    history.delivered("reader", "c", 1)
    assert [problem.kind for problem in history.problems()] == ["phantom"]
