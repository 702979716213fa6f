"""The newer style: a stream is taken whenever somebody wants to look."""

import asyncio

from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()


@builder.node
async def work(state, ctx):
    ctx.emit("work", "hello")


builder.add_edge(START, "work").add_edge("work", END)


async def main():
    async with builder.compile() as app:
        run, events = await app.invoke_streaming({})  # returns at once
        print([event.message async for event in events if event.scope == "work"])
        await run

        with app.event_stream(after=0) as everything:  # instead of a raw channel, or of a sink that only collects
            while (event := everything.try_recv()).scope != "work":
                pass
            print([event.message])


asyncio.run(main())
