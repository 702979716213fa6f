"""Contract S1 to S3: whatever a sink raises, however long it takes, it is alone with it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support import clause, drain, fill
from weavegraph import DiagnosticsConfig, Event, EventBus, EventStream, MemorySink, node_message
from weavegraph.bus import RetryPolicy, SinkHealth
from weavegraph.errors import ConfigError, PermanentSinkError

QUICK = RetryPolicy(tries=3, base=0.0, cap=0.0)


class Foreign(BaseException):
    """Not even an Exception."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise Foreign


async def cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


def exhausted() -> None:
    next(iter(()))


def raising(
    error: BaseException | None = None, *, call: Any = None, inline: bool = False, asynchronous: bool = False
) -> Any:
    class Sink:
        name = "bad"
        calls = 0

        def handle(self, batch: Sequence[Event]) -> None:
            self.calls += 1
            if error is not None:
                raise error
            call()

    class Async(Sink):
        async def handle(self, batch: Sequence[Event]) -> None:  # type: ignore[override]
            self.calls += 1
            if error is not None:
                raise error
            await call()

    sink: Any = Async() if asynchronous else Sink()
    sink.inline = inline
    return sink


MISBEHAVIOUR = {
    "SystemExit": lambda **how: raising(SystemExit(3), **how),
    "KeyboardInterrupt": lambda **how: raising(KeyboardInterrupt(), **how),
    "BaseException": lambda **how: raising(Foreign("x"), **how),
    "StopIteration": lambda **how: raising(*([StopIteration()] if how["asynchronous"] else []), call=exhausted, **how),
    "CancelledError": lambda **how: raising(asyncio.CancelledError(), **how),
    "a huge text": lambda **how: raising(ValueError("x" * 2_000_000), **how),
    "no text": lambda **how: raising(Unprintable(), **how),
    "a surrogate": lambda **how: raising(ValueError("\ud800"), **how),
}


@clause("S1", "S2", "S5")
@pytest.mark.parametrize("what", MISBEHAVIOUR)
@pytest.mark.parametrize("how", ["sync", "inline", "async"])
async def test_whatever_a_sink_raises_is_a_failure_of_that_sink_only(what: str, how: str) -> None:
    bad = MISBEHAVIOUR[what](inline=how == "inline", asynchronous=how == "async")
    inline, threaded = MemorySink(), MemorySink()
    threaded.inline = False
    bus = EventBus([bad, inline, threaded], sink_retry=QUICK)
    with bus.diagnostics() as diagnostics:
        for _ in range(2):
            fill(bus._hub, 3)
            assert (await bus.flush(timeout=30)).complete
        notice = diagnostics.try_recv()
        assert notice is not None and notice.metadata["sink"] == "bad" and len(notice.message) < 3000
    assert len(inline.snapshot()) == len(threaded.snapshot()) == 6
    health = bus.sink_health()[0]
    assert (health.state, health.stats.dead_lettered, health.stats.unaccounted) == ("idle", 6, 0)
    assert health.errors == bad.calls
    assert len(bus.dead_letters()) == 6
    assert all(letter.error and len(letter.error) <= 2000 for letter in bus.dead_letters())
    report = await bus.shutdown(30)
    assert report.complete and set(report.errors) == {"bad"}


@clause("S1")
async def test_an_await_of_the_sink_that_is_cancelled_is_a_failure_and_not_our_cancel() -> None:
    bad = raising(call=cancelled, asynchronous=True)
    bus = EventBus([bad], sink_retry=QUICK)
    fill(bus._hub, 1)
    assert (await bus.flush(timeout=30)).complete
    assert bad.calls == QUICK.tries
    assert bus.sink_health()[0].last_error == "SinkError: the sink raised CancelledError: "
    await bus.shutdown()


@clause("S1")
def test_a_sink_that_exits_does_not_end_the_program_nor_the_other_sinks() -> None:
    script = """
    import sys
    from weavegraph import EventBus, node_message
    class Bad:
        async def handle(self, batch):
            sys.exit("config missing")
    got = []
    class Other:
        def handle(self, batch):
            got.extend(batch)
    bus = EventBus([Bad(), Other()])
    for _ in range(3):
        bus.emitter().emit(node_message("a", "b"))
    bus.close(0.5)
    print(len(got))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


class Held:
    """A sink whose call holds its thread until it is let go."""

    name = "held"

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.got: list[int] = []
        self.closed = 0

    def handle(self, batch: Sequence[Event]) -> None:
        self.begun.set()
        self.go.wait(30)
        self.got += [event.seq for event in batch]

    def close(self) -> None:
        self.closed += 1


class HeldAsync(Held):
    """The same, and wrong: it should await."""

    async def handle(self, batch: Sequence[Event]) -> None:  # type: ignore[override]
        Held.handle(self, batch)


@clause("S1", "C2")
@pytest.mark.parametrize("kind", [Held, HeldAsync])
async def test_an_async_sink_that_blocks_its_thread_blocks_nobody_else(kind: type[Held]) -> None:
    held, got = kind(), []

    class Other:
        name = "other"

        async def handle(self, batch: Sequence[Event]) -> None:
            got.extend(batch)

    bus = EventBus([held, Other()])
    fill(bus._hub, 3)
    assert await asyncio.to_thread(held.begun.wait, 30)
    fill(bus._hub, 3)
    report = await bus.flush(timeout=0.3)
    assert (report.flushed, report.pending, len(got)) == (("other",), ("held",), 6)
    begun = time.monotonic()
    ended = await bus.shutdown(0.1)
    assert time.monotonic() - begun < 5
    assert ended.pending == ("held",)
    assert {stats.name: (stats.delivered, stats.abandoned) for stats in ended.sinks} == {
        "held": (0, 6),
        "other": (6, 0),
    }
    held.go.set()


@clause("C2", "P1")
def test_a_sink_that_blocks_does_not_keep_the_interpreter() -> None:
    """Three buses with hung sinks, of each kind: two seconds in all, not each (contract P1)."""
    script = """
    import threading, time
    from weavegraph import EventBus, node_message
    class Sync:
        def handle(self, batch): threading.Event().wait()
    class Async:
        async def handle(self, batch): threading.Event().wait()
    class Inline(Sync):
        inline = True
    buses = [EventBus([kind()]) for kind in (Sync, Async, Inline)]
    for bus in buses:
        bus.emitter().emit(node_message("a", "b"))
    import atexit
    begun = time.monotonic()
    import weavegraph.bus._sinks as sinks
    sinks._drain_at_exit()
    spent = time.monotonic() - begun
    print(1.0 < spent < 3.0, spent if not 1.0 < spent < 3.0 else "")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True \n", "")


@clause("S1")
@pytest.mark.parametrize("kind", [Held, HeldAsync])
async def test_removing_a_hung_sink_returns_in_time_and_closes_it_once_when_it_comes_back(kind: type[Held]) -> None:
    held = kind()
    bus = EventBus()
    guard = bus.add_sink(held)
    fill(bus._hub, 3)
    assert await asyncio.to_thread(held.begun.wait, 30)
    stats = await asyncio.wait_for(guard.remove(0.05), 10)
    assert (stats.delivered, stats.abandoned, stats.unaccounted) == (0, 3, 0)
    assert list(bus.sinks) == []
    held.go.set()
    assert await asyncio.to_thread(lambda: guard._worker.ended.result(30)) is None
    assert held.closed == 1
    again = await guard.remove()
    assert (again.delivered, again.abandoned, held.closed) == (0, 3, 1)  # what it still did counts no more
    await bus.shutdown()


@clause("S1")
async def test_a_sink_that_is_alone_and_slow_inline_is_reported() -> None:
    held = Held()
    held.inline = True  # type: ignore[attr-defined]
    bus = EventBus([held])
    with bus.diagnostics() as diagnostics:
        fill(bus._hub, 1)
        notice = await diagnostics.next_timeout(30)
        assert notice is not None and (notice.metadata["kind"], notice.metadata["sink"]) == ("slow", "held")
        held.go.set()
        bus.add_sink(later := MemorySink())
        fill(bus._hub, 1)
        assert (await bus.flush(timeout=30)).complete
        assert (held.got, len(later.snapshot())) == ([1, 2], 1)
        assert diagnostics.try_recv() is None
    await bus.shutdown()


@clause("S1")
async def test_a_hung_start_of_an_inline_sink_holds_up_no_other() -> None:
    go = threading.Event()

    class Slow:
        name, inline = "slow", True

        def start(self) -> None:
            go.wait(30)

        def handle(self, batch: object) -> None: ...

    bus = EventBus([Slow(), memory := MemorySink()])
    fill(bus._hub, 3)
    assert await bus.guard("memory").drain(30)
    assert len(memory.snapshot()) == 3
    go.set()
    assert (await bus.shutdown(30)).complete


@clause("S1")
async def test_inline_means_plain_functions() -> None:
    class Async:
        inline = True

        async def handle(self, batch: object) -> None: ...

    class AsyncStart(MemorySink):
        async def start(self) -> None: ...

    for sink in (Async(), AsyncStart()):
        with pytest.raises(ConfigError, match="must be a plain function"):
            EventBus([sink])

    async def work() -> None: ...

    class Sneaky:
        name, inline = "sneaky", True

        def handle(self, batch: object) -> Any:
            return work()

    bus = EventBus([Sneaky()], sink_retry=QUICK)
    fill(bus._hub, 2)
    assert (await bus.flush(timeout=30)).complete
    (stats,) = bus.metrics().sinks
    assert (stats.delivered, stats.dead_lettered) == (0, 2)
    assert "must be plain functions" in bus.dead_letters()[0].error
    await bus.shutdown()


async def test_a_plain_handle_that_returns_an_awaitable_is_awaited_on_its_own_thread() -> None:
    got: list[int] = []
    threads: set[str] = set()

    class Lazy:
        name = "lazy"

        def handle(self, batch: Sequence[Event]) -> Any:
            async def work() -> None:
                await asyncio.sleep(0)
                threads.add(threading.current_thread().name)
                got.extend(event.seq for event in batch)

            return work()

        async def aclose(self) -> None:
            got.append(-1)

    bus = EventBus([Lazy()])
    fill(bus._hub, 3)
    assert (await bus.flush(timeout=30)).complete
    assert got == [1, 2, 3]
    await bus.shutdown()
    assert (got[-1], threads) == (-1, {"weavegraph-sink-lazy"})


@clause("S2")
@pytest.mark.parametrize("inline", [True, False])
async def test_a_sync_sink_is_retried_and_split_also_when_inline(inline: bool) -> None:
    got: list[str] = []
    sizes: list[int] = []

    class Sink:
        name = "s"

        def handle(self, batch: Sequence[Event]) -> None:
            sizes.append(len(batch))
            for event in batch:
                if event.message == "7":
                    raise ValueError("7")
            got.extend(event.message for event in batch)

    sink: Any = Sink()
    sink.inline = inline
    bus = EventBus([sink], sink_retry=QUICK)
    bus._hub._on_first = None  # not yet: all ten are to be one batch
    fill(bus._hub, 10)
    assert (await bus.flush(timeout=30)).complete
    assert got == [str(n) for n in range(1, 11) if n != 7]
    assert sizes == [10] * QUICK.tries + [1] * 10
    (letter,) = bus.dead_letters()
    assert (letter.event.seq, letter.tries) == (7, QUICK.tries + 1)
    await bus.shutdown()


@clause("S1", "S2")
async def test_while_an_inline_sink_waits_to_be_tried_again_the_others_are_fed() -> None:
    class Failing:
        name, inline = "failing", True

        def handle(self, batch: object) -> None:
            raise ValueError

    bus = EventBus([Failing(), memory := MemorySink()], sink_retry=RetryPolicy(tries=2, base=3600.0, cap=3600.0))
    fill(bus._hub, 1)
    assert await bus.guard("memory").drain(30)
    while (state := bus.sink_health()[0].state) != "retrying":
        assert state in ("idle", "busy", "waiting")
        await asyncio.sleep(0)
    fill(bus._hub, 1)
    assert await bus.guard("memory").drain(30)
    assert len(memory.snapshot()) == 2
    report = await bus.shutdown(0.3)
    assert (report.pending, report.sinks[0].abandoned, report.sinks[1].abandoned) == (("failing",), 2, 0)


@clause("S2")
async def test_a_batch_in_retry_is_buffered_and_a_cut_ends_the_waiting() -> None:
    class Failing:
        name = "failing"
        calls = 0

        async def handle(self, batch: object) -> None:
            self.calls += 1
            raise ValueError

    failing = Failing()
    bus = EventBus([failing], sink_retry=RetryPolicy(tries=9, base=3600.0, cap=3600.0))
    fill(bus._hub, 1)
    while (health := bus.sink_health()[0]).state != "retrying":
        await asyncio.sleep(0)
    fill(bus._hub, 1)
    health = bus.sink_health()[0]
    assert (health.stats.buffered, health.stats.delivered, health.stats.lag) == (2, 0, 2)
    report = await bus.shutdown(0.0)
    assert (report.sinks[0].abandoned, failing.calls) == (2, 1)


@clause("S2")
def test_the_pauses_double_up_to_the_cap_with_full_jitter() -> None:
    policy = RetryPolicy(tries=9, base=1.0, cap=10.0)
    for failures, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (5000, 10.0)):
        pauses = [policy.delay(failures) for _ in range(300)]
        assert 0.0 <= min(pauses) < longest / 4 and longest * 3 / 4 < max(pauses) <= longest
    for wrong in ({"tries": 0}, {"base": -1.0}, {"cap": float("nan")}, {"tries": True}):
        with pytest.raises(ConfigError):
            RetryPolicy(**wrong)  # type: ignore[arg-type]


@clause("S2")
async def test_permanent_errors_are_not_retried_but_split_and_at_most_once_is_called_once() -> None:
    calls: dict[str, list[int]] = {"permanent": [], "once": []}

    class Sink:
        def __init__(self, name: str, delivery: str, error: Exception) -> None:
            self.name, self.delivery, self.error = name, delivery, error

        async def handle(self, batch: Sequence[Event]) -> None:
            calls[self.name].append(len(batch))
            if any(event.message == "2" for event in batch):
                raise self.error

    bus = EventBus(
        [Sink("permanent", "at_least_once", PermanentSinkError("never")), Sink("once", "at_most_once", ValueError())],
        sink_retry=QUICK,
    )
    bus._hub._on_first = None
    fill(bus._hub, 3)
    await bus.flush(timeout=30)
    assert calls == {"permanent": [3, 1, 1, 1], "once": [3]}
    permanent, once = bus.metrics().sinks
    assert (permanent.delivered, permanent.dead_lettered) == (2, 1)
    assert (once.delivered, once.dead_lettered) == (0, 3)
    await bus.shutdown()


@clause("S3")
@pytest.mark.parametrize("kind", ["sync", "async", "inline", "run"])
async def test_only_a_call_beyond_the_timeout_is_stalled(kind: str) -> None:
    begun, go = threading.Event(), threading.Event()

    class Sync:
        name = "s"
        inline = kind == "inline"

        def handle(self, batch: object) -> None:
            begun.set()
            go.wait(30)

    class Async:
        name = "s"

        async def handle(self, batch: object) -> None:
            begun.set()
            await asyncio.to_thread(go.wait, 30)

    class Own:
        name = "s"

        async def run(self, stream: EventStream) -> None:
            async for _ in stream:
                begun.set()
                await asyncio.to_thread(go.wait, 30)

    bus = EventBus([{"async": Async, "run": Own}.get(kind, Sync)()], sink_timeout=1000.0)
    bus.listen_for_events()
    assert (await bus.flush(timeout=30)).complete
    assert (health := bus.sink_health()[0]).state == "idle" and health.call_seconds == 0.0
    fill(bus._hub, 2)
    assert await asyncio.to_thread(begun.wait, 30)
    fill(bus._hub, 3)
    worker = bus._workers[0]
    assert bus.sink_health()[0].state == "busy"
    worker._sink_timeout = 0.0  # as if a long time had passed
    stalled: SinkHealth = bus.sink_health()[0]
    assert stalled.state == "stalled" and stalled.call_seconds > 0
    assert not (await bus.flush(timeout=0.05)).complete
    assert bus.sink_health()[0].state == "stalled"  # asking for a flush hides nothing
    go.set()
    assert (await bus.flush(timeout=30)).complete
    health = bus.sink_health()[0]
    assert (health.state, health.stats.delivered, health.call_seconds) == ("idle", 5, 0.0)
    await bus.shutdown()


@clause("S7")
async def test_a_sink_whose_loop_fails_for_good_is_failed_and_stays_so() -> None:
    class Gone:
        name = "gone"

        async def run(self, stream: EventStream) -> None:
            raise PermanentSinkError("gone")

    class Returns:
        name = "returns"

        async def run(self, stream: EventStream) -> None:
            return

    bus = EventBus([Gone(), Returns()], sink_retry=QUICK)
    bus._hub._on_first = None  # not yet: the three are there when they fail
    fill(bus._hub, 3)
    report = await bus.flush(timeout=30)
    assert report.pending == ("gone", "returns")
    assert [row.state for row in bus.sink_health()] == ["failed", "failed"]
    ended = await bus.shutdown()
    assert [row.state for row in bus.sink_health()] == ["failed", "failed"]
    assert [(stats.abandoned, stats.unaccounted) for stats in ended.sinks] == [(3, 0), (3, 0)]
    assert "returned before the stream ended" in ended.errors["returns"]


@clause("S7")
async def test_a_sink_whose_loop_fails_goes_on_where_it_was() -> None:
    class Flaky:
        name = "flaky"
        runs = 0

        def __init__(self) -> None:
            self.got: list[int] = []

        async def run(self, stream: EventStream) -> None:
            self.runs += 1
            async for event in stream:
                self.got.append(event.seq)
                if event.seq in (2, 4):
                    raise SystemExit

    flaky = Flaky()
    bus = EventBus([flaky], sink_retry=QUICK)
    fill(bus._hub, 6)
    assert (await bus.flush(timeout=30)).complete
    assert (flaky.got, flaky.runs) == ([1, 2, 3, 4, 5, 6], 3)
    assert (await bus.shutdown()).complete


@clause("S5")
@pytest.mark.parametrize("name", ["x" * 2_000_000, 5, object(), "a\nb", "\x1b[31m", "\ud800"])
def test_what_cannot_name_a_sink_is_refused(name: object) -> None:
    class Sink:
        def handle(self, batch: object) -> None: ...

    sink: Any = Sink()
    sink.name = name
    with pytest.raises(ConfigError, match="a sink's name="):
        EventBus([sink])
    sink.name = ""
    assert list(EventBus([sink]).sinks) == ["Sink"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_batch", 0, "max_batch=0"),
        ("max_batch", 1.5, "max_batch=1.5"),
        ("delivery", "at-most-once", "choose 'at_most_once'"),
        ("capacity", 0, "capacity=0"),
    ],
)
def test_a_wrong_attribute_of_a_sink_is_refused_at_the_door(field: str, value: object, words: str) -> None:
    class Sink:
        def handle(self, batch: object) -> None: ...

    sink: Any = Sink()
    setattr(sink, field, value)
    with pytest.raises(ConfigError, match=words):
        EventBus([sink])


def test_a_class_is_no_sink_and_one_sink_is_given_once() -> None:
    with pytest.raises(ConfigError, match=r"give an instance: MemorySink\(…\)"):
        EventBus([MemorySink])
    memory = MemorySink()
    with pytest.raises(ConfigError, match="on this bus already"):
        EventBus([memory, memory])
    with EventBus([memory])._hub as hub:  # the hub is closed, so that nothing is left
        assert hub.head == 0
    bus = EventBus([memory])
    with pytest.raises(ConfigError, match="on this bus already"):
        bus.add_sink(memory)


async def test_a_thread_may_be_a_sink_if_it_handles() -> None:
    class Both(threading.Thread):
        def __init__(self) -> None:
            super().__init__(daemon=True)
            self.got: list[int] = []

        def handle(self, batch: Sequence[Event]) -> None:
            self.got += [event.seq for event in batch]

    both = Both()
    async with EventBus([both]) as bus:
        fill(bus._hub, 3)
        assert (await bus.flush(timeout=30)).complete
    assert both.got == [1, 2, 3]


@clause("A6")
async def test_the_books_of_a_sink_say_how_far_behind_it_is_while_it_hangs() -> None:
    from datetime import timedelta

    from tests.support import StillClock

    held, clock = Held(), StillClock()
    held.capacity = 10  # type: ignore[attr-defined]
    bus = EventBus([held], clock=clock)
    fill(bus._hub, 1)
    assert await asyncio.to_thread(held.begun.wait, 30)
    clock.at += timedelta(seconds=5)
    fill(bus._hub, 3)
    clock.at += timedelta(seconds=2)
    (stats,) = bus.metrics().sinks
    assert (stats.head, stats.position, stats.lag, stats.buffered, stats.dropped) == (4, 0, 4, 4, 0)
    assert (stats.lag_seconds, stats.distance_to_loss) == (7.0, 7)
    fill(bus._hub, 9)
    (stats,) = bus.metrics().sinks
    assert (stats.dropped, stats.lag, stats.distance_to_loss) == (2, 11, 0)
    held.go.set()
    await bus.flush(timeout=30)
    (stats,) = bus.metrics().sinks
    assert (stats.lag, stats.lag_seconds, stats.distance_to_loss, stats.delivered) == (0, 0.0, 10, 11)
    assert held.got == [1, *range(4, 14)]
    await bus.shutdown()


@clause("S5")
async def test_with_diagnostics_mirrored_a_flush_to_ones_own_notice_returns() -> None:
    """The last event is one that the sink may not see: its cursor passes it without a call."""

    class Failing:
        name = "failing"

        async def handle(self, batch: object) -> None:
            raise ValueError

    bus = EventBus([Failing()], sink_retry=RetryPolicy(tries=1), diagnostics=DiagnosticsConfig(emit_to_events=True))
    for _ in range(20):
        bus.emitter().emit(node_message("a", "b"))
        assert (await bus.flush(timeout=30)).complete
        assert (await bus.flush(timeout=30)).complete
    with bus._hub.subscribe(after=0) as everything:
        assert len(drain(everything)) == bus.head
    await bus.shutdown()
