"""The contender "bare": what one would write by hand with nothing but ``asyncio``.

No error handling, no events, no positions, no cancellation, no bounds: a floor, not a rival.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

__all__ = ["streamed", "walk"]

Node = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


async def walk(
    nodes: Mapping[str, Node],
    edges: Mapping[str, Sequence[str]],
    routers: Mapping[str, Callable[[dict[str, Any]], str]],
    reducers: Mapping[str, Callable[[Any, Any], Any]],
    state: dict[str, Any],
    entry: str,
) -> dict[str, Any]:
    """Supersteps: a TaskGroup for each, then the updates in order, then whoever comes next."""
    frontier = [entry]
    while frontier:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(nodes[name](dict(state))) for name in frontier]
        for task in tasks:
            for key, value in task.result().items():
                reducer = reducers.get(key)
                state[key] = value if reducer is None else reducer(state[key], value)
        following: dict[str, None] = {}
        for name in frontier:
            for target in edges.get(name, ()):
                following[target] = None
            if name in routers:
                following[routers[name](state)] = None
        following.pop("END", None)
        frontier = list(following)
    return state


async def streamed(produce: Callable[[Callable[[Any], None]], Awaitable[None]]) -> int:
    """A producer with an ``asyncio.Queue``, and one reader; how many items came."""
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def producer() -> None:
        await produce(queue.put_nowait)
        queue.put_nowait(None)

    task = asyncio.create_task(producer())
    count = 0
    while await queue.get() is not None:
        count += 1
    await task
    return count
