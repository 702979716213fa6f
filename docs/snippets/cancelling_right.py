import asyncio

from weavegraph import END, START, GraphBuilder, RunCancelledError

builder = GraphBuilder()


@builder.node
async def work(state, ctx):
    while not ctx.cancelled:
        await asyncio.sleep(0.01)
    return {"extra": {"kept": True}}  # in time, within cancel_grace: it is merged


builder.add_edge(START, "work").add_edge("work", END)


async def main():
    async with builder.compile() as app:
        run = app.start({}, timeout=0.3)  # the run's own deadline
        try:
            await run
        except RunCancelledError as error:
            print(run.status, error.reason, run.state["extra"])


asyncio.run(main())
