"""REMEMBERS sessions: in memory here; durable ones are imported by their own path."""

from weavegraph.checkpoint._memory import MemoryCheckpointer
from weavegraph.checkpoint._opening import open_checkpointer

__all__ = ["MemoryCheckpointer", "open_checkpointer"]
