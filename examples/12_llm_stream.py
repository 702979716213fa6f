"""LLM stream: a model's tokens become events, chunk by chunk, and each stream ends exactly once, whatever happens.

Expect: two answers side by side, one that breaks off with an error, one that is cancelled; then how each ended.
"""

import asyncio

from weavegraph import END, START, GraphBuilder, LLMStreamingEvent

builder = GraphBuilder()


async def model(text, fails=False):
    """Stands for a provider's stream: an async iterable of text, or of OpenAI-shaped chunks. No SDK is needed."""
    for word in text.split():
        await asyncio.sleep(0)
        yield {"choices": [{"delta": {"content": word + " "}}]}
    if fails:
        raise ConnectionError("the provider hung up")


@builder.node
async def haiku(state, ctx):
    reply = await ctx.stream_llm(model("green leaves fall"), stream_id="haiku")  # awaited: the whole reply
    return {"messages": [("assistant", reply.text.strip())]}


@builder.node
async def limerick(state, ctx):
    try:
        await ctx.stream_llm(model("there was a", fails=True), stream_id="limerick", model="small")
    except ConnectionError as error:  # the stream's own end is written already; the node decides what that means
        ctx.emit("limerick", f"gave up: {error}")


@builder.node
async def epic(state, ctx):
    async for word in ctx.stream_llm(model("sing goddess of the wrath"), stream_id="epic"):  # or piece by piece
        if word == "goddess ":
            break  # enough: leaving the loop ends the stream as cancelled


for node in ("haiku", "limerick", "epic"):
    builder.add_edge(START, node).add_edge(node, END)
app = builder.compile()


async def main():
    texts, ends = {}, {}
    async with app, app.stream({}) as run:
        async for event in run:
            if not isinstance(event, LLMStreamingEvent):
                continue
            match event.phase:
                case "chunk":  # append it; index counts 0, 1, 2 … within its stream_id
                    texts[event.stream_id] = texts.get(event.stream_id, "") + event.chunk
                case "final":  # this answer is complete; its chunk is often empty. The run goes on!
                    ends[event.stream_id] = "final"
                case "error":  # show what there is as broken; chunk says why
                    ends[event.stream_id] = f"error: {event.chunk}"
                case "cancelled":  # nobody wanted the rest; what there is stands
                    ends[event.stream_id] = "cancelled"
        print(*(await run)["messages"])
    for stream_id in sorted(texts):
        print(f"{stream_id}: {texts[stream_id]!r} ended as {ends[stream_id]}")


asyncio.run(main())
