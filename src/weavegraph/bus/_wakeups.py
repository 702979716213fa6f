"""Waking those who wait: readers parked in event loops and in threads.

A reader arms first and looks again; a publisher publishes first and looks for armed readers. Whatever the order,
one of the two sees the other, so no wake-up is lost and neither takes a lock for it.

A dictionary is copied by ``dict``, its values by ``list``, in one step. ``copy()``, a ``tuple`` of the values and a
``list`` of the items allocate in the midst of it. There Python 3.11 may collect, and what it collects may change the
dictionary.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

__all__ = ["LoopGroup", "Wakeups"]

_get_running_loop, _current_task = asyncio._get_running_loop, asyncio.current_task

INLINE_WAKES = 8
"""Up to so many readers are woken by the publisher itself, which saves them a turn of the loop."""


class LoopGroup:
    """The readers parked in one event loop. ``parked`` is touched on the loop's thread only, but for a receive that is
    collected: it takes itself out in whatever thread the collector runs."""

    __slots__ = ("_flushing", "loop", "parked")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.parked: dict[object, asyncio.Future[None]] = {}
        self._flushing = False  # a flush is scheduled: a burst wakes each reader once

    def notify(self) -> bool:
        """Wake all parked readers, from any thread; ``False`` if their loop is gone."""
        loop, parked = self.loop, self.parked
        if _get_running_loop() is loop and _current_task(loop) is not None:
            # On the loop's thread, in a task: the loop is awake and sees what is scheduled. Outside of a task
            # this may be a signal handler interrupting the loop's sleep, which only the self-pipe ends.
            if len(parked) <= INLINE_WAKES:
                self.parked = {}
                _wake(parked)
            elif not self._flushing:
                self._flushing = True
                loop.call_soon(self._flush)
            return True
        if self._flushing:
            return True
        self._flushing = True
        try:
            loop.call_soon_threadsafe(self._flush)
        except RuntimeError:  # the loop is closed: nobody can wait in it any more
            return False
        return True

    def _flush(self) -> None:
        self._flushing = False
        parked, self.parked = self.parked, {}
        _wake(parked)


def _wake(parked: dict[object, asyncio.Future[None]]) -> None:
    for future in list(parked.values()):  # a copy: see LoopGroup
        if not future.done():
            future.set_result(None)


class Wakeups:
    """All who wait for one hub."""

    __slots__ = ("_all", "_groups", "_threads", "armed")

    def __init__(self) -> None:
        self.armed = False
        """Somebody may be parked; the publisher's one look."""
        self._groups: dict[asyncio.AbstractEventLoop, LoopGroup] = {}
        self._all: list[LoopGroup] = []
        self._threads: dict[object, Any] = {}

    def group(self, loop: asyncio.AbstractEventLoop) -> LoopGroup:
        found = self._groups.get(loop)
        if found is None:
            found = self._groups.setdefault(loop, LoopGroup(loop))
            for old in [known for known in list(self._groups) if known.is_closed()]:
                self._groups.pop(old, None)
            self._all = list(self._groups.values())
        return found

    def park_thread(self, reader: object) -> Any:
        """A held lock that the next notify releases; ``lock.acquire(timeout=…)`` waits."""
        lock = threading.Lock()
        lock.acquire()
        self._threads[reader] = lock
        self.armed = True
        return lock

    def unpark_thread(self, reader: object) -> None:
        self._threads.pop(reader, None)

    def wake_thread(self, reader: object) -> None:
        """Wake one that is parked in a thread, or about to be."""
        lock = self._threads.pop(reader, None)
        if lock is not None:
            lock.release()

    def notify(self) -> None:
        """Wake everybody; called after the head moved or the hub closed, without holding its lock."""
        self.armed = False
        for group in self._all:
            if group.parked and not group.notify():
                self._groups.pop(group.loop, None)
                self._all = list(self._groups.values())
        if self._threads:
            for reader in list(self._threads):
                self.wake_thread(reader)
