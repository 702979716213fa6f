"""Streaming: a run is started, and watched from its first event to its last while it works.

Expect: every event of the run with its position, then how it ended. The last event is always the terminal one.
"""

import asyncio

from weavegraph import END, START, STREAM_END_SCOPE, GraphBuilder

builder = GraphBuilder()  # the default state: messages, extra, errors


@builder.node
async def draft(state, ctx):
    ctx.emit("draft", "thinking")  # (scope, message, **metadata); never waits
    await asyncio.sleep(0)
    ctx.emit("draft", "writing", words=3)
    return {"messages": [("assistant", "tea is fine")]}


builder.add_edge(START, "draft").add_edge("draft", END)
app = builder.compile()


async def main():
    async with app:
        run, events = await app.invoke_streaming({"messages": [("user", "tea?")]})
        async for event in events:
            print(event.run_seq, event.scope, event.message, dict(event.metadata) if event.scope == "draft" else "")
            if event.scope == STREAM_END_SCOPE:
                print("outcome:", event.metadata["outcome"])
        state = await run  # or raises what the failing node raised
        print(*state["messages"], sep="\n")


asyncio.run(main())
