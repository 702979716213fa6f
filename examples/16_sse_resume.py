"""Server-sent events with Starlette: runs outlive their viewers, and a viewer that comes back misses nothing.

Expect: a viewer that is cut off after the first word, comes back with the id of the last frame it has, and gets the
rest; then 204, which tells a browser to stop coming back. Needs the extra ``web``. ``serve`` as argument: goes on.
"""

import asyncio
import http.client
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from weavegraph import END, START, GraphBuilder
from weavegraph.errors import InvalidPositionError

builder = GraphBuilder()


@builder.node
async def answer(state, ctx):
    async for word in ctx.stream_llm(["green ", "tea ", "is ", "fine"], stream_id="answer"):
        await asyncio.sleep(0.02 * len(word))  # the pace of a model


builder.add_edge(START, "answer").add_edge("answer", END)
graph = builder.compile()
HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
live = set()  # a handle that nobody asks for its result warns when it is collected


async def start(request):
    run = graph.start(await request.json())
    task = asyncio.create_task(run.join())
    live.add(task)
    task.add_done_callback(live.discard)
    return Response(run.run_id, 201)


async def events(request):
    last = request.headers.get("last-event-id", "0")
    lane = graph.event_bus.lane(request.path_params["run_id"])
    if lane is None:
        return Response("no such run", 404)
    try:
        stream = lane.subscribe(after=int(last))
    except (InvalidPositionError, ValueError) as error:  # malformed, or beyond the last event: never guessed
        return Response(str(error), 400)
    over = lane.over and int(last) == lane.head  # nothing will come any more
    return Response(status_code=204) if over else StreamingResponse(frames(stream), headers=HEADERS)


async def frames(stream):
    with stream:  # a viewer that leaves closes its stream; the run goes on
        async for event in stream:
            position = f"id: {event.run_seq}\n" if event.run_seq else ""  # a gap notice has no position
            yield f"{position}event: {event.scope}\ndata: ".encode() + event.to_json() + b"\n\n"


web = Starlette(routes=[Route("/runs", start, methods=["POST"]), Route("/runs/{run_id}/events", events)])


def viewer(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/runs", "{}")
    path, last = f"/runs/{connection.getresponse().read().decode()}/events", "0"
    for leave_at in (b"event: llm_stream\n", None, None):
        connection.request("GET", path, headers={"last-event-id": last})
        response = connection.getresponse()
        print(response.status, end=":")
        for line in response:
            if line.startswith(b"id: "):
                last = line[4:].strip().decode()
                print("", last, end="")
            if line == leave_at:
                break
        print(flush=True)
        connection.close()
    return True


async def main():
    server = uvicorn.Server(uvicorn.Config(web, port=0, log_level="error", timeout_graceful_shutdown=2))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    if sys.argv[1:] == ["serve"]:
        print(f"http://127.0.0.1:{port}/", flush=True)
    else:
        server.should_exit = await asyncio.to_thread(viewer, port)
    await serving
    await graph.aclose()


asyncio.run(main())
