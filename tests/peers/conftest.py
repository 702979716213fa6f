"""With CI set nothing here may be skipped: a peer that is missing is a failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tools.peers import in_ci


def refused(report: Any) -> None:
    """Turn a skip into a failure that says why it was one."""
    if report.outcome == "skipped" and not hasattr(report, "wasxfail") and in_ci():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"a peer is missing, and CI is set: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    outcome: Any = yield
    refused(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    outcome: Any = yield
    refused(outcome.get_result())
