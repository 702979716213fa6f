import asyncio
import os
import subprocess
import sys

from weavegraph import END, START, GraphBuilder, RuntimeConfig

builder = GraphBuilder()


@builder.node
async def costly(state, ctx):
    ctx.emit("costly", "done once")
    return {"extra": {"costly": True}}


@builder.node
async def fragile(state, ctx):
    if ctx.attempt == 1:
        os._exit(9)  # stands for kill -9, or a power cut
    return {"extra": {"fragile": True}}


builder.add_edge(START, "costly").add_edge("costly", "fragile").add_edge("fragile", END)
app = builder.compile(RuntimeConfig(log="sqlite:runs.db", checkpointer="sqlite:runs.db"))


async def first():
    await app.invoke({}, session_id="s", run_id="r")


async def second():
    async with app:
        print((await app.resume("s"))["extra"])
        events = [event async for event in app.event_stream(run_id="r", after=0)]  # the log's past, then the present
        for event in events:
            if event.scope in ("costly", "weavegraph.run.started", "weavegraph.stream.end"):
                print("attempt", event.attempt, event)
        print("no hole:", [event.run_seq for event in events] == list(range(1, len(events) + 1)))


if sys.argv[1:] == ["first"]:
    asyncio.run(first())
else:
    print("exit code", subprocess.run([sys.executable, __file__, "first"]).returncode)
    asyncio.run(second())
