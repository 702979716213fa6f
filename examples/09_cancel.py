"""Cancelling: after a time, and when whoever watched is gone. Leaving, stopping and killing are three different acts.

Expect: each run's outcome and reason. What was emitted before stays readable; the terminal event always comes.
"""

import asyncio

from weavegraph import END, START, CancelToken, GraphBuilder, RunCancelledError, RuntimeConfig

builder = GraphBuilder()


@builder.node
async def forever(state, ctx):
    ctx.emit("forever", "working")
    while not ctx.cancelled:  # cooperative: a node that looks may tidy up, and return what it has
        await asyncio.sleep(0.001)
    ctx.emit("forever", f"tidied up: {ctx.cancel_token.reason}")
    return {"extra": {"partial": True}}


builder.add_edge(START, "forever").add_edge("forever", END)
app = builder.compile(RuntimeConfig(cancel_grace=1.0))  # seconds between being asked and being cut off


async def tell(what, run):
    try:
        await run
    except RunCancelledError as cancelled:  # asyncio.CancelledError would mean: you yourself were cancelled
        said = [event.message async for event in run if event.scope == "forever"]
        print(f"{what}: {run.status}, reason {cancelled.reason!r}, said {said}, kept {run.state['extra']}")


async def main():
    async with app:
        # A deadline for the run itself.
        await tell("deadline", app.start({}, timeout=0.3))

        # A deadline of the caller's: wait_for stops the waiting, cancel() the run.
        run = app.start({})
        try:
            await asyncio.wait_for(run.join(), 0.3)
        except TimeoutError:
            print("still", run.status)
            run.cancel("caller_timeout")
        await tell("caller", run)

        # A client that disconnects: whichever comes first, the end of the events or the end of the client.
        token, client_gone = CancelToken(), asyncio.Event()
        run = app.start({}, cancel=token)
        watching = asyncio.create_task(watch(run, client_gone))
        leaving = asyncio.create_task(client_gone.wait())
        await asyncio.wait({watching, leaving}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()  # leave: drops the reader; the run would go on
        token.cancel("client_gone")  # stop: reaches the nodes; several runs may share one token
        await tell("disconnect", run)

        # Kill: no grace. The node is cancelled where it stands; the terminal event comes all the same.
        run = app.start({})
        await run.events().recv()
        run.abort()
        await tell("abort", run)


async def watch(run, client_gone):
    async for event in run:
        if event.scope == "forever":
            client_gone.set()  # stands for the client hanging up now


asyncio.run(main())
