"""Sees what other processes commit: looks at the store's commit number while somebody watches, and only then."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from weavegraph.errors import LogError
from weavegraph.storage._notices import Notices
from weavegraph.storage._reader import Reader

__all__ = ["LONGEST", "SHORTEST", "Poller"]

SHORTEST, LONGEST = 0.02, 0.2
"""Seconds between two looks: short after a change, then twice as long each time. One look costs about 15 µs."""


class Poller:
    """One daemon thread while there are watchers. Commits of this process are told by the writer, at once.

    ``own()``: how often this process opened the file, and how many commits it made.
    """

    def __init__(self, path: Path, notices: Notices, own: Callable[[], tuple[int, int]]) -> None:
        self._path, self._notices, self._own = path, notices, own
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def ensure(self) -> None:
        """To be called after a watch was taken."""
        with self._lock:
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="weavegraph-store-poller", daemon=True)
                self._thread.start()

    def stop(self, wait: float) -> None:
        self._stopped.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait)

    def _run(self) -> None:
        reader = Reader(self._path, 1.0, lambda: self._own()[0])
        seen, interval = -1, SHORTEST
        while not self._stopped.wait(interval):
            with self._lock:
                if not self._notices:
                    self._thread = None
                    break
            try:
                _, own = self._own()  # before the look: a commit between the two is told twice, never missed
                foreign = reader.run(_commits) - own
            except (
                sqlite3.Error,
                LogError,
                TypeError,
            ):  # the watchers look for themselves, and get it by its name
                reader.close()
                foreign = -1
            if foreign != seen:
                self._notices.tell_all()
                seen, interval = foreign, SHORTEST
            else:
                interval = min(2 * interval, LONGEST)
        with contextlib.suppress(sqlite3.Error):
            reader.close()


def _commits(connection: sqlite3.Connection) -> int:
    (commits,) = connection.execute("SELECT commits FROM store_state WHERE id = 1").fetchone()
    return int(commits)
