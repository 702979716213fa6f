"""The kit for sinks, over those we ship. ``ChannelSink`` is none: the bus never pushes into a queue."""

from __future__ import annotations

import io
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.conformance.servers import RedisServer, running
from tests.support import clause
from weavegraph.events import Event, from_json, to_json
from weavegraph.log import LogSink, MemoryLog, SqliteLog
from weavegraph.log.redis_streams import RedisLog, RedisStreamSink
from weavegraph.protocols import EventLog
from weavegraph.sinks import JsonLinesSink, MemorySink, StdOutSink, read_jsonlines
from weavegraph.testing import BrokerSinkKit, DurableSinkKit, SinkKit

pytestmark = clause("S1", "S2", "S4", "A6", "C2", "C3")
_numbers = itertools.count(1)


async def everything(log: EventLog) -> list[Event]:
    runs = await log.runs(limit=1000)
    return [event for run in reversed(runs) async for event in log.read(run.run_id)]


class TestMemorySink(SinkKit):
    async def make(self) -> Any:
        return MemorySink()

    async def arrived(self, sink: Any) -> Sequence[Event]:
        events: Sequence[Event] = sink.snapshot()
        return events


class TestStdOutSink(SinkKit):
    async def make(self) -> Any:
        return StdOutSink(io.StringIO(newline=""), format=lambda event: to_json(event).decode())

    async def arrived(self, sink: Any) -> Sequence[Event]:
        # What the sink makes visible in JSON is JSON again, but for its two-digit form.
        text = re.sub(r"\\x([0-9a-f]{2})", r"\\u00\1", sink._stream.getvalue())
        return [from_json(line.encode()) for line in text.split("\n") if line]


class TestJsonLinesSink(DurableSinkKit):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: pathlib.Path) -> None:
        self.path = tmp_path / "events.jsonl"

    async def make(self) -> Any:
        return JsonLinesSink(self.path)

    async def arrived(self, sink: Any) -> Sequence[Event]:
        return read_jsonlines(self.path).events if self.path.exists() else ()


class TestLogSinkInMemory(SinkKit):
    keeps_events_without_run = False

    async def make(self) -> Any:
        return LogSink(MemoryLog())

    async def arrived(self, sink: Any) -> Sequence[Event]:
        return await everything(sink.log)


class TestLogSinkInSqlite(DurableSinkKit):
    keeps_events_without_run = False

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: pathlib.Path) -> None:
        self.path = tmp_path / "events.db"

    async def make(self) -> Any:
        return LogSink(SqliteLog(self.path, durability="relaxed"), owns_log=True)

    async def arrived(self, sink: Any) -> Sequence[Event]:
        log = SqliteLog(self.path)
        try:
            return await everything(log)
        finally:
            await log.aclose()


@clause("S4.brokers", "X4", "O6")
class TestRedisStreamSink(BrokerSinkKit):
    keeps_events_without_run = False

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[RedisServer]:
        with running(durable=True) as server:
            yield server

    @pytest.fixture(autouse=True)
    def _place(self, server: RedisServer) -> Iterator[None]:
        self.server, self.url = server, f"{server.url}?prefix=kit-{next(_numbers)}&timeout=1"
        yield
        if not server.answers():
            server.start()

    async def make(self) -> Any:
        return RedisStreamSink(self.url)

    async def arrived(self, sink: Any) -> Sequence[Event]:
        log = RedisLog.from_url(self.url)
        try:
            return await everything(log)
        finally:
            await log.aclose()

    async def stop(self) -> None:
        self.server.kill()

    async def go_on(self) -> None:
        self.server.start()


def test_the_kit_has_sixty_cases_and_more() -> None:
    assert len([name for name in dir(SinkKit) if name.startswith("test_")]) >= 60
