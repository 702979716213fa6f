"""What outboxes could not deliver: looked at, sent again, dropped; by whoever opens the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from weavegraph.bus._retry import as_error, describe
from weavegraph.clock import SystemClock
from weavegraph.log._outbox_store import Letter, OutboxStore, SqliteOutboxStore, store_beside
from weavegraph.log._shipping import called, publish
from weavegraph.log._sink import LogSink
from weavegraph.protocols import Clock, EventLog, EventSink

__all__ = ["DeadLetters", "ResendReport"]


class ResendReport(msgspec.Struct, frozen=True):
    """Ids of letters that were delivered, and are dropped; and those that were not, with the reason."""

    sent: tuple[int, ...]
    failed: dict[int, str]


class DeadLetters:
    """What outboxes could not deliver: of a log's file (``DeadLetters("runs.db")``), also while they are at work."""

    def __init__(self, store: OutboxStore | EventLog | str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        self._owns_store = False
        if isinstance(store, (str, os.PathLike)):
            store, self._owns_store = SqliteOutboxStore(store), True
        elif isinstance(store, EventLog):
            store, self._owns_store = store_beside(store), True
        self._store: OutboxStore = store
        self._clock = clock or SystemClock()

    async def list(self, outbox: str | None = None, *, limit: int = 100, after: int = 0) -> Sequence[Letter]:
        """Oldest first; ``after`` an id, for the next page."""
        return await self._store.letters(outbox, limit=limit, after=after)

    async def resend(self, sink: EventSink | EventLog, ids: Sequence[int]) -> ResendReport:
        """Give letters to the sink once more; those that it takes, and makes lasting (``flush``), are dropped.

        A log only grows at its end: it refuses a letter whose run has gone on (``LogLateError``).
        """
        taker: Any = LogSink(sink) if isinstance(sink, EventLog) else sink
        target: Any = getattr(taker, "log", None)
        sent: list[int] = []
        failed: dict[int, str] = {}
        for letter_id in ids:
            letter = await self._store.letter(letter_id)
            if letter is None:
                failed[letter_id] = "no such letter"
                continue
            try:
                if target is None:
                    await called(taker.handle, (letter.event,))
                    if hasattr(taker, "flush"):
                        await called(taker.flush)
                else:
                    await publish(target, letter.event.run_id or "", (letter.event,), 0)
            except Exception as exc:
                failed[letter_id] = describe(as_error(exc))
                await self._store.failed_again(letter_id, failed[letter_id], self._clock.now())
            else:
                sent.append(letter_id)
                await self._store.drop([letter_id])
        return ResendReport(tuple(sent), failed)

    async def drop(self, ids: Sequence[int]) -> int:
        """Forget letters; returns how many went."""
        return await self._store.drop(ids)

    async def aclose(self) -> None:
        if self._owns_store:
            await self._store.aclose()
