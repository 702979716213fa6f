"""The kit, over the logs we ship."""

from __future__ import annotations

import pathlib

import pytest

from tests.support import clause
from weavegraph.log import MemoryLog, SqliteLog
from weavegraph.protocols import EventLog
from weavegraph.testing import CompactingLogKit, DurableLogKit, LogKit

pytestmark = clause("D2", "D4", "D6", "10.none", "10.valid", "10.trimmed", "10.malformed")


class TestMemoryLog(CompactingLogKit):
    async def make(self) -> EventLog:
        return MemoryLog()


class TestSqliteLog(CompactingLogKit, DurableLogKit):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: pathlib.Path) -> None:
        self.path = tmp_path / "events.db"

    async def make(self) -> EventLog:
        return SqliteLog(self.path)


class TestRelaxedSqliteLog(TestSqliteLog):
    async def make(self) -> EventLog:
        return SqliteLog(self.path, durability="relaxed")


def test_the_kit_has_sixty_cases_and_more() -> None:
    assert len([name for name in dir(LogKit) if name.startswith("test_")]) >= 60
