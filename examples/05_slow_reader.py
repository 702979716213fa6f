"""A slow reader and its gap: who falls behind is told exactly what was lost, where it was lost. Nobody waits for it.

Expect: three ways to learn of a loss (a notice in the stream, an exception, a cut with a position to resume from),
books that add up, and the one warning that the library logs.
"""

import asyncio
import logging
import sys

from weavegraph import END, GAP_SCOPE, START, GraphBuilder, Lagged, SubscriberOverflowError

logging.basicConfig(stream=sys.stdout, format="log: %(message)s")
builder = GraphBuilder()


@builder.node
async def chatty(state, ctx):
    for number in range(1, 1001):  # never awaits: no reader gets a turn meanwhile
        ctx.emit("chatty", str(number))


builder.add_edge(START, "chatty").add_edge("chatty", END)
app = builder.compile()


async def main():
    async with app:
        run = app.start({}, run_id="slow")
        whole = run.events()  # bounded by 64 MiB, not by a count: loses nothing here
        # after=None: live from now, so `capacity` is all that may wait
        notice = run.events(after=None, capacity=10, name="notice")
        raising = run.events(after=None, capacity=10, on_lag="raise")
        cut = run.events(after=None, capacity=10, overflow="disconnect")
        await run

        print("whole:", len([event async for event in whole]), "events")

        async for event in notice:
            if event.scope == GAP_SCOPE:
                print("notice:", event.message)
        books = notice.stats()
        print(f"books: {books.head} - {books.s0} = {books.delivered} delivered + {books.dropped} dropped")

        try:
            await raising.recv()
        except Lagged as lag:
            print("raise:", lag.missed, "missed; the next is", (await raising.recv()).run_seq)
        raising.close()

        try:
            await cut.recv()
        except SubscriberOverflowError as overflow:
            again = run.events(after=overflow.last_position)  # the run still holds what came after it
            print("disconnect: resumed at", (await again.recv()).run_seq)
            again.close()


asyncio.run(main())
