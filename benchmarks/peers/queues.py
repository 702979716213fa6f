"""What the libraries with a queue for each subscriber share: the reader, the producer, and the end."""

import asyncio

NAME = "A queue each: what several share"


def queue_each(make, put_of, get_of, close=None):
    """``fan_out`` with queues of ``make()``; ``put_of(queue)`` and ``get_of(queue)`` are its calls, looked up once."""

    async def read(get):
        count = 0
        while await get() is not None:
            count += 1
        return count

    async def fan_out(readers, events, burst, watch):
        queues = [make() for _ in range(readers)]
        puts = [put_of(queue) for queue in queues]
        tasks = [asyncio.create_task(read(get_of(queue))) for queue in queues]
        await asyncio.sleep(0)
        watch.start()
        for number in range(1, events + 1):
            for put in puts:
                put("a small event")
            if number % burst == 0:
                await asyncio.sleep(0)
        for put in puts:
            put(None)
        got = await asyncio.gather(*tasks)
        watch.stop()
        if close is not None:
            for queue in queues:
                await close(queue)
        return got

    return fan_out
