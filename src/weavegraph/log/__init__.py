"""KEEPS and CARRIES the events of runs after memory forgot them: in memory, in SQLite, in Redis, and from log to log.

``RedisLog`` and ``RedisStreamSink`` are in ``weavegraph.log.redis_streams`` (extra ``redis``).
"""

from weavegraph.log._copy import CopyProgress, CopyReport, copy_log
from weavegraph.log._memory import MemoryLog
from weavegraph.log._opening import open_log
from weavegraph.log._outbox import Outbox, OutboxStats, with_outboxes
from weavegraph.log._outbox_letters import DeadLetters, ResendReport
from weavegraph.log._outbox_store import Cursor, Letter, MemoryOutboxStore, OutboxStore, SqliteOutboxStore
from weavegraph.log._retention import Retention
from weavegraph.log._sink import LogSink
from weavegraph.log.sqlite import SqliteLog

__all__ = [
    "CopyProgress",
    "CopyReport",
    "Cursor",
    "DeadLetters",
    "Letter",
    "LogSink",
    "MemoryLog",
    "MemoryOutboxStore",
    "Outbox",
    "OutboxStats",
    "OutboxStore",
    "ResendReport",
    "Retention",
    "SqliteLog",
    "SqliteOutboxStore",
    "copy_log",
    "open_log",
    "with_outboxes",
]
