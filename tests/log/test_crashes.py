"""The campaigns of tools/crash_log.py, small. Figures of the large ones: docs/ledger-log.md."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import clause

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "crash_log.py"


def campaign(*arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=58,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@clause("8.kill", "D1", "D2", "D3")
def test_a_killed_writer_loses_nothing_it_was_told_is_kept() -> None:
    assert "lost 0, wrong 0; problems 0" in campaign("kill", "--cycles", "100", "--seconds", "12", "--seed", "1")


@clause("D1", "D2", "D3")
@pytest.mark.skipif(shutil.which("strace") is None, reason="records system calls with strace")
def test_a_power_cut_loses_nothing_durable_and_only_a_suffix_otherwise() -> None:
    found = campaign("power", "--images", "30", "--appends", "20", "--seed", "1")
    assert found.count("lost 0, wrong 0; problems 0") == 2
    assert "control with synchronous=OFF" in found


@clause("D2")
def test_a_flipped_bit_is_found_or_harmless() -> None:
    assert "problems 0" in campaign("flips", "--places", "80", "--seed", "1")
