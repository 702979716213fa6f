"""broadcaster: its memory backend, a subscription for each reader."""

import asyncio

from broadcaster import Broadcast

NAME = "broadcaster"
PACKAGE = "broadcaster"


async def fan_out(readers, events, burst, watch):
    async with Broadcast("memory://") as broadcast:
        ready = []

        async def read():
            count = 0
            async with broadcast.subscribe("bench") as subscriber:
                ready.append(True)
                async for event in subscriber:
                    if event.message is None:
                        return count
                    count += 1

        tasks = [asyncio.create_task(read()) for _ in range(readers)]
        while len(ready) < readers:
            await asyncio.sleep(0)
        watch.start()
        for number in range(1, events + 1):
            await broadcast.publish("bench", "a small event")
            if number % burst == 0:
                await asyncio.sleep(0)
        await broadcast.publish("bench", None)
        got = await asyncio.gather(*tasks)
        watch.stop()
        return got
