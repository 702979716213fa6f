"""A write on its way: what is to be done, by whom it is awaited, and how the answer gets there."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

from weavegraph.storage._schema import Schema

__all__ = ["Job", "Op", "Outcome", "deliver", "run_all"]

Op: TypeAlias = Callable[[sqlite3.Connection], Any]
"""One step of a write, run on the writer thread inside of a transaction that it must neither begin nor end.

It may be run again after a rollback, so it changes nothing but the database. An attribute ``about`` (text) names what
it changes: watchers of that topic are woken after the commit.

An attribute ``batch`` (a function of the connection and of operations that have the same one) does the same for all of
them at once, in order, and returns what each would. A statement gives up the interpreter's lock, and a busy loop keeps
it for up to 5 ms: what takes one statement for many runs does not wait for it once a run. Operations of different
batches must not concern the same rows: only those of one keep their order.
"""

Outcome: TypeAlias = tuple[Any, ...] | BaseException


class Job:
    """Operations that are kept all together or not at all. ``outcome``: what they returned, or the error; the
    writer's own until it is delivered to the future, which is a thread's or, with ``loop``, a coroutine's, or to
    ``done`` in that loop: then nobody can cancel it. Before that ``told`` gets it on the writer thread, and says
    whether it is to be delivered."""

    __slots__ = ("done", "durable", "future", "loop", "ops", "outcome", "schemas", "told")

    def __init__(
        self,
        ops: Sequence[Op],
        schemas: Sequence[Schema],
        durable: bool,
        loop: asyncio.AbstractEventLoop | None = None,
        done: Callable[[Outcome], None] | None = None,
        told: Callable[[Outcome], bool] | None = None,
    ) -> None:
        self.ops, self.schemas, self.durable, self.loop = ops, schemas, durable, loop
        self.done, self.told = done, told
        self.future: Future[tuple[Any, ...]] | asyncio.Future[tuple[Any, ...]] | None = None
        if done is None:
            self.future = Future() if loop is None else loop.create_future()
        self.outcome: Outcome | None = None

    def begin(self) -> bool:
        """Whether it is still wanted; after this a thread's future cannot be cancelled."""
        if isinstance(self.future, Future):
            return self.future.set_running_or_notify_cancel()
        return self.future is None or not self.future.cancelled()

    def run(self, connection: sqlite3.Connection) -> tuple[Any, ...]:
        values = tuple([op(connection) for op in self.ops])
        if not connection.in_transaction:
            raise RuntimeError("an operation ended the transaction it was given")
        return values

    def settle(self) -> None:
        """Give the outcome to who waits for it; in the thread or loop where they do."""
        outcome, future = self.outcome, self.future
        if future is None:
            assert self.done is not None
            self.done(outcome or ())
            return
        if future.done():
            return  # its coroutine was cancelled meanwhile
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome or ())


def run_all(connection: sqlite3.Connection, jobs: Sequence[Job]) -> list[tuple[Any, ...]]:
    """What the operations of each job returned; of those that stand next to each other in batches where they can be."""
    found: list[tuple[Any, ...]] = []
    at = 0
    while at < len(jobs):
        end = at
        while end < len(jobs) and all(hasattr(op, "batch") for op in jobs[end].ops):
            end += 1
        if end - at < 2:
            end = at + 1
            found.append(jobs[at].run(connection))
        else:
            found += _run_batches(connection, jobs[at:end])
        at = end
    return found


def _run_batches(connection: sqlite3.Connection, jobs: Sequence[Job]) -> list[tuple[Any, ...]]:
    ops: list[Any] = [op for job in jobs for op in job.ops]
    places: dict[Any, list[int]] = {}
    for place, op in enumerate(ops):
        places.setdefault(op.batch, []).append(place)
    values: list[Any] = [None] * len(ops)
    for batch, mine in places.items():
        for place, value in zip(mine, batch(connection, [ops[place] for place in mine]), strict=True):
            values[place] = value
    left = iter(values)
    return [tuple([next(left) for _ in job.ops]) for job in jobs]


def deliver(jobs: Iterable[Job]) -> None:
    """Tell everyone, in order; a loop is woken once for all that wait in it (a wake-up is a write to a socket)."""
    loops: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if job.told is not None and not job.told(job.outcome or ()):
            continue
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
