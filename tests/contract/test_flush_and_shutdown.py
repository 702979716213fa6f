"""Contract C2 to C4, P1 and P3: flushing, ending, being dropped, being forked."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import clause, drain, fill, settle
from weavegraph import Event, EventBus, EventStream, HubClosedError, JsonLinesSink, MemorySink, node_message
from weavegraph.bus import LoopThread, RetryPolicy
from weavegraph.errors import ConfigError, SinkError

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX fork")
QUICK = RetryPolicy(tries=3, base=0.0, cap=0.0)


def ours() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("weavegraph")}


async def no_threads_left() -> None:
    while ours():  # they were told to end; nothing else can make them last
        await asyncio.sleep(0)


class Held:
    name = "held"

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def handle(self, batch: Sequence[Event]) -> None:
        self.begun.set()
        self.go.wait(30)


class Recorder:
    """An async sink that tells what happens to it."""

    name = "recorder"

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.starting = asyncio.Event()

    async def start(self) -> None:
        self.log.append("start")
        await asyncio.sleep(0)
        self.log.append("started")

    async def handle(self, batch: Sequence[Event]) -> None:
        await asyncio.sleep(0)
        self.log.append(len(batch))

    async def flush(self) -> None:
        self.log.append("flush")
        await asyncio.sleep(0)
        self.log.append("flushed")

    async def aclose(self) -> None:
        self.log.append("close")
        await asyncio.sleep(0)
        self.log.append("closed")


@clause("C3")
async def test_a_flush_comes_after_the_start_and_between_batches_and_the_end_closes_once() -> None:
    recorder = Recorder()
    bus = EventBus([recorder])
    assert (await bus.flush(timeout=30)).complete
    assert recorder.log == ["start", "started", "flush", "flushed"]
    fill(bus._hub, 1)
    assert (await bus.flush(timeout=30)).complete
    assert recorder.log[4:] == [1, "flush", "flushed"]
    assert (await bus.shutdown(30)).complete
    assert recorder.log[7:] == ["flush", "flushed", "close", "closed"]


@clause("C3")
async def test_after_the_end_a_flush_answers_at_once(tmp_path: Path) -> None:
    bus = EventBus([JsonLinesSink(tmp_path / "e.jsonl"), MemorySink()])
    guard = bus.add_sink(Recorder())
    fill(bus._hub, 3)
    first = await guard.remove(30)
    assert (first.delivered, first.unaccounted) == (3, 0)
    assert await asyncio.wait_for(guard.drain(), 10)  # all that it was to handle it has
    assert await asyncio.wait_for(guard.remove(), 10) == first
    assert guard.health().state == "closed"
    await bus.shutdown(30)
    report = await asyncio.wait_for(bus.flush(), 10)
    assert (report.upto, report.flushed, report.pending) == (3, ("jsonl", "memory"), ())
    await no_threads_left()


@clause("C3")
async def test_a_sink_with_its_own_loop_has_handled_what_it_came_back_from() -> None:
    go = threading.Event()

    class Own:
        name = "own"
        flushes = 0

        def __init__(self) -> None:
            self.handled = 0

        async def run(self, stream: EventStream) -> None:
            async for _ in stream:
                await asyncio.to_thread(go.wait, 30)
                self.handled += 1

        async def flush(self) -> None:
            self.flushes += 1

    own = Own()
    bus = EventBus([own])
    fill(bus._hub, 10)
    assert (await bus.flush(timeout=0.05)).pending == ("own",)
    assert own.handled == 0
    go.set()
    assert (await bus.flush(timeout=30)).complete
    assert (own.handled, own.flushes) == (10, 1)
    fill(bus._hub, 5)
    assert (await bus.flush(upto=12, timeout=30)).complete
    assert own.handled >= 12
    await bus.shutdown(30)


@clause("C3")
@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("where", ["between the cursor and the call", "in the call"])
async def test_a_flush_never_returns_before_the_sink_has_the_events(inline: bool, where: str) -> None:
    taken, go = threading.Event(), threading.Event()

    class Memory(MemorySink):
        def handle(self, batch: Sequence[Event]) -> None:
            if where == "in the call":
                taken.set()
                go.wait(30)
            super().handle(batch)

    memory: Any = Memory()
    memory.inline = inline
    bus = EventBus([memory])
    if where != "in the call":
        memory.max_batch = 1000  # other than most, so it is fed alone
        bus = EventBus([memory])
        take = bus._workers[0].stream._take_many

        def slowly(most: int) -> tuple[Event, ...]:
            batch = take(most)
            if batch:
                taken.set()
                go.wait(30)
            return batch

        bus._workers[0].stream._take_many = slowly  # type: ignore[method-assign]
    bus.listen_for_events()
    fill(bus._hub, 3)
    assert await asyncio.to_thread(taken.wait, 30)
    stats = bus._workers[0].stats()
    assert (stats.delivered, stats.buffered, stats.position, stats.unaccounted) == (0, 3, 0, 0)
    assert not (await bus.flush(timeout=0.05)).complete
    go.set()
    assert (await bus.flush(timeout=30)).complete
    assert len(memory.snapshot()) == 3
    await bus.shutdown(30)


@clause("C3")
async def test_a_failing_flush_is_told_and_the_next_may_succeed() -> None:
    class Disk(MemorySink):
        name, full = "disk", True

        def flush(self) -> None:
            if self.full:
                raise OSError(28, "No space left on device")

    disk = Disk()
    bus = EventBus([disk], sink_retry=QUICK)
    fill(bus._hub, 1)
    assert (await bus.flush(timeout=30)).pending == ("disk",)
    assert bus.sink_health()[0].last_error == "OSError: [Errno 28] No space left on device"
    disk.full = False
    assert (await bus.flush(timeout=30)).complete
    assert (await bus.shutdown(30)).errors == {"disk": "OSError: [Errno 28] No space left on device"}


@clause("C3")
async def test_flushes_that_timed_out_or_were_cancelled_leave_nothing_behind() -> None:
    held = Held()
    bus = EventBus([held])
    fill(bus._hub, 1)
    for _ in range(20):
        assert not (await bus.flush(timeout=0.001)).complete
    task = asyncio.create_task(bus.flush())
    await settle()
    task.cancel()
    await asyncio.wait([task])
    assert bus._workers[0]._requests == []
    held.go.set()
    assert (await bus.flush(timeout=30)).complete
    await bus.shutdown(30)


async def test_flushing_from_inside_of_a_sink_does_not_hang_it() -> None:
    told: list[object] = []

    class Sink:
        name = "s"

        async def handle(self, batch: object) -> None:
            told.append(await bus.flush(timeout=0.05))

    bus = EventBus([Sink()])
    fill(bus._hub, 1)
    assert (await bus.flush(timeout=30)).complete
    assert [report.pending for report in told] == [("s",)]  # type: ignore[attr-defined]
    await bus.shutdown(30)


@pytest.mark.parametrize("seconds", [float("nan")])
async def test_what_is_no_timeout_is_refused(seconds: float) -> None:
    bus = EventBus()
    for call in (bus.flush(timeout=seconds), bus.shutdown(seconds)):
        with pytest.raises(ValueError, match="number of seconds"):
            await call
    with pytest.raises(ConfigError, match="from 0 to 0"):
        await bus.flush(upto=1)
    await bus.shutdown()


# ── ending ───────────────────────────────────────────────────────────────────────────────────────────


@clause("C2")
async def test_two_shutdowns_share_one_ending_and_a_flush_beside_them_says_who_was_cut() -> None:
    held = Held()
    bus = EventBus([held])
    fill(bus._hub, 3)
    assert await asyncio.to_thread(held.begun.wait, 30)
    flush = asyncio.create_task(bus.flush())
    await settle()
    long, short = asyncio.create_task(bus.shutdown(None)), asyncio.create_task(bus.shutdown(0.05))
    one, two, flushed = await asyncio.wait_for(asyncio.gather(long, short, flush), 10)
    assert one is two and one.pending == ("held",)
    assert flushed.pending == ("held",)
    assert (await bus.flush(timeout=10)).pending == ("held",)
    held.go.set()


@clause("C2")
async def test_a_cut_sink_is_given_time_to_close() -> None:
    log: list[str] = []

    class Slow:
        name = "slow"

        async def handle(self, batch: object) -> None:
            log.append("handle")
            await asyncio.Event().wait()

        async def aclose(self) -> None:
            log.append("close")
            await asyncio.to_thread(int)  # several turns of its loop
            log.append("closed")

    bus = EventBus([Slow()])
    fill(bus._hub, 1)
    while not log:
        await asyncio.sleep(0)
    report = await bus.shutdown(0.0)
    assert (log, report.pending) == (["handle", "close", "closed"], ("slow",))


@clause("C2")
async def test_a_sink_that_refuses_to_be_cancelled_does_not_stop_the_users_loop() -> None:
    begun, over = threading.Event(), False

    class Stubborn:
        name = "stubborn"

        async def handle(self, batch: object) -> None:
            begun.set()
            while not over:
                try:
                    await asyncio.to_thread(int)
                except asyncio.CancelledError:
                    pass

    bus = EventBus([Stubborn()])
    fill(bus._hub, 1)
    assert await asyncio.to_thread(begun.wait, 30)
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    ticking = asyncio.create_task(tick())
    report = await bus.shutdown(0.05)
    assert report.pending == ("stubborn",)
    assert turns > 100  # the loop went round all the time
    ticking.cancel()
    over = True
    await no_threads_left()


@clause("C2")
async def test_shutting_down_from_inside_of_a_sink_ends_in_time() -> None:
    reports: list[Any] = []

    class Sync:
        name = "sync"

        def handle(self, batch: object) -> None:
            reports.append(bus.close(0.05))

    bus = EventBus([Sync()])
    fill(bus._hub, 1)
    report = await asyncio.wait_for(bus.shutdown(30), 20)
    await no_threads_left()
    assert reports == [report] and report.pending == ("sync",)


@clause("C2", "P1")
async def test_a_cancelled_shutdown_goes_on() -> None:
    recorder, held = Recorder(), Held()
    bus = EventBus([recorder, held])
    fill(bus._hub, 3)
    assert await asyncio.to_thread(held.begun.wait, 30)
    task = asyncio.create_task(bus.shutdown(30))
    await settle()
    task.cancel()
    await asyncio.wait([task])
    held.go.set()
    assert (await bus.shutdown()).complete
    assert recorder.log[-1] == "closed"


@clause("P1")
@pytest.mark.parametrize("how", ["nothing", "a cancelled shutdown", "dropped"])
def test_the_exit_drains_what_nobody_shut_down(how: str) -> None:
    script = f"""
    import asyncio, warnings
    warnings.simplefilter("ignore")
    from weavegraph import EventBus, node_message
    class S:
        async def handle(self, batch):
            await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.1)
            print("handled", len(batch), flush=True)
        async def aclose(self):
            print("closed", flush=True)
    async def main():
        bus = EventBus([S()])
        for _ in range(3):
            bus._hub.publish(node_message("a", "b"))
        if {how!r} == "a cancelled shutdown":
            try:
                await asyncio.wait_for(bus.shutdown(), 0.001)
            except TimeoutError:
                pass
        return None if {how!r} == "dropped" else bus
    bus = asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout.split()[-1], done.stderr) == (0, "closed", "")
    handled = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("handled")]
    assert sum(handled) == 3


@clause("C4")
async def test_a_bus_that_is_dropped_warns_is_collected_and_its_sinks_finish() -> None:
    memory, recorder = MemorySink(), Recorder()
    bus = EventBus([memory, recorder])
    fill(bus._hub, 3)
    gone = weakref.ref(bus)
    with pytest.warns(ResourceWarning, match="unclosed <EventBus") as caught:
        del bus
        gc.collect()
    caught.clear()  # a warning holds its source
    gc.collect()
    assert gone() is None
    await no_threads_left()
    assert (len(memory.snapshot()), recorder.log[-1]) == (3, "closed")


@clause("C4")
async def test_who_emits_or_watches_keeps_the_bus() -> None:
    memory = MemorySink()
    bus = EventBus([memory])
    emitter, stream = bus.emitter(), bus.subscribe()
    del bus
    gc.collect()
    emitter.emit(node_message("a", "one"))
    assert drain(stream) == [1]
    owner: Any = stream._owner
    assert (await owner.flush(timeout=30)).complete
    assert len(memory.snapshot()) == 1
    stream.close()
    await owner.shutdown()


@clause("A4", "R6")
async def test_a_removed_sink_leaves_its_totals_and_no_row_thread_or_watchdog() -> None:
    bus = EventBus([kept := MemorySink()])
    for _ in range(30):
        guard = bus.add_sink(MemorySink())
        fill(bus._hub, 2)
        await guard.remove(30)
    guard = bus.add_sink(Recorder())
    await guard.remove(30)
    metrics = bus.metrics()
    assert [stats.name for stats in metrics.sinks] == ["memory"]
    assert (metrics.removed.sinks, metrics.removed.delivered, metrics.removed.abandoned) == (31, 60, 0)
    await bus.guard("memory").remove(30)
    assert len(kept.snapshot()) == 60
    await no_threads_left()
    await bus.shutdown()


# ── threads that cannot be had ───────────────────────────────────────────────────────────────────────


@clause("E4", "S7")
async def test_without_a_thread_emitting_succeeds_and_the_sinks_start_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(self: object) -> None:
        raise RuntimeError("can't start new thread")

    bus = EventBus([memory := MemorySink(), recorder := Recorder(), held := MemorySink()])
    held.inline = False
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        stamped = [bus.emitter().emit(node_message("a", str(n))) for n in range(3)]
        assert [event.seq for event in stamped if event] == [1, 2, 3]
        for call in (bus.listen_for_events, bus.subscribe):
            with pytest.raises(SinkError, match="no thread can be started"):
                call()
        with pytest.raises(SinkError, match="no thread can be started"):
            await bus.flush()
    assert bus.emitter().emit(node_message("a", "4")) is not None
    assert (await bus.flush(timeout=30)).complete
    assert len(memory.snapshot()) == 4
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(SinkError):
            bus.add_sink(Recorder())
        assert list(bus.sinks) == ["memory", "recorder", "memory#2"]
        report = await bus.shutdown(30)  # it drains on this thread then
    assert report.complete
    assert recorder.log[-1] == "closed"


async def test_a_loop_thread_outlives_what_its_tasks_raise_and_starts_afresh_after_a_stop() -> None:
    thread = LoopThread("test-loop")

    async def exits() -> None:
        raise SystemExit(3)

    async def answer() -> int:
        return 42

    gone = thread.submit(exits())
    assert await asyncio.to_thread(gone.exception, 30) is not None
    assert await asyncio.wrap_future(thread.submit(answer())) == 42
    first = thread.loop
    waiting = thread.submit(asyncio.Event().wait())
    thread.stop(30)
    assert waiting.cancelled()
    assert await asyncio.wrap_future(thread.submit(answer())) == 42
    assert thread.loop is not first
    thread.stop(30)
    thread.stop(30)


def test_what_is_submitted_while_a_loop_thread_stops_is_run_or_cancelled_and_never_forgotten() -> None:
    thread = LoopThread("test-loop")

    async def answer() -> int:
        return 42

    for _ in range(200):
        future = thread.submit(answer())
        stopper = threading.Thread(target=thread.stop, args=(30,))
        stopper.start()
        other = thread.submit(answer())
        stopper.join(30)
        for each in (future, other):
            try:
                assert each.result(30) == 42
            except BaseException as exc:
                assert type(exc).__name__ == "CancelledError"
    thread.stop(30)


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────────

FORKED = """
import asyncio, os, sys, time
from weavegraph import EventBus, MemorySink, node_message
from weavegraph.errors import ForkedHubError
parent = os.getpid()
class S:
    name = "s"
    def __init__(self):
        self.got = []
    async def handle(self, batch):
        self.got.extend(batch)
    def close(self):
        print("closed by the", "parent" if os.getpid() == parent else "child", flush=True)
sink = S()
bus = EventBus([sink, MemorySink()])
how = sys.argv[1]
lane = bus.open_lane("r", "s")
if how == "listening":
    bus.listen_for_events()
    asyncio.run(bus.flush())
if how == "subscribed":
    stream = bus.subscribe()
if how == "used":
    bus.emitter().emit(node_message("a", "parent"))
    asyncio.run(bus.flush())
if os.fork() == 0:
    if how == "used":
        calls = [lambda: bus.emitter().emit(node_message("a", "b")), bus.subscribe, bus.listen_for_events,
                 lambda: asyncio.run(bus.flush()), bus.close, lambda: asyncio.run(bus.shutdown()),
                 lambda: bus.add_sink(MemorySink()), lambda: bus.open_lane("r2", "s"),
                 lambda: lane.publish(node_message("a", "b")), lambda: asyncio.run(bus.guard("s").remove()),
                 lambda: asyncio.run(bus.guard("s").drain())]
        for call in calls:
            try:
                print("accepted", call())
            except ForkedHubError:
                pass
        print(len(sink.got), len(bus.sinks["memory"].snapshot()), flush=True)
    else:
        lane.publish(node_message("a", "child"))
        bus.emitter().emit(node_message("a", "child"))
        assert lane.epoch == bus.epoch
        assert asyncio.run(bus.flush(timeout=20)).complete
        if how == "subscribed":
            assert asyncio.run(stream.recv()).run_seq == 1
        print(len(sink.got), len(bus.sinks["memory"].snapshot()), flush=True)
        bus.close(20)
    os._exit(0)
os.wait()
lane.publish(node_message("a", "parent"))
assert asyncio.run(bus.flush(timeout=20)).complete
print(len(sink.got), flush=True)
bus.close(20)
"""


@posix
@clause("P3")
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("unused", "2 2|closed by the child|1|closed by the parent"),
        ("listening", "2 2|closed by the child|1|closed by the parent"),
        ("subscribed", "2 2|closed by the child|1|closed by the parent"),
        ("used", "1 1|2|closed by the parent"),
    ],
)
def test_after_fork_an_unused_bus_works_and_a_used_one_refuses_and_leaves_the_parents_sinks_alone(
    how: str, words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, how],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert ("|".join(done.stdout.splitlines()), done.stderr) == (words, "")


# ── finalisers ───────────────────────────────────────────────────────────────────────────────────────


@clause("R6", "C4")
def test_a_stream_that_dies_while_its_hub_is_locked_elsewhere_waits_for_nobody() -> None:
    """The collector may run under another hub's lock; waiting for this one could be for ever, two times."""
    from weavegraph import EventHub

    with EventHub() as hub:
        stream = hub.subscribe(capacity=5, overflow="block")
        stream._warns = False
        fill(hub, 3)
        locked, release = threading.Event(), threading.Event()

        def hold() -> None:
            with hub._lock:
                locked.set()
                release.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        locked.wait(30)
        begun = time.monotonic()
        del stream
        gc.collect()
        assert time.monotonic() - begun < 10
        release.set()
        holder.join()
        assert (hub.metrics().abandoned, hub.metrics().subscribers) == (3, ())
        fill(hub, 10)  # nobody blocks any more


@clause("K1")
def test_the_bytes_of_a_lane_that_was_collected_come_back() -> None:
    bus = EventBus(keep_runs=0)
    before = bus.metrics().bytes
    for n in range(20):
        lane = bus.open_lane(f"r{n}", "s")
        fill(lane, 100)
        bus.end_attempt(lane, "completed")
    del lane
    gc.collect()
    with bus._hub._lock:
        held = bus._hub._charged
    assert bus.metrics().bytes == held >= before
    bus.close()


@clause("C1")
async def test_after_the_end_everything_says_so() -> None:
    bus = EventBus()
    await bus.shutdown()
    bus.listen_for_events()
    with pytest.raises(HubClosedError):
        bus.add_sink(MemorySink())
    with pytest.raises(HubClosedError):
        bus.open_lane("r", "s")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del bus
        gc.collect()
