"""Many watchers: one run, seen by readers that came before it, during it and after it. Each sees every event.

Expect: the same count four times, and the books of one reader. Readers share a ring; none takes events from another.
"""

import asyncio
import threading

from weavegraph import END, START, EventFilter, GraphBuilder

builder = GraphBuilder()


@builder.node
async def work(state, ctx):
    for number in range(100):
        ctx.emit("work", f"item {number}")
        await asyncio.sleep(0)


builder.add_edge(START, "work").add_edge("work", END)
app = builder.compile()


async def count(events):
    return sum([1 async for _ in events])


async def main():
    async with app:
        before = asyncio.create_task(count(app.event_stream(run_id="demo")))  # waits for a run that is not there yet
        only_work = EventFilter(scopes=("work",))
        all_runs = app.event_stream(filter=only_work)  # everything of this app, here only the node's own words

        run = app.start({}, run_id="demo")
        in_thread = []
        thread = threading.Thread(target=lambda: in_thread.extend(run.blocking()))
        thread.start()
        during = asyncio.create_task(count(run.events()))

        await run
        print("before:", await before)
        print("during:", await during)
        print("after: ", await count(app.event_stream(run_id="demo", after=0)))
        await asyncio.to_thread(thread.join)
        print("thread:", len(in_thread))

        while (event := all_runs.try_recv()) is not None:
            last = event
        print("all runs, filtered, last:", last.message)
        books = all_runs.stats()
        print(f"delivered={books.delivered} filtered={books.filtered} dropped={books.dropped}")
        all_runs.close()


asyncio.run(main())
