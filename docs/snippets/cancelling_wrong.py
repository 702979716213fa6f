import asyncio

from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()


@builder.node
async def work(state, ctx):
    while not ctx.cancelled:
        await asyncio.sleep(0.01)


builder.add_edge(START, "work").add_edge("work", END)


async def main():
    async with builder.compile() as app:
        run = app.start({})
        try:
            await asyncio.wait_for(run.join(), 0.3)
        except TimeoutError:
            pass  # this stopped the waiting, not the run
        print(run.status)


asyncio.run(main())
