"""Runs in a FastAPI app: all of ``weavegraph.web`` below ``/weavegraph``, and a route of your own that streams an answer.

``uvicorn fastapi_app:api --timeout-graceful-shutdown 2``
"""

import asyncio

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from weavegraph import END, START, GraphBuilder
from weavegraph.web import router

builder = GraphBuilder()


@builder.node
async def answer(state, ctx):
    topic = state["extra"].get("topic", "tea")

    async def tokens():
        for word in ("all ", "about ", topic, "."):
            yield word
            await asyncio.sleep(state["extra"].get("pause", 0))

    await ctx.stream_llm(tokens(), stream_id="answer")


flow = builder.add_edge(START, "answer").add_edge("answer", END).compile()
web = router(flow, on_disconnect="cancel")  # a run that nobody watches any more is cancelled
api = FastAPI(lifespan=web.lifespan)
api.mount("/weavegraph", web)


@api.get("/ask")
async def ask(topic: str, pause: float = 0) -> StreamingResponse:
    """Server-sent events of a run that lives as long as its request."""

    async def frames():
        async with flow.stream({"extra": {"topic": topic, "pause": pause}}) as run:  # leaving cancels the run
            async for event in run:
                yield b"data: %b\n\n" % event.to_json()  # always one line

    headers = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}
    return StreamingResponse(frames(), media_type="text/event-stream", headers=headers)
