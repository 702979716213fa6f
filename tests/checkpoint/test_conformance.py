"""The kit, over the checkpointers we ship."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from tests.support import clause
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.checkpoint.sqlite import SqliteCheckpointer
from weavegraph.protocols import Checkpointer
from weavegraph.testing import CheckpointerKit, DurableCheckpointerKit

pytestmark = clause("D4", "D8")


class TestMemoryCheckpointer(CheckpointerKit):
    async def make(self) -> Checkpointer:
        return MemoryCheckpointer()


class TestSqliteCheckpointer(DurableCheckpointerKit):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: pathlib.Path) -> None:
        self.path = tmp_path / "sessions.db"

    async def make(self) -> Checkpointer:
        return SqliteCheckpointer(self.path)

    def recipe(self) -> tuple[str, list[Any]]:
        return "weavegraph.checkpoint.sqlite:SqliteCheckpointer", [str(self.path)]


def test_the_kit_has_a_hundred_cases_and_more() -> None:
    assert len([name for name in dir(CheckpointerKit) if name.startswith("test_")]) >= 100
