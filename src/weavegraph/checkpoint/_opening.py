"""A checkpointer from what a configuration says."""

from __future__ import annotations

from typing import Any

from weavegraph.checkpoint._memory import MemoryCheckpointer
from weavegraph.errors import ConfigError
from weavegraph.protocols import Checkpointer

__all__ = ["open_checkpointer"]


def open_checkpointer(value: Any) -> Checkpointer | None:
    """``None``, a checkpointer, or a URL: ``memory:``, ``sqlite:runs.db?durability=relaxed&keep=100``.

    Raises:
        ConfigError: it is none of these, or the URL says something that it cannot.
    """
    if not isinstance(value, str):
        if value is not None and not isinstance(value, Checkpointer):
            raise ConfigError(f"checkpointer={value!r}: give a Checkpointer, or a URL like 'sqlite:runs.db'")
        return value
    from urllib.parse import parse_qsl

    kind, _, rest = value.partition(":")
    target, _, query = rest.partition("?")
    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    if "keep" in options:
        options["keep"] = int(options["keep"]) if options["keep"].isdigit() else options["keep"]
    try:
        if kind == "memory":
            return MemoryCheckpointer(**options)
        if kind == "sqlite":
            from weavegraph.checkpoint.sqlite import SqliteCheckpointer

            return SqliteCheckpointer(target, **options)
    except TypeError as exc:
        raise ConfigError(f"checkpointer {value!r}: {exc}") from exc
    raise ConfigError(f"checkpointer {value!r}: known are memory: and sqlite:PATH")
