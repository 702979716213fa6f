"""Both programs of each migration guide run, print what the guide shows, and come to the same result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SNIPPETS = Path(__file__).resolve().parents[2] / "docs" / "snippets"
NEEDS = {"langgraph": "langgraph", "llamaindex": "workflows"}
ANY_ORDER = "langgraph_before"
"""Its parallel nodes are threads, and whichever speaks first is printed first; with ``max_concurrency`` 1 it hangs."""


def run(name: str, folder: Path) -> str:
    path = SNIPPETS / f"{name}.py"
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=50, check=False, cwd=folder)
    assert (done.stderr, done.returncode) == ("", 0)
    shown = path.with_suffix(".out")
    if os.environ.get("WEAVEGRAPH_GOLDEN") == "write":
        shown.write_text(done.stdout, encoding="utf-8")
    printed, expected = done.stdout.splitlines(), shown.read_text(encoding="utf-8").splitlines()
    if name == ANY_ORDER:
        assert (sorted(printed), printed[2:]) == (sorted(expected), expected[2:])
    else:
        assert printed == expected
    return done.stdout


@pytest.mark.parametrize("peer", NEEDS)
def test_both_programs_print_what_the_guide_shows(peer: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[peer])
    before, after = run(f"{peer}_before", tmp_path), run(f"{peer}_after", tmp_path)
    assert before.splitlines()[-1] == after.splitlines()[-1]
