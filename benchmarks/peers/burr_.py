"""Burr: actions of an ``ApplicationBuilder``, ``MapStates`` for what runs at the same time, a streaming action."""

import itertools
from typing import Any

from burr.core import ApplicationBuilder, State, action, default, expr
from burr.core.action import streaming_action
from burr.core.parallelism import MapStates

NAME = "Burr"
PACKAGE = "burr"


@action(reads=["count"], writes=["count"])
async def step(state: State) -> State:
    return state.update(count=state["count"] + 1)


@action(reads=["done"], writes=["done"])
async def work(state: State) -> State:
    return state.append(done=1)


@action(reads=["item"], writes=["item"])
async def one(state: State) -> State:
    return state.update(item=1)


def chain(size):
    names = [f"n{number}" for number in range(size)]
    prepared = (
        ApplicationBuilder()
        .with_actions(**dict.fromkeys(names, step))
        .with_transitions(*itertools.pairwise(names))
        .with_entrypoint("n0")
    )
    graph = prepared.with_state(count=0).build().graph  # compiled once, as its documentation says of many sessions

    async def call():
        app = ApplicationBuilder().with_graph(graph).with_entrypoint("n0").with_state(count=0).build()
        _, _, state = await app.arun(halt_after=[names[-1]])
        assert state["count"] == size

    return call


def loop(turns):
    builder = ApplicationBuilder().with_actions(again=work, end=one)
    builder = builder.with_transitions(("again", "again", expr(f"len(done) < {turns}")), ("again", "end", default))
    graph = builder.with_entrypoint("again").with_state(done=[], item=0).build().graph

    async def call():
        app = ApplicationBuilder().with_graph(graph).with_entrypoint("again").with_state(done=[], item=0).build()
        _, _, state = await app.arun(halt_before=["end"])
        assert len(state["done"]) == turns

    return call


class Branches(MapStates):
    width = 0

    def action(self, state: State, inputs: dict[str, Any]) -> Any:
        return one

    async def states(self, state: State, context: Any, inputs: dict[str, Any]) -> Any:
        for _ in range(self.width):
            yield state.update(item=0)

    async def reduce(self, state: State, states: Any) -> State:
        async for branch in states:
            state = state.append(done=branch["item"])
        return state

    def is_async(self) -> bool:
        return True

    @property
    def reads(self) -> list[str]:
        return ["done"]

    @property
    def writes(self) -> list[str]:
        return ["done"]


def fan_out(width):
    branches = type("Wide", (Branches,), {"width": width})()
    builder = ApplicationBuilder().with_actions(split=work, branches=branches, join=work)
    builder = builder.with_transitions(("split", "branches"), ("branches", "join"))
    graph = builder.with_entrypoint("split").with_state(done=[]).build().graph

    async def call():
        app = ApplicationBuilder().with_graph(graph).with_entrypoint("split").with_state(done=[]).build()
        _, _, state = await app.arun(halt_after=["join"])
        assert len(state["done"]) == width + 2

    return call


def burst(events):
    @streaming_action(reads=[], writes=["count"])
    async def speaks(state: State):
        for number in range(events):
            yield {"scope": "progress", "message": "item", "number": number}, None
        yield {"count": events}, state.update(count=events)

    graph = ApplicationBuilder().with_actions(speaks=speaks).with_entrypoint("speaks").build().graph

    async def call():
        app = ApplicationBuilder().with_graph(graph).with_entrypoint("speaks").build()
        _, container = await app.astream_result(halt_after=["speaks"])
        count = 0
        async for _ in container:
            count += 1
        await container.get()
        assert count == events

    return call
