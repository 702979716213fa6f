"""The demo: a workflow on a real document, watched by everyone at once. ``python -m weavegraph.demo [FILE]``."""

from weavegraph.demo._main import main

__all__ = ["main"]
