"""asyncio: a queue for each subscriber, the pattern that every other one is compared with."""

import asyncio

from benchmarks.peers.queues import queue_each

NAME = "asyncio.Queue each"
PACKAGE = ""
fan_out = queue_each(asyncio.Queue, lambda queue: queue.put_nowait, lambda queue: queue.get)
