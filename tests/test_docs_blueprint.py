"""The map of the blueprint is whole, and what it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "blueprint.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| item ")
]
ITEMS = {row[0].partition(":")[0] if not row[0].startswith("Snapshot") else row[0]: row for row in ROWS}
EXPECTED = [
    *(f"Objective {number}" for number in range(1, 6)),
    *(f"Step {number}" for number in range(1, 26)),
    *("A1", "A2", "A3", "B1", "B2", "B3", "C1", "C2", "D1", "D2", "E1", "E2"),
]
SNAPSHOT = ["EventEmitter", "EventHub", "fan-out", "ergonomics", "buffer", "EventBus", "Sinks", "Subscribers"]
OPEN = {
    "A graph runs, and is watched while it runs",
    "Ten minutes with it",
    "Faster than anything in Python, and shown side by side",
    "A crash loses nothing",
    "Any browser can watch",
    "The first broker: Redis, the outbox, and kits for third parties",
}
NAMED = re.compile(r"`((?:src|tests|docs|tools|benchmarks|examples)/[\w./-]+|[A-Z]+\.md)(?::([\w.]+))?`")


def test_every_item_of_the_blueprint_has_a_row() -> None:
    assert not [item for item in EXPECTED if item not in ITEMS]
    snapshot = [item for item in ITEMS if item.startswith("Snapshot")]
    assert not [bullet for bullet in SNAPSHOT if not any(bullet in item for item in snapshot)]


@pytest.mark.parametrize("item", EXPECTED)
def test_a_row_is_done_with_code_and_test_or_names_its_issue(item: str) -> None:
    *_, code, test, state = ITEMS[item]
    issue = state.partition("open: ")[2]
    assert state.startswith("done") or issue, state
    assert not issue or issue in OPEN, issue
    if state.startswith("done"):
        assert NAMED.search(test), f"{item}: no test"
        assert NAMED.search(code) or item in ("Step 19", "Step 20"), f"{item}: no code"


def test_every_path_exists() -> None:
    paths = {path for path, _ in NAMED.findall(PAGE)}
    assert len(paths) > 30
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_every_name_is_defined_where_the_page_says() -> None:
    assert not [f"{path}:{name}" for path, name in NAMED.findall(PAGE) if name and not defined(path, name)]


@cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def defined(path: str, name: str) -> bool:
    body: list[ast.stmt] = parsed(path).body
    for part in name.split("."):
        for statement in body:
            if part in names(statement):
                body = getattr(statement, "body", [])
                break
        else:
            return False
    return True


def names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return []
