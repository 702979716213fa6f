"""Threads of sync nodes, and tokens: what was found wrong with what outlives its caller, or raises in a callback."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from tests.runtime.test_defects_steps import Context, State
from tests.support import clause, settle
from weavegraph import END, START, CancelToken, GraphBuilder, Retry, RuntimeConfig
from weavegraph.errors import NodeTimeoutError
from weavegraph.runtime._threads import NodeThreads


def alive() -> int:
    return sum(thread.name == "weavegraph-node" for thread in threading.enumerate())


async def gone(pool: NodeThreads) -> None:
    """Wait until the pool has no thread; each ends as soon as it is told to."""
    while pool._threads:
        await asyncio.sleep(0)


async def test_a_call_that_nobody_waits_for_any_more_holds_up_no_other() -> None:
    pool, entered, free = NodeThreads(1), threading.Event(), threading.Event()

    def hangs() -> None:
        entered.set()
        free.wait(20)

    for left in (1, 2, 3):
        entered.clear()
        call = asyncio.create_task(pool.call(hangs))
        await asyncio.to_thread(entered.wait)
        waiting = asyncio.create_task(pool.call(lambda left=left: left * 10))
        await settle()
        assert not waiting.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await waiting == left * 10
    assert (pool._threads, pool._left) == (4, 3)
    free.set()
    while pool._threads > 1:  # as many as before, when they have returned
        await asyncio.sleep(0)
    assert await pool.call(lambda: "again") == "again"
    pool.close()
    await gone(pool)
    assert (pool._left, pool._waiting) == (0, 0)


async def test_a_call_that_was_cancelled_before_its_turn_never_runs() -> None:
    pool, entered, free, ran = NodeThreads(1), threading.Event(), threading.Event(), list[str]()

    def holds() -> None:
        entered.set()
        free.wait(20)

    first = asyncio.create_task(pool.call(holds))
    await asyncio.to_thread(entered.wait)
    second = asyncio.create_task(pool.call(ran.append, "second"))
    await settle()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert pool._left == 0
    free.set()
    await first
    assert await pool.call(ran.append, "third") is None
    assert ran == ["third"]
    pool.close()
    await gone(pool)


async def test_a_closed_pool_still_runs_what_is_asked_of_it_and_keeps_no_thread() -> None:
    pool = NodeThreads(2)
    barrier = threading.Barrier(2)
    await asyncio.gather(pool.call(barrier.wait, 20), pool.call(barrier.wait, 20))
    pool.close()
    await gone(pool)
    for _ in range(20):
        assert await asyncio.gather(*(pool.call(lambda n=n: n) for n in range(5))) == [0, 1, 2, 3, 4]
    await gone(pool)


async def test_timed_out_nodes_leave_the_limit_to_others() -> None:
    free = threading.Event()

    def hangs(state: State, ctx: Context) -> dict[str, Any]:
        if ctx.try_no < 3:
            free.wait(20)
        return {"parts": ["hangs"]}

    def other(state: State) -> dict[str, Any]:
        return {"parts": ["other"]}

    builder = GraphBuilder(State)
    builder.add_node("hangs", hangs, timeout=0.02, retry=Retry(tries=3, base=0.0, on=NodeTimeoutError))
    builder.add_node("other", other)
    for name in ("hangs", "other"):
        builder.add_edge(START, name).add_edge(name, END)
    async with builder.compile(RuntimeConfig(concurrency_limit=1)) as app:
        assert await app.invoke({}) == {"parts": ["hangs", "other"]}
        free.set()


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────


@clause("J2")
def test_a_callback_that_raises_keeps_nobody_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    token, told = CancelToken(), list[str]()
    children = [token.child() for _ in range(5)]
    for number, child in enumerate(children):
        child.on_cancel(lambda reason, number=number: told.append(f"{number} {reason}"))

    def fails(reason: str) -> None:
        told.append("fails")
        raise ZeroDivisionError

    token.on_cancel(fails)
    token.on_cancel(told.append)
    assert token.cancel("c")
    assert told == ["0 c", "1 c", "2 c", "3 c", "4 c", "fails", "c"]  # children first, in order of birth
    token.on_cancel(fails)
    assert [record.message for record in caplog.records] == [
        "a callback of a cancel token raised; the others are called all the same"
    ] * 2


@clause("J2")
def test_each_registration_is_one_also_of_the_same_callback() -> None:
    token, told = CancelToken(), list[str]()

    def callback(reason: str) -> None:
        told.append(reason)

    forget = token.on_cancel(callback)
    token.on_cancel(callback)
    forget()
    forget()
    token.cancel("c")
    assert told == ["c"]


@clause("J2")
def test_a_token_does_not_keep_its_children_alive() -> None:
    token = CancelToken()
    token.child()
    gc.collect()
    assert token._children is not None
    assert len(token._children) == 0


@clause("J2")
def test_a_signal_handler_may_cancel_what_its_thread_is_looking_at() -> None:
    class Lock:
        """Cancels while the lock is held, as a handler might."""

        def __init__(self, token: CancelToken) -> None:
            self.token, self.real = token, token._lock

        def __enter__(self) -> None:
            self.real.__enter__()
            self.token._lock = self.real
            self.token.cancel("signal")

        def __exit__(self, *exc: Any) -> None:
            self.real.__exit__(*exc)

    for look in ("child", "on_cancel"):
        token, told = CancelToken(), list[str]()
        token._lock = Lock(token)  # type: ignore[assignment]
        if look == "child":
            assert token.child().reason == "signal"
        else:
            token.on_cancel(told.append)
            assert told == ["signal"]
