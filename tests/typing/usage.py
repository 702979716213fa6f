"""Usage that must type-check under mypy and pyright; never run."""

from __future__ import annotations

from typing import Any, TypedDict, assert_type

from weavegraph import (
    END,
    START,
    App,
    BlockingEvents,
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
    from_json,
    llm_chunk,
    node_message,
    to_json,
)


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


async def graph() -> None:
    builder = GraphBuilder(State)

    @builder.node
    async def write(state: State, ctx: NodeContext) -> dict[str, str]:
        reply = await ctx.stream_llm(["a"])
        return {"topic": reply.text}

    builder.add_edge(START, "write").add_edge("write", END)
    app = builder.compile(RuntimeConfig(event_bus=EventBusConfig(sinks=("stdout:",))))
    assert_type(app, App)
    run = app.start({"topic": "tea"})
    assert_type(run, InvocationHandle)
    assert_type(await run, dict[str, Any])
    assert_type(await app.invoke({}), dict[str, Any])
