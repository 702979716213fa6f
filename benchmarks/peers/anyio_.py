"""anyio: a memory object stream for each subscriber."""

import anyio
from anyio import create_memory_object_stream, create_task_group

NAME = "anyio streams"
PACKAGE = "anyio"


async def fan_out(readers, events, burst, watch):
    pairs = [create_memory_object_stream[str](float("inf")) for _ in range(readers)]
    got = []

    async def read(receive):
        count = 0
        async with receive:
            async for _ in receive:
                count += 1
        got.append(count)

    async with create_task_group() as group:
        for _, receive in pairs:
            group.start_soon(read, receive)
        await anyio.sleep(0)
        watch.start()
        for number in range(1, events + 1):
            for send, _ in pairs:
                send.send_nowait("a small event")
            if number % burst == 0:
                await anyio.sleep(0)
        for send, _ in pairs:
            send.close()
    watch.stop()
    return got
