"""asyncio: a queue for each subscriber, the pattern that every other one is compared with."""

import asyncio

NAME = "asyncio.Queue each"
PACKAGE = ""


async def fan_out(readers, events, burst, watch):
    queues = [asyncio.Queue() for _ in range(readers)]

    async def read(queue):
        count = 0
        while await queue.get() is not None:
            count += 1
        return count

    tasks = [asyncio.create_task(read(queue)) for queue in queues]
    await asyncio.sleep(0)
    watch.start()
    for number in range(1, events + 1):
        for queue in queues:
            queue.put_nowait("a small event")
        if number % burst == 0:
            await asyncio.sleep(0)
    for queue in queues:
        queue.put_nowait(None)
    got = await asyncio.gather(*tasks)
    watch.stop()
    return got
