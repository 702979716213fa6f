"""The readers: up to two threads with read-only connections, so that reading waits for no writer and blocks no loop."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from weavegraph.storage._faults import translate
from weavegraph.storage._reader import Reader
from weavegraph.storage._schema import Schema

__all__ = ["Readers"]

T = TypeVar("T")
MAX_THREADS = 2
"""A second one, so that one large page or a wait for a lock does not hold up everybody."""
_Call = tuple[Callable[[sqlite3.Connection], Any], Sequence[Schema], "Future[Any]"]


class Readers:
    """Threads are started when one is needed and none is free; ``generation()`` tells when the file was opened anew."""

    def __init__(self, path: Path, busy_timeout: float, generation: Callable[[], int]) -> None:
        self._path, self._busy_timeout, self._generation = path, busy_timeout, generation
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._waiting = 0  # calls that no thread has finished; guarded by the lock

    def submit(self, function: Callable[[sqlite3.Connection], T], schemas: Sequence[Schema] = ()) -> Future[T]:
        """Run ``function`` on a reader, all its statements on one snapshot, which has these schemas."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting += 1
            if len(self._threads) < min(self._waiting, MAX_THREADS):
                thread = threading.Thread(target=self._run, name="weavegraph-store-reader", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._calls.put((function, schemas, future))
        return future

    def stop(self, wait: float) -> None:
        """End the threads; for up to ``wait`` seconds wait for them, so that the writer closes the file last."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(wait)

    def _run(self) -> None:
        reader = Reader(self._path, self._busy_timeout, self._generation)
        while (call := self._calls.get()) is not None:
            function, schemas, future = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(reader.run(partial(_on_snapshot, function), schemas))
                except sqlite3.Error as exc:
                    reader.close()  # another connection for the next call
                    named = translate(exc, str(self._path))
                    named.__cause__ = exc
                    future.set_exception(named)
                except BaseException as exc:
                    future.set_exception(exc)
            with self._lock:
                self._waiting -= 1
            del call, function, future
        reader.close()


def _on_snapshot(function: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
    connection.execute("BEGIN")
    try:
        return function(connection)
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
