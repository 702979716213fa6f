"""A step is done as a whole or not at all; what was found wrong with that, and with what its tasks share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypedDict

import pytest

from tests.support import clause, settle
from weavegraph import (
    END,
    START,
    App,
    AppRunner,
    Command,
    GraphBuilder,
    NodeContext,
    Retry,
    RunCancelledError,
    RuntimeConfig,
    Send,
)
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.errors import StateError
from weavegraph.state import append


class State(TypedDict, total=False):
    parts: Annotated[list[Any], append]
    x: Any


Context = NodeContext[State, None]


def chain(*nodes: Callable[..., Any], config: RuntimeConfig | None = None, state: Any = State) -> App[Any]:
    builder = GraphBuilder(state)
    previous: str = START
    for node in nodes:
        builder.add_node(node.__name__, node).add_edge(previous, node.__name__)
        previous = node.__name__
    return builder.add_edge(previous, END).compile(config)


def side(*nodes: Callable[..., Any], config: RuntimeConfig | None = None) -> App[Any]:
    builder = GraphBuilder(State)
    for node in nodes:
        builder.add_node(node.__name__, node).add_edge(START, node.__name__).add_edge(node.__name__, END)
    return builder.compile(config)


def fan(split: Any, each: Any, config: RuntimeConfig | None = None, **options: Any) -> App[Any]:
    """``split`` sends to ``each``."""
    builder = GraphBuilder(State)
    builder.add_node("split", split, to=["each"]).add_node("each", each, **options)
    return builder.add_edge(START, "split").add_edge("each", END).compile(config)


def remembering(**options: Any) -> RuntimeConfig:
    return RuntimeConfig(checkpointer=MemoryCheckpointer(), cancel_grace=0.02, **options)


def routed(router: Callable[..., Any], config: RuntimeConfig | None = None, **nodes: Any) -> App[Any]:
    """Nodes side by side; the router comes after the first."""
    builder = GraphBuilder(State)
    for name, node in nodes.items():
        builder.add_node(name, node).add_edge(START, name)
    return builder.add_conditional_edge(next(iter(nodes)), router, to=[*nodes, END]).compile(config)


def says(name: str, ran: list[str]) -> Callable[[State], Any]:
    async def node(state: State) -> dict[str, Any]:
        ran.append(name)
        return {"parts": [name]}

    return node


# ── routers ───────────────────────────────────────────────────────────────────────────────────────


@clause("D4")
@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
async def test_a_router_that_failed_is_all_that_a_resume_runs_again(names: list[str]) -> None:
    ran: list[str] = []
    seen: list[list[str]] = []

    def flaky(state: State) -> str:
        seen.append(list(state["parts"]))
        if len(seen) == 1:
            raise ValueError("flaky")
        return END

    nodes = {name: says(name, ran) for name in names}
    builder = GraphBuilder(State)
    for name, node in nodes.items():
        builder.add_node(name, node).add_edge(START, name)
        if name != "a":
            builder.add_edge(name, END)
    builder.add_conditional_edge("a", flaky, to=[END])
    async with builder.compile(remembering()) as app:
        run = app.start({}, session_id="s")
        with pytest.raises(ValueError, match="flaky"):
            await run
        assert run.state == {}
        assert [event.scope for event in [e async for e in run.events()]].count("weavegraph.step.finished") == 0
        assert await app.resume("s") == {"parts": names}
        assert (ran, seen) == (names, [names, names])


@clause("D4")
async def test_a_step_that_is_cancelled_in_its_router_is_taken_once() -> None:
    entered, ran = asyncio.Event(), list[str]()

    async def router(state: State) -> str:
        if not entered.is_set():
            entered.set()
            await asyncio.Event().wait()
        return END

    async with routed(router, a=says("a", ran)) as app:
        runner = AppRunner(app)
        await runner.create_session({}, session_id="s")
        stepping = asyncio.create_task(runner.run_step("s"))
        await entered.wait()
        stepping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stepping
        assert await runner.run_until_complete("s") == {"parts": ["a"]}
        assert ran == ["a"]


async def test_what_could_not_be_merged_is_run_again_by_a_resume() -> None:
    """Kept outputs would conflict for ever."""
    values = iter([1, 2])

    async def one(state: State) -> dict[str, Any]:
        return {"x": next(values)}

    async def two(state: State) -> dict[str, Any] | None:
        value = next(values, None)
        return None if value is None else {"x": value}

    async with side(one, two, config=remembering()) as app:
        with pytest.raises(StateError, match="node 'one' and node 'two' both wrote 'x'"):
            await app.invoke({}, session_id="s")
        values = iter([3])
        assert await app.resume("s") == {"x": 3}


# ── siblings ──────────────────────────────────────────────────────────────────────────────────────


@clause("8.abort", "D4")
async def test_a_hard_cancel_keeps_what_siblings_had_finished() -> None:
    ran: list[str] = []
    entered, go = asyncio.Event(), asyncio.Event()

    async def waits(state: State) -> dict[str, Any]:
        entered.set()
        await go.wait()
        return {"parts": ["waits"]}

    a = says("a", ran)
    a.__name__ = "a"
    async with side(a, waits, config=remembering()) as app:
        run = app.start({}, session_id="s")
        await entered.wait()
        await settle()
        run.abort()
        with pytest.raises(RunCancelledError):
            await run
        go.set()
        assert await app.resume("s") == {"parts": ["a", "waits"]}
        assert ran == ["a"]


@clause("8.node_raises")
async def test_a_sibling_that_swallows_its_cancellation_does_not_hold_a_failed_run() -> None:
    free, late = asyncio.Event(), list[str]()

    async def fails(state: State) -> None:
        await settle(2)
        raise ValueError("x")

    async def stubborn(state: State, ctx: Context) -> None:
        ctx.emit_llm_chunk("half")
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                pass
        try:
            ctx.emit_llm_chunk("late", stream_id="other")
        except Exception as error:
            late.append(type(error).__name__)

    async with side(fails, stubborn, config=RuntimeConfig(cancel_grace=0)) as app:
        run = app.start({})
        with pytest.raises(ValueError, match="x"):
            await run
        events = [event async for event in run.events()]
        scopes = [event.scope for event in events[-3:]]
        assert scopes == ["weavegraph.node.failed", "llm_stream", "weavegraph.stream.end"]
        assert events[-2].phase == "cancelled"  # type: ignore[union-attr]
        free.set()
        await settle()
        assert late == ["LLMStreamClosedError"]


@pytest.mark.parametrize("left", [False, True])
async def test_a_subgraph_whose_node_swallows_its_cancellation_goes_no_further(left: bool) -> None:
    free, ran = asyncio.Event(), list[str]()

    async def stubborn(state: State) -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                if not left:
                    return

    async def after(state: State) -> None:
        ran.append("after")

    async def fails(state: State) -> None:
        await settle(3)
        raise ValueError("x")

    builder = GraphBuilder(State)
    builder.add_node("sub", chain(stubborn, after)).add_edge(START, "sub").add_edge("sub", END)
    builder.add_node("fails", fails).add_edge(START, "fails").add_edge("fails", END)
    async with builder.compile(RuntimeConfig(cancel_grace=0)) as app:
        run = app.start({})
        with pytest.raises(ValueError, match="x"):
            await run
        free.set()
        await settle()
        finished = [event.node_id async for event in run.events() if event.scope == "weavegraph.node.finished"]
    assert (ran, finished) == ([], [] if left else ["stubborn"])


@clause("8.cancel")
async def test_a_sibling_that_stops_when_asked_does_not_end_the_others_grace() -> None:
    entered, more, ended = asyncio.Event(), asyncio.Event(), list[str]()

    async def quick(state: State, ctx: Context) -> None:
        await ctx.cancel_token.wait()
        more.set()
        ctx.raise_if_cancelled()

    async def slow(state: State, ctx: Context) -> dict[str, Any]:
        entered.set()
        await ctx.cancel_token.wait()
        await more.wait()
        await settle()
        ended.append("slow")
        return {"parts": ["slow"]}

    async with side(quick, slow, config=RuntimeConfig(cancel_grace=1000)) as app:
        run = app.start({})
        await entered.wait()
        run.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await run
    assert ended == ["slow"]


async def test_siblings_are_cancelled_in_the_order_of_the_step() -> None:
    async def fails(state: State) -> None:
        await settle(2)
        raise ValueError("here")

    async def waits(state: State) -> None:
        await asyncio.Event().wait()

    builder = GraphBuilder(State)
    names = ["fails", *(f"w{number}" for number in range(30))]
    for name in names:
        builder.add_node(name, fails if name == "fails" else waits).add_edge(START, name).add_edge(name, END)
    async with builder.compile() as app:
        run = app.start({})
        with pytest.raises(ValueError, match="here"):
            await run
        failed = [event.node_id async for event in run.events() if event.scope == "weavegraph.node.failed"]
    assert failed == names


@pytest.mark.parametrize("parallel", [False, True])
async def test_what_exits_the_process_is_the_failure_of_its_node(parallel: bool) -> None:
    async def leaves(state: State) -> None:
        raise SystemExit(3)

    async def other(state: State) -> None:
        await settle()

    async with side(*((leaves, other) if parallel else (leaves,))) as app:
        run = app.start({})
        with pytest.raises(SystemExit) as caught:
            await run
        assert (caught.value.code, run.status) == (3, "failed")


def test_a_loop_that_is_closed_under_several_nodes_ends_them_and_then_the_run() -> None:
    import gc

    entered = list[str]()

    async def a(state: State, ctx: Context) -> None:
        ctx.emit_llm_chunk("a")
        entered.append("a")
        await asyncio.Event().wait()

    async def b(state: State) -> None:
        entered.append("b")
        await asyncio.Event().wait()

    app = side(a, b)
    loop = asyncio.new_event_loop()

    async def begin() -> Any:
        run = app.start({}, run_id="r")
        while len(entered) < 2:
            await asyncio.sleep(0)
        return run

    run = loop.run_until_complete(begin())
    task = run._execution.task
    task._log_destroy_pending = False
    loop.close()
    run._execution.task = None
    del task
    gc.collect()
    assert run.status == "interrupted"
    failed = "weavegraph.node.failed"
    ends = [(e.scope, e.node_id) for e in run.blocking() if e.scope in (failed, "llm_stream")]
    assert ends == [("llm_stream", "a"), ("llm_stream", "a"), (failed, "a"), (failed, "b")]
    run._asked = True
    app.close()


async def test_a_runner_may_step_in_several_loops() -> None:
    def node(name: str) -> Any:
        async def run(state: State) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"parts": [name]}

        return run

    builder = GraphBuilder(State)
    for name in "abcd":
        builder.add_node(name, node(name))
    builder.add_edge(START, "a").add_edge(START, "b").add_edge("a", "c").add_edge("a", "d")
    for name in "bcd":
        builder.add_edge(name, END)
    runner = AppRunner(builder.compile(RuntimeConfig(concurrency_limit=1)))

    def alone(work: Any) -> Any:
        return asyncio.run(work)

    await asyncio.to_thread(alone, runner.create_session({}, session_id="s"))
    steps = [await asyncio.to_thread(alone, runner.run_step("s")) for _ in range(2)]
    assert [step.ran_nodes for step in steps] == [("a", "b"), ("c", "d")]
    await runner.app.aclose()


# ── sends and sub-graphs ──────────────────────────────────────────────────────────────────────────


@clause("D4")
async def test_each_send_of_a_subgraph_asks_its_own_question() -> None:
    async def ask(state: State, ctx: Context) -> dict[str, Any]:
        return {"parts": [(state["x"], await ctx.interrupt(state["x"]))]}

    async def split(state: State) -> list[Send]:
        return [Send("each", {"x": number}) for number in (1, 2)]

    async with fan(split, chain(ask), remembering()) as app:
        run = app.start({}, session_id="s")
        await run
        first, second = run.questions
        assert (first.question, second.question, first.path, second.path) == (1, 2, ("each",), ("each",))
        assert first.id != second.id
        events = [event async for event in run.events()]
        assert {event.path for event in events} == {(), ("each",)}
        again = app.resume("s", {second.id: "B"})
        await again
        assert [question.id for question in again.questions] == [first.id]
        assert await app.resume("s", {first.id: "A"}) == {"parts": [(1, "A"), (2, "B")]}


async def test_an_answer_is_the_nodes_own_copy_each_time() -> None:
    async def ask(state: State, ctx: Context) -> dict[str, Any]:
        answer = await ctx.interrupt("one")
        answer["n"] += 1
        await ctx.interrupt("two")
        return {"x": answer["n"]}

    async with chain(ask, config=remembering()) as app:
        await app.start({}, session_id="s")
        await app.resume("s", {"n": 0})
        assert await app.resume("s", "ok") == {"x": 1}


async def test_a_payload_is_its_tasks_own_in_every_try() -> None:
    payload, tries = {"n": 0, "deep": [[0]]}, list[int]()

    async def split(state: State) -> list[Send]:
        return [Send("each", payload), Send("each", payload)]

    async def each(state: dict[str, Any], ctx: Context) -> dict[str, Any]:
        state["n"] += 1
        state["deep"][0].append(1)
        tries.append(ctx.try_no)
        if ctx.try_no == 1:
            raise OSError
        return {"parts": [(state["n"], len(state["deep"][0]))]}

    async with fan(split, each, retry=Retry(tries=2, base=0.0)) as app:
        assert await app.invoke({}) == {"parts": [(1, 2), (1, 2)]}
    assert (payload, sorted(tries)) == ({"n": 0, "deep": [[0]]}, [1, 1, 2, 2])


async def test_a_payload_is_taken_when_it_is_sent() -> None:
    payload = {"n": 0}

    async def split(state: State) -> Send:
        return Send("each", payload)

    async def each(state: dict[str, Any]) -> dict[str, Any]:
        return {"parts": [state["n"]]}

    runner = AppRunner(fan(split, each))
    await runner.create_session({}, session_id="s")
    await runner.run_step("s")
    payload["n"] = 7
    assert await runner.run_until_complete("s") == {"parts": [0]}
    await runner.app.aclose()


async def test_two_sends_of_one_node_that_write_a_key_without_a_reducer_conflict() -> None:
    async def split(state: State) -> list[Send]:
        return [Send("each", number) for number in (1, 2)]

    async def each(state: Any) -> dict[str, Any]:
        return {"x": state}

    async with fan(split, each) as app:
        with pytest.raises(StateError, match="two tasks of node 'each' wrote 'x' in one step; give the key a reducer"):
            await app.invoke({})


async def test_a_list_of_no_sends_goes_nowhere() -> None:
    async def split(state: State) -> list[Send]:
        return [Send("each", number) for number in state.get("parts", [])]

    async def each(state: Any) -> dict[str, Any]:
        return {"x": state}

    async with fan(split, each) as app:
        assert await app.invoke({}) == {}
        assert await app.invoke({"parts": [3]}) == {"parts": [3], "x": 3}


async def test_what_a_subgraph_wrote_is_as_it_was_when_it_wrote_it() -> None:
    mine = [1]

    async def one(state: State) -> dict[str, Any]:
        return {"x": mine}

    async def two(state: State) -> None:
        mine.append(2)

    builder = GraphBuilder(State)
    builder.add_node("sub", chain(one, two)).add_edge(START, "sub").add_edge("sub", END)
    async with builder.compile() as app:
        assert await app.invoke({}) == {"x": [1]}


@dataclass
class Inner:
    x: int = 0
    parts: Annotated[list[Any], append] = field(default_factory=lambda: ["default"])


async def test_a_subgraph_starts_with_its_parents_values_or_an_instance_that_was_sent() -> None:
    async def look(state: Inner) -> dict[str, Any]:
        return {"x": (state.x, list(state.parts))}

    inner = chain(look, state=Inner)

    async def split(state: State) -> Send:
        return Send("each", Inner(5, ["sent"]))

    async with fan(split, inner) as app:
        assert await app.invoke({}) == {"x": (5, ["default", "sent"])}
    builder = GraphBuilder(State)
    builder.add_node("sub", inner).add_edge(START, "sub").add_edge("sub", END)
    async with builder.compile() as app:
        assert (await app.invoke({"x": 1, "parts": ["mine"]}))["x"] == (1, ["mine"])
        assert (await app.invoke({}))["x"] == (0, ["default"])


async def test_a_whole_state_as_an_update_is_refused_with_the_remedy() -> None:
    async def node(state: Inner) -> Command[Any]:
        return Command(update=replace(state, x=1))

    async with chain(node, state=Inner) as app:
        with pytest.raises(StateError, match="the update of node 'node' is a Inner; give a mapping of the keys that"):
            await app.invoke({})


async def test_version_gating_does_not_count_what_a_node_was_sent() -> None:
    ran: list[str] = []

    async def a(state: State) -> Send:
        return Send("w", {})

    async def w(state: Any) -> Command[Any]:
        ran.append("w")
        return Command(goto="c" if len(ran) == 1 else END)

    async def c(state: State) -> None:
        return None

    builder = GraphBuilder(State)
    builder.add_node("a", a, to=["w"]).add_node("w", w, to=["c", END]).add_node("c", c)
    builder.add_edge(START, "a").add_edge("c", "w")
    async with builder.compile(RuntimeConfig(version_gating=True)) as app:
        await app.invoke({})
    assert ran == ["w", "w"]


async def test_when_some_nodes_of_a_step_are_gated_places_are_still_those_of_the_step() -> None:
    """A question's id names the place, also when a sibling before it was skipped."""

    async def go(state: State) -> dict[str, Any]:
        return {}

    async def ask(state: State, ctx: Context) -> dict[str, Any]:
        return {"parts": [await ctx.interrupt("?")]}

    builder = GraphBuilder(State)
    builder.add_node("go", go).add_node("ask", ask)
    builder.add_edge(START, "go").add_conditional_edge("go", lambda state: ["go", "ask"], to=["go", "ask"])
    builder.add_edge("ask", END)
    async with builder.compile(remembering(version_gating=True)) as app:
        run = app.start({}, session_id="s")
        await run
        assert [question.id for question in run.questions] == ["ask:2:1:0"]
        again = app.resume("s", "yes")
        assert await again == {"parts": ["yes"]}
