"""Contract section 7: sinks are isolated, retried, accounted for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.support import clause, drain, fill
from weavegraph import DiagnosticsConfig, EndOfStream, EventBus, EventStream, MemorySink, node_message
from weavegraph.bus import SINK_ERROR_SCOPE, RetryPolicy
from weavegraph.errors import ConfigError, PermanentSinkError

QUICK = RetryPolicy(tries=3, base=0.0, cap=0.0)


class Held:
    """A sink whose call hangs until it is let go."""

    name = "held"

    def __init__(self, inline: bool = False) -> None:
        self.inline = inline
        self.begun, self.go = threading.Event(), threading.Event()
        self.got = 0

    def handle(self, batch: Any) -> None:
        self.begun.set()
        self.go.wait(30)
        self.got += len(batch)


class Raising:
    name = "raising"

    def __init__(self, bad: str | None = None, permanent: bool = False) -> None:
        self.bad, self.permanent = bad, permanent
        self.got: list[str] = []
        self.calls = 0

    async def handle(self, batch: Any) -> None:
        self.calls += 1
        for event in batch:
            if self.bad is None or event.message == self.bad:
                raise PermanentSinkError("never") if self.permanent else RuntimeError("not now")
        self.got += [event.message for event in batch]


@clause("S1")
async def test_a_hung_and_a_raising_sink_change_nothing_for_emit_and_the_others() -> None:
    held, raising, memory = Held(), Raising(), MemorySink()
    bus = EventBus([held, raising, memory], sink_retry=QUICK)
    with bus.subscribe() as stream:
        fill(bus._hub, 1000)
        assert drain(stream) == [*range(1, 1001)]
    for name in ("raising", "memory"):
        assert await bus.guard(name).drain(30)
    assert [event.seq for event in memory.snapshot()] == [*range(1, 1001)]
    assert (await bus.flush(timeout=0.05)).pending == ("held",)
    held.go.set()
    assert (await bus.flush(timeout=30)).complete
    assert held.got == 1000
    await bus.shutdown()


@clause("S1")
async def test_an_inline_sink_that_hangs_is_left_its_thread_and_the_others_get_a_fresh_pump() -> None:
    held, memory, third = Held(inline=True), MemorySink(), MemorySink()
    bus = EventBus([held, memory, third])
    diagnostics = bus.diagnostics()
    fill(bus._hub, 10)
    assert await asyncio.to_thread(held.begun.wait, 30)
    notice = await diagnostics.next_timeout(30)
    assert notice is not None and notice.metadata["kind"] == "slow" and notice.metadata["sink"] == "held"
    fill(bus._hub, 10)
    for name in ("memory", "memory#2"):
        assert await bus.guard(name).drain(30)
    assert (await bus.flush(timeout=0.05)).pending == ("held",)
    assert bus._sinks._pump is not None
    assert "held" not in [worker.name for worker in bus._sinks._pump.workers]
    held.go.set()
    assert (await bus.flush(timeout=30)).complete
    assert held.got == len(memory.snapshot()) == len(third.snapshot()) == 20
    assert (await bus.shutdown()).complete
    diagnostics.close()


@clause("S2")
async def test_the_batch_is_split_after_the_last_try_and_only_the_failing_event_is_dead_lettered() -> None:
    sink = Raising(bad="7")
    bus = EventBus([sink], sink_retry=QUICK)
    bus._hub._on_first = None  # not yet: all ten are to be one batch
    fill(bus._hub, 10)
    await bus.flush(timeout=30)
    assert sink.got == [str(n) for n in range(1, 11) if n != 7]
    assert sink.calls == QUICK.tries + 10
    (letter,) = bus.dead_letters()
    assert (letter.event.seq, letter.sink, letter.error) == (7, "raising", "RuntimeError: not now")
    assert letter.tries == QUICK.tries + 1
    assert letter.first_at <= letter.last_at
    (stats,) = bus.metrics().sinks
    assert (stats.delivered, stats.dead_lettered, stats.unaccounted) == (9, 1, 0)
    await bus.shutdown()


@clause("S2")
async def test_permanent_errors_and_at_most_once_sinks_are_not_retried() -> None:
    permanent = Raising(bad="2", permanent=True)
    once = Raising(bad="2")
    once.delivery = "at_most_once"  # type: ignore[attr-defined]
    bus = EventBus([permanent, once], sink_retry=QUICK)
    hold = [bus._hub.publish(node_message("a", "1"))]
    fill(bus._hub, 2)
    await bus.flush(timeout=30)
    first, second = bus.metrics().sinks
    assert (first.delivered, first.dead_lettered) == (2, 1)
    assert permanent.got == ["1", "3"]
    assert second.delivered + second.dead_lettered == 3 and second.dead_lettered >= 1
    assert {stats.unaccounted for stats in (first, second)} == {0}
    assert hold == [1]
    await bus.shutdown()


@clause("S2")
async def test_a_sink_that_recovers_gets_everything_once() -> None:
    class Flaky(Raising):
        async def handle(self, batch: Any) -> None:
            self.calls += 1
            if self.calls < 3:
                raise ConnectionError("down")
            self.got += [event.message for event in batch]

    sink = Flaky()
    bus = EventBus([sink], sink_retry=QUICK)
    fill(bus._hub, 100)
    await bus.flush(timeout=30)
    assert sink.got == [str(n) for n in range(1, 101)]
    (health,) = bus.sink_health()
    assert (health.errors, health.last_error, health.stats.dead_lettered) == (2, "ConnectionError: down", 0)
    assert health.last_success_at is not None
    await bus.shutdown()


@clause("S3")
async def test_a_call_beyond_the_timeout_is_stalled_and_recovers_with_exact_counts() -> None:
    held = Held()
    bus = EventBus([held], sink_timeout=0.0)
    fill(bus._hub, 5)
    assert await asyncio.to_thread(held.begun.wait, 30)
    fill(bus._hub, 5)
    (health,) = bus.sink_health()
    assert (health.state, health.stats.buffered, health.stats.delivered) == ("stalled", 10, 0)
    assert health.call_seconds > 0
    held.go.set()
    await bus.flush(timeout=30)
    (health,) = bus.sink_health()
    assert (health.state, health.stats.delivered, health.stats.unaccounted) == ("idle", 10, 0)
    await bus.shutdown()


@clause("S5")
async def test_diagnostics_travel_on_their_own_stream_and_never_to_the_sink_they_are_about() -> None:
    """Trap: in the original a failing sink's error comes back to it, for ever."""
    one, two, memory = Raising(), Raising(), MemorySink()
    one.name, two.name = "one", "two"
    bus = EventBus([one, two, memory], sink_retry=QUICK, diagnostics=DiagnosticsConfig(emit_to_events=True))
    with bus.diagnostics() as diagnostics:
        fill(bus._hub, 1)
        for _ in range(5):
            await bus.flush(timeout=30)
        told = []
        while (event := diagnostics.try_recv()) is not None:
            told.append(event)
    mirrored = [event for event in memory.snapshot() if event.scope == SINK_ERROR_SCOPE]
    assert {event.metadata["sink"] for event in mirrored} == {"one", "two"}
    assert len(mirrored) <= len(told)
    letters = bus.dead_letters()
    assert all(letter.event.metadata.get("sink") != letter.sink for letter in letters)
    rows = {stats.name: stats for stats in bus.metrics().sinks}
    assert all(stats.unaccounted == 0 for stats in rows.values())
    assert rows["one"].filtered == sum(event.metadata["sink"] == "one" for event in mirrored)
    assert rows["memory"].filtered == 0
    head = bus.head
    await bus.flush(timeout=30)
    assert bus.head == head
    await bus.shutdown()


@clause("S5")
async def test_diagnostics_may_be_off() -> None:
    bus = EventBus([Raising()], sink_retry=QUICK, diagnostics=DiagnosticsConfig(enabled=False))
    with bus.diagnostics() as diagnostics:
        fill(bus._hub, 1)
        await bus.flush(timeout=30)
        assert diagnostics.try_recv() is None
    assert bus.sink_health()[0].errors > 0
    await bus.shutdown()


@clause("S7")
async def test_a_sink_may_own_its_loop() -> None:
    class Own:
        name = "own"

        def __init__(self) -> None:
            self.got: list[int] = []

        async def run(self, stream: EventStream) -> None:
            async for event in stream:
                self.got.append(event.seq)

    own = Own()
    bus = EventBus([own])
    fill(bus._hub, 100)
    report = await bus.shutdown()
    assert own.got == [*range(1, 101)]
    assert [(stats.delivered, stats.unaccounted) for stats in report.sinks] == [(100, 0)]
    with pytest.raises(EndOfStream):
        bus._workers[0].stream.try_recv()


@clause("S7")
async def test_sinks_given_at_construction_see_the_first_event_and_added_ones_from_then_on() -> None:
    first = MemorySink()
    bus = EventBus([first])
    assert not bus._sinks.started
    fill(bus._hub, 3)
    guard = bus.add_sink(second := MemorySink())
    fill(bus._hub, 2)
    assert await guard.drain(30)
    await bus.flush(timeout=30)
    assert (len(first.snapshot()), len(second.snapshot())) == (5, 2)
    assert (guard.name, guard.health().name, guard.stats().s0) == ("memory#2", "memory#2", 3)
    stats = await guard.remove(30)
    assert (stats.delivered, stats.unaccounted) == (2, 0)
    fill(bus._hub, 1)
    await bus.flush(timeout=30)
    assert (len(first.snapshot()), len(second.snapshot())) == (6, 2)
    assert list(bus.sinks) == ["memory"]
    assert bus.guard("memory").stats().delivered == 6
    with pytest.raises(ConfigError, match="there are: memory"):
        bus.guard("nobody")
    await bus.shutdown()


@clause("S7", "R8")
@pytest.mark.parametrize(
    "order", [("listen", "subscribe", "emit"), ("subscribe", "emit", "listen"), ("emit", "listen", "subscribe"),
              ("listen", "emit", "subscribe"), ("subscribe", "listen", "emit"), ("emit", "subscribe", "listen")]
)  # fmt: skip
async def test_listening_is_idempotent_whatever_the_order(order: tuple[str, ...]) -> None:
    memory = MemorySink()
    bus = EventBus([memory])
    streams: list[EventStream] = []
    for step in order:
        if step == "listen":
            bus.listen_for_events()
            bus.listen_for_events()
        elif step == "subscribe":
            streams.append(bus.subscribe(after=0))
        else:
            bus.emitter().emit(node_message("a", "first"))
    await bus.flush(timeout=30)
    assert [event.seq for event in memory.snapshot()] == [1]
    assert [drain(stream) for stream in streams] == [[1]]
    await bus.shutdown()
    for stream in streams:
        stream.close()


async def test_two_sinks_of_one_type_have_a_row_each() -> None:
    """Trap: the original keys health by name."""
    async with EventBus([MemorySink(), MemorySink(), Raising()]) as bus:
        assert [row.name for row in bus.sink_health()] == ["memory", "memory#2", "raising"]


def test_what_is_no_sink_is_refused() -> None:
    with pytest.raises(ConfigError, match="int is no sink: it needs handle"):
        EventBus([3])
