"""culsans: as janus, made of aiologic's locks."""

import culsans

from benchmarks.peers.queues import queue_each

NAME = "culsans"
PACKAGE = "culsans"
fan_out = queue_each(culsans.Queue, lambda queue: queue.async_q.put_nowait, lambda queue: queue.async_q.get)
