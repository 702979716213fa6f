import asyncio

from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()


@builder.node
async def work(state, ctx):
    ctx.emit("work", "hello from a cell")
    return {"extra": {"done": True}}


builder.add_edge(START, "work").add_edge("work", END)
app = builder.compile()


async def cell():  # a notebook's cells run under a loop, like this function
    print(app.invoke_sync({})["extra"])  # blocks the cell; the run has a loop of its own
    with app.stream_sync({}) as run:
        print([event.message for event in run.blocking() if event.scope == "work"])
    print((await app.invoke({}))["extra"])  # top-level await works as well


asyncio.run(cell())
app.close()
