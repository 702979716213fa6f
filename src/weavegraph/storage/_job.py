"""A write on its way: what is to be done, by whom it is awaited, and how the answer gets there."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

from weavegraph.storage._schema import Schema

__all__ = ["Job", "Op", "deliver"]

Op: TypeAlias = Callable[[sqlite3.Connection], Any]
"""One step of a write, run on the writer thread inside of a transaction that it must neither begin nor end.

It may be run again after a rollback, so it changes nothing but the database. An attribute ``about`` (text) names what
it changes: watchers of that topic are woken after the commit.
"""


class Job:
    """Operations that are kept all together or not at all. ``outcome``: what they returned, or the error; the
    writer's own until it is delivered to the future, which is a thread's or, with ``loop``, a coroutine's."""

    __slots__ = ("durable", "future", "loop", "ops", "outcome", "schemas")

    def __init__(
        self,
        ops: Sequence[Op],
        schemas: Sequence[Schema],
        durable: bool,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.ops, self.schemas, self.durable, self.loop = ops, schemas, durable, loop
        self.future: Future[tuple[Any, ...]] | asyncio.Future[tuple[Any, ...]]
        self.future = Future() if loop is None else loop.create_future()
        self.outcome: tuple[Any, ...] | BaseException | None = None

    def begin(self) -> bool:
        """Whether it is still wanted; after this a thread's future cannot be cancelled."""
        if isinstance(self.future, Future):
            return self.future.set_running_or_notify_cancel()
        return not self.future.cancelled()

    def run(self, connection: sqlite3.Connection) -> tuple[Any, ...]:
        values = tuple([op(connection) for op in self.ops])
        if not connection.in_transaction:
            raise RuntimeError("an operation ended the transaction it was given")
        return values

    def settle(self) -> None:
        """Give the outcome to the future; in the thread or loop where it belongs."""
        outcome, future = self.outcome, self.future
        if future.done():
            return  # its coroutine was cancelled meanwhile
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome or ())


def deliver(jobs: Iterable[Job]) -> None:
    """Tell everyone, in order; a loop is woken once for all that wait in it (a wake-up is a write to a socket)."""
    loops: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if job.loop is None:
            job.settle()
        else:
            loops.setdefault(job.loop, []).append(job)
    for loop, mine in loops.items():
        try:
            loop.call_soon_threadsafe(_settle_all, mine)
        except RuntimeError:  # the loop is closed: nobody waits there any more
            pass


def _settle_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.settle()
