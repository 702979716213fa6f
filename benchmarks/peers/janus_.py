"""janus: a queue for each subscriber, with a sync and an async side; here both ends are in the loop."""

import asyncio

import janus

NAME = "janus"
PACKAGE = "janus"


async def fan_out(readers, events, burst, watch):
    queues = [janus.Queue() for _ in range(readers)]

    async def read(queue):
        count = 0
        while await queue.get() is not None:
            count += 1
        return count

    tasks = [asyncio.create_task(read(queue.async_q)) for queue in queues]
    await asyncio.sleep(0)
    watch.start()
    for number in range(1, events + 1):
        for queue in queues:
            queue.async_q.put_nowait("a small event")
        if number % burst == 0:
            await asyncio.sleep(0)
    for queue in queues:
        queue.async_q.put_nowait(None)
    got = await asyncio.gather(*tasks)
    watch.stop()
    for queue in queues:
        await queue.aclose()
    return got
