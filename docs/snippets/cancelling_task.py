import asyncio

from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()


@builder.node
async def work(state, ctx):
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        ctx.emit("work", "cut off")
        raise  # swallow it, and the node goes on working for nobody


builder.add_edge(START, "work").add_edge("work", END)


async def main():
    async with builder.compile() as app:
        watching = app.event_stream(run_id="r")
        task = asyncio.create_task(app.invoke({}, run_id="r"))
        while (await watching.recv()).scope != "weavegraph.node.started":
            pass
        task.cancel()  # cancelling invoke() cancels its run: start() and join() keep the two apart
        try:
            await task
        except asyncio.CancelledError:
            rest = [event async for event in watching]
            print([event.message for event in rest if event.scope == "work"], rest[-1].metadata["outcome"])


asyncio.run(main())
