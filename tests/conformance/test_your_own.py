"""A sink, a log and a checkpointer of your own, in folders; each passes its kit.

This file is the program of docs/howto/write-a-sink-log-checkpointer.md.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from weavegraph.errors import (
    CheckpointConflictError,
    ConfigError,
    InvalidPositionError,
    LogClosedError,
    RunNotFoundError,
    StateError,
)
from weavegraph.events import Event, from_json, to_json
from weavegraph.log.building import (
    Notices,
    Page,
    RunRecord,
    advance,
    check_batch,
    check_writer,
    fenced,
    follow_run,
    held,
    read_run,
)
from weavegraph.protocols import Checkpointer, CheckpointPage, Delivery, EventLog, LoggedRun
from weavegraph.state import Checkpoint, Finished, flatten, with_finished
from weavegraph.testing import CheckpointerKit, DurableSinkKit, LogKit

# ── a sink ──────────────────────────────────────────────────────────────────────────────────────────


class GzipSink:
    """Appends each batch to a file, as a compressed part of its own."""

    name = "gzip"
    delivery: Delivery = "at_least_once"  # a batch that was written, and then failed, is given again

    def __init__(self, path: Path) -> None:
        self.path = path

    def handle(self, batch: Sequence[Event]) -> None:
        part = gzip.compress(b"".join(to_json(event) + b"\n" for event in batch))
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, part)
        finally:
            os.close(file)


class TestGzipSink(DurableSinkKit):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "events.gz"

    async def make(self) -> Any:
        return GzipSink(self.path)

    async def arrived(self, sink: Any) -> Sequence[Event]:
        if not self.path.exists():
            return ()
        with gzip.open(self.path) as file:
            return [from_json(line) for line in file]


def _file_name(id_: str) -> str:
    """Not every id may be a file's name everywhere: some systems know no difference between a and A."""
    return base64.b32encode(id_.encode()).decode()


# ── a log ───────────────────────────────────────────────────────────────────────────────────────────


class FolderLog:
    """One file a run, one line an event. One process at a time; its handles are told of changes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._notices = folder, Notices()
        self._records: dict[str, RunRecord] = {}  # in the order in which runs began
        self._closed = False

    async def append(self, run_id: str, events: Sequence[Event], /) -> int:
        self._check_open()
        batch = tuple(events)
        check_batch(run_id, batch)  # consecutive, and of this run
        record = self._records.get(run_id)
        known = held(record, batch)  # so many have a position that was given away already
        if record is not None:
            there = dict(self._lines(record, batch[0].run_seq or 0)) if known else {}
            for event in batch[:known]:
                if there.get(event.run_seq or 0, to_json(event)) != to_json(event):
                    raise fenced(record, batch[-1])  # another event stands there
        if known < len(batch):
            check_writer(run_id, record, batch, known)  # the run's owner, and no hole
            lines = [to_json(event) for event in batch[known:]]
            with self._file(run_id).open("ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))
            self._records[run_id] = record = advance(record, batch[known:], sum(map(len, lines)))
            self._notices.tell((run_id,))
        return 0 if record is None else record.last

    def read(self, run_id: str, /, after: int = 0) -> AsyncIterator[Event]:
        return read_run(self._fetch(run_id), after)

    def follow(self, run_id: str, /, after: int = 0) -> AsyncIterator[Event]:
        return follow_run(self._fetch(run_id), lambda: self._notices.watch(run_id), after)

    async def read_session(self, session_id: str, /) -> AsyncIterator[Event]:
        for record in [each for each in self._records.values() if each.session_id == session_id]:
            async for event in self.read(record.run_id):
                yield event

    async def last_position(self, run_id: str, /) -> int:
        self._check_open()
        record = self._records.get(run_id)
        return 0 if record is None else record.last

    async def runs(self, *, limit: int = 100, before: str | None = None) -> Sequence[LoggedRun]:
        self._check_open()
        newest = list(reversed(self._records))
        if before is not None:
            if before not in newest:
                raise RunNotFoundError(before)
            newest = newest[newest.index(before) + 1 :]
        return tuple(self._records[run_id].logged() for run_id in newest[:limit])

    async def trim(self, run_id: str, /, upto: int | None = None) -> int:
        self._check_open()
        record = self._records.get(run_id)
        if record is None:
            return 0
        if upto is not None and not 0 <= upto <= record.last:
            raise InvalidPositionError(upto, record.last)
        last = record.last if upto is None else upto
        if last < record.first:
            gone = 0
        else:
            gone = last - record.first + 1
            rest = [line for _, line in self._lines(record, last + 1)]
            size = record.size - sum(map(len, rest))
            self._file(run_id).write_bytes(b"".join(line + b"\n" for line in rest))
            self._records[run_id] = record.trimmed(last, size)
        if upto is None and record.finished:
            del self._records[run_id]
            self._file(run_id).unlink()
        self._notices.tell((run_id,))
        return gone

    async def aclose(self) -> None:
        self._closed = True
        self._notices.tell_all()  # those who wait look again, and find it closed

    def _fetch(self, run_id: str) -> Callable[[int], Any]:
        async def page(after: int) -> Page:
            self._check_open()
            record = self._records.get(run_id)
            if record is None:
                return Page(None)
            lines = (line for _, line in self._lines(record, after + 1))
            return Page(record, [from_json(line) for _, line in zip(range(500), lines, strict=False)])

        return page

    def _lines(self, record: RunRecord, first: int) -> Iterator[tuple[int, bytes]]:
        with self._file(record.run_id).open("rb") as file:
            for position, line in enumerate(file, record.first):
                if position >= first:
                    yield position, line[:-1]

    def _file(self, run_id: str) -> Path:
        return self._folder / _file_name(run_id)

    def _check_open(self) -> None:
        if self._closed:
            raise LogClosedError(str(self._folder))


class TestFolderLog(LogKit):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path

    async def make(self) -> EventLog:
        return FolderLog(self.path)


# ── a checkpointer ──────────────────────────────────────────────────────────────────────────────────


class FolderCheckpointer:
    """One file a checkpoint. Linking to a name that is there fails, for every process: that is the conflict."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._finished: dict[tuple[str, int], dict[int, Finished]] = {}  # outputs of the step that is being run

    async def save(self, checkpoint: Checkpoint, /) -> None:
        session, numbers = checkpoint.session_id, self._numbers(checkpoint.session_id)
        last = numbers[-1] if numbers else 0
        body = _encoded(checkpoint)  # before anything is touched: what cannot be kept is refused here
        if checkpoint.number != last + 1:
            raise CheckpointConflictError(session, checkpoint.number - 1, last)
        self._place(session).mkdir(exist_ok=True)
        draft = self._place(session) / f"draft-{uuid4().hex}"  # nobody may read half of it
        try:
            draft.write_bytes(body)
            os.link(draft, self._file(session, checkpoint.number))
        except FileExistsError:
            raise CheckpointConflictError(session, checkpoint.number - 1, checkpoint.number) from None
        finally:
            draft.unlink(missing_ok=True)
        self._finished.pop((session, last), None)

    async def add_finished(self, session_id: str, number: int, finished: Finished, /) -> None:
        if self._numbers(session_id)[-1:] == [number]:
            self._finished.setdefault((session_id, number), {})[finished.index] = finished

    async def latest(self, session_id: str, /) -> Checkpoint | None:
        numbers = self._numbers(session_id)
        return await self.get(session_id, numbers[-1]) if numbers else None

    async def get(self, session_id: str, number: int, /) -> Checkpoint | None:
        if number not in self._numbers(session_id):
            return None
        checkpoint = msgspec.json.decode(self._file(session_id, number).read_bytes(), type=Checkpoint)
        return with_finished(checkpoint, self._finished.get((session_id, number), {}))

    async def history(
        self,
        session_id: str,
        /,
        *,
        limit: int = 100,
        before: int | None = None,
        min_step: int | None = None,
        max_step: int | None = None,
        ran_node: str | None = None,
        skipped_node: str | None = None,
        run_id: str | None = None,
    ) -> CheckpointPage:
        if type(limit) is not int or not 1 <= limit <= 1000:
            raise ConfigError(f"history(limit={limit!r}): give a whole number from 1 to 1,000")
        found: list[Checkpoint] = []
        for number in reversed(self._numbers(session_id)):
            each = await self.get(session_id, number)
            if (
                each is not None
                and (before is None or number < before)
                and (min_step is None or each.step >= min_step)
                and (max_step is None or each.step <= max_step)
                and (ran_node is None or ran_node in each.ran_nodes)
                and (skipped_node is None or skipped_node in each.skipped_nodes)
                and (run_id is None or each.run_id == run_id)
            ):
                found.append(each)
        return CheckpointPage(tuple(found[:limit]), found[limit - 1].number if len(found) > limit else None)

    async def sessions(self, *, limit: int = 100, after: str = "") -> Sequence[str]:
        names = sorted(base64.b32decode(place.name).decode() for place in self._folder.iterdir())
        return [name for name in names if name > after and self._numbers(name)][:limit]

    async def delete(self, session_id: str, /) -> int:
        return self._forget(session_id, self._numbers(session_id))

    async def trim(self, session_id: str, /, *, keep: int) -> int:
        if type(keep) is not int or keep < 1:
            raise ConfigError(f"trim(keep={keep!r}): give a whole number from 1")
        return self._forget(session_id, self._numbers(session_id)[:-keep])

    async def aclose(self) -> None:
        """Nothing is open."""

    def _forget(self, session_id: str, numbers: Sequence[int]) -> int:
        for number in numbers:
            self._file(session_id, number).unlink()
            self._finished.pop((session_id, number), None)
        return len(numbers)

    def _numbers(self, session_id: str) -> list[int]:
        place = self._place(session_id)
        return sorted(int(file.name) for file in place.iterdir() if file.name.isdigit()) if place.is_dir() else []

    def _place(self, session_id: str) -> Path:
        return self._folder / _file_name(session_id)

    def _file(self, session_id: str, number: int) -> Path:
        return self._place(session_id) / str(number)


def _encoded(checkpoint: Checkpoint) -> bytes:
    """Plain data as strict JSON; what has no such form is refused by name when it is saved, not when it is read."""
    try:
        return json.dumps(msgspec.to_builtins(flatten(checkpoint)), allow_nan=False, ensure_ascii=False).encode()
    except ValueError as exc:
        raise StateError(f"checkpoint {checkpoint.number} of {checkpoint.session_id!r} cannot be kept: {exc}") from exc


class TestFolderCheckpointer(CheckpointerKit):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path

    async def make(self) -> Checkpointer:
        return FolderCheckpointer(self.path)
