"""aiologic: a ``SimpleQueue`` for each subscriber."""

import asyncio

import aiologic

NAME = "aiologic"
PACKAGE = "aiologic"


async def fan_out(readers, events, burst, watch):
    queues = [aiologic.SimpleQueue() for _ in range(readers)]

    async def read(queue):
        count = 0
        while await queue.async_get() is not None:
            count += 1
        return count

    tasks = [asyncio.create_task(read(queue)) for queue in queues]
    await asyncio.sleep(0)
    watch.start()
    for number in range(1, events + 1):
        for queue in queues:
            queue.green_put("a small event")  # never waits: the queue has no bound
        if number % burst == 0:
            await asyncio.sleep(0)
    for queue in queues:
        queue.green_put(None)
    got = await asyncio.gather(*tasks)
    watch.stop()
    return got
