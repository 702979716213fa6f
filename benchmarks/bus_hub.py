"""The hub against an ``asyncio.Queue`` for each subscriber, side by side in the same run.

Fan-out counts deliveries per CPU second: one producer, N readers, ``burst`` events between two yields of the producer.
The queues carry the very event they are given; the hub checks, stamps and accounts for each. Every reader must have
received every event, or the round is an error.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from benchmarks.measure import Sample, cpu_seconds, rounds, table
from weavegraph import EndOfStream, EventBus, EventHub, EventStream, node_message
from weavegraph.events import Event

__all__ = ["run"]

READERS = (1, 8, 64, 1000)
EVENT = node_message("bench", "a small event")


def run(quick: bool = False) -> str:
    """Every table, as Markdown."""
    count = 3 if quick else 7
    parts = [
        fan_out(64, count, quick),
        fan_out(1, count, quick),
        inline_sinks(count, quick),
        latency(3 if quick else 9, 100 if quick else 300),
        from_a_thread(count, 10_000 if quick else 40_000),
        publish_cost(3 * count, 4_000 if quick else 8_000),
        emit(count, 10_000 if quick else 40_000),
        floor(count, quick),
    ]
    return "\n\n".join(parts)


# ── fan-out ──────────────────────────────────────────────────────────────────────────────────────────


def fan_out(burst: int, count: int, quick: bool) -> str:
    wanted = (20_000 if quick else 120_000) if burst > 1 else (6_000 if quick else 24_000)
    # So many that a reader's beginning and end (books, a growing ring, short first slices) do not show in the rate.
    least = (4 if quick else 30) * burst if burst > 1 else (40 if quick else 200)
    rows = []
    for readers in READERS:
        events = max(least, wanted // readers // burst * burst)
        results = rounds(
            {
                "async for": lambda n=readers, e=events: _run(_hub, n, e, burst, _iterate),
                "recv_many": lambda n=readers, e=events: _run(_hub, n, e, burst, _many),
                "Queue": lambda n=readers, e=events: _run(_queues, n, e, burst, _get),
                "drained": lambda n=readers, e=events: _run(_queues, n, e, burst, _get_all),
            },
            count,
        )
        queue = results["Queue"]
        rows.append(
            [
                str(readers),
                results["async for"].text(_rate),
                _times(results["async for"], queue),
                results["recv_many"].text(_rate),
                _times(results["recv_many"], queue),
                queue.text(_rate),
                results["drained"].text(_rate),
            ]
        )
    head = ["subscribers", "`async for`", "× Queue", "`recv_many`", "× Queue", "Queue", "Queue, drained"]
    return f"### Deliveries per CPU second, burst {burst}, {count} rounds\n\n" + table(head, rows)


def _run(contender: Callable[..., Awaitable[float]], *arguments: object) -> float:
    return asyncio.run(contender(*arguments))  # type: ignore[arg-type]


async def _hub(readers: int, events: int, burst: int, read: Callable[[EventStream], Awaitable[None]]) -> float:
    hub = EventHub()
    streams = [hub.subscribe() for _ in range(readers)]
    tasks = [asyncio.ensure_future(read(stream)) for stream in streams]
    await asyncio.sleep(0)
    publish = hub.publish
    before = cpu_seconds()
    for _ in range(events // burst):
        for _ in range(burst):
            publish(EVENT)
        await asyncio.sleep(0)
    hub.close()
    await asyncio.gather(*tasks)
    spent = cpu_seconds() - before
    return _deliveries([stream.stats().delivered for stream in streams], events, readers) / spent


async def _queues(
    readers: int, events: int, burst: int, read: Callable[[asyncio.Queue[Event | None]], Awaitable[int]]
) -> float:
    queues: list[asyncio.Queue[Event | None]] = [asyncio.Queue() for _ in range(readers)]
    tasks = [asyncio.ensure_future(read(queue)) for queue in queues]
    await asyncio.sleep(0)
    puts = [queue.put_nowait for queue in queues]
    before = cpu_seconds()
    for _ in range(events // burst):
        for _ in range(burst):
            for put in puts:
                put(EVENT)
        await asyncio.sleep(0)
    for put in puts:
        put(None)
    got = await asyncio.gather(*tasks)
    spent = cpu_seconds() - before
    return _deliveries(got, events, readers) / spent


def _deliveries(got: list[int], events: int, readers: int) -> int:
    if got != [events] * readers:
        raise AssertionError(f"of {events} events the readers received {min(got)} to {max(got)}")
    return events * readers


async def _iterate(stream: EventStream) -> None:
    async for _ in stream:
        pass


async def _many(stream: EventStream) -> None:
    try:
        while True:
            for _ in await stream.recv_many():
                pass
    except EndOfStream:
        pass


async def _get(queue: asyncio.Queue[Event | None]) -> int:
    get, count = queue.get, 0
    while await get() is not None:
        count += 1
    return count


async def _get_all(queue: asyncio.Queue[Event | None]) -> int:
    get, get_nowait, empty, count = queue.get, queue.get_nowait, queue.empty, 0
    while True:
        event = await get()
        while True:
            if event is None:
                return count
            count += 1
            if empty():
                break
            event = get_nowait()


# ── inline sinks: on the bus's own thread, all from one pump ─────────────────────────────────────────


class _Counting:
    """An inline sink that counts; the last of them tells when it has all."""

    inline = True
    __slots__ = ("count", "tell", "wanted")

    def __init__(self, wanted: int, tell: Callable[[], object]) -> None:
        self.count, self.wanted, self.tell = 0, wanted, tell


class _Batches(_Counting):
    __slots__ = ()

    def handle(self, batch: Sequence[Event]) -> None:
        self.count += len(batch)
        if self.count == self.wanted:
            self.tell()


class _Each(_Counting):
    __slots__ = ()

    def handle(self, batch: Sequence[Event]) -> None:
        for _ in batch:
            self.count += 1
        if self.count == self.wanted:
            self.tell()


def inline_sinks(count: int, quick: bool) -> str:
    rows = []
    for sinks in READERS:
        events = max(200 if quick else 1_000, (6_000 if quick else 24_000) // sinks)
        queued = max(40 if quick else 200, (6_000 if quick else 24_000) // sinks)
        results = rounds(
            {
                "batches": lambda n=sinks, e=events: _run(_sinks, n, e, _Batches),
                "each": lambda n=sinks, e=events: _run(_sinks, n, e, _Each),
                "Queue": lambda n=sinks, e=queued: _run(_queues, n, e, 1, _get),
            },
            count,
        )
        queue = results["Queue"]
        cells = [f"{results[name].text(_rate)} | {_times(results[name], queue)}" for name in ("batches", "each")]
        rows.append([str(sinks), *" | ".join(cells).split(" | "), queue.text(_rate)])
    head = ["sinks", "counting batches", "× Queue", "counting each event", "× Queue", "Queue"]
    title = f"### Inline sinks, deliveries per CPU second, the producer yields after each event, {count} rounds\n\n"
    return title + table(head, rows)


async def _sinks(number: int, events: int, kind: type[_Counting]) -> float:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    left = iter(range(number - 1, -1, -1))

    def tell() -> None:  # the one thread of the pump calls this, once for each sink
        if not next(left):
            loop.call_soon_threadsafe(ready.set)

    sinks = [kind(events, tell) for _ in range(number)]
    bus = EventBus(sinks)
    await bus.flush()
    publish = bus.emitter().emit
    before = cpu_seconds()
    for _ in range(events):
        publish(EVENT)
        await asyncio.sleep(0)
    await ready.wait()
    spent = cpu_seconds() - before
    await bus.shutdown()
    return _deliveries([sink.count for sink in sinks], events, number) / spent


# ── latency ──────────────────────────────────────────────────────────────────────────────────────────


def latency(count: int, events: int) -> str:
    rows = []
    for readers in (1, 100):
        results = rounds(
            {
                "hub": lambda n=readers: _run(_hub_latency, n, events),
                "Queue": lambda n=readers: _run(_queue_latency, n, events),
            },
            count,
        )
        times = f"{results['hub'].over(results['Queue']):.2f}"
        rows.append([str(readers), results["hub"].text(_us), results["Queue"].text(_us), times])
    title = f"### Latency at 1,000 events a second: the median of {events} events, µs; {count} rounds\n\n"
    return title + table(["readers", "hub, `async for`", "Queue", "× Queue"], rows)


async def _hub_latency(readers: int, events: int) -> float:
    hub, seen = EventHub(), list[float]()

    async def read(stream: EventStream) -> None:
        async for event in stream:
            seen.append(time.perf_counter() - sent[event.seq - 1])

    sent: list[float] = []
    tasks = [asyncio.ensure_future(read(hub.subscribe())) for _ in range(readers)]
    for _ in range(events):
        await asyncio.sleep(0.001)
        sent.append(time.perf_counter())
        hub.publish(EVENT)
    hub.close()
    await asyncio.gather(*tasks)
    return statistics.median(seen)


async def _queue_latency(readers: int, events: int) -> float:
    queues: list[asyncio.Queue[float]] = [asyncio.Queue() for _ in range(readers)]
    seen: list[float] = []

    async def read(queue: asyncio.Queue[float]) -> None:
        while sent := await queue.get():
            seen.append(time.perf_counter() - sent)

    tasks = [asyncio.ensure_future(read(queue)) for queue in queues]
    for _ in range(events):
        await asyncio.sleep(0.001)
        sent = time.perf_counter()
        for queue in queues:
            queue.put_nowait(sent)
    await asyncio.sleep(0.001)
    for queue in queues:
        queue.put_nowait(0.0)
    await asyncio.gather(*tasks)
    return statistics.median(seen)


# ── thread → loop ────────────────────────────────────────────────────────────────────────────────────


def from_a_thread(count: int, events: int) -> str:
    results = rounds(
        {
            "hub, `async for`": lambda: asyncio.run(_thread_to_hub(events, _iterate)),
            "hub, `recv_many`": lambda: asyncio.run(_thread_to_hub(events, _many)),
            "Queue + call_soon_threadsafe": lambda: asyncio.run(_thread_to_queue(events)),
        },
        count,
    )
    queue = results["Queue + call_soon_threadsafe"]
    rows = [[name, sample.text(_rate), _times(sample, queue)] for name, sample in results.items()]
    return f"### From a thread into a loop, deliveries per CPU second, {events:,} events\n\n" + table(
        ["contender", "deliveries", "× Queue"], rows
    )


async def _thread_to_hub(events: int, read: Callable[[EventStream], Awaitable[None]]) -> float:
    hub = EventHub()

    def produce() -> None:
        for _ in range(events):
            hub.publish(EVENT)
        hub.close()

    # Room for all of them: the thread does not wait for the loop.
    stream = hub.subscribe(capacity=events)
    task = asyncio.ensure_future(read(stream))
    await asyncio.sleep(0)
    thread = threading.Thread(target=produce)
    before = cpu_seconds()
    thread.start()
    await task
    spent = cpu_seconds() - before
    thread.join()
    return _deliveries([stream.stats().delivered], events, 1) / spent


async def _thread_to_queue(events: int) -> float:
    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def produce() -> None:
        for _ in range(events):
            loop.call_soon_threadsafe(queue.put_nowait, EVENT)
        loop.call_soon_threadsafe(queue.put_nowait, None)

    task = asyncio.ensure_future(_get(queue))
    await asyncio.sleep(0)
    thread = threading.Thread(target=produce)
    before = cpu_seconds()
    thread.start()
    got = await task
    spent = cpu_seconds() - before
    thread.join()
    return _deliveries([got], events, 1) / spent


# ── what one event costs its producer ───────────────────────────────────────────────────────────────


def publish_cost(count: int, events: int) -> str:
    cases = {
        "1": (1, None),
        "100": (100, None),
        "1000": (1000, None),
        "1, with room for 50,000": (1, 50_000),
        "1000, with room for 50,000 each": (1000, 50_000),
    }
    results = rounds(
        {name: lambda case=case: asyncio.run(_publishing(events, *case)) for name, case in cases.items()}, count
    )
    rows = [[name, sample.text(_ns), f"{sample.over(results['1']):.2f}"] for name, sample in results.items()]
    return f"### Cost of `publish`, {events:,} at a time, all subscribers waiting, {count} rounds\n\n" + table(
        ["subscribers", "ns", "× one"], rows
    )


async def _publishing(events: int, readers: int, capacity: int | None) -> float:
    hub = EventHub()
    streams = [hub.subscribe(capacity=capacity) for _ in range(readers)]
    tasks = [asyncio.ensure_future(_many(stream)) for stream in streams]
    await asyncio.sleep(0)
    publish = hub.publish
    before = cpu_seconds()
    for _ in range(events):
        publish(EVENT)
    spent = cpu_seconds() - before
    hub.close()
    await asyncio.gather(*tasks)
    return spent / events


def emit(count: int, events: int) -> str:
    bus = EventBus()
    lanes = iter(range(1_000_000))

    def on_hub(fresh: bool) -> float:
        with EventHub() as hub:
            return _loop(hub.emitter().emit, events, fresh)

    def on_lane() -> float:
        lane = bus.open_lane(f"run-{next(lanes)}", "session")
        spent = _loop(lane.emitter().emit, events, False)
        bus.end_attempt(lane, "completed")
        return spent

    async def on_queue() -> float:
        return _loop(asyncio.Queue().put_nowait, events, False)

    results = rounds(
        {
            "hub.emitter().emit(event)": lambda: on_hub(False),
            "the same, event made with metadata": lambda: on_hub(True),
            "a run's emit: lane and bus, one stamp": on_lane,
            "asyncio.Queue().put_nowait(event)": lambda: asyncio.run(on_queue()),
        },
        count,
    )
    bus.close()
    rows = [[name, sample.text(_ns)] for name, sample in results.items()]
    return "### Cost of one `emit`, nobody reading\n\n" + table(["call", "ns"], rows)


def _loop(call: Callable[[Event], object], events: int, fresh: bool) -> float:
    before = cpu_seconds()
    if fresh:
        for number in range(events):
            call(node_message("bench", "a small event", number=number))
    else:
        for _ in range(events):
            call(EVENT)
    return (cpu_seconds() - before) / events


# ── what iterating costs without a hub ───────────────────────────────────────────────────────────────


def floor(count: int, quick: bool) -> str:
    """The fan-out of ``async for`` by generators over one list that only grows: what any hub in Python is bound by."""
    rows = []
    for burst in (64, 1):
        for readers in READERS:
            wanted = (20_000 if quick else 120_000) if burst > 1 else (6_000 if quick else 24_000)
            events = max((4 if quick else 30) * 64 if burst > 1 else (40 if quick else 200), wanted // readers)
            events = events // burst * burst
            results = rounds(
                {
                    "bare": lambda n=readers, e=events, b=burst: asyncio.run(_Shared(n).spread(e, b)),
                    "Queue": lambda n=readers, e=events, b=burst: _run(_queues, n, e, b, _get),
                },
                count,
            )
            bare, queue = results["bare"], results["Queue"]
            rows.append([f"{readers}, burst {burst}", bare.text(_rate), queue.text(_rate), _times(bare, queue)])
    return (
        f"### No hub: generators over one growing list, deliveries per CPU second, {count} rounds\n\n"
        + table(["readers", "generators", "Queue", "× Queue"], rows)
        + "\n\nNo stamp, no check, no bound, no books, no threads, and nothing is ever forgotten: the most that "
        "`async for` can reach here, whatever is behind it."
    )


class _Shared:
    """Readers that park on a future each, and share the slice that all of them are to read next."""

    def __init__(self, readers: int) -> None:
        self.items: list[Event] = []
        self.slice: tuple[tuple[int, int], tuple[Event, ...]] = ((0, 0), ())
        self.parked: dict[int, asyncio.Future[None]] = {}
        self.waking = self.ended = False
        self.readers = readers

    async def read(self, key: int, loop: asyncio.AbstractEventLoop) -> AsyncIterator[Event]:
        position, items = 0, self.items
        while True:
            if position == len(items):
                if self.ended:
                    return
                future = self.parked[key] = loop.create_future()
                await future
                continue
            if self.slice[0] != (position, len(items)):
                self.slice = (position, len(items)), tuple(items[position:])
            part = self.slice[1]
            for event in part:
                yield event
            position += len(part)

    async def count(self, key: int) -> int:
        count = 0
        async for _ in self.read(key, asyncio.get_running_loop()):
            count += 1
        return count

    def wake(self) -> None:
        self.waking = False
        parked, self.parked = self.parked, {}
        for future in parked.values():
            future.set_result(None)

    async def spread(self, events: int, burst: int) -> float:
        tasks = [asyncio.ensure_future(self.count(key)) for key in range(self.readers)]
        await asyncio.sleep(0)
        loop, append = asyncio.get_running_loop(), self.items.append
        before = cpu_seconds()
        for _ in range(events // burst):
            for _ in range(burst):
                append(EVENT)
                if self.parked and not self.waking:
                    if len(self.parked) <= 8:
                        self.wake()
                    else:
                        self.waking = True
                        loop.call_soon(self.wake)
            await asyncio.sleep(0)
        self.ended = True
        self.wake()
        got = await asyncio.gather(*tasks)
        return _deliveries(got, events, self.readers) / (cpu_seconds() - before)


def _rate(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def _us(value: float) -> str:
    return f"{value * 1e6:,.0f}"


def _ns(value: float) -> str:
    return f"{value * 1e9:,.0f}"


def _times(sample: Sample, other: Sample) -> str:
    return f"{sample.over(other):.1f}"
