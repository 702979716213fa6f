"""The commands of tools/, the lock, and one rule for the tests themselves."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = """# Contract

## 1. Terms

**hub** is a term and no clause.

## 2. Order

- **Z1** All see one order.
- **Z2** Nothing is lost.

| `overflow` | when full |
|---|---|
| **2.block** `"block"` | the producer waits |

## 3. Later

- **Y1** Waits for another day. **Y1.redis** So does this.
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "design").mkdir(parents=True)
    (tmp_path / "docs" / "design" / "contract.md").write_text(CONTRACT, encoding="utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / "changes").mkdir()
    plan(tmp_path)
    return tmp_path


def plan(checkout: Path, *due: str) -> None:
    text = f'finished_sections = ["2"]\n[due]\n"A later issue" = {list(due)}\n'
    (checkout / "docs" / "design" / "due.toml").write_text(text, encoding="utf-8")


def write_test(checkout: Path, *lines: str) -> None:
    (checkout / "tests" / "test_order.py").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tool(name: str, *arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=30, check=False)
    return done.returncode, done.stdout + done.stderr


def test_clauses_all_held(checkout: Path) -> None:
    write_test(checkout, '@clause("Z1", "Z2")', "def test_order(): ...", 'pytestmark = pytest.mark.clause("2.block")')
    code, output = tool("clauses", "--root", checkout)
    assert code == 0, output
    assert "Y1.redis" in output  # missing, but of a section that is not finished


def test_clauses_finds_a_missing_one(checkout: Path) -> None:
    write_test(checkout, '@clause("Z1", "2.block")', "def test_order(): ...")
    code, output = tool("clauses", "--root", checkout)
    assert code == 1
    assert re.search(r"Z2\b.*Nothing is lost", output)


def test_clauses_takes_a_due_one(checkout: Path) -> None:
    write_test(checkout, '@clause("Z1", "2.block")', "def test_order(): ...")
    plan(checkout, "Z2")
    code, output = tool("clauses", "--root", checkout)
    assert code == 0, output


def test_clauses_finds_an_unknown_id_in_a_test(checkout: Path) -> None:
    write_test(checkout, '@clause("Z1", "Z2", "2.block")', "def test(): ...", '@clause("Z9")', "def test_more(): ...")
    code, output = tool("clauses", "--root", checkout)
    assert code == 1
    assert re.search(r"test_order\.py:3:.*Z9", output)


def test_clauses_finds_an_unknown_id_among_the_due(checkout: Path) -> None:
    write_test(checkout, '@clause("Z1", "Z2", "2.block")', "def test_order(): ...")
    plan(checkout, "Z8")
    code, output = tool("clauses", "--root", checkout)
    assert code == 1
    assert re.search(r"due\.toml:.*Z8", output)


def test_changelog_refuses_a_wrong_name(checkout: Path) -> None:
    (checkout / "changes" / "hub.improved.md").write_text("Better.", encoding="utf-8")
    code, output = tool("changelog", "--check", "--root", checkout)
    assert code == 1
    assert "changes/hub.improved.md" in output


def test_changelog_release_moves_the_fragments(checkout: Path) -> None:
    older = "# Changelog\n\nNewest first.\n\n## 0.1.0 (2026-01-01)\n\n- Old.\n"
    (checkout / "CHANGELOG.md").write_text(older, encoding="utf-8")
    (checkout / "changes" / "hub.added.md").write_text("`EventHub`.\n", encoding="utf-8")
    assert tool("changelog", "--check", "--root", checkout)[0] == 0
    assert tool("changelog", "--release", "0.2.0", "--root", checkout)[0] == 0
    headings = re.findall(r"^##+ (\S+)", (checkout / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["0.2.0", "Added", "0.1.0"]
    assert not list((checkout / "changes").iterdir())


def test_changelog_of_this_checkout() -> None:
    code, output = tool("changelog", "--check")
    assert code == 0, output


def test_bootstrap_lists_the_jobs_it_knows() -> None:
    code, output = tool("bootstrap", "tset")
    assert code == 2
    assert "'tset'" in output and "test" in output.split("known are")[1]


def test_bootstrap_sets_up_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVEGRAPH_VENV", str(tmp_path / "deep" / "venv"))
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    path = tmp_path / "deep" / "venv.lock"
    with bootstrap.alone(bootstrap.OWN), path.open("a+b") as second:
        assert not bootstrap.taken(second)
    with path.open("a+b") as second:
        assert bootstrap.taken(second)


def test_lock_names_packages_and_hashes_only() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    expected = re.compile(r"[a-z0-9.-]+==\S+( ; .*)? \\$| +--hash=sha256:[0-9a-f]{64}( \\)?$")
    strange = [line for line in lock if not expected.match(line)]
    assert not strange


def test_no_test_sleeps() -> None:
    """A bare `sleep(0)` yields; anything longer is a guess about the machine.

    `tests.support.eventually` and `wait_until` wait for a condition. A line where time itself is meant says why.
    """
    asleep = re.compile(r"\bsleep\((?!0\))(?!.*# sleeps: \w)")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if asleep.search(line)
    ]
    assert not found
