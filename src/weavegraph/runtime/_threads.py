"""Threads for sync nodes: started when needed, reused, and never waited for at interpreter exit."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["NodeThreads"]


class NodeThreads:
    """At most ``limit`` threads. Unlike ``ThreadPoolExecutor``'s they are daemons: a node that hangs keeps nobody."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._waiting = 0  # calls that no thread has taken, minus threads that wait for one; guarded by the lock
        self._lock = threading.Lock()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``function`` on a thread, in a copy of the caller's context.

        *Cancellation*: the wait ends, the function goes on; what it returns or raises is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        def run() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = context.run(function, *arguments)
            except StopIteration as exc:  # a future cannot carry it
                error = RuntimeError(f"a sync node raised StopIteration({exc.value!r})")
                error.__cause__ = exc
            except BaseException as exc:
                error = exc
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        with self._lock:
            self._waiting += 1
            if self._waiting > 0 and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._work, name="weavegraph-node", daemon=True).start()
        self._calls.put(run)
        return await future

    def close(self) -> None:
        """Let idle threads end."""
        with self._lock:
            for _ in range(self._threads):
                self._calls.put(None)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._waiting -= 1
            call = self._calls.get()
            if call is None:
                return
            call()
            del call
