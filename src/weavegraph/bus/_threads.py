"""The threads a bus owns, and waiting for what happens on them. All are daemons: none keeps the interpreter alive."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["LoopThread", "wait_for_all"]

T = TypeVar("T")


class LoopThread:
    """One background event loop, started on first use; after ``stop`` the next use starts a fresh one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()  # of the present thread
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            return self._start()

    def _start(self) -> asyncio.AbstractEventLoop:
        if self.loop is None or self._thread is None or not self._thread.is_alive():
            loop, self._stopped = asyncio.new_event_loop(), threading.Event()
            thread = threading.Thread(target=_run, args=(loop, self._stopped), name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads; the next use tries again
                loop.close()
                raise
            self.loop, self._thread = loop, thread
        return self.loop

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there; the future may be waited for anywhere."""
        with self._lock:  # a stop comes before, and we start afresh, or after, and cancels it: never in between
            try:
                loop = self._start()
            except RuntimeError:
                work.close()
                raise
            return asyncio.run_coroutine_threadsafe(work, loop)

    def stop(self, timeout: float) -> None:
        """Cancel what runs there and end the thread; waits for its end at most so long."""
        with self._lock:
            loop, thread, self.loop = self.loop, self._thread, None
            if loop is None or thread is None or not thread.is_alive():
                return
            self._stopped.set()
            loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(timeout)


def _run(loop: asyncio.AbstractEventLoop, stopped: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    try:
        while not stopped.is_set():
            # asyncio lets these two of a task out of the loop: they end that task, not everybody else's.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                loop.run_forever()
    finally:
        # What was submitted just before the stop may make tasks only now, so look until there is none.
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(asyncio.sleep(0))  # a socket is closed in the turn after its transport was
        loop.close()


async def wait_for_all(futures: Sequence[Future[Any]], timeout: float | None) -> bool:
    """Wait in this loop, at most so long, until all of them are done. Whatever happens here cancels none of them."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()

    def look() -> None:
        if not woken.done() and all(future.done() for future in futures):
            woken.set_result(None)

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop of who waited is closed
            loop.call_soon_threadsafe(look)

    for future in futures:
        future.add_done_callback(tell)
    look()
    await asyncio.wait([woken], timeout=timeout)
    return all(future.done() for future in futures)
