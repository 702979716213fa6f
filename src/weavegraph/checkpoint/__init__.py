"""REMEMBERS sessions: in memory here; durable ones are imported by their own path."""

from weavegraph.checkpoint._memory import MemoryCheckpointer

__all__ = ["MemoryCheckpointer"]
