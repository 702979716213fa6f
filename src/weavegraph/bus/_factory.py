"""Where the bus gets sinks from names: ``weavegraph.sinks`` registers its factory, so the bus imports no sink."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["make_sinks", "set_factory"]

_factory: Callable[[Any], Any] | None = None


def set_factory(factory: Callable[[Any], Any]) -> None:
    """``factory`` turns one ``SinkConfig`` into a sink."""
    global _factory
    _factory = factory


def make_sinks(configs: Iterable[Any]) -> list[Any]:
    """One sink for each configuration, in order."""
    if _factory is None:
        importlib.import_module("weavegraph.sinks")
    assert _factory is not None
    return [_factory(config) for config in configs]
