"""Usage that must type-check under mypy and pyright; never run."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, assert_type

import msgspec

from weavegraph import (
    END,
    START,
    App,
    AppRunner,
    BlockingEvents,
    CancelToken,
    Command,
    Event,
    EventBus,
    EventBusConfig,
    EventEmitter,
    EventFilter,
    EventHub,
    EventHubMetrics,
    EventSink,
    EventStream,
    GraphBuilder,
    HubEmitter,
    InvocationHandle,
    MemorySink,
    NodeContext,
    RuntimeConfig,
    SinkGuard,
    StateKey,
    failure_of,
    from_json,
    llm_chunk,
    node_message,
    to_json,
)
from weavegraph.state import Failure


class State(TypedDict, total=False):
    topic: str


async def hub() -> None:
    hub = EventHub(capacity=10)
    assert_type(hub.publish(node_message("a", "b", k=1)), int)
    assert_type(await hub.publish_async(llm_chunk("x", stream_id="s")), int)
    stream = hub.subscribe(after=0, capacity=5, overflow="block", on_lag="raise", filter=EventFilter(kinds=("llm",)))
    assert_type(stream, EventStream)
    async for event in stream:
        assert_type(event.seq, int)
    assert_type(await stream.recv(), Event)
    assert_type(stream.try_recv(), Event | None)
    assert_type(await stream.recv_many(3), tuple[Event, ...])
    assert_type(await stream.next_timeout(1.0), Event | None)
    assert_type(stream.blocking(), BlockingEvents)
    for event in stream.blocking():
        assert_type(event.message, str)
    assert_type(hub.metrics(), EventHubMetrics)
    assert_type(hub.emitter(), HubEmitter)
    emitter: EventEmitter = hub.emitter()
    assert_type(emitter.emit(node_message("a", "b")), Event | None)
    assert_type(to_json(node_message("a", "b")), bytes)
    assert_type(from_json(b""), Event)
    hub.subscribe(overflow="lossy")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Sink:
    async def handle(self, batch: Any, /) -> None: ...


async def bus() -> None:
    sink: EventSink = Sink()
    async with EventBus([sink, MemorySink()]) as bus:
        assert_type(bus.add_sink(Sink()), SinkGuard)
        assert_type((await bus.flush(timeout=1)).complete, bool)


class Deps:
    name = "ada"


async def graph() -> None:
    builder = GraphBuilder(State)
    assert_type(builder, GraphBuilder[State])
    assert_type(GraphBuilder(), GraphBuilder[dict[str, Any]])

    @builder.node
    async def write(state: State, ctx: NodeContext[State, Deps]) -> dict[str, str]:
        assert_type(ctx.deps, Deps)
        assert_type(ctx.emit("a", "b", c=1), Event | None)
        reply = await ctx.stream_llm(["a"])
        return {"topic": reply.text}

    @builder.node(retry=3, timeout=1.0)
    def route(state: State) -> Command[Literal["write", "__end__"]]:
        return Command(goto="write", update={"topic": "x"})

    builder.add_edge(START, "write").add_edge("write", END)
    app = builder.compile(RuntimeConfig(event_bus=EventBusConfig(sinks=("stdout:",))))
    assert_type(app, App[State])
    run = app.start({"topic": "tea"}, deps=Deps(), cancel=CancelToken())
    assert_type(run, InvocationHandle[State])
    assert_type(await run, State)
    assert_type(await app.invoke({}), State)
    assert_type(app.invoke_sync({}), State)
    assert_type((await app.invoke_streaming({}))[1], EventStream)
    assert_type(await AppRunner(app).run_until_complete("s"), State)
    assert_type(StateKey("a", "b", int).get({}), int | None)
    assert_type(failure_of(ValueError()), Failure | None)
    async for event in run:
        assert_type(event, Event)


class Data(msgspec.Struct):
    topic: str


async def struct() -> None:
    app = GraphBuilder(Data).add_node("a", lambda state: None).add_edge(START, "a").add_edge("a", END).compile()
    assert_type(await app.invoke(Data("tea")), Data)
    with app.stream_sync({"topic": "tea"}) as run:
        assert_type(run.result(), Data)
