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
    """At most ``limit`` threads, and one more for each call that nobody waits for any more and that has not returned.

    Unlike ``ThreadPoolExecutor``'s they are daemons: a node that hangs keeps nobody.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards what follows
        self._threads = 0
        self._waiting = 0  # calls that no thread has taken, minus threads that wait for one
        self._left = 0  # calls that were left behind: their threads do not count
        self._closed = False

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``function`` on a thread, in a copy of the caller's context.

        *Cancellation*: the wait ends. A function that has begun goes on, and what it returns or raises is dropped; it
        holds up no other call. One that has not begun never does.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()
        begun = left = returned = False

        def settle(result: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        def run() -> None:
            nonlocal begun, returned
            with self._lock:
                if left:
                    return
                begun = True
            result: Any = None
            error: BaseException | None = None
            try:
                result = context.run(function, *arguments)
            except StopIteration as exc:  # a future cannot carry it
                error = RuntimeError(f"a sync node raised StopIteration({exc.value!r})")
                error.__cause__ = exc
            except BaseException as exc:
                error = exc
            with self._lock:
                returned = True
                self._left -= left
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        with self._lock:
            self._calls.put(run)
            self._waiting += 1
            self._grow()
        try:
            return await future
        except BaseException:
            with self._lock:
                if not returned:
                    left = True
                    if begun:
                        self._left += 1
                        self._grow()
            raise

    def close(self) -> None:
        """Let idle threads end, and others when they are done."""
        with self._lock:
            self._closed = True
            self._calls.put(None)

    def _grow(self) -> None:
        if self._waiting > 0 and self._threads < self._limit + self._left:
            self._threads += 1
            threading.Thread(target=self._work, name="weavegraph-node", daemon=True).start()

    def _work(self) -> None:
        while (call := self._take()) is not None:
            call()
            del call

    def _take(self) -> Callable[[], None] | None:
        """The next call; ``None``: this thread is to end."""
        with self._lock:
            if self._threads > self._limit + self._left:  # calls that were left behind have returned
                self._threads -= 1
                return None
            self._waiting -= 1
            wait = not self._closed
        try:
            call = self._calls.get(wait)
        except queue.Empty:
            call = None
        if call is None:
            with self._lock:
                self._threads -= 1
                self._waiting += 1
                self._grow()
                if self._threads:
                    self._calls.put(None)  # passed on, from one idle thread to the next
        return call
