"""The README tells the truth: its program runs and prints what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_program_prints_what_the_readme_shows() -> None:
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    shown = re.search(r"It prints:\n\n```\n(.*?)```", README, re.DOTALL)
    assert program and shown
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program[1]], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.stderr) == (shown[1], "")


def test_its_links_exist_and_it_is_short() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    assert len(README.splitlines()) <= 150
