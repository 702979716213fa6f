import asyncio

from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()
builder.add_node("work", lambda state: None).add_edge(START, "work").add_edge("work", END)


def report(run):
    return [event.scope for event in run.blocking()][-1]


async def main():
    async with builder.compile() as app, app.stream({}) as run:
        print(await asyncio.to_thread(report, run))


asyncio.run(main())
