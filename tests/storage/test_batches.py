"""What is queued together is done by few statements, and each of it as if it were alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from tests.storage.test_store import held
from tests.support import clause
from weavegraph.checkpoint.sqlite import SqliteCheckpointer
from weavegraph.errors import CheckpointConflictError, LogFencedError, LogHoleError
from weavegraph.log import SqliteLog
from weavegraph.testing import checkpointed, logged


async def grouped(store: Any, *writes: Any) -> tuple[list[Any], Counter[str]]:
    """The outcomes of operations (tuples: of one write) that are one group, and the statements that it took."""
    statements: Counter[str] = Counter()

    def listen(db: sqlite3.Connection) -> None:
        db.set_trace_callback(lambda text: statements.update([" ".join(text.split()[:3]).partition("(")[0]]))

    await store.submit(listen)
    gate, holding = await held(store)
    waiting = [store.write(*(write if isinstance(write, tuple) else (write,))) for write in writes]
    gate.go.set()
    outcomes = await asyncio.gather(*map(asyncio.wrap_future, waiting), return_exceptions=True)
    await asyncio.wrap_future(holding)
    await store.submit(lambda db: db.set_trace_callback(None))
    return outcomes, statements


@clause("D3", "D6")
async def test_checkpoints_of_many_sessions_are_one_statement_and_one_refusal_is_its_own(tmp_path: Path) -> None:
    checkpointer = SqliteCheckpointer(tmp_path / "a.db")
    await checkpointer.save(checkpointed("s0", 1))
    store = checkpointer.store
    names = [f"s{n}" for n in range(60)]
    saves = [checkpointer.saving(checkpointed(name, 2 if name == "s0" else 1)) for name in names]
    outcomes, statements = await grouped(store, *saves, checkpointer.saving(checkpointed("s1", 2)))
    assert outcomes == [(None,)] * 61
    assert statements["INSERT INTO checkpoints"] == 1
    outcomes, _ = await grouped(
        store, checkpointer.saving(checkpointed("s2", 2)), checkpointer.saving(checkpointed("s3", 7)),
        checkpointer.saving(checkpointed("s4", 2)),
    )  # fmt: skip
    assert [type(outcome) for outcome in outcomes] == [tuple, CheckpointConflictError, tuple]
    numbers = {}
    for name in names:
        latest = await checkpointer.latest(name)
        numbers[name] = latest and latest.number
    assert numbers == {name: 2 if name in ("s0", "s1", "s2", "s4") else 1 for name in names}
    await checkpointer.aclose()


@clause("D2", "D6")
async def test_events_of_many_runs_are_few_statements_and_one_refusal_is_its_own(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "a.db")
    await log.append("r0", logged("r0", 1, 2))
    runs = [f"r{n}" for n in range(30)]
    appends = [log.appending(run, logged(run, 3 if run == "r0" else 1, 4)) for run in runs]
    outcomes, statements = await grouped(log.store, *appends, log.appending("r1", logged("r1", 5, 6)))
    assert outcomes == [(4,)] * 30 + [(6,)]
    assert statements["INSERT INTO log_events"] == 2  # of 120 events
    assert sum(count for text, count in statements.items() if "log_runs" in text and "INSERT" not in text) <= 1
    again = log.appending("r2", logged("r2", 1, 5))  # four of them are held
    hole, stranger = log.appending("r3", logged("r3", 9, 9)), log.appending("r4", logged("r4", 5, 5, epoch="other"))
    outcomes, _ = await grouped(log.store, again, hole, stranger, log.appending("r5", logged("r5", 5, 5)))
    assert [type(outcome) for outcome in outcomes] == [tuple, LogHoleError, LogFencedError, tuple]
    for run in runs:
        last = {"r1": 6, "r2": 5, "r5": 5}.get(run, 4)
        assert [event async for event in log.read(run)] == logged(run, 1, last)
        assert await log.last_position(run) == last
    await log.aclose()


async def test_the_same_events_twice_in_a_group_are_kept_once(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "a.db")
    outcomes, _ = await grouped(
        log.store, log.appending("r", logged("r", 1, 3)), log.appending("r", logged("r", 1, 4)),
        log.appending("r", logged("r", 2, 3, text="other")),
    )  # fmt: skip
    assert [outcome if isinstance(outcome, tuple) else type(outcome) for outcome in outcomes] == [
        (3,), (4,), LogFencedError,
    ]  # fmt: skip
    assert [event async for event in log.read("r")] == logged("r", 1, 4)
    await log.aclose()


async def test_pairs_keep_together_and_what_is_no_batch_keeps_its_place(tmp_path: Path) -> None:
    log, checkpointer = SqliteLog(tmp_path / "a.db"), SqliteCheckpointer(tmp_path / "a.db")
    log.store.require_those_of(checkpointer.store)
    pairs = [(log.appending(f"r{n}", logged(f"r{n}", 1, 2)), checkpointer.saving(checkpointed(f"s{n}", 1)))
             for n in range(10)]  # fmt: skip

    def counted(db: sqlite3.Connection) -> int:
        return int(db.execute("SELECT count(*) FROM checkpoints").fetchone()[0])

    outcomes, statements = await grouped(log.store, *pairs[:4], counted, *pairs[4:])
    assert outcomes == [(2, None)] * 4 + [(4,)] + [(2, None)] * 6
    assert statements["INSERT INTO checkpoints"] == 2
    await log.aclose()
    await checkpointer.aclose()
