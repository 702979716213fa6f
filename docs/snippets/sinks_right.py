import asyncio
import threading

from weavegraph import END, START, GraphBuilder, MemorySink

builder = GraphBuilder()
gate = threading.Event()


@builder.node
async def work(state, ctx):
    ctx.emit("work", "done")


builder.add_edge(START, "work").add_edge("work", END)


class Slow(MemorySink):
    inline = False  # a thread of its own

    def handle(self, batch):
        gate.wait(10)  # a database that takes its time
        super().handle(batch)


async def main():
    async with builder.compile() as app:
        sink = Slow()
        app.event_bus.add_sink(sink)
        await app.invoke({})
        asyncio.get_running_loop().call_later(0.05, gate.set)
        report = await app.event_bus.flush()  # every sink has handled all that was emitted so far
        print(report.complete, len(sink.snapshot()) > 0)


asyncio.run(main())
