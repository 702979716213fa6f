import asyncio

from weavegraph import END, START, GraphBuilder, MemorySink

builder = GraphBuilder()


@builder.node
async def work(state, ctx):
    ctx.emit("work", state["extra"]["who"])


builder.add_edge(START, "work").add_edge("work", END)


async def main():
    async with builder.compile() as app:
        mine = MemorySink()
        other = app.start({"extra": {"who": "other"}})
        await app.invoke_with_sinks({"extra": {"who": "me"}}, [mine])  # this run's events, all of them, then detached
        await other
        print({event.message for event in mine.snapshot() if event.scope == "work"})


asyncio.run(main())
