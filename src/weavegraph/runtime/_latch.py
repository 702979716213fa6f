"""Something that happens once, and that any number of tasks in any loops, and threads, may wait for."""

from __future__ import annotations

import asyncio
import threading

__all__ = ["Latch"]


class Latch:
    """``open()`` once, from any thread; ``await wait()`` in any loop, ``wait_blocking()`` in any thread."""

    __slots__ = ("_lock", "_loops", "_threads", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._lock = threading.Lock()
        self._loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._threads: threading.Event | None = None

    def open(self) -> None:
        with self._lock:
            self.is_open = True
            loops, self._loops = self._loops, []
            threads = self._threads
        if threads is not None:
            threads.set()
        here = asyncio._get_running_loop()
        for loop, future in loops:
            if loop is here:
                _resolve(future)
                continue
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:
                pass  # that loop is closed, and who waited in it with it

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self.is_open:
                return
            future: asyncio.Future[None] = loop.create_future()
            self._loops.append((loop, future))
        try:
            await future
        finally:
            if not self.is_open:
                with self._lock:
                    self._loops = [entry for entry in self._loops if entry[1] is not future]

    def wait_blocking(self, timeout: float | None = None) -> bool:
        """``False`` when ``timeout`` seconds passed first."""
        with self._lock:
            if self.is_open:
                return True
            if self._threads is None:
                self._threads = threading.Event()
            threads = self._threads
        return threads.wait(timeout)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
