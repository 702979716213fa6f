"""WHERE it is kept: the SQLite file, its writer thread and its format, which logs and checkpoints share."""

from weavegraph.storage._job import Op
from weavegraph.storage._notices import Notices, Watch
from weavegraph.storage._schema import Migration, Schema
from weavegraph.storage._store import Durability, SqliteStore

__all__ = ["Durability", "Migration", "Notices", "Op", "Schema", "SqliteStore", "Watch"]
