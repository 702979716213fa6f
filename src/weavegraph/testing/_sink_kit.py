"""What every sink must do, as tests that anyone can run over their own.

::

    class TestMySink(SinkKit):                        # pytest collects its async methods (pytest-anyio or -asyncio)
        async def make(self) -> EventSink:
            return MySink(...)                        # a fresh one; nothing has arrived yet

        async def arrived(self, sink) -> Sequence[Event]:
            return [...]                              # what is at the other end now, in the order of each run

``DurableSinkKit`` adds what a sink must do whose other end outlives it: there ``make`` opens the same end again and
again for one test. ``BrokerSinkKit`` adds what happens while the other end is away (``stop``, ``go_on``).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from msgspec.structs import replace

from weavegraph.bus import EventBus, Lane, RetryPolicy
from weavegraph.config import EventBusConfig, check_sink_name
from weavegraph.events import (
    DiagnosticEvent,
    Event,
    admit,
    diagnostic,
    freeze_metadata,
    llm_chunk,
    llm_error,
    llm_final,
    node_message,
    to_json,
)
from weavegraph.sinks import MemorySink
from weavegraph.testing._log_kit import ending, logged

__all__ = ["BrokerSinkKit", "DurableSinkKit", "SinkKit"]

T = TypeVar("T")
PATIENCE = 20.0  # seconds for what happens at once with a healthy sink
QUICK = RetryPolicy(tries=3, base=0.001, cap=0.01)
STUBBORN = RetryPolicy(tries=10_000, base=0.01, cap=0.1)
METHODS = ("start", "flush", "aclose", "close", "handle", "run")


async def soon(work: Awaitable[T]) -> T:
    """The result, or a failure instead of a hang."""
    return await asyncio.wait_for(work, PATIENCE)  # type: ignore[arg-type]


async def called(sink: Any, name: str, *arguments: Any) -> None:
    """One of the sink's methods, sync or async, if it has it."""
    function = getattr(sink, name, None)
    if function is not None:
        result = function(*arguments)
        if inspect.isawaitable(result):
            await soon(result)


async def closed(sink: Any) -> None:
    await called(sink, "aclose" if hasattr(sink, "aclose") else "close")


def by_run(events: Sequence[Event]) -> dict[str | None, list[bytes]]:
    """The JSON of events, run by run."""
    found: dict[str | None, list[bytes]] = {}
    for event in events:
        found.setdefault(event.run_id, []).append(to_json(event))
    return found


def without_repeats(events: Sequence[Event]) -> list[Event]:
    """Each event once, as a reader does that de-duplicates by position."""
    seen: set[tuple[str | None, int | None]] = set()
    found = []
    for event in events:
        key = event.run_id, event.run_seq
        if event.run_seq is None or key not in seen:
            seen.add(key)
            found.append(event)
    return found


class SinkKit:
    """The cases; inherit, and give ``make`` and ``arrived``."""

    keeps_events_without_run = True
    """``False``: what has no run has no place at the other end, and is passed over."""
    waits = 0.0
    """Seconds that what was handled and flushed may need until it can be seen at the other end."""

    async def make(self) -> Any:
        """A fresh sink; nothing has arrived."""
        raise NotImplementedError

    async def arrived(self, sink: Any) -> Sequence[Event]:
        """What is at the other end of that sink, each run in the order of its arrival."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        """A sink that was started."""
        sink = await self.make()
        try:
            await called(sink, "start")
            yield sink
        finally:
            await closed(sink)

    @asynccontextmanager
    async def on_a_bus(self, *others: Any, retry: RetryPolicy = QUICK) -> AsyncIterator[tuple[Any, EventBus]]:
        sink = await self.make()
        async with EventBus([sink, *others], sink_retry=retry) as bus:
            yield sink, bus

    async def give(self, sink: Any, *batches: Sequence[Event]) -> None:
        for batch in batches:
            await called(sink, "handle", batch)
        await called(sink, "flush")

    async def expect(self, sink: Any, sent: Sequence[Event]) -> None:
        """Exactly these have arrived, each run in its order; repeated ones once are enough."""
        until = time.monotonic() + self.waits
        while True:
            there = list(await self.arrived(sink))
            if getattr(sink, "delivery", "at_least_once") == "at_least_once":
                there = without_repeats(there)
            if by_run(there) == by_run(sent) or time.monotonic() > until:
                break
            await asyncio.sleep(0.01)
        assert by_run(there) == by_run(sent), f"{len(there)} arrived, {len(sent)} were given"

    async def check(self, *batches: Sequence[Event]) -> None:
        """What is given arrives."""
        async with self.opened() as sink:
            await self.give(sink, *batches)
            await self.expect(sink, [event for batch in batches for event in batch])

    # ── what it says of itself ────────────────────────────────────────────────────────────────────

    async def test_it_has_handle_or_run(self) -> None:
        async with self.opened() as sink:
            assert callable(getattr(sink, "handle", None)) or inspect.iscoroutinefunction(getattr(sink, "run", None))

    async def test_its_name_may_be_shown(self) -> None:
        async with self.opened() as sink:
            check_sink_name(getattr(sink, "name", type(sink).__name__))

    async def test_its_delivery_is_a_known_level(self) -> None:
        async with self.opened() as sink:
            delivery = getattr(sink, "delivery", "at_least_once")
            assert delivery in ("at_most_once", "at_least_once", "exactly_once")

    async def test_an_inline_sink_has_plain_functions_only(self) -> None:
        async with self.opened() as sink:
            if getattr(sink, "inline", False):
                assert not [name for name in METHODS if inspect.iscoroutinefunction(getattr(sink, name, None))]

    async def test_its_bounds_are_whole_numbers_from_one(self) -> None:
        async with self.opened() as sink:
            for name in ("capacity", "max_batch"):
                value = getattr(sink, name, None)
                assert value is None or (type(value) is int and value >= 1), (name, value)

    async def test_it_can_be_printed(self) -> None:
        async with self.opened() as sink:
            assert repr(sink) and len(repr(sink)) < 10_000

    async def test_a_configuration_takes_it(self) -> None:
        sink = await self.make()
        try:
            assert EventBusConfig(sinks=(sink,)).sinks[0].sink is sink
        finally:
            await closed(sink)

    async def test_being_made_starts_no_thread(self) -> None:
        before = set(threading.enumerate())
        sink = await self.make()
        try:
            assert set(threading.enumerate()) <= before
        finally:
            await closed(sink)

    # ── handle ────────────────────────────────────────────────────────────────────────────────────

    async def test_one_event_arrives(self) -> None:
        await self.check(logged("a", 1, 1))

    async def test_a_batch_arrives_in_order(self) -> None:
        await self.check(logged("a", 1, 100))

    async def test_batches_arrive_in_order(self) -> None:
        await self.check(*(logged("a", n, n + 6) for n in range(1, 200, 7)))

    async def test_batches_of_one_arrive_in_order(self) -> None:
        await self.check(*(logged("a", n, n) for n in range(1, 51)))

    async def test_the_largest_batch_of_a_bus_arrives(self) -> None:
        await self.check(logged("a", 1, 1024))

    async def test_a_tuple_is_a_batch(self) -> None:
        await self.check(tuple(logged("a", 1, 5)))

    async def test_a_list_is_a_batch(self) -> None:
        await self.check(list(logged("a", 1, 5)))

    async def test_an_empty_batch_is_nothing(self) -> None:
        await self.check(logged("a", 1, 3), (), logged("a", 4, 6))

    async def test_runs_in_one_batch_keep_their_order(self) -> None:
        runs = [logged(run_id, 1, 40) for run_id in ("a", "b", "c")]
        await self.check([event for events in zip(*runs, strict=True) for event in events])

    async def test_runs_that_take_turns_keep_their_order(self) -> None:
        await self.check(*(logged(run_id, n, n) for n in range(1, 21) for run_id in ("a", "b")))

    async def test_many_runs_in_one_batch_arrive(self) -> None:
        await self.check([logged(f"run-{n}", 1, 1)[0] for n in range(200)])

    async def test_ids_that_are_prefixes_of_each_other_do_not_mix(self) -> None:
        await self.check(*(logged(run_id, 1, 2) for run_id in ("a", "a:1", "a_", "a.", "A", "a-")))

    async def test_sessions_do_not_mix(self) -> None:
        await self.check(logged("a", 1, 3, session_id="one"), logged("b", 1, 3, session_id="two"))

    async def test_a_later_attempt_arrives_behind_the_first(self) -> None:
        await self.check(logged("a", 1, 3), logged("a", 4, 6, attempt=2, epoch="epoch-2"))

    async def test_an_attempt_that_changes_within_a_batch_arrives(self) -> None:
        await self.check([*logged("a", 1, 3), *logged("a", 4, 6, attempt=2, epoch="epoch-2")])

    async def test_terminal_events_arrive(self) -> None:
        outcomes = ("completed", "failed", "cancelled", "paused", "interrupted")
        await self.check(*([*logged(outcome, 1, 2), ending(outcome, 3, outcome)] for outcome in outcomes))

    async def test_all_kinds_arrive(self) -> None:
        await self.check(
            self.placed(
                node_message("a", "node"),
                diagnostic("d", "diagnostic"),
                llm_chunk("Hel", stream_id="s"),
                llm_chunk("lo", stream_id="s", index=1),
                llm_final("!", stream_id="s", index=2),
                llm_error("broken", stream_id="t"),
            )
        )

    async def test_where_an_event_comes_from_arrives(self) -> None:
        (event,) = self.placed(node_message("a", "x"))
        await self.check([replace(event, node_id="writer", step=7, path=("outer", "inner"))])

    async def test_any_text_arrives(self) -> None:
        texts = [
            "",
            " ",
            "\x00\x1b[31m\n\r\t",
            "\u2028\u2029\u200b",
            "ü€😀" * 50,
            "'; DROP TABLE x; --",
            '\\"%_',
            "{}",
            "[1]",
        ]
        await self.check(self.placed(*(node_message("a", text) for text in texts)))

    async def test_any_scope_arrives(self) -> None:
        await self.check(self.placed(*(node_message(scope, "x") for scope in ("a", "a.b:c", "ü", "x" * 100, "a b"))))

    async def test_nested_metadata_arrives(self) -> None:
        data = {"list": [1, 2.5, None, True, {"deep": ["x"]}], "big": 2**63, "__class__": "x", "": "empty"}
        await self.check(self.placed(DiagnosticEvent("a", "x", freeze_metadata(data))))

    async def test_an_event_of_nearly_a_megabyte_arrives(self) -> None:
        await self.check(self.placed(node_message("a", "x" * 1_000_000)))

    async def test_a_batch_of_several_megabytes_arrives(self) -> None:
        await self.check(self.placed(*(node_message("a", "x" * 400_000) for _ in range(12))))

    async def test_a_batch_that_is_changed_afterwards_changes_nothing(self) -> None:
        async with self.opened() as sink:
            batch = logged("a", 1, 5)
            await called(sink, "handle", batch)
            batch.clear()
            await called(sink, "flush")
            await self.expect(sink, logged("a", 1, 5))

    async def test_the_batch_is_left_as_it_was(self) -> None:
        async with self.opened() as sink:
            batch = logged("a", 1, 5)
            await self.give(sink, batch)
            assert batch == logged("a", 1, 5)

    async def test_events_without_a_run_arrive_or_are_passed_over(self) -> None:
        alone = [admit(replace(node_message("a", str(n)), seq=n, epoch="e"))[0] for n in range(1, 4)]
        async with self.opened() as sink:
            await self.give(sink, [alone[0], *logged("a", 1, 2), *alone[1:]])
            await self.expect(sink, [*logged("a", 1, 2), *(alone if self.keeps_events_without_run else ())])

    def placed(self, *events: Event) -> list[Event]:
        """Events, as a lane stamps them."""
        return [
            admit(
                replace(event, run_id="a", session_id="s", run_seq=n, seq=n, epoch="epoch-1", attempt=1),
                reserved=True,
            )[0]
            for n, event in enumerate(events, 1)
        ]

    # ── given again ───────────────────────────────────────────────────────────────────────────────

    async def test_a_batch_given_again_is_there_once_or_again_in_order(self) -> None:
        async with self.opened() as sink:
            await self.give(sink, logged("a", 1, 5), logged("a", 1, 5))
            await self.once_or_again(sink, logged("a", 1, 5))

    async def test_a_batch_given_again_one_by_one(self) -> None:
        async with self.opened() as sink:
            await self.give(sink, logged("a", 1, 5), *(logged("a", n, n) for n in range(1, 6)))
            await self.once_or_again(sink, logged("a", 1, 5))

    async def test_a_batch_that_overlaps(self) -> None:
        async with self.opened() as sink:
            await self.give(sink, logged("a", 1, 5), logged("a", 4, 8))
            await self.once_or_again(sink, logged("a", 1, 8))

    async def test_a_batch_of_several_runs_given_again(self) -> None:
        both = [*logged("a", 1, 5), *logged("b", 1, 5)]
        async with self.opened() as sink:
            await self.give(sink, both, both)
            await self.once_or_again(sink, both)

    async def once_or_again(self, sink: Any, events: Sequence[Event]) -> None:
        there = list(await self.arrived(sink))
        if getattr(sink, "delivery", "at_least_once") == "exactly_once":
            assert by_run(there) == by_run(events)
        assert by_run(without_repeats(there)) == by_run(events)

    # ── its life ──────────────────────────────────────────────────────────────────────────────────

    async def test_without_start_it_works_too(self) -> None:
        sink = await self.make()
        try:
            await self.give(sink, logged("a", 1, 5))
            await self.expect(sink, logged("a", 1, 5))
        finally:
            await closed(sink)

    async def test_start_twice(self) -> None:
        async with self.opened() as sink:
            await called(sink, "start")
            await self.give(sink, logged("a", 1, 5))
            await self.expect(sink, logged("a", 1, 5))

    async def test_flush_of_nothing(self) -> None:
        async with self.opened() as sink:
            await called(sink, "flush")
            await called(sink, "flush")
            await self.expect(sink, [])

    async def test_flush_before_start(self) -> None:
        sink = await self.make()
        await called(sink, "flush")
        await closed(sink)

    async def test_between_flushes_it_goes_on(self) -> None:
        async with self.opened() as sink:
            for n in range(1, 6):
                await self.give(sink, logged("a", n, n))
                await self.expect(sink, logged("a", 1, n))

    async def test_close_without_start(self) -> None:
        await closed(await self.make())

    async def test_close_twice(self) -> None:
        async with self.opened() as sink:
            await closed(sink)
            await closed(sink)

    async def test_a_call_after_close_ends(self) -> None:
        """With an error or without; it must not hang."""
        async with self.opened() as sink:
            await self.give(sink, logged("a", 1, 2))
            await closed(sink)
            for name, arguments in (("handle", (logged("a", 3, 3),)), ("flush", ())):
                try:
                    await called(sink, name, *arguments)
                except TimeoutError:
                    raise
                except Exception:
                    pass
            await closed(sink)

    async def test_looking_at_the_other_end_changes_nothing(self) -> None:
        async with self.opened() as sink:
            await self.give(sink, logged("a", 1, 5))
            await self.expect(sink, logged("a", 1, 5))
            await self.expect(sink, logged("a", 1, 5))
            await self.give(sink, logged("a", 6, 7))
            await self.expect(sink, logged("a", 1, 7))

    # ── on a bus ──────────────────────────────────────────────────────────────────────────────────

    async def test_on_a_bus_every_run_arrives_in_order(self) -> None:
        async with self.on_a_bus() as (sink, bus):
            sent = self.emitted(bus, runs=4, events=60)
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            await self.expect(sink, sent)

    async def test_on_a_bus_the_books_balance(self) -> None:
        async with self.on_a_bus() as (_, bus):
            self.emitted(bus, runs=3, events=50)
            await soon(bus.flush(timeout=PATIENCE))
            (stats,) = bus.metrics().sinks
            assert stats.unaccounted == 0, stats
            assert (stats.delivered, stats.dead_lettered, stats.dropped, stats.abandoned) == (150, 0, 0, 0), stats

    async def test_on_a_bus_shutdown_leaves_nothing_behind(self) -> None:
        sink = await self.make()
        bus = EventBus([sink], sink_retry=QUICK)
        sent = self.emitted(bus, runs=2, events=300)
        report = await soon(bus.shutdown(PATIENCE))
        assert report.complete and not report.errors, report
        await self.expect(sink, sent)

    async def test_on_a_bus_it_is_healthy(self) -> None:
        async with self.on_a_bus() as (sink, bus):
            self.emitted(bus, runs=1, events=10)
            await soon(bus.flush(timeout=PATIENCE))
            (health,) = bus.sink_health()
            assert (health.errors, health.last_error) == (0, None), health
            assert health.state in ("idle", "busy", "waiting")
            assert health.delivery == getattr(sink, "delivery", "at_least_once")

    async def test_on_a_bus_flush_after_each_event_shows_it(self) -> None:
        async with self.on_a_bus() as (sink, bus):
            lane, sent = Lane(bus._hub, "run-0", "session"), []
            for n in range(10):
                sent.append(self.emit(lane, node_message("a", str(n))))
                assert (await soon(bus.flush(timeout=PATIENCE))).complete
                await self.expect(sink, sent)

    async def test_on_a_bus_a_burst_arrives(self) -> None:
        async with self.on_a_bus() as (sink, bus):
            sent = self.emitted(bus, runs=1, events=5000)
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            await self.expect(sink, sent)

    async def test_on_a_bus_many_runs_arrive(self) -> None:
        async with self.on_a_bus() as (sink, bus):
            sent = self.emitted(bus, runs=100, events=5)
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            await self.expect(sink, sent)

    async def test_on_a_bus_threads_may_emit(self) -> None:
        async with self.on_a_bus() as (sink, bus):
            lanes = [Lane(bus._hub, f"run-{n}", "session") for n in range(4)]
            sent: list[Event] = []

            def emit(lane: Lane) -> None:
                sent.extend([self.emit(lane, node_message("a", str(n))) for n in range(100)])

            threads = [threading.Thread(target=emit, args=(lane,)) for lane in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join, PATIENCE)
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            await self.expect(sink, sent)

    async def test_on_a_bus_of_another_loop(self) -> None:
        sink = await self.make()
        sent: list[Event] = []

        async def elsewhere() -> None:
            async with EventBus([sink], sink_retry=QUICK) as bus:
                sent.extend(self.emitted(bus, runs=2, events=30))
                assert (await soon(bus.flush(timeout=PATIENCE))).complete

        await asyncio.to_thread(asyncio.run, elsewhere())
        await self.expect(sink, sent)

    async def test_added_later_it_gets_what_comes(self) -> None:
        sink = await self.make()
        async with EventBus([MemorySink()], sink_retry=QUICK) as bus:
            bus.emitter().emit(node_message("a", "before"))
            await soon(bus.flush(timeout=PATIENCE))
            bus.add_sink(sink)
            sent = self.emitted(bus, runs=2, events=30)
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            there = await self.arrived(sink)
            assert by_run([event for event in there if event.run_id is not None]) == by_run(sent)

    async def test_taken_off_it_has_everything_up_to_there(self) -> None:
        sink = await self.make()
        async with EventBus([MemorySink()], sink_retry=QUICK) as bus:
            guard = bus.add_sink(sink)
            sent = self.emitted(bus, runs=2, events=200)
            await soon(guard.remove(PATIENCE))
            self.emitted(bus, runs=1, events=10, first="later")
            await soon(bus.flush(timeout=PATIENCE))
            await self.expect(sink, sent)

    async def test_two_on_one_bus_are_told_apart(self) -> None:
        sinks = [await self.make(), await self.make()]
        async with EventBus(sinks, sink_retry=QUICK) as bus:
            names = [health.name for health in bus.sink_health()]
            assert len(set(names)) == 2

    async def test_beside_a_sink_that_raises_it_gets_everything(self) -> None:
        class Broken:
            def handle(self, batch: Sequence[Event]) -> None:
                raise ValueError("broken")

        async with self.on_a_bus(Broken()) as (sink, bus):
            sent = self.emitted(bus, runs=2, events=30)
            await soon(bus.flush(timeout=PATIENCE))
            await self.expect(sink, sent)

    async def test_beside_a_sink_that_hangs_it_gets_everything(self) -> None:
        free = threading.Event()

        class Hanging:
            def handle(self, batch: Sequence[Event]) -> None:
                free.wait(PATIENCE)

        try:
            async with self.on_a_bus(Hanging()) as (sink, bus):
                sent = self.emitted(bus, runs=2, events=30)
                report = await soon(bus.flush(timeout=1.0))
                assert report.pending == ("Hanging",)
                await self.expect(sink, sent)
                free.set()
        finally:
            free.set()

    async def test_emitting_never_waits_for_it(self) -> None:
        async with self.on_a_bus() as (_, bus):
            lane = Lane(bus._hub, "run-0", "session")
            self.emit(lane, node_message("a", "first"))
            slowest = 0.0
            for n in range(500):
                began = time.perf_counter()
                self.emit(lane, node_message("a", str(n)))
                slowest = max(slowest, time.perf_counter() - began)
            assert slowest < 2.0  # a machine that is busy may take a while, a sink that is waited for much longer

    async def test_a_bus_that_nobody_uses_leaves_it_alone(self) -> None:
        async with self.on_a_bus() as (sink, _):
            assert not await self.arrived(sink)

    async def test_collapsed_batches_and_single_events_are_the_same(self) -> None:
        async with self.on_a_bus() as (sink, bus):
            sent = self.emitted(bus, runs=1, events=3)
            await soon(bus.flush(timeout=PATIENCE))
            sent += self.emitted(bus, runs=1, events=300, first="more")
            await soon(bus.flush(timeout=PATIENCE))
            await self.expect(sink, sent)

    def emitted(self, bus: EventBus, *, runs: int, events: int, first: str = "run") -> list[Event]:
        """Events of several runs, in turns; as they were stamped."""
        lanes = [Lane(bus._hub, f"{first}-{n}", "session") for n in range(runs)]
        return [self.emit(lane, node_message("a", str(n))) for n in range(events) for lane in lanes]

    def emit(self, lane: Lane, event: Event) -> Event:
        stamped = lane.emitter().emit(event)
        assert stamped is not None
        return stamped


class DurableSinkKit(SinkKit):
    """For sinks whose other end outlives them: ``make`` opens the end of this test, again at each call."""

    async def test_what_was_flushed_is_there_after_closing(self) -> None:
        async with self.opened() as sink:
            await self.give(sink, logged("a", 1, 20))
        async with self.opened() as again:
            await self.expect(again, logged("a", 1, 20))

    async def test_close_without_flush_keeps_everything(self) -> None:
        async with self.opened() as sink:
            await called(sink, "handle", logged("a", 1, 20))
        async with self.opened() as again:
            await self.expect(again, logged("a", 1, 20))

    async def test_the_next_one_goes_on(self) -> None:
        for first in (1, 11, 21):
            async with self.opened() as sink:
                await self.give(sink, logged("a", first, first + 9))
        async with self.opened() as again:
            await self.expect(again, logged("a", 1, 30))

    async def test_the_next_one_may_get_the_last_batch_again(self) -> None:
        async with self.opened() as sink:
            await self.give(sink, logged("a", 1, 10))
        async with self.opened() as again:
            await self.give(again, logged("a", 6, 15))
            await self.once_or_again(again, logged("a", 1, 15))

    async def test_two_at_once_for_different_runs(self) -> None:
        async with self.opened() as one, self.opened() as two:
            for n in range(1, 30):
                await self.give(one, logged("a", n, n))
                await self.give(two, logged("b", n, n))
            await self.expect(one, [*logged("a", 1, 29), *logged("b", 1, 29)])


class BrokerSinkKit(DurableSinkKit):
    """For sinks whose other end is a server: what it costs when that is away. It must keep what it acknowledged."""

    async def stop(self) -> None:
        """Let the other end be away."""
        raise NotImplementedError

    async def go_on(self) -> None:
        """Have it back, with what it had."""
        raise NotImplementedError

    async def test_an_absence_costs_delay(self) -> None:
        async with self.on_a_bus(retry=STUBBORN) as (sink, bus):
            sent = self.emitted(bus, runs=2, events=20)
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            await self.stop()
            sent += self.emitted(bus, runs=2, events=20, first="meanwhile")
            assert not (await soon(bus.flush(timeout=0.3))).complete
            await self.go_on()
            sent += self.emitted(bus, runs=2, events=20, first="after")
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            await self.expect(sink, sent)
            (stats,) = bus.metrics().sinks
            assert (stats.dead_lettered, stats.dropped, stats.unaccounted) == (0, 0, 0)

    async def test_a_run_goes_on_over_an_absence(self) -> None:
        async with self.on_a_bus(retry=STUBBORN) as (sink, bus):
            lane, sent = Lane(bus._hub, "run-0", "session"), []
            for n in range(60):
                sent.append(self.emit(lane, node_message("a", str(n))))
                if n == 20:
                    await self.stop()
                if n == 40:
                    await self.go_on()
                await asyncio.sleep(0.002)
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            await self.expect(sink, sent)

    async def test_an_absence_does_not_hold_up_others(self) -> None:
        memory = MemorySink()
        async with self.on_a_bus(memory, retry=STUBBORN) as (_, bus):
            await self.stop()
            self.emitted(bus, runs=1, events=100)
            report = await soon(bus.flush(timeout=1.0))
            assert "memory" in report.flushed and len(memory.snapshot()) == 100
            await self.go_on()
            assert (await soon(bus.flush(timeout=PATIENCE))).complete

    async def test_away_at_the_start_it_begins_when_the_other_end_comes(self) -> None:
        await self.stop()
        async with self.on_a_bus(retry=STUBBORN) as (sink, bus):
            sent = self.emitted(bus, runs=1, events=30)
            await asyncio.sleep(0.1)
            await self.go_on()
            assert (await soon(bus.flush(timeout=PATIENCE))).complete
            await self.expect(sink, sent)

    async def test_away_at_the_end_the_bus_still_ends(self) -> None:
        sink = await self.make()
        bus = EventBus([sink], sink_retry=QUICK)
        self.emitted(bus, runs=1, events=10)
        await soon(bus.flush(timeout=PATIENCE))
        await self.stop()
        self.emitted(bus, runs=1, events=10, first="late")
        began = time.monotonic()
        report = await soon(bus.shutdown(1.0))
        assert time.monotonic() - began < 10.0
        (stats,) = report.sinks
        assert stats.delivered + stats.abandoned + stats.dead_lettered == 20 and stats.unaccounted == 0
        await self.go_on()
