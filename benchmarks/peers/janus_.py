"""janus: a queue for each subscriber, with a sync and an async side; here both ends are in the loop."""

import janus

from benchmarks.peers.queues import queue_each

NAME = "janus"
PACKAGE = "janus"


async def close(queue):
    await queue.aclose()


fan_out = queue_each(janus.Queue, lambda queue: queue.async_q.put_nowait, lambda queue: queue.async_q.get, close)
