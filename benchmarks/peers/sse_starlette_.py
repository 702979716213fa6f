"""sse-starlette: an ``EventSourceResponse`` a watcher, which reads a queue of its own; each event is encoded once."""

import asyncio

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.routing import Route

NAME = "sse-starlette"
PACKAGE = "sse-starlette"


async def served(events, text, pause):
    """The app, and a call that publishes ``events`` of ``text``, with ``pause()`` after each."""
    queues = []

    async def watch(request):
        queue = asyncio.Queue()
        queues.append(queue)

        async def frames():
            while (event := await queue.get()) is not None:
                number, data = event
                yield ServerSentEvent(data, event="node", id=str(number))

        return EventSourceResponse(frames())

    async def publish():
        for number in range(1, events + 1):
            for queue in queues:
                queue.put_nowait((number, text))
            await pause(number)
        for queue in queues:
            queue.put_nowait(None)

    return Starlette(routes=[Route("/events", watch)]), "/events", lambda: len(queues), publish
