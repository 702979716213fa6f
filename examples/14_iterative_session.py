"""Iterative session: a conversation. One run takes input after input, keeps its state, and its stream stays open.

Expect: three turns, each ended by an event of its own; then the end of the session, which ends the stream.
"""

import asyncio

from weavegraph import END, INVOCATION_END_SCOPE, START, STREAM_END_SCOPE, AppRunner, GraphBuilder

builder = GraphBuilder()


@builder.node
async def answer(state, ctx):
    said = [message.content for message in state["messages"] if message.role == "user"]
    reply = f"You have said {len(said)} things, the last was {said[-1]!r}."
    ctx.emit("answer", reply)
    return {"messages": [("assistant", reply)]}


builder.add_edge(START, "answer").add_edge("answer", END)
app = builder.compile()


async def watch(events):
    async for event in events:
        if event.scope == "answer":
            print("   ", event.message)
        elif event.scope == INVOCATION_END_SCOPE:  # this input is answered; the next may come
            print("    — turn", event.metadata["outcome"])
        elif event.scope == STREAM_END_SCOPE:  # no more inputs
            print("    — session", event.metadata["outcome"])


async def main():
    async with app:
        runner = AppRunner(app)
        events = runner.event_stream(session_id="chat")  # before the session exists: nothing is missed
        watching = asyncio.create_task(watch(events))
        await runner.create_iterative_session({}, session_id="chat")
        for text in ("hello", "how is the tea?", "bye"):
            state = await runner.invoke_next("chat", {"messages": [("user", text)]})
        state = await runner.finish_iterative_session("chat")
    await watching  # a session's stream ends when the app closes
    print(len(state["messages"]), "messages are kept")


asyncio.run(main())
