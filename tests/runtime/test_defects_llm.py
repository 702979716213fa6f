"""LLM streams: one id each, indexes without gap or double, one end; what was found wrong with that (contract O5)."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.runtime.test_defects_steps import Context, State, chain, fan, remembering
from tests.support import clause, settle
from weavegraph import (
    END,
    START,
    EventBusConfig,
    GraphBuilder,
    InvocationHandle,
    LLMStreamingEvent,
    Retry,
    RunCancelledError,
    RuntimeConfig,
    Send,
)
from weavegraph.errors import LLMStreamClosedError, NodeTimeoutError
from weavegraph.runtime._attempt import Attempt

Said = list[tuple[str | None, int, str]]


async def said(run: InvocationHandle[Any]) -> Said:
    """Id, index and phase of every LLM event of a run."""
    return [(e.stream_id, e.index, e.phase) async for e in run.events() if isinstance(e, LLMStreamingEvent)]


def whole(*ids: str) -> Said:
    """Streams one after the other, each of one chunk and its end."""
    return [each for name in ids for each in ((name, 0, "chunk"), (name, 1, "final"))]


@clause("O5")
async def test_no_two_streams_of_a_run_share_an_id_in_any_attempt_whatever_nodes_name_them() -> None:
    long = "x" * 128

    async def node(state: State, ctx: Context) -> None:
        for name in ("q:2", "q", "q", "q..2", long, long):
            await ctx.stream_llm(["1"], stream_id=name)
        if ctx.attempt == 1:
            raise OSError

    async with chain(node, config=remembering()) as app:
        run = app.start({}, session_id="s")
        with pytest.raises(OSError):
            await run
        first = await said(run)
        again = app.resume("s")
        await again
        second = (await said(again))[len(first) :]
    assert first == whole("q:2", "q", "q:3", "q..2:2", long, f"{'x' * 126}:2")
    assert second == whole("q:2..2", "q..2", "q:3..2", "q..2..2", f"{'x' * 125}..2", f"{'x' * 123}:2..2")


@clause("O5")
async def test_ids_stay_unique_when_many_threads_open_streams() -> None:
    ids: list[str] = []

    async def split(state: State) -> list[Send]:
        return [Send("each", number) for number in range(8)]

    def each(state: Any, ctx: Context) -> None:
        for _ in range(50):
            record = ctx.stream_llm([]).stream_id
            ids.append(record)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with fan(split, each) as app:
            await app.invoke({})
    finally:
        sys.setswitchinterval(interval)
    assert len(ids) == len(set(ids)) == 400


@clause("O5")
async def test_chunks_from_several_threads_get_each_index_once() -> None:
    def node(state: State, ctx: Context) -> None:
        def work() -> None:
            for _ in range(100):
                ctx.emit_llm_chunk("x")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with chain(node) as app:
            run = app.start({})
            await run
    finally:
        sys.setswitchinterval(interval)
    chunks = [("node", index, "chunk") for index in range(400)]
    assert await said(run) == [*chunks, ("node", 400, "cancelled")]


@clause("O5")
async def test_a_try_that_has_ended_opens_no_stream() -> None:
    """A sync node goes on in its thread after its timeout; its second try is under way by then."""
    go, late, done = threading.Event(), list[BaseException](), asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def slow(state: State, ctx: Context) -> None:
            if ctx.try_no == 2:
                go.set()
                return
            go.wait(20)
            for speak in (lambda: ctx.emit_llm_chunk("late"), lambda: ctx.stream_llm(["late"])):
                try:
                    speak()
                except LLMStreamClosedError as error:
                    late.append(error)
            loop.call_soon_threadsafe(done.set)

        builder = GraphBuilder(State)
        builder.add_node("slow", slow, timeout=0.02, retry=Retry(tries=2, base=0.0, on=NodeTimeoutError))
        builder.add_node("waits", lambda_waits(done)).add_edge(START, "slow").add_edge(START, "waits")
        async with builder.add_edge("slow", END).add_edge("waits", END).compile() as app:
            run = app.start({})
            await run
            assert await said(run) == []

    await main()
    assert [type(error) for error in late] == [LLMStreamClosedError] * 2


def lambda_waits(done: asyncio.Event) -> Callable[[State], Any]:
    async def waits(state: State) -> None:
        await done.wait()

    return waits


@clause("O5", "8.abort")
async def test_a_stream_of_a_node_that_is_left_behind_ends_before_the_run() -> None:
    entered, free, late = asyncio.Event(), asyncio.Event(), list[str]()

    async def stubborn(state: State, ctx: Context) -> None:
        ctx.emit_llm_chunk("half")
        entered.set()
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                pass
        for name in (None, "other"):
            try:
                ctx.emit_llm_chunk("late", stream_id=name)
            except LLMStreamClosedError as error:
                late.append(error.stream_id)

    async with chain(stubborn, config=RuntimeConfig(cancel_grace=0)) as app:
        run = app.start({})
        await entered.wait()
        run.abort()
        with pytest.raises(RunCancelledError):
            await run
        events = [event async for event in run.events()]
        assert [event.scope for event in events[-3:]] == ["llm_stream", "llm_stream", "weavegraph.stream.end"]
        free.set()
        await settle()
        assert late == ["stubborn", "other"]
        assert await said(run) == [("stubborn", 0, "chunk"), ("stubborn", 1, "cancelled")]


class Response:
    """As an SDK's: no generator, and closed by whoever leaves it early."""

    def __init__(self, closed: list[str], *, fails: bool = False) -> None:
        self.closed, self.fails = closed, fails
        self.left = 3

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> str:
        return next(self)

    def __iter__(self) -> Response:
        return self

    def __next__(self) -> str:
        if self.fails:
            raise ConnectionError
        self.left -= 1
        if self.left < 0:
            raise StopAsyncIteration if type(self) is Response else StopIteration
        return "x"

    async def aclose(self) -> None:
        self.closed.append("aclose")


class SyncResponse(Response):
    __aiter__ = None  # type: ignore[assignment]

    def close(self) -> None:
        self.closed.append("close")


@pytest.mark.parametrize("how", ["to the end", "left", "fails", "cancelled"])
@pytest.mark.parametrize("kind", [Response, SyncResponse])
async def test_a_source_that_is_left_early_is_closed(how: str, kind: type[Response]) -> None:
    closed: list[str] = []
    entered = asyncio.Event()

    async def node(state: State, ctx: Context) -> None:
        stream = ctx.stream_llm(kind(closed, fails=how == "fails"))
        if how in ("to the end", "fails"):
            await stream
            return
        async for _ in stream:
            if how == "left":
                break
            entered.set()
            await asyncio.Event().wait()

    async with chain(node, config=RuntimeConfig(cancel_grace=0)) as app:
        run = app.start({})
        if how == "cancelled":
            await entered.wait()
            run.abort()
        try:
            await run
        except (ConnectionError, RunCancelledError):
            pass
        await settle()  # the loop closes a generator that was dropped
        for thread in threading.enumerate():
            if thread.name == "weavegraph-node":
                await asyncio.to_thread(thread.join, 10)
        await settle()
    assert closed == ([] if how == "to the end" else ["aclose" if kind is Response else "close"])


@pytest.mark.parametrize("how", ["to the end", "left", "fails"])
async def test_a_source_that_a_sync_node_leaves_early_is_closed(how: str) -> None:
    closed: list[str] = []

    def node(state: State, ctx: Context) -> None:
        for _ in ctx.stream_llm(SyncResponse(closed, fails=how == "fails")):
            if how == "left":
                break

    async with chain(node) as app:
        run = app.start({})
        try:
            await run
        except ConnectionError:
            pass
    assert closed == ([] if how == "to the end" else ["close"])


@clause("O5", "4.block")
async def test_a_chunk_that_waits_for_room_is_not_overtaken_and_does_not_outlive_its_stream() -> None:
    waiting, results = asyncio.Event(), list[Any]()

    async def node(state: State, ctx: Context) -> None:
        async def tokens() -> Any:
            yield "a"
            waiting.set()
            yield "b"

        reading = asyncio.create_task(ctx.stream_llm(tokens(), stream_id="s")._collect())
        await waiting.wait()
        await settle()
        results.append(ctx.emit_llm_chunk("c", stream_id="s"))
        ctx.emit_llm_final("d", stream_id="s")
        try:
            await reading
        except LLMStreamClosedError as error:
            results.append(error.stream_id)

    config = RuntimeConfig(event_bus=EventBusConfig(block_timeout=1000))
    async with chain(node, config=config) as app:
        run = app.start({})
        reader = run._execution.lane.subscribe(after=0, capacity=3, overflow="block")
        await run
        reader.close()
        events = [event async for event in run.events() if isinstance(event, LLMStreamingEvent)]
        found = [(event.stream_id, event.index, event.phase, event.chunk) for event in events]
    assert results == [None, "s"]
    assert found == [("s", 0, "chunk", "a"), ("s", 1, "final", "d")]


def test_an_attempts_ids_never_end_as_those_of_another() -> None:
    class Stub(Attempt):
        def __init__(self, number: int) -> None:
            self.number, self.lock = number, threading.RLock()
            self._stream_ids, self._stream_uses = set(), {}

    names = ["a", "a..2", "a:2", "a..3", "a:2..2", "a", "a..2", "a:2", "x" * 128, "x" * 125 + "..2"]
    taken = [Stub(number).stream_id for number in (1, 2, 3)]
    ids = [take(name) for take in taken for name in names]
    assert len(set(ids)) == len(ids) == 30
    assert max(map(len, ids)) == 128
