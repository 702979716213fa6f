import asyncio

from weavegraph import END, START, GraphBuilder, LLMStreamingEvent

builder = GraphBuilder()


async def model(*tokens):
    for token in tokens:
        await asyncio.sleep(0.01)
        yield token


@builder.node
async def chat(state, ctx):
    await ctx.stream_llm(model("A ", "plan."), stream_id="plan")
    await ctx.stream_llm(model("The ", "answer."), stream_id="answer")


builder.add_edge(START, "chat").add_edge("chat", END)


async def main():
    async with builder.compile() as app, app.stream({}) as run:
        async for event in run:
            if isinstance(event, LLMStreamingEvent):
                print(event.phase, repr(event.chunk))
                if event.is_final:  # the end of one answer, taken for the end of the run
                    break
    print(run.status)


asyncio.run(main())
