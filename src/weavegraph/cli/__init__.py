"""REACHES a terminal: run, tail, runs, replay, diff, log copy, dead-letters, graph, serve, demo. Extra ``cli``.

::

    weavegraph run shop.flows:app '{"topic": "tea"}' --log sqlite:runs.db
    weavegraph tail sqlite:runs.db                       # in another terminal, or after a crash

The command line is imported when it is used, so that importing this package costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``weavegraph``; returns its exit code: 0 done, 1 failed, 2 wrong usage, 3 paused, 130 Ctrl-C …."""
    try:
        from weavegraph.cli._main import command
    except ModuleNotFoundError as exc:
        if exc.name not in ("typer", "rich"):
            raise
        print("weavegraph's command line needs typer and rich: pip install 'weavegraph[cli]'", file=sys.stderr)
        return 2
    return command(arguments)
