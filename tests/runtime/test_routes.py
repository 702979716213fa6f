"""Where a run goes: edges, routers, commands, sends, sub-graphs, and how much at a time."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import pytest

from tests.support import clause
from weavegraph import (
    END,
    START,
    App,
    Command,
    Event,
    GraphBuilder,
    GraphError,
    Message,
    NodeContext,
    NodePartial,
    Retry,
    RuntimeConfig,
    Send,
    failure_of,
)
from weavegraph.errors import NodeOutputError, StateError
from weavegraph.state import FrontierCommand, append


class State(TypedDict, total=False):
    parts: Annotated[list[str], append]
    topic: str
    n: int


def say(name: str, update: dict[str, Any] | None = None) -> Any:
    def node(state: State) -> dict[str, Any]:
        return {"parts": [name], **(update or {})}

    return node


def build(*names: str) -> GraphBuilder[State]:
    builder = GraphBuilder(State)
    for name in names:
        builder.add_node(name, say(name))
    return builder


async def parts(builder: GraphBuilder[State], config: RuntimeConfig | None = None, **given: Any) -> list[str]:
    async with builder.compile(config) as app:
        return (await app.invoke(given))["parts"]


async def test_updates_are_merged_in_the_order_of_registration_not_of_finishing() -> None:
    builder = GraphBuilder(State)
    for turns, name in enumerate("cab"):

        async def node(state: State, turns: int = turns, name: str = name) -> dict[str, Any]:
            for _ in range(9 - 4 * turns):
                await asyncio.sleep(0)
            return {"parts": [name]}

        builder.add_node(name, functools.partial(node, turns=turns, name=name))
        builder.add_edge(START, name).add_edge(name, END)
    assert await parts(builder) == ["c", "a", "b"]


async def test_a_node_never_sees_what_a_sibling_of_its_step_writes() -> None:
    builder = GraphBuilder(State)
    seen: dict[str, list[str]] = {}

    def node(name: str) -> Any:
        async def run(state: State) -> dict[str, Any]:
            await asyncio.sleep(0)
            seen[name] = list(state["parts"])
            state["parts"].append("spoiled")
            return {"parts": [name]}

        return run

    for name in ("a", "b"):
        builder.add_node(name, node(name)).add_edge(START, name).add_edge(name, "c")
    builder.add_node("c", node("c")).add_edge("c", END)
    assert await parts(builder, parts=["0"]) == ["0", "a", "b", "c"]
    assert seen == {"a": ["0"], "b": ["0"], "c": ["0", "a", "b"]}


async def test_routers_async_or_sync_name_one_or_many_run_in_the_loop_and_may_send() -> None:
    thread = threading.get_ident()

    async def many(state: State) -> list[Any]:
        assert threading.get_ident() == thread
        return ["b", "c", Send("d", {"topic": "x"}), Send("d", {"topic": "y"})]

    builder = build("a", "b", "c")
    builder.add_node("d", lambda state: {"parts": [state["topic"]]})
    builder.add_edge(START, "a").add_conditional_edge("a", many)
    for name in "bcd":
        builder.add_edge(name, END)
    assert await parts(builder) == ["a", "b", "c", "x", "y"]


async def test_a_router_may_answer_names_that_to_turns_into_nodes_or_nothing() -> None:
    builder = build("a", "b")
    builder.add_edge(START, "a").add_edge("b", END)
    builder.add_conditional_edge("a", lambda state: len(state["parts"]) > 5, to={True: END, False: "b"})
    assert await parts(builder) == ["a", "b"]
    builder = build("a")
    builder.add_edge(START, "a").add_conditional_edge("a", lambda state: None, to=[END])
    assert await parts(builder) == ["a"]
    builder = build("a")
    builder.add_edge(START, "a").add_conditional_edge("a", lambda state: 3, to={1: END})
    with pytest.raises(GraphError, match="answered 3; it may answer: 1") as caught:
        await parts(builder)
    assert "in the router after 'a'" in caught.value.__notes__[0]


async def test_a_command_takes_the_place_of_the_edges_and_an_append_adds_to_them() -> None:
    async def go(output: Any) -> list[str]:
        builder = build("b", "c", "d")
        builder.add_node("a", lambda state: output, to=["b", "c", "d", END])
        builder.add_edge(START, "a").add_edge("a", "b")
        for name in "bcd":
            builder.add_edge(name, END)
        return await parts(builder)

    up = {"parts": ["a"]}
    assert await go(Command(goto="c", update=up)) == ["a", "c"]
    assert await go(Command(goto=["d", "c"], update=up)) == ["a", "c", "d"]
    assert await go(Command(goto=END, update=up)) == ["a"]
    assert await go(Command(update=up)) == ["a", "b"]
    assert await go(Command(goto=Send("c", {}), update=up)) == ["a", "c"]
    assert await go(NodePartial(up, FrontierCommand.append("d"))) == ["a", "b", "d"]
    assert await go(NodePartial(up, FrontierCommand.replace("d"))) == ["a", "d"]
    assert await go([Send("c", {}), Send("c", {})]) == ["c", "c"]
    assert await go(Send("d")) == ["d"]
    with pytest.raises(GraphError, match="wants to go to 'nowhere', which is no node; there are: b, c, d, a"):
        await go(Command(goto="nowhere"))
    with pytest.raises(GraphError, match=r"wants to go to \['u'\], which is no node; there are: b, c, d, a"):
        await go(Command(goto=Send(["u"])))  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"wants to go to \['c'\], which is no node"):
        await go(Command(goto=[["c"]]))  # type: ignore[list-item]
    with pytest.raises(NodeOutputError, match="returned a set"):
        await go({1})
    with pytest.raises(StateError, match="the update of node 'a' is a int"):
        await go(Command(update=3))


async def test_a_command_that_breaks_its_own_word_is_an_error() -> None:
    def node(state: State) -> Command[Literal["b"]]:
        return Command(goto="c")  # type: ignore[arg-type]

    builder = build("b", "c")
    builder.add_node("a", node).add_edge(START, "a").add_edge("b", "c").add_edge("c", END)
    with pytest.raises(GraphError, match="went to 'c', but said it goes to: b"):
        await parts(builder)


async def test_the_default_state_takes_partials_of_messages_extra_and_errors() -> None:
    builder = GraphBuilder()
    builder.add_node(
        "a",
        lambda state: NodePartial().with_messages(Message.assistant("hi"), "x").with_extra(a=1, b=2).with_errors("e"),
    )
    builder.add_node("b", lambda state: NodePartial().clear_extra_keys("a"))
    builder.add_edge(START, "a").add_edge("a", "b").add_edge("b", END)
    async with builder.compile() as app:
        assert await app.invoke() == {"messages": [Message.assistant("hi"), "x"], "extra": {"b": 2}, "errors": ["e"]}


@dataclass
class Data:
    topic: str
    parts: Annotated[list[str], append] = field(default_factory=list)


async def test_nodes_are_given_the_states_type_and_invoke_returns_it() -> None:
    builder = GraphBuilder(Data)

    @builder.node
    async def work(state: Data) -> dict[str, Any]:
        state.parts.append("spoiled")
        return {"parts": [state.topic]}

    builder.add_edge(START, "work").add_edge("work", END)
    async with builder.compile() as app:
        assert await app.invoke({"topic": "tea"}) == Data("tea", ["tea"])
        assert await app.invoke(Data("x", ["0"])) == Data("x", ["0", "x"])
        with pytest.raises(StateError, match="lacks topic"):
            app.start({})
        with pytest.raises(StateError, match="the input wrote 'nope'; the state has: topic, parts"):
            app.start({"topic": "x", "nope": 1})


# ── sub-graphs ────────────────────────────────────────────────────────────────────────────────────


def inner() -> App[State]:
    builder = GraphBuilder(State, name="inner")

    @builder.node
    async def deep(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        ctx.emit("deep", "/".join((*ctx.path, ctx.node_id)))
        await ctx.stream_llm(["x"])
        return {"parts": ["deep"], "topic": "inner"}

    builder.add_node("again", say("again"))
    builder.add_edge(START, "deep").add_edge("deep", "again").add_edge("again", END)
    return builder.compile()


@clause("9.step", "9.node")
async def test_a_subgraphs_events_carry_the_path_and_its_writes_reach_the_parent_once() -> None:
    builder = build("a")
    builder.add_node("sub", inner()).add_edge(START, "a").add_edge("a", "sub").add_edge("sub", END)
    async with builder.compile() as app:
        run = app.start({})
        events: list[Event] = [event async for event in run]
        assert await run == {"parts": ["a", "deep", "again"], "topic": "inner"}
    assert {event.run_id for event in events} == {run.run_id}
    inside = [(event.scope, event.node_id, event.step) for event in events if event.path == ("sub",)]
    assert [scope for scope, _, _ in inside] == [
        "weavegraph.step.started", "weavegraph.node.started", "deep", "llm_stream", "llm_stream",
        "weavegraph.node.finished", "weavegraph.step.finished", "weavegraph.step.started", "weavegraph.node.started",
        "weavegraph.node.finished", "weavegraph.step.finished",
    ]  # fmt: skip
    assert ("deep", "deep", 1) in inside
    assert [event.message for event in events if event.scope == "deep"] == ["sub/deep"]


async def test_a_failure_in_a_subgraph_is_the_runs_and_names_its_place() -> None:
    bad = GraphBuilder(State)
    bad.add_node("bad", lambda state: 1 / 0).add_edge(START, "bad").add_edge("bad", END)
    outer = build()
    middle = GraphBuilder(State)
    middle.add_node("mid", bad.compile()).add_edge(START, "mid").add_edge("mid", END)
    outer.add_node("sub", middle.compile()).add_edge(START, "sub").add_edge("sub", END)
    async with outer.compile() as app:
        with pytest.raises(ZeroDivisionError) as caught:
            await app.invoke({})
    place = failure_of(caught.value)
    assert place is not None and (place.path, place.node) == (("sub", "mid"), "bad")


async def test_a_concurrency_limit_of_one_does_not_starve_a_subgraph() -> None:
    builder = GraphBuilder(State)
    for name in ("one", "two"):
        builder.add_node(name, inner()).add_edge(START, name).add_edge(name, END)
    with pytest.raises(StateError, match="both wrote 'topic'"):
        await parts(builder, RuntimeConfig(concurrency_limit=1))


# ── how much at a time ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("sync", [False, True])
async def test_no_more_nodes_run_at_once_than_the_limit_and_sync_ones_overlap(limit: int, sync: bool) -> None:
    at_once = most = 0
    lock, full = threading.Lock(), threading.Barrier(limit)

    def enter(by: int) -> None:
        nonlocal at_once, most
        with lock:
            at_once += by
            most = max(most, at_once)

    def blocking(state: Any) -> None:
        enter(1)
        full.wait(10)  # nobody goes on before as many as may have come
        enter(-1)

    async def waiting(state: Any) -> None:
        enter(1)
        for _ in range(3):
            await asyncio.sleep(0)
        enter(-1)

    builder = GraphBuilder()
    builder.add_node("split", lambda state: [Send("each", {}) for _ in range(3 * limit)])
    builder.add_node("each", blocking if sync else waiting).add_edge(START, "split").add_edge("each", END)
    async with builder.compile(RuntimeConfig(concurrency_limit=limit)) as app:
        await app.invoke()
    assert (at_once, most) == (0, limit)


async def test_nodes_sync_or_async_see_the_context_of_whoever_started_the_run() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    async def soon(state: Any) -> dict[str, Any]:
        return {"extra": {"async": user.get()}}

    def threaded(state: Any) -> dict[str, Any]:
        return {"extra": {"sync": user.get()}}

    builder = GraphBuilder()
    for node in (soon, threaded):
        builder.add_node(node.__name__, node).add_edge(START, node.__name__).add_edge(node.__name__, END)
    async with builder.compile() as app:
        user.set("ada")
        assert (await app.invoke())["extra"] == {"async": "ada", "sync": "ada"}
        found = await asyncio.to_thread(app.invoke_sync)
        assert found["extra"] == {"async": "ada", "sync": "ada"}


async def test_objects_partials_and_lambdas_are_nodes() -> None:
    class Node:
        async def run(self, state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
            return {"parts": [ctx.node_id]}

    class Call:
        async def __call__(self, state: State) -> dict[str, Any]:
            return {"parts": ["call"]}

    async def helper(name: str, state: State) -> dict[str, Any]:
        return {"parts": [name]}

    builder = GraphBuilder(State)
    nodes = {"object": Node(), "call": Call(), "partial": functools.partial(helper, "p")}
    nodes["awaited"] = lambda state: helper("l", state)
    previous = START
    for name, node in nodes.items():
        builder.add_node(name, node).add_edge(previous, name)
        previous = name
    builder.add_edge(previous, END)
    assert await parts(builder) == ["object", "call", "p", "l"]


# ── retries ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_node_is_tried_again_for_what_its_policy_names_and_no_more_often() -> None:
    tries: list[int] = []

    async def flaky(state: State, ctx: NodeContext[State, None]) -> dict[str, Any]:
        tries.append(ctx.try_no)
        await ctx.stream_llm(["half"], stream_id="s") if ctx.try_no == 3 else ctx.emit_llm_chunk("half", stream_id="s")
        if ctx.try_no < 3:
            raise ConnectionError
        return {"n": ctx.try_no}

    def app(retry: Any, node: Any = flaky) -> App[State]:
        tries.clear()
        builder = GraphBuilder(State)
        builder.add_node("n", node, retry=retry).add_edge(START, "n").add_edge("n", END)
        return builder.compile()

    async with app(Retry(tries=3, base=0.0)) as running:
        run = running.start({})
        assert (await run, tries) == ({"n": 3}, [1, 2, 3])
        streams: dict[str, list[tuple[int, str]]] = {}
        async for event in run:
            if event.scope == "llm_stream":
                streams.setdefault(event.stream_id, []).append((event.index, event.phase))  # type: ignore[union-attr, arg-type]
        assert streams == {
            "s": [(0, "chunk"), (1, "error")], "s:2": [(0, "chunk"), (1, "error")], "s:3": [(0, "chunk"), (1, "final")],
        }  # fmt: skip
    async with app(Retry(tries=2, base=0.0)) as running:
        with pytest.raises(ConnectionError) as caught:
            await running.invoke({})
        place = failure_of(caught.value)
        assert (tries, place and place.try_no) == ([1, 2], 2)
    async with app(Retry(tries=5, base=0.0, on=(KeyError,))) as running:
        with pytest.raises(ConnectionError):
            await running.invoke({})
        assert tries == [1]
    async with app(Retry(tries=5, base=0.0), lambda state: 7) as running:
        with pytest.raises(NodeOutputError):  # trying again cannot help
            await running.invoke({})
