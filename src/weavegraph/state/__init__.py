"""What nodes read and write: the schema of a state and its merge rules. Pure."""

from weavegraph.state._schema import StateSchema, append, merge_patch

__all__ = ["StateSchema", "append", "merge_patch"]
