import asyncio

from weavegraph import END, START, EventBusConfig, GraphBuilder, RuntimeConfig


class Uploader:
    """Owns its loop: the stream ends when the bus does."""

    name = "uploader"

    def __init__(self):
        self.uploaded = 0

    async def run(self, stream):
        async for _event in stream:
            await asyncio.sleep(0)  # stands for a request
            self.uploaded += 1


builder = GraphBuilder()
builder.add_node("work", lambda state: None).add_edge(START, "work").add_edge("work", END)
uploader = Uploader()

with builder.compile(RuntimeConfig(event_bus=EventBusConfig(sinks=(uploader,)))) as app:
    app.invoke_sync({})
print(uploader.uploaded)  # leaving the app drained it
