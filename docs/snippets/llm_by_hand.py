import asyncio

from weavegraph import END, START, GraphBuilder, LLMStreamingEvent

builder = GraphBuilder()


@builder.node
async def chat(state, ctx):
    for token in ("by ", "hand"):  # for a provider that calls back instead of giving a stream
        ctx.emit_llm_chunk(token, stream_id="answer", model="small")
    # no emit_llm_final: the node ends, and the runtime ends the stream with it


builder.add_edge(START, "chat").add_edge("chat", END)


async def main():
    async with builder.compile() as app, app.stream({}) as run:
        async for event in run:
            if isinstance(event, LLMStreamingEvent):
                print(event.index, event.phase, repr(event.chunk))


asyncio.run(main())
