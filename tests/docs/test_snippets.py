"""Every snippet that the documentation shows runs, and prints what the documentation shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SNIPPETS = sorted((DOCS / "snippets").glob("*.py"))
PEERS = ("langgraph_", "llamaindex_")
"""Need another library; tests/peers runs them."""
OWN = [path for path in SNIPPETS if not path.name.startswith(PEERS)]


@pytest.mark.parametrize("path", OWN, ids=[path.stem for path in OWN])
def test_it_prints_what_the_page_shows(path: Path, tmp_path: Path) -> None:
    if path.stem == "forking" and not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    done = subprocess.run(
        [sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path
    )
    shown = path.with_suffix(".out")
    if os.environ.get("WEAVEGRAPH_GOLDEN") == "write":
        shown.write_text(done.stdout, encoding="utf-8")
    # A reader that lags is logged, which is what some snippets are about; nothing else may be said on the side.
    errors = [line for line in done.stderr.splitlines() if not re.match(r"subscriber '.*' of '.*' lagged", line)]
    assert (done.stdout, errors, done.returncode) == (shown.read_text(encoding="utf-8"), [], 0)


def test_every_snippet_is_on_a_page_and_every_page_shows_files_that_exist() -> None:
    shown: set[Path] = set()
    for page in DOCS.rglob("*.md"):
        for name in re.findall(r"\{literalinclude\} (\S+)", page.read_text(encoding="utf-8")):
            target = (page.parent / name).resolve()
            assert target.is_file(), f"{page.relative_to(ROOT)} shows {name}"
            shown.add(target)
    assert not [path.name for path in SNIPPETS if path.resolve() not in shown]


def test_a_wrong_one_stands_beside_the_right_one() -> None:
    for path in SNIPPETS:
        if path.stem.endswith("_wrong"):
            assert path.with_name(path.name.replace("_wrong", "_right")).is_file()
