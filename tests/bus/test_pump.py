"""The pump and its watchdog: exclusion, hand-over, and nobody forgotten. The watchdog's looks are made by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import pytest

from tests.support import clause, fill
from weavegraph import Event, EventBus, MemorySink, node_message
from weavegraph.bus import RetryPolicy
from weavegraph.bus._pump import Pump, Watchdog

Three: TypeAlias = "tuple[EventBus, list[Gated], Pump]"


class Gated:
    """An inline sink whose calls wait at a gate, and that notices two threads in it."""

    inline = True
    error: Exception | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.max_batch = 1024
        self.gate, self.inside = threading.Event(), threading.Event()
        self.got: list[int] = []
        self.busy = self.crowded = False

    def handle(self, batch: Sequence[Event]) -> None:
        self.crowded |= self.busy
        self.busy = True
        self.inside.set()
        assert self.gate.wait(30)
        if self.error is not None:
            self.busy = False
            raise self.error
        self.got += [event.seq for event in batch]
        self.busy = False


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No watchdog looks by itself."""
    monkeypatch.setattr(Watchdog, "_run", lambda self: None)


@pytest.fixture(params=["together", "each alone"])
def three(request: pytest.FixtureRequest, by_hand: None) -> tuple[EventBus, list[Gated], Pump]:
    """Three sinks of which the first is in a call; fed as a cohort, or not."""
    sinks = [Gated("one"), Gated("two"), Gated("three")]
    for sink in sinks:
        sink.max_batch = 1024 if request.param == "together" else 1000
    bus = EventBus(sinks)
    bus.listen_for_events()
    pump: Any = bus._workers[0].pump  # type: ignore[attr-defined]
    while len(pump.workers) < 3 or not pump.parked:  # all three are served in one round
        pass
    assert (pump._cohort is not None) is (request.param == "together")
    fill(bus._hub, 5)
    assert sinks[0].inside.wait(30)
    return bus, sinks, pump


def all_got(bus: EventBus, sinks: list[Gated], count: int) -> None:
    for sink in sinks:
        sink.gate.set()
    report = bus.close(30)
    assert report.complete
    for sink in sinks:
        assert (sink.got, sink.crowded) == ([*range(1, count + 1)], False)


@clause("S1")
def test_the_thread_is_left_to_whom_it_is_in_and_the_others_get_another(three: Three) -> None:
    bus, sinks, pump = three
    watchdog = bus._sinks._watchdog
    assert watchdog is not None
    seen = pump.look()
    assert seen is not None
    assert watchdog._slow(seen, 0.06)
    fresh = bus._sinks._pump
    assert fresh is not None and fresh is not pump
    assert [worker.name for worker in pump.workers] == ["one"]
    assert [worker.name for worker in fresh.workers] == ["two", "three"]
    assert sinks[1].inside.wait(30)
    assert pump.look() == (seen[0], 0) and sinks[0].busy  # the first is still where it was, with nobody after it
    fill(bus._hub, 5)
    all_got(bus, sinks, 10)


@clause("S1")
def test_who_came_back_between_the_look_and_the_act_is_not_taken_for_slow(three: Three) -> None:
    """Trap: the old look decides about a thread that is by now inside of another sink."""
    bus, sinks, pump = three
    seen = pump.look()
    assert seen is not None
    sinks[0].gate.set()
    assert sinks[1].inside.wait(30)
    assert pump.leave_to_current(seen) is None
    assert [worker.name for worker in pump.workers] == ["one", "two", "three"]
    all_got(bus, sinks, 5)


@clause("S1")
def test_those_whose_turn_was_taken_are_served_though_no_event_follows(three: Three) -> None:
    bus, sinks, pump = three
    seen = pump.look()
    assert seen is not None
    left = pump.leave_to_current(seen)
    assert left is not None
    current, others = left
    assert (current.name, [worker.name for worker in others]) == ("one", ["two", "three"])
    pump.take_back(others)  # no thread could be had for them
    all_got(bus, sinks, 5)


@clause("S1")
def test_a_pump_that_has_ended_takes_nobody_and_the_next_sink_gets_a_fresh_one(three: Three) -> None:
    bus, sinks, pump = three
    for sink in sinks:
        sink.gate.set()
    for worker in bus._workers:
        worker.leave()
        worker.ended.result(30)
    while not pump.stopped:
        pass
    assert pump.look() is None
    late = Gated("late")
    late.gate.set()
    guard = bus.add_sink(late)
    fill(bus._hub, 1)
    assert guard._worker.flushed(6).result(30)
    assert late.got == [6]
    assert bus.close(30).complete


@clause("S1")
def test_a_fault_of_ours_ends_that_sink_only(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Gated("one"), Gated("two")
    one.max_batch = 1000  # fed alone
    bus = EventBus([one, two])
    one.gate.set(), two.gate.set()

    def fault(count: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bus._workers[0], "_success", fault)
    fill(bus._hub, 1)
    assert bus._workers[1].flushed(1).result(30)
    assert bus._workers[0].flushed(1).result(30) is False
    health = bus.sink_health()[0]
    assert (health.state, health.last_error) == ("failed", "ZeroDivisionError: ")
    assert two.got == [1]
    bus.close(30)


def books(bus: EventBus) -> list[tuple[int, int, int, int]]:
    rows = [worker.stats() for worker in bus._workers]
    assert {row.unaccounted for row in rows} == {0}
    return [(row.delivered, row.dead_lettered, row.buffered, row.position) for row in rows]


@clause("A6", "S1")
def test_the_books_of_each_are_right_when_the_thread_is_left_in_the_middle_of_a_round(three: Three) -> None:
    bus, sinks, pump = three
    sinks[0].gate.set()
    assert sinks[1].inside.wait(30)
    fill(bus._hub, 5)
    assert sum(row[2] for row in books(bus)) >= 25 - 5
    assert bus.sink_health()[1].state == "busy"
    left = pump.leave_to_current(pump.look() or (None, 0))
    assert left is not None
    current, others = left
    assert current.name == "two"
    assert books(bus)[1] == (0, 0, 10, 0)
    assert bus.sink_health()[1].state == "busy"
    pump.take_back(others)
    all_got(bus, sinks, 10)
    assert books(bus) == [(10, 0, 0, 10)] * 3


@clause("S2", "A6")
@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@pytest.mark.parametrize("left", [False, True])
def test_one_that_raises_among_others_is_tried_as_it_should_and_the_others_do_not_notice(
    by_hand: None, delivery: str, left: bool
) -> None:
    sinks = [Gated("one"), Gated("two"), Gated("three")]
    sinks[0].error, sinks[0].delivery = ValueError("no"), delivery  # type: ignore[attr-defined]
    calls: list[int] = []
    handle = sinks[0].handle

    def counted(batch: Sequence[Event]) -> None:
        calls.append(len(batch))
        handle(batch)

    sinks[0].handle = counted  # type: ignore[method-assign]
    bus = EventBus(sinks, sink_retry=RetryPolicy(tries=3, base=0.0, cap=0.0))
    bus.listen_for_events()
    pump: Any = bus._workers[0].pump  # type: ignore[attr-defined]
    while len(pump.workers) < 3 or not pump.parked:
        pass
    sinks[0].gate.set()
    with bus._hub._lock:  # the pump sees none of them before all are there
        fill(bus._hub, 4)
    assert sinks[1].inside.wait(30)
    if left:
        found = pump.leave_to_current(pump.look())
        assert found is not None
        pump.take_back(found[1])
    sinks[1].gate.set(), sinks[2].gate.set()
    fill(bus._hub, 1)
    assert bus.close(30).complete
    assert [sink.got for sink in sinks] == [[], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert books(bus) == [(0, 5, 0, 5), (5, 0, 0, 5), (5, 0, 0, 5)]
    assert len(bus.dead_letters()) == 5
    if delivery == "at_most_once":
        assert sum(calls) == 5
    else:
        assert {letter.tries for letter in bus.dead_letters()} <= {3, 4}


@clause("S1", "A6")
def test_sinks_come_and_go_and_each_is_fed_once_and_in_order() -> None:
    """Many inline sinks, added, flushed and removed while events come: against what each holds."""
    bus = EventBus([MemorySink() for _ in range(20)])
    added: list[tuple[int, MemorySink, Any]] = []
    removed: list[tuple[int, int, MemorySink]] = []
    stop = threading.Event()

    def produce() -> None:
        while not stop.is_set():
            for _ in range(100):
                bus.emitter().emit(node_message("a", "b"))
            while bus._hub.lag > 2000 and not stop.is_set():  # they are to be busy, not to lose any
                pass

    producer = threading.Thread(target=produce)
    producer.start()
    for n in range(60):
        sink = MemorySink()
        with bus._hub._lock:
            first = bus.head + 1
            guard = bus.add_sink(sink)
        added.append((first, sink, guard))
        if n % 3 == 2:
            first, sink, guard = added.pop(n % len(added))
            stats = asyncio.run(guard.remove(30))
            assert (stats.unaccounted, stats.abandoned, stats.buffered) == (0, 0, 0)
            removed.append((first, stats.head, sink))
            assert stats.delivered == stats.head - stats.s0 == len(sink.snapshot())
        assert asyncio.run(bus.flush(timeout=30)).complete
        assert all(row.unaccounted == 0 for row in bus.metrics().sinks)
    stop.set()
    producer.join()
    assert bus.close(30).complete
    for first, last, sink in [*removed, *((first, bus.head, sink) for first, sink, _ in added)]:
        assert [event.seq for event in sink.snapshot()] == [*range(first, last + 1)]
    for worker in bus._workers:
        assert worker.stats().delivered == len(worker.sink.snapshot())


@clause("S1", "L3")
def test_what_the_bytes_take_from_sinks_that_are_fed_together_is_in_the_books_of_each(three: Three) -> None:
    bus, sinks, _ = three
    bus._hub.max_bytes = 64 * 1024
    for _ in range(200):
        bus.emitter().emit(node_message("a", "x" * 5000))
    for sink in sinks:
        sink.gate.set()
    report = bus.close(30)
    for sink, stats in zip(sinks, report.sinks, strict=True):
        assert (stats.unaccounted, stats.delivered) == (0, len(sink.got))
        assert stats.dropped > 100 and stats.delivered + stats.dropped == bus.head
        assert sink.got == sorted(set(sink.got)) and not sink.crowded
