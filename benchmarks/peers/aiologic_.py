"""aiologic: a ``SimpleQueue`` for each subscriber. ``green_put`` never waits: the queue has no bound."""

import aiologic

from benchmarks.peers.queues import queue_each

NAME = "aiologic"
PACKAGE = "aiologic"
fan_out = queue_each(aiologic.SimpleQueue, lambda queue: queue.green_put, lambda queue: queue.async_get)
