"""Who wants to know that something changed: watchers by topic, told from the thread that committed it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

__all__ = ["Notices", "Watch"]


class Watch:
    """One watcher of one topic, in one event loop. A notice is kept until it is waited for, and they are merged.

    Arm, then look: take the watch, read what is there, then ``wait``; what changed in between ends the wait at once.
    """

    def __init__(self, notices: Notices, topic: str) -> None:
        self._notices, self.topic = notices, topic
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._told = False  # set by any thread, cleared by the loop: spares a busy writer the wake-ups
        notices._add(self)

    async def wait(self) -> None:
        """Return when the topic changed since the last call. *Cancellation*: the notice is kept."""
        await self._changed.wait()
        self._changed.clear()
        self._told = False

    def tell(self) -> None:
        if not self._told:
            self._told = True
            try:
                self._loop.call_soon_threadsafe(self._changed.set)
            except RuntimeError:  # its loop is closed
                self.close()

    def close(self) -> None:
        self._notices._remove(self)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Notices:
    """The watchers of one store or log. Any thread may tell; each watcher is woken in its own loop."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: the collector may close a watch while this thread tells others
        self._watches: dict[str, set[Watch]] = {}

    def watch(self, topic: str) -> Watch:
        return Watch(self, topic)

    def tell(self, topics: Iterable[str]) -> None:
        """Wake those who watch one of ``topics``."""
        if not self._watches:
            return
        with self._lock:
            watches = [watch for topic in topics for watch in tuple(self._watches.get(topic, ()))]
        for watch in watches:
            watch.tell()

    def tell_all(self) -> None:
        """Something changed, by somebody who does not say what."""
        with self._lock:
            topics = tuple(self._watches)
        self.tell(topics)

    def __bool__(self) -> bool:
        """Whether anybody watches."""
        return bool(self._watches)

    def _add(self, watch: Watch) -> None:
        with self._lock:
            self._watches.setdefault(watch.topic, set()).add(watch)

    def _remove(self, watch: Watch) -> None:
        with self._lock:
            watches = self._watches.get(watch.topic)
            if watches is not None:
                watches.discard(watch)
                if not watches:
                    del self._watches[watch.topic]
