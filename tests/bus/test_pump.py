"""The pump and its watchdog: exclusion, hand-over, and nobody forgotten. The watchdog's looks are made by hand."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support import clause, fill
from weavegraph import Event, EventBus
from weavegraph.bus._pump import Pump, Watchdog


class Gated:
    """An inline sink whose calls wait at a gate, and that notices two threads in it."""

    inline = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.gate, self.inside = threading.Event(), threading.Event()
        self.got: list[int] = []
        self.busy = self.crowded = False

    def handle(self, batch: Sequence[Event]) -> None:
        self.crowded |= self.busy
        self.busy = True
        self.inside.set()
        assert self.gate.wait(30)
        self.got += [event.seq for event in batch]
        self.busy = False


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No watchdog looks by itself."""
    monkeypatch.setattr(Watchdog, "_run", lambda self: None)


def three() -> tuple[EventBus, list[Gated], Pump]:
    sinks = [Gated("one"), Gated("two"), Gated("three")]
    bus = EventBus(sinks)
    bus.listen_for_events()
    pump: Any = bus._workers[0].pump  # type: ignore[attr-defined]
    while len(pump.workers) < 3 or not pump.parked:  # all three are served in one round
        pass
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
@pytest.mark.usefixtures("by_hand")
def test_the_thread_is_left_to_whom_it_is_in_and_the_others_get_another() -> None:
    bus, sinks, pump = three()
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
@pytest.mark.usefixtures("by_hand")
def test_who_came_back_between_the_look_and_the_act_is_not_taken_for_slow() -> None:
    """Trap: the old look decides about a thread that is by now inside of another sink."""
    bus, sinks, pump = three()
    seen = pump.look()
    assert seen is not None
    sinks[0].gate.set()
    assert sinks[1].inside.wait(30)
    assert pump.leave_to_current(seen) is None
    assert [worker.name for worker in pump.workers] == ["one", "two", "three"]
    all_got(bus, sinks, 5)


@clause("S1")
@pytest.mark.usefixtures("by_hand")
def test_those_whose_turn_was_taken_are_served_though_no_event_follows() -> None:
    bus, sinks, pump = three()
    seen = pump.look()
    assert seen is not None
    left = pump.leave_to_current(seen)
    assert left is not None
    current, others = left
    assert (current.name, [worker.name for worker in others]) == ("one", ["two", "three"])
    pump.take_back(others)  # no thread could be had for them
    all_got(bus, sinks, 5)


@clause("S1")
@pytest.mark.usefixtures("by_hand")
def test_a_pump_that_has_ended_takes_nobody_and_the_next_sink_gets_a_fresh_one() -> None:
    bus, sinks, pump = three()
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
