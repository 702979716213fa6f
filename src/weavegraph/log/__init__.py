"""KEEPS and CARRIES the events of runs after memory forgot them: in memory, in SQLite; and a log as a sink."""

from weavegraph.log._memory import MemoryLog
from weavegraph.log._opening import open_log
from weavegraph.log._retention import Retention
from weavegraph.log._sink import LogSink
from weavegraph.log.sqlite import SqliteLog

__all__ = ["LogSink", "MemoryLog", "Retention", "SqliteLog", "open_log"]
