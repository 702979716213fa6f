"""Nodes of one step that return without waiting share one task of asyncio; nobody can tell but by the time it takes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypedDict

import pytest

from tests.support import clause
from weavegraph import END, START, App, GraphBuilder, NodeContext, RuntimeConfig, failure_of
from weavegraph.state import append


class State(TypedDict, total=False):
    parts: Annotated[list[Any], append]


def side(*nodes: Callable[..., Any], config: RuntimeConfig | None = None) -> App[Any]:
    """The nodes in one step."""
    builder = GraphBuilder(State)
    for place, node in enumerate(nodes):
        name = f"{node.__name__}{place}"
        builder.add_node(name, node).add_edge(START, name).add_edge(name, END)
    return builder.compile(config)


async def ready(state: State) -> State:
    return {"parts": [asyncio.current_task()]}


async def waits(state: State) -> State:
    before = asyncio.current_task()
    await asyncio.sleep(0)
    assert asyncio.current_task() is before
    return {"parts": [before]}


@pytest.mark.parametrize(
    ("nodes", "tasks"),
    [
        ([ready] * 5, [0, 0, 0, 0, 0]),
        ([ready, ready, waits, ready, waits], [0, 0, 0, 1, 2]),
        ([waits, waits, waits], [0, 1, 2]),
        ([waits, ready, ready], [0, 1, 2]),
    ],
)
async def test_nodes_share_a_task_of_asyncio_until_one_waits_which_keeps_it(nodes: Any, tasks: list[int]) -> None:
    found = (await side(*nodes).invoke())["parts"]
    numbers = {task: number for number, task in enumerate(dict.fromkeys(found))}
    assert [numbers[task] for task in found] == tasks
    assert asyncio.current_task() not in numbers


async def test_each_has_the_context_of_the_run_whatever_the_one_before_made_of_it() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    user.set("ada")

    async def look(state: State) -> State:
        return {"parts": [user.get()]}

    async def change(state: State) -> State:
        user.set("eve")
        return {"parts": ["changed"]}

    async def change_and_wait(state: State) -> State:
        user.set("bob")
        await asyncio.sleep(0)
        return {"parts": [user.get()]}

    found = await side(look, change, look, change_and_wait, look).invoke()
    assert found["parts"] == ["ada", "changed", "ada", "bob", "ada"]
    assert user.get() == "ada"


async def test_all_begin_in_order_before_one_goes_on_after_its_wait() -> None:
    order: list[str] = []

    def node(name: str, turns: int) -> Callable[[State], Coroutine[Any, Any, None]]:
        async def each(state: State) -> None:
            order.append(f"{name} begins")
            for _ in range(turns):
                await asyncio.sleep(0)
            order.append(f"{name} ends")

        return each

    await side(node("a", 0), node("b", 1), node("c", 0), node("d", 1)).invoke()
    assert order == ["a begins", "a ends", "b begins", "c begins", "c ends", "d begins", "b ends", "d ends"]


async def test_a_time_limit_of_the_node_that_waits_stops_it_alone() -> None:
    forever = asyncio.Event()

    async def limited(state: State) -> State:
        try:
            async with asyncio.timeout(0.01):
                await forever.wait()
        except TimeoutError:
            return {"parts": ["late"]}
        raise AssertionError("nobody sets it")

    async def turn(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def grouped(state: State) -> State:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(turn(number)) for number in range(2)]
        return {"parts": [task.result() for task in tasks]}

    async def short(state: State) -> State:
        return {"parts": ["short"]}

    found = await side(short, limited, grouped, limited, short).invoke()
    assert found["parts"] == ["short", "late", 0, 1, "late", "short"]


@clause("8.node_raises")
@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_one_that_fails_at_once_keeps_none_from_beginning(policy: Any) -> None:
    begun: list[str] = []

    def node(name: str, *, fails: bool = False, turns: int = 0) -> Callable[..., Coroutine[Any, Any, None]]:
        async def each(state: State, ctx: NodeContext[State, None]) -> None:
            begun.append(name)
            if fails:
                raise ValueError(name)
            for _ in range(turns):
                await asyncio.sleep(0)
            begun.append(f"{name} ends")

        return each

    nodes = (node("a"), node("b", fails=True), node("c", turns=50), node("d"), node("e", fails=True))
    app = side(*nodes, config=RuntimeConfig(on_node_error=policy))
    run = app.start()
    with pytest.raises(ValueError, match="b") as caught:
        await run
    failure = failure_of(caught.value)
    assert failure is not None
    assert failure.node == "each1"
    assert begun == ["a", "a ends", "b", "c", "d", "d ends", "e", *(["c ends"] if policy == "finish" else [])]


@clause("9.node")
async def test_the_end_of_one_is_written_before_the_beginning_of_the_next() -> None:
    held: list[int] = []

    async def looks(state: State, ctx: NodeContext[State, None]) -> None:
        event = ctx.emit("here")
        assert event is not None
        held.append(event.run_seq or 0)

    run = side(looks, looks, looks).start()
    events = [event async for event in run]
    await run
    scopes = [(event.scope.removeprefix("weavegraph.node."), event.node_id) for event in events[2:-2]]
    assert scopes == [(what, f"looks{place}") for place in range(3) for what in ("started", "here", "finished")]
    assert held == [event.run_seq for event in events if event.scope == "here"]


async def test_a_node_that_cancels_its_own_task_and_returns_takes_none_of_its_siblings_along() -> None:
    begun: list[str] = []

    async def cancels(state: State) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def goes_on(state: State) -> None:
        await asyncio.sleep(0)
        begun.append("went on")

    run = side(cancels, goes_on).start()
    await run
    assert (run.status, begun) == ("interrupted", ["went on"])
