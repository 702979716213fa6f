"""Which process ships: of those that share a file and a name, one at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator

from weavegraph.log._outbox_store import OutboxStore, SqliteOutboxStore

__all__ = ["turn"]

_log = logging.getLogger("weavegraph.outbox")


@contextlib.contextmanager
def turn(store: OutboxStore, name: str) -> Iterator[Callable[[], bool]]:
    """Whether this process may ship: of those that share a file, one at a time. A killed one gives it back."""
    if not isinstance(store, SqliteOutboxStore):
        yield lambda: True
        return
    try:
        import fcntl
    except ImportError:  # Windows: who runs two of one name there ships twice, which readers pass over
        yield lambda: True
        return
    marks = "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
    path = store.store.path.with_name(f"{store.store.path.name}-outbox-{marks}")
    held = False
    file = -1
    next_try = 0.0

    def mine() -> bool:
        nonlocal held, file, next_try
        if not held and time.monotonic() >= next_try:
            try:
                if file < 0:
                    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                return False
            except OSError as exc:  # a file system without such locks
                _log.warning("outbox %r: no lock at %s (%s); make sure that one process ships", name, path, exc)
                held = True
        return held

    try:
        yield mine
    finally:
        if file >= 0:
            os.close(file)
