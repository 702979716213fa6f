"""An event log from what a configuration says."""

from __future__ import annotations

from typing import Any

from weavegraph.config import SinkConfig
from weavegraph.errors import ConfigError
from weavegraph.log._memory import MemoryLog
from weavegraph.protocols import EventLog

__all__ = ["open_log"]

_KNOWN = "memory:, sqlite:PATH, redis://HOST and rediss://HOST"


def open_log(value: Any) -> EventLog | None:
    """``None``, a log, or a URL: ``memory:``, ``sqlite:runs.db?durability=relaxed&max_age=604800``, ``redis://host/0``.

    Raises:
        ConfigError: it is none of these, or the URL says something that it cannot. MissingExtraError: its library is
            not installed.
    """
    if not isinstance(value, str):
        if value is not None and not isinstance(value, EventLog):
            raise ConfigError(f"log={value!r}: give an EventLog, or a URL like 'sqlite:runs.db'")
        return value
    kind = value.partition(":")[0]
    if kind == "memory":
        return MemoryLog()
    if kind == "sqlite":
        from weavegraph.log.sqlite import SqliteLog

        return SqliteLog.from_url(value)
    if kind in ("redis", "rediss"):
        from weavegraph.log.redis_streams import RedisLog

        return RedisLog.from_url(value)
    raise ConfigError(f"log {SinkConfig.parse(value).url if ':' in value else value!r}: known are {_KNOWN}")
