"""Contract section 6: receiving, in every shape."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import balanced, clause, drain, fill, settle
from weavegraph import BlockingEvents, EndOfStream, EventHub, EventStream, node_message
from weavegraph.errors import BlockingInLoopError, StreamBusyError, WrongLoopError


async def iterate(stream: EventStream) -> Any:
    async for event in stream:
        return event


RECEIVES = {
    "recv": lambda stream: stream.recv(),
    "recv_many": lambda stream: stream.recv_many(1),
    "next_timeout": lambda stream: stream.next_timeout(60),
    "async for": iterate,
}


@clause("R1")
@pytest.mark.parametrize("how", RECEIVES)
async def test_cancelling_a_receive_at_any_of_its_awaits_loses_nothing(how: str) -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        received = 0
        for before, after in itertools.product(range(5), range(5)):
            for there_already in (False, True):
                if there_already:
                    fill(hub, 1)
                    stream._turn_at = 0.0  # due to let the loop run: one more await on the way
                task = asyncio.create_task(RECEIVES[how](stream))
                await settle(before)
                if not there_already:
                    fill(hub, 1)
                await settle(after)
                task.cancel()
                try:
                    got = await task
                    received += len(got) if isinstance(got, tuple) else 1
                except asyncio.CancelledError:
                    pass
                assert stream.position == received
                assert balanced(stream).delivered == received
        assert 0 < received < hub.head  # some came through, some were cancelled
        assert drain(stream) == [*range(received + 1, hub.head + 1)]


@clause("R1", "R2", "C1")
@pytest.mark.parametrize("how", [*RECEIVES, "blocking"])
@pytest.mark.parametrize("what", ["an event", "the end"])
async def test_what_happens_between_looking_and_parking_wakes_the_reader(how: str, what: str) -> None:
    hub = EventHub()
    stream = hub.subscribe()
    poll, arm, looked = stream._poll, stream._arm, itertools.count()

    def now() -> None:
        if next(looked) == 0:  # it has seen nothing, and is about to park
            fill(hub, 1) if what == "an event" else hub.close()

    def looks() -> Any:
        found = poll()
        if found is None and how == "blocking":
            now()
        return found

    def arms() -> Any:
        now()
        return arm()

    stream._poll, stream._arm = looks, arms  # type: ignore[method-assign]
    if how == "blocking":
        receive = asyncio.wait_for(_in_thread(stream.blocking().recv), 5)
    else:
        receive = asyncio.wait_for(RECEIVES[how](stream), 5)
    if what == "an event":
        got = await receive
        assert [event.seq for event in (got if isinstance(got, tuple) else (got,))] == [1]
    elif how == "async for":
        assert await receive is None
    else:
        with pytest.raises(EndOfStream):
            await receive
    stream.close()
    hub.close()


def _in_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """As ``asyncio.to_thread``, on a thread that nobody waits for at the end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        try:
            result = call()
        except EndOfStream as end:
            loop.call_soon_threadsafe(done.set_exception, end)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=run, daemon=True).start()
    return done


@clause("A1", "L5")
@pytest.mark.parametrize("how", [*RECEIVES, "try_recv", "blocking"])
async def test_what_the_filter_passes_over_is_in_the_books_however_one_reads(how: str) -> None:
    with EventHub() as hub:
        stream = hub.subscribe(filter=lambda event: event.seq % 5 == 0)
        fill(hub, 20)
        got = []
        for _ in range(4):
            if how == "try_recv":
                event = stream.try_recv()
            elif how == "blocking":
                event = await asyncio.to_thread(stream.blocking().recv)
            else:
                event = await RECEIVES[how](stream)
            got += [each.seq for each in (event if isinstance(event, tuple) else (event,))]
            stats = balanced(stream)
            assert (stats.delivered, stats.filtered) == (len(got), stats.position - len(got))
            if len(got) == 4:
                break
        assert got == [5, 10, 15, 20]
        stream.close()


@clause("R1")
@pytest.mark.parametrize("how", RECEIVES)
async def test_a_timeout_that_races_with_the_event_loses_nothing(how: str) -> None:
    """The usual shape, take the item and then await, loses nearly all of these."""
    with EventHub() as hub, hub.subscribe() as stream:
        loop = asyncio.get_running_loop()
        got: list[int] = []
        for n in range(200):
            loop.call_later(0.0005 * (n % 3), fill, hub, 1)
            try:
                found = await asyncio.wait_for(RECEIVES[how](stream), 0.0005)
            except TimeoutError:
                continue
            got += [event.seq for event in (found if isinstance(found, tuple) else (found,))]
        while len(got) < 200:
            event = await stream.next_timeout(20)
            assert event is not None
            got.append(event.seq)
        assert got == [*range(1, 201)]


@clause("R2")
async def test_next_timeout_has_one_deadline_and_tells_timeout_from_the_end() -> None:
    """Trap: the original restarts its timer after each lag and answers the same for timeout and end."""
    hub = EventHub()
    stream = hub.subscribe(filter=lambda event: event.message == "wanted")
    assert await stream.next_timeout(0) is None
    loop = asyncio.get_running_loop()
    begun = loop.time()

    async def chatter() -> None:
        while True:
            fill(hub, 1)
            await asyncio.sleep(0)

    noise = asyncio.create_task(chatter())
    assert await stream.next_timeout(0.05) is None
    assert 0.05 <= loop.time() - begun < 5
    hub.publish(node_message("a", "wanted"))
    event = await stream.next_timeout(20)
    assert event is not None and event.message == "wanted"
    noise.cancel()
    hub.close()
    with pytest.raises(EndOfStream):
        await stream.next_timeout(20)
    with pytest.raises(EndOfStream):
        await asyncio.to_thread(stream.blocking().next_timeout, 20)


@clause("R2")
def test_the_blocking_next_timeout_and_the_blocking_iterator() -> None:
    with EventHub() as hub:
        stream = hub.subscribe()
        events = stream.blocking()
        assert isinstance(events, BlockingEvents)
        assert events.next_timeout(0.01) is None
        assert events.try_recv() is None
        got: list[int] = []
        thread = threading.Thread(target=lambda: got.extend(event.seq for event in events))
        thread.start()
        for _ in range(500):
            fill(hub, 1)
        hub.close()
        thread.join(30)
        assert not thread.is_alive()
        assert got == [*range(1, 501)]
        with pytest.raises(EndOfStream):
            events.recv()


@clause("R3")
async def test_blocking_iteration_on_a_loops_thread_raises_at_once_with_the_remedy() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        fill(hub, 1)
        events = stream.blocking()
        for receive in (lambda: list(events), events.recv, lambda: events.next_timeout(0)):
            with pytest.raises(BlockingInLoopError, match="async for"):
                receive()
        assert drain(stream) == [1]


@clause("R4")
@pytest.mark.parametrize("second", [*RECEIVES, "try_recv"])
async def test_a_second_concurrent_receive_raises_and_the_first_goes_on(second: str) -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        first = asyncio.create_task(stream.recv())
        await settle()
        with pytest.raises(StreamBusyError, match="subscribe\\(\\) once more"):
            stream.try_recv() if second == "try_recv" else await RECEIVES[second](stream)
        fill(hub, 1)
        assert (await first).seq == 1


@clause("R4")
async def test_a_stream_used_from_a_second_loop_raises() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        assert await stream.next_timeout(0.001) is None
        with pytest.raises(WrongLoopError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, _recv(stream))
        fill(hub, 1)
        assert (await stream.recv()).seq == 1


async def _recv(stream: EventStream) -> None:
    await stream.recv()


@clause("R5")
@pytest.mark.parametrize("readers", [1, 8, 9, 100])
async def test_a_burst_wakes_each_reader_once(readers: int) -> None:
    with EventHub() as hub:
        batches: list[list[int]] = [[] for _ in range(readers)]

        async def read(n: int) -> None:
            with hub.subscribe() as stream:
                while sum(batches[n]) < 64:
                    batches[n].append(len(await stream.recv_many()))

        tasks = [asyncio.create_task(read(n)) for n in range(readers)]
        await settle()
        fill(hub, 64)
        await asyncio.gather(*tasks)
        assert batches == [[64]] * readers


@clause("R5")
def test_the_work_of_an_emit_does_not_grow_with_the_number_of_readers() -> None:
    """Counted in calls of Python functions, which no load of the machine can change."""

    def calls(readers: int) -> int:
        with EventHub() as hub:
            streams = [hub.subscribe() for _ in range(readers)]
            fill(hub, 5000)
            count = 0

            def profile(frame: object, what: str, argument: object) -> None:
                nonlocal count
                count += 1

            sys.setprofile(profile)
            try:
                fill(hub, 5000)
            finally:
                sys.setprofile(None)
            for stream in streams:
                stream.close()
            return count

    assert calls(1000) <= 1.1 * calls(1)


@clause("R6")
async def test_a_dropped_half_read_or_never_started_stream_is_unsubscribed_at_once() -> None:
    with EventHub() as hub:
        never, half, closed = hub.subscribe(), hub.subscribe(), hub.subscribe()
        for stream in (never, half, closed):
            stream._warns = False
        del stream
        fill(hub, 10)
        async for event in half:
            if event.seq == 3:
                break
        closed.close()
        assert len(hub.metrics().subscribers) == 2
        del never, half, event
        await settle()
        gc.collect()
        metrics = hub.metrics()
        assert metrics.subscribers == ()
        assert (metrics.delivered, metrics.abandoned, metrics.buffered) == (3, 27, 0)
        assert not any(group.parked for group in hub._wakeups._groups.values())


@clause("R6")
async def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    with EventHub() as hub:
        for _ in range(100):
            task = asyncio.create_task(hub.subscribe().recv())
            await settle(2)
            task.get_coro().cr_frame.f_locals["self"]._warns = False  # type: ignore[union-attr]
            task.cancel()
            await asyncio.wait([task])
            del task
        gc.collect()
        assert hub.metrics().subscribers == ()
        assert not any(group.parked for group in hub._wakeups._groups.values())


@clause("R7")
@pytest.mark.parametrize("filtered", [False, True])
async def test_a_reader_that_always_finds_events_lets_the_loop_run(filtered: bool) -> None:
    """The reader works 1 ms on each event; between two turns of the loop it may handle only a few."""
    with EventHub() as hub, hub.subscribe(filter=(lambda event: True) if filtered else None) as stream:
        fill(hub, 200)
        loop = asyncio.get_running_loop()
        turns: list[int] = []
        handled = 0

        def turn() -> None:
            turns.append(handled)
            loop.call_soon(turn)

        turn()
        async for _ in stream:
            handled += 1
            until = loop.time() + 0.001
            while loop.time() < until:
                pass
            if handled == 200:
                break
        steps = [after - before for before, after in itertools.pairwise(turns)]
        assert sum(steps) >= 190
        assert max(steps[1:]) <= 5


@clause("R7")
@pytest.mark.parametrize("ahead", [1, 2, 3])
async def test_a_reader_that_publishes_what_it_will_read_next_lets_the_loop_run(ahead: int) -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        loop = asyncio.get_running_loop()
        loop.call_soon(fill, hub, ahead)  # when the reader is parked
        loop.call_soon(loop.call_soon, loop.call_soon, hub.close)
        handled = 0
        async for _ in stream:
            handled += 1
            assert handled < 1_000_000, "the loop never ran"
            if not hub.closed:
                fill(hub, 1)
        assert handled == hub.head


@clause("4.drop_oldest", "R1")
@pytest.mark.parametrize("history", [1, 2, 16])
@pytest.mark.parametrize("capacity", [1, 2, None])
@pytest.mark.parametrize("published", [1, 2, 3])
async def test_a_waiting_reader_gets_few_events_exactly(history: int, capacity: int | None, published: int) -> None:
    """Few events are taken without a slice; what does not fit is lost and told, as with many."""
    with EventHub(history) as hub, hub.subscribe(capacity=capacity) as stream:
        got: list[int | tuple[int, int]] = []

        async def read() -> None:
            async for event in stream:
                got.append(event.seq or tuple(event.metadata.values())[1:])  # type: ignore[arg-type]

        task = asyncio.create_task(read())
        await settle()
        wanted: list[int | tuple[int, int]] = []
        for turn in range(3):
            fill(hub, published)
            await settle()
            last = published * (turn + 1)
            kept = min(published, capacity or history)
            if published > kept:
                wanted.append((last - published + 1, last - kept))
            wanted += range(last - kept + 1, last + 1)
        hub.close()
        await task
        assert got == wanted
        assert balanced(stream)


@clause("R8")
async def test_a_stream_taken_before_and_read_after_still_yields_the_first_event() -> None:
    with EventHub() as hub:
        stream = hub.subscribe()
        fill(hub, 100)
        hub.close()
        assert [event.seq async for event in stream] == [*range(1, 101)]


async def test_breaking_out_of_an_iteration_and_iterating_again_goes_on() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        fill(hub, 10)
        first = [event.seq async for event in _first(stream, 4)]
        assert first == [1, 2, 3, 4]
        assert (await stream.recv()).seq == 5
        assert [event.seq for event in await stream.recv_many(2)] == [6, 7]
        assert drain(stream) == [8, 9, 10]


async def _first(stream: EventStream, count: int) -> Any:
    async for event in stream:
        yield event
        count -= 1
        if not count:
            return


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
async def test_recv_many_wants_a_number(wrong: object) -> None:
    with EventHub() as hub, hub.subscribe() as stream, pytest.raises(ValueError, match="whole number"):
        await stream.recv_many(wrong)  # type: ignore[arg-type]


async def test_readers_in_several_loops_and_threads_see_the_same() -> None:
    with EventHub(capacity=50_000) as hub:
        ready = threading.Barrier(5)
        results: list[list[int]] = []

        async def read() -> None:
            with hub.subscribe() as stream:
                ready.wait(30)
                results.append([event.seq async for event in stream])

        def block() -> None:
            with hub.subscribe() as stream:
                ready.wait(30)
                results.append([event.seq for event in stream.blocking()])

        threads = [threading.Thread(target=asyncio.run, args=(read(),)) for _ in range(2)]
        threads += [threading.Thread(target=block) for _ in range(2)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(ready.wait, 30)
        for _ in range(2000):
            fill(hub, 1)
        hub.close()
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
        assert results == [[*range(1, 2001)]] * 4


async def test_a_loop_that_was_closed_while_a_reader_was_parked_harms_nobody() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        other = asyncio.new_event_loop()
        lost = hub.subscribe()
        lost._warns = False

        def park_and_close() -> None:
            task = other.create_task(lost.recv())
            other.run_until_complete(settle())
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            other.close()

        await asyncio.to_thread(park_and_close)
        waiting = asyncio.create_task(stream.recv())
        await settle()
        fill(hub, 1)
        assert (await waiting).seq == 1
        lost.close()


@clause("R4")
@pytest.mark.parametrize("how", RECEIVES)
async def test_a_second_loop_is_refused_also_when_an_event_is_ready(how: str) -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        fill(hub, 3)
        await RECEIVES[how](stream)
        with pytest.raises(WrongLoopError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, _receive(how, stream))
        assert stream.position == 1
        assert await asyncio.to_thread(next, stream.blocking())  # a plain thread may go on with it
        assert drain(stream) == [3]


async def _receive(how: str, stream: EventStream) -> Any:
    return await RECEIVES[how](stream)


@clause("R4")
async def test_two_iterations_of_one_stream_do_not_share_its_events() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        fill(hub, 100)
        got: list[int] = []

        async def read() -> None:
            async for event in stream:
                got.append(event.seq)
                await asyncio.sleep(0)
                if event.seq == 100:
                    return

        first, second = asyncio.ensure_future(read()), asyncio.ensure_future(read())
        with pytest.raises(StreamBusyError):
            await second
        await first
        assert got == [*range(1, 101)]
        fill(hub, 1)
        async for event in stream:  # the first has ended: another may begin
            assert event.seq == 101
            break


@clause("R2")
async def test_no_number_of_seconds_is_no_timeout() -> None:
    with EventHub() as hub, hub.subscribe() as stream:
        for call in (lambda: asyncio.run(stream.next_timeout(float("nan"))), lambda: _poll_for(stream, float("nan"))):
            with pytest.raises(ValueError, match="give a number of seconds"):
                await asyncio.to_thread(call)
        assert await asyncio.to_thread(_poll_for, stream, -1.0) is None


def _poll_for(stream: EventStream, seconds: float) -> object:
    return stream.blocking().next_timeout(seconds)
