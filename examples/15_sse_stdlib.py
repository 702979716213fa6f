"""Server-sent events with the standard library: one request, one run, one frame an event; hanging up cancels the run.

Expect: the frames that a client gets, then what becomes of the run of a client that hangs up after the first word.
``python 15_sse_stdlib.py serve`` goes on serving: open the printed address with ``curl -N`` or a browser's EventSource.
"""

import asyncio
import contextlib
import sys

from weavegraph import END, GAP_SCOPE, START, STREAM_END_SCOPE, DiagnosticEvent, GraphBuilder, LLMStreamingEvent

builder = GraphBuilder()


@builder.node
async def answer(state, ctx):
    async def model():
        for word in ("green ", "tea ", "is ", "fine"):
            yield word
            await asyncio.sleep(0.05)

    await ctx.stream_llm(model(), stream_id="answer")


builder.add_edge(START, "answer").add_edge("answer", END)
graph = builder.compile()
outcomes = asyncio.Queue()  # how each run ended

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache, no-transform\r\n"
    b"x-accel-buffering: no\r\nconnection: close\r\n\r\n"
)


def frame(event):
    kind = "llm" if isinstance(event, LLMStreamingEvent) else "node"
    if isinstance(event, DiagnosticEvent):
        kind = {GAP_SCOPE: "gap", STREAM_END_SCOPE: "end"}.get(event.scope, "diagnostic")
    position = f"id: {event.run_seq}\n" if event.run_seq else ""  # a gap notice has no position
    return f"{position}event: {kind}\ndata: ".encode() + event.to_json() + b"\n\n"  # to_json is one line


async def gone(reader):
    with contextlib.suppress(ConnectionError):
        while await reader.read(1024):  # empty when the client has hung up
            pass


async def serve(reader, writer):
    await reader.readuntil(b"\r\n\r\n")  # the request; a real server looks at Host and Origin here
    async with graph.stream({}) as run:  # leaving the block before the end cancels the run
        events = run.events()
        hang_up = asyncio.create_task(gone(reader))
        hang_up.add_done_callback(lambda _: events.close())  # ends the loop below
        writer.write(HEAD)
        async for event in events:
            writer.write(frame(event))
            try:
                await writer.drain()  # a slow client slows this reader, and nobody else
            except ConnectionError:
                break
        hang_up.cancel()
    outcomes.put_nowait(run.status)
    writer.close()


async def client(port, hang_up_at=None):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    lines = []
    while line := (await reader.readline()).decode():
        lines += [] if line == "\n" or line.startswith("data:") else [line.strip()]
        if line.strip() == hang_up_at:
            break
    writer.close()
    return lines


async def main():
    async with graph, await asyncio.start_server(serve, "127.0.0.1", 0) as server:  # loopback, a free port
        port = server.sockets[0].getsockname()[1]
        while sys.argv[1:] == ["serve"]:
            print(f"http://127.0.0.1:{port}/", flush=True)
            print("run", await outcomes.get(), flush=True)
        for hang_up_at in (None, "event: llm"):
            print("client:", *await client(port, hang_up_at))
            print("server: the run", await outcomes.get())


if __name__ == "__main__":
    asyncio.run(main())
