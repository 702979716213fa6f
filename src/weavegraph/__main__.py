"""``python -m weavegraph``: the command line."""

from __future__ import annotations

import sys


def _run() -> int:
    from weavegraph.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(_run())
