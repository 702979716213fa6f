"""``weavegraph serve``: hands an app to ``weavegraph.web``."""

from __future__ import annotations

import importlib
from typing import Any

from weavegraph.errors import CommandError
from weavegraph.runtime import App

__all__ = ["serve"]


def serve(app: App[Any], *, host: str, port: int, token: str | None = None) -> int:
    """Serve until a signal comes; returns the exit code."""
    try:
        serving = importlib.import_module("weavegraph.web").serve
    except (ModuleNotFoundError, AttributeError) as exc:
        raise CommandError("serving needs Starlette and uvicorn: pip install 'weavegraph[web]'") from exc
    code = serving(app, host=host, port=port, token=token)
    return code if isinstance(code, int) else 0
