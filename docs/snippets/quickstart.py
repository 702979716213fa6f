import asyncio

from weavegraph import END, START, GraphBuilder

builder = GraphBuilder()


@builder.node
async def answer(state, ctx):
    ctx.emit("thinking", "about tea", cups=2)
    reply = await ctx.stream_llm(["Green ", "tea."], stream_id="answer")
    return {"messages": [("assistant", reply.text)]}


builder.add_edge(START, "answer").add_edge("answer", END)
app = builder.compile()


async def main():
    async with app:
        everything = app.event_stream()  # all runs of this app, from before they start
        run, events = await app.invoke_streaming({"messages": [("user", "tea?")]})
        async for event in events:  # this run, from its first event to its last
            print(event.run_seq, event)
        state = await run
        print(state["messages"][-1])
        print("the app's stream holds", everything.lag, "events")
        everything.close()


asyncio.run(main())
