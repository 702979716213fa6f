"""Contract section 5: emitting, subscribing late, closing."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from typing import Any

import pytest

from tests.support import balanced, clause, drain, fill, replay, settle
from weavegraph import (
    EndOfStream,
    Event,
    EventBus,
    EventHub,
    EventInvalidError,
    EventTooLargeError,
    HubClosedError,
    LLMStreamingEvent,
    MemorySink,
    NodeContextError,
    NodeEvent,
    node_message,
)
from weavegraph.bus import Lane
from weavegraph.errors import EmitterError, InvalidPositionError

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and fork")


@clause("E1")
def test_with_no_subscriber_emitting_succeeds_and_late_readers_read_what_is_held() -> None:
    """Trap: in the original, publishing with no receiver is an error."""
    with EventHub() as hub:
        fill(hub, 5)
        assert replay(hub) == [1, 2, 3, 4, 5]
        with hub.subscribe(after=3) as late, hub.subscribe() as live:
            assert drain(late) == [4, 5]
            assert drain(live) == []


@clause("E2")
def test_replay_then_live_without_gap_or_duplicate_whatever_races() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with EventHub(capacity=100_000) as hub:
            fill(hub, 100)
            thread = threading.Thread(target=fill, args=(hub, 3000))
            thread.start()
            streams = []
            while thread.is_alive():
                after = hub.head // 2
                if len(streams) < 50:
                    streams.append((after, hub.subscribe(after=after)))
            thread.join()
            for after, stream in streams:
                assert drain(stream) == [*range(after + 1, 3101)]
                stream.close()
    finally:
        sys.setswitchinterval(interval)


@clause("E2")
def test_older_than_what_is_held_is_an_exact_gap_first() -> None:
    with EventHub(3) as hub:
        fill(hub, 10)
        with hub.subscribe(after=2) as stream:
            assert balanced(stream).dropped == 5
            fill(hub, 1)
            assert drain(stream) == [(3, 7), 8, 9, 10, 11]


@pytest.mark.parametrize("after", [-1, 4, True, 1.0, "1"])
def test_what_is_no_position_is_refused(after: object) -> None:
    with EventHub() as hub:
        fill(hub, 3)
        with pytest.raises(InvalidPositionError, match="0 to the head, 3"):
            hub.subscribe(after=after)  # type: ignore[arg-type]


@clause("E3")
@posix
async def test_an_emit_from_a_signal_handler_wakes_a_sleeping_loop() -> None:
    """A plain ``signal.signal`` handler runs on the loop's own thread while it sleeps in select."""
    with EventHub() as hub, hub.subscribe() as stream:
        old = signal.signal(signal.SIGUSR1, lambda *_: hub.publish(node_message("signal", "woke")))
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        try:
            timer.start()
            event = await stream.next_timeout(20)
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, old)
        assert event is not None
        assert event.message == "woke"


@clause("E3")
@posix
def test_signal_handlers_that_emit_inside_emits_keep_the_order_whole() -> None:
    with EventHub(capacity=1_000_000, max_bytes=1 << 30) as hub, hub.subscribe() as stream:
        nested: list[int] = []

        armed = 0

        def handler(*_: object) -> None:
            nested.append(hub.publish(node_message("nested", "n")))

        old = signal.signal(signal.SIGVTALRM, handler)
        outer: list[int] = []
        try:
            while len(nested) < 100 and len(outer) < 100_000:
                if len(nested) == armed:  # armed anew each time: a slow machine must not stack handlers
                    armed += 1
                    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005)
                outer.append(hub.publish(NodeEvent("outer", "o")))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, old)
        assert len(nested) > 10
        assert sorted(outer + nested) == list(range(1, hub.head + 1))
        assert drain(stream) == list(range(1, hub.head + 1))


@clause("E3", "O1")
@pytest.mark.parametrize("in_a_run", [False, True])
def test_an_emit_inside_of_stamping_comes_just_before_and_has_its_position(in_a_run: bool) -> None:
    """Whatever Python runs inside of an emit (a collector's finaliser, a clock) may emit too."""
    bus = EventHub()
    hub: EventHub = Lane(bus, "r", "s") if in_a_run else bus
    inner: list[int] = []

    class EmittingClock:
        def __init__(self, real: object) -> None:
            self.real, self.depth = real, 0

        def __call__(self) -> object:
            if self.depth < len(outer) + 1:
                self.depth += 1  # once for each outer event
                inner.append(hub.publish(node_message("inner", "i")))
            return self.real()  # type: ignore[operator]

    outer: list[int] = []
    hub._now = EmittingClock(hub._now)  # type: ignore[assignment]
    with hub.subscribe() as stream:
        for _ in range(5):
            outer.append(hub.publish(node_message("outer", "o")))
        assert sorted(inner + outer) == [*range(1, 11)]
        assert all(i + 1 == o for i, o in zip(inner, outer, strict=True))
        assert drain(stream) == [*range(1, 11)]
    assert replay(bus) == [*range(1, 11)]
    hub.close()
    bus.close()


@clause("E3")
def test_emitting_from_del_from_a_filter_and_from_a_logging_handler() -> None:
    with EventHub() as hub:

        class Dying:
            def __del__(self) -> None:
                hub.publish(node_message("del", "d"))

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                hub.publish(node_message("log", record.name))

        def noisy(event: Event) -> bool:
            if event.scope == "a":
                hub.publish(node_message("filter", "f"))
            return True

        handler = Handler()
        logging.getLogger("weavegraph.event_bus").addHandler(handler)
        try:
            with hub.subscribe(filter=noisy) as filtered, hub.subscribe(capacity=1) as lagging:
                Dying()
                fill(hub, 2)
                assert len(drain(filtered)) == 5
                # The reader's warning went through the handler into the same hub, and pushed one more out.
                assert drain(lagging) == [(1, 4), (5, 5), 6]
        finally:
            logging.getLogger("weavegraph.event_bus").removeHandler(handler)


@clause("E3")
async def test_emitting_from_a_coroutine_a_callback_another_loop_and_a_thread() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        loop = asyncio.get_running_loop()
        hub.emitter().emit(node_message("a", "coroutine"))
        loop.call_soon(fill, hub, 1)
        await asyncio.to_thread(asyncio.run, _emits(hub))
        await asyncio.to_thread(fill, hub, 1)
        await settle()
        assert drain(stream) == [1, 2, 3, 4]


async def _emits(hub: EventHub) -> None:
    hub.publish(node_message("a", "other loop"))


@clause("E4")
@pytest.mark.parametrize(
    ("event", "error"),
    [
        (node_message("", "no scope"), EventInvalidError),
        (node_message("weavegraph.x", "reserved"), EventInvalidError),
        (node_message("a", "x" * 2_000_000), EventTooLargeError),
        (node_message("a", "m", x=object()), EventInvalidError),
        (node_message("a", "m", x={1: 2}), EventInvalidError),
        ("not an event", EventInvalidError),
        (None, EventInvalidError),
    ],
)
def test_an_invalid_event_takes_no_position_and_harms_nobody(event: Event, error: type[EmitterError]) -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        fill(hub, 1)
        with pytest.raises(error) as caught:
            hub.emitter().emit(event)
        assert isinstance(caught.value, NodeContextError)
        fill(hub, 1)
        assert drain(stream) == [1, 2]


@clause("E4")
async def test_a_payload_that_cannot_be_encoded_never_kills_a_stream_or_a_sink() -> None:
    memory = MemorySink()
    async with EventBus([memory]) as bus:
        for payload in (b"bytes", {1, 2}, float("inf"), 2**64, lambda: None):
            with pytest.raises(EventInvalidError):
                bus.emitter().emit(node_message("a", "m", x=payload))
        stamped = bus.emitter().emit(node_message("a", "m", x="\ud800"))
        assert stamped is not None and stamped.metadata == {"x": "\ufffd"}
        await bus.flush(timeout=30)
        assert memory.snapshot() == (stamped,)
        assert all(row.errors == 0 for row in bus.sink_health())


@clause("E5")
def test_events_are_immutable_for_everyone_alike() -> None:
    with EventHub() as hub, hub.subscribe() as one, hub.subscribe() as two:
        mine = {"list": [1, {"k": "v"}], "tuple": (1, 2)}
        original = node_message("a", "m", **mine)
        stamped = hub.emitter().emit(original)
        again = hub.emitter().emit(original)
        mine["list"].append("later")  # type: ignore[attr-defined]
        a, b = one.try_recv(), two.try_recv()
        assert a is b and a is not None and stamped is not None and again is not None
        assert a.metadata == {"list": [1, {"k": "v"}], "tuple": [1, 2]}
        assert (stamped.seq, again.seq, original.seq) == (1, 2, 0)
        with pytest.raises(AttributeError):
            a.message = "changed"  # type: ignore[misc]
        for change in (
            lambda: a.metadata.update(x=1),  # type: ignore[attr-defined]
            lambda: a.metadata.__setitem__("x", 1),  # type: ignore[attr-defined]
            lambda: a.metadata["list"].append(1),
            lambda: a.metadata["list"][1].clear(),
            lambda: a.metadata["tuple"].sort(),
        ):
            with pytest.raises(TypeError, match="cannot be changed"):
                change()
        assert two.try_recv() == again


@clause("E6")
def test_the_reserved_prefix_is_refused_from_user_code() -> None:
    with EventHub() as hub:
        for scope in ("weavegraph.", "weavegraph.stream.end", "weavegraph.gap"):
            with pytest.raises(EventInvalidError, match="runtime's own"):
                hub.publish(node_message(scope, "forged"))
        assert hub.publish(node_message("weavegraphs", "fine")) == 1


@clause("C1")
async def test_close_takes_effect_at_once_and_readers_read_what_is_buffered_then_end_for_good() -> None:
    hub = EventHub()
    stream, parked = hub.subscribe(), hub.subscribe()
    fill(hub, 2)
    assert drain(parked) == [1, 2]
    waiting = asyncio.create_task(parked.recv())
    await settle()
    hub.close()
    hub.close()
    with pytest.raises(HubClosedError):
        hub.publish(node_message("a", "late"))
    with pytest.raises(EndOfStream):
        await waiting
    assert [event.seq async for event in stream] == [1, 2]
    for _ in range(2):
        with pytest.raises(EndOfStream):
            await stream.recv()
        with pytest.raises(EndOfStream):
            stream.try_recv()
        with pytest.raises(EndOfStream):
            await stream.recv_many()
        with pytest.raises(EndOfStream):
            await stream.next_timeout(1)
        assert [event async for event in stream] == []
    assert replay(hub) == [1, 2]


@clause("C1")
def test_close_against_eight_emitting_threads() -> None:
    """Each emit is accepted, and read, or raises: nothing in between."""
    for _ in range(20):
        hub = EventHub(capacity=1_000_000)
        stream = hub.subscribe()
        accepted: list[int] = []
        begun = threading.Barrier(9)

        def produce(hub: EventHub = hub, accepted: list[int] = accepted, begun: threading.Barrier = begun) -> None:
            begun.wait(30)
            try:
                while True:
                    accepted.append(hub.publish(NodeEvent("a", "b")))
            except HubClosedError:
                pass

        threads = [threading.Thread(target=produce) for _ in range(8)]
        for thread in threads:
            thread.start()
        begun.wait(30)
        while hub.head < 200:
            pass
        hub.close()
        for thread in threads:
            thread.join()
        assert sorted(accepted) == drain(stream) == list(range(1, hub.head + 1))
        assert hub.producer_stats().refused_closed == 8


@clause("C2")
async def test_shutdown_drains_every_sink_and_reports() -> None:
    """Trap: the original's stop is a race between the signal and the queue; the tail may miss the sinks."""

    class Slow:
        name, got, closed, flushed = "slow", 0, False, False

        async def handle(self, batch: tuple[Event, ...]) -> None:
            await asyncio.sleep(0)
            self.got += len(batch)

        async def flush(self) -> None:
            self.flushed = True

        async def aclose(self) -> None:
            assert self.flushed
            self.closed = True

    slow, memory = Slow(), MemorySink()
    bus = EventBus([slow, memory])
    fill(bus._hub, 5000)
    report = await bus.shutdown(30)
    assert report.complete and report.pending == () and not report.errors
    assert [(stats.delivered, stats.abandoned, stats.unaccounted) for stats in report.sinks] == [(5000, 0, 0)] * 2
    assert (slow.got, slow.closed, len(memory.snapshot())) == (5000, True, 5000)
    with pytest.raises(HubClosedError):
        bus.emitter().emit(node_message("a", "late"))
    assert await bus.shutdown() is report


@clause("C2")
async def test_a_sink_that_does_not_finish_in_time_is_named_and_its_rest_abandoned() -> None:
    hold = threading.Event()

    class Stuck:
        name, max_batch = "stuck", 1

        def handle(self, batch: object) -> None:
            hold.wait(30)

    bus = EventBus([Stuck(), MemorySink()])
    fill(bus._hub, 10)
    report = await bus.shutdown(0.05)
    assert report.pending == ("stuck",)
    assert not report.complete
    assert [stats.unaccounted for stats in report.sinks] == [0, 0]
    assert [stats.abandoned for stats in report.sinks] == [10, 0]
    hold.set()


@clause("C3")
async def test_flush_returns_when_all_acknowledged_or_says_who_did_not() -> None:
    hold = threading.Event()

    class Stuck:
        name = "stuck"

        def handle(self, batch: object) -> None:
            hold.wait(30)

    memory = MemorySink()
    bus = EventBus([memory, Stuck()])
    fill(bus._hub, 100)
    report = await bus.flush(timeout=0.1)
    assert (report.upto, report.flushed, report.pending, report.complete) == (100, ("memory",), ("stuck",), False)
    hold.set()
    assert (await bus.flush(upto=50, timeout=30)).complete
    assert (await bus.flush(timeout=30)).flushed == ("memory", "stuck")
    assert len(memory.snapshot()) == 100
    await bus.shutdown()


@clause("C4")
def test_what_a_user_left_open_warns_at_collection() -> None:
    hub = EventHub()
    stream = hub.subscribe()
    fill(hub, 1)
    with pytest.warns(ResourceWarning, match="unclosed <EventStream"):
        del stream
        gc.collect()
    assert hub.metrics().abandoned == 1
    with pytest.warns(ResourceWarning, match="unclosed <EventHub"):
        del hub
        gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed = EventHub()
        fill(closed, 1)
        ended = closed.subscribe(after=0)
        closed.close()
        del ended, closed
        gc.collect()


@clause("C4")
def test_nothing_hangs_interpreter_exit_and_unshut_sinks_are_drained(tmp_path: object) -> None:
    script = textwrap.dedent(
        f"""
        import threading
        from weavegraph import EventBus, EventHub, JsonLinesSink, node_message
        hub = EventHub()
        reader = threading.Thread(target=lambda: list(hub.subscribe().blocking()), daemon=True)
        reader.start()
        class Stuck:
            def handle(self, batch):
                threading.Event().wait()
        bus = EventBus([JsonLinesSink({str(tmp_path) + "/e.jsonl"!r}), Stuck()])
        for n in range(1000):
            bus.emitter().emit(node_message("a", str(n)))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with open(str(tmp_path) + "/e.jsonl", "rb") as file:
        assert sum(1 for _ in file) == 1000


@posix
def test_after_fork_a_used_hub_refuses_and_an_unused_one_works_with_an_epoch_of_its_own() -> None:
    script = textwrap.dedent(
        """
        import os
        from weavegraph import EventBus, EventHub, MemorySink, node_message
        from weavegraph.errors import ForkedHubError
        used, unused, bus = EventHub(), EventHub(), EventBus([MemorySink()])
        used.publish(node_message("a", "parent"))
        epoch = unused.epoch
        pid = os.fork()
        if pid == 0:
            try:
                used.publish(node_message("a", "child"))
            except ForkedHubError:
                print("refused")
            try:
                used.subscribe()
            except ForkedHubError:
                print("refused")
            print(unused.publish(node_message("a", "child")), unused.epoch != epoch)
            bus.emitter().emit(node_message("a", "child"))
            bus.close()
            print(len(bus.sinks["memory"].snapshot()), flush=True)
            unused.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print(used.publish(node_message("a", "parent")))
        used.close()
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout.split("\n"), done.stderr) == (["refused", "refused", "1 True", "1", "2", ""], "")


def test_nothing_of_a_bus_can_be_pickled_by_accident() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        for thing in (hub, stream):
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(thing)


@clause("E3", "C1")
@pytest.mark.parametrize("what", ["publish", "subscribe", "close"])
def test_whatever_happens_inside_of_making_room_is_kept(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler may run at any bytecode of the slow path; here it runs in the middle of it."""
    hub = EventHub(capacity=100)
    streams = [hub.subscribe(after=0, capacity=1000)]
    inner: list[int] = []
    real = hub._heeded
    acted: list[int] = []

    def interrupted() -> list[object]:
        found = real()
        if not acted and hub.head in (16, 32):
            acted.append(hub.head)
            if what == "publish":
                inner.append(hub.publish(node_message("inner", "i")))
            elif what == "subscribe":
                streams.append(hub.subscribe(capacity=1000))
            else:
                hub.close()
        return found  # type: ignore[return-value]

    monkeypatch.setattr(hub, "_heeded", interrupted)
    outer: list[int] = []
    try:
        for _ in range(300):
            outer.append(hub.publish(node_message("outer", "o")))
    except HubClosedError:
        assert what == "close"
    assert acted
    assert sorted(outer + inner) == [*range(1, hub.head + 1)]
    if what == "close":
        assert hub.head == acted[0]
    for stream in streams:
        assert drain(stream) == [*range(stream.stats().s0 + 1, hub.head + 1)]
        stream.close()
    hub.close()


@clause("E4")
@pytest.mark.parametrize("where", ["metadata", "key", "node_id", "message", "path", "phase", "chunk", "run_id"])
def test_a_field_whose_own_code_raises_is_a_refusal_by_name(where: str) -> None:
    class Evil(dict):  # type: ignore[type-arg]
        def _raise(self, *_: object) -> Any:
            raise RuntimeError("boom")

        __repr__ = __eq__ = __ne__ = __iter__ = items = __bool__ = __len__ = _raise  # type: ignore[assignment]
        __hash__ = object.__hash__

    class Text(str):
        def isascii(self) -> bool:
            raise RuntimeError("boom")

    evil = Evil()
    event: Any = {
        "metadata": lambda: NodeEvent("a", "m", evil),
        "key": lambda: NodeEvent("a", "m", {evil: 1}),  # type: ignore[dict-item]
        "node_id": lambda: NodeEvent("a", "m", node_id=evil),  # type: ignore[arg-type]
        "message": lambda: NodeEvent("a", evil),  # type: ignore[arg-type]
        "path": lambda: NodeEvent("a", "m", path=evil),  # type: ignore[arg-type]
        "phase": lambda: LLMStreamingEvent("a", "m", chunk="m", phase=evil),  # type: ignore[arg-type]
        "chunk": lambda: LLMStreamingEvent("a", "m", chunk=evil),  # type: ignore[arg-type]
        "run_id": lambda: NodeEvent("a", "m", run_id=evil),  # type: ignore[arg-type]
    }[where]()
    with EventHub() as hub:
        with pytest.raises(EventInvalidError, match="event refused"):
            hub.publish(event)
        assert (hub.head, hub.producer_stats().refused_invalid) == (0, 1)
        assert hub.publish(NodeEvent("a", Text("fine"))) == 1
