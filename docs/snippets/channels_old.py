"""The older style: a queue that is fed while the run works, then the state. Still works, on the same hub."""

import asyncio

from weavegraph import END, START, ChannelSink, GraphBuilder, MemorySink

builder = GraphBuilder()


@builder.node
async def work(state, ctx):
    ctx.emit("work", "hello")


builder.add_edge(START, "work").add_edge("work", END)


async def main():
    async with builder.compile() as app:
        state, events = await app.invoke_with_channel({})  # returns after the run
        print(state["extra"], [event.message async for event in events if event.scope == "work"])

        sink = MemorySink()
        await app.invoke_with_sinks({}, [sink])
        print([event.message for event in sink.snapshot() if event.scope == "work"])

        queue = asyncio.Queue(maxsize=10)  # a raw channel of yours
        with ChannelSink(app.event_bus, queue):
            await app.invoke({})
            while (event := await queue.get()).scope != "work":
                pass
            print([event.message])


asyncio.run(main())
