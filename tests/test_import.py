"""What `import weavegraph` needs, and what it leaves alone. Each test is a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

POSIX_ONLY = ("fcntl", "resource", "termios", "pwd", "grp")
OPTIONAL = ("rich", "typer", "pydantic")
LATER = (
    *("hashlib", "importlib.metadata", "pathlib", "random", "secrets", "sqlite3", "tomllib", "urllib.parse"),
    *("weavegraph.log", "weavegraph.storage"),
)


def run(program: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_needs_no_posix_module() -> None:
    run(f"import sys; sys.modules.update(dict.fromkeys({POSIX_ONLY!r})); import weavegraph")


def test_imports_no_optional_library() -> None:
    found = run(f"import sys, weavegraph; print(*sorted(set({OPTIONAL!r}) & set(sys.modules)))")
    assert found == ""


def test_imports_nothing_that_only_some_need() -> None:
    """Logs and files of TOML, entry points and SQLite: each of these took longer than a tenth of the whole import."""
    found = run(
        "import asyncio, sys; before = set(sys.modules); import weavegraph; new = set(sys.modules) - before;"
        f"print(*sorted(set({LATER!r}) & new))"
    )
    assert found == ""
