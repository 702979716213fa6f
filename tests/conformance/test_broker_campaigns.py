"""Small versions of the campaigns of ``tools/broker_campaign.py``; the large ones are in docs/ledger-redis.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.servers import need_binary
from tests.support import clause

TOOL = Path(__file__).resolve().parents[2] / "tools" / "broker_campaign.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("broker_campaign", TOOL)
    assert spec is not None and spec.loader is not None
    module = sys.modules["broker_campaign"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@clause("X1", "X2", "X3", "X4", "O6", "S4.brokers")
async def test_restarts_lose_repeat_and_reorder_nothing(tool: Any, tmp_path: Path) -> None:
    found = await tool.restarts(4, 7, tmp_path, need_binary())
    assert not found.problems, found.problems[:5]
    assert found.counts["published"] > 500


@clause("X1", "X2", "X3", "X4", "O6", "S4.brokers")
async def test_faults_of_the_network_lose_repeat_and_reorder_nothing(tool: Any, tmp_path: Path) -> None:
    found = await tool.faults(28, 7, tmp_path, need_binary())
    assert not found.problems, found.problems[:5]
    assert found.counts["published"] > 500


@clause("X6")
async def test_cancelled_calls_leave_no_foreign_answers(tool: Any, tmp_path: Path) -> None:
    found = await tool.cancel(200, 7, tmp_path, need_binary())
    assert not found.problems, found.problems[:5]
    assert found.counts["connections"] > 5  # those of cancelled calls were thrown away


@clause("X3", "10.trimmed")
async def test_trimmed_streams_report_the_true_count(tool: Any, tmp_path: Path) -> None:
    found = await tool.trim(24, 7, tmp_path, need_binary())
    assert not found.problems, found.problems[:5]
    assert found.counts["events reported missing"] > 0


@clause("X4")
async def test_without_an_outbox_the_same_judge_finds_exactly_what_was_lost(tool: Any, tmp_path: Path) -> None:
    """The negative control of ``restarts``."""
    found = await tool.restarts(6, 7, tmp_path, need_binary(), control=True)
    assert not found.problems, found.problems[:5]
    dropped = found.counts["dropped by the bus"]
    assert dropped > 0
    assert {found.counts[f"missed by {who}"] for who in ("follower-0", "follower-1", "last reader")} == {dropped}
