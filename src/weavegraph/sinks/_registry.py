"""Sinks by name: built-in ones, and those that other packages register as entry points ``weavegraph.sinks``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from weavegraph.bus._factory import set_factory
from weavegraph.config import SinkConfig
from weavegraph.errors import ConfigError, MissingExtraError, UnknownSinkError
from weavegraph.sinks._jsonlines import JsonLinesSink
from weavegraph.sinks._memory import MemorySink
from weavegraph.sinks._stdout import StdOutSink

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["SinkFactory", "known_sinks", "make_sink", "register_sink"]

SinkFactory: TypeAlias = Callable[..., Any]
"""Called with the URL's target, if it has one, and the options as keywords; returns a sink."""

_BUILT_IN: dict[str, SinkFactory] = {"jsonl": JsonLinesSink, "memory": MemorySink, "stdout": StdOutSink}
_registered: dict[str, SinkFactory] = {}


def register_sink(name: str, factory: SinkFactory) -> None:
    """Make ``name:target`` work in this process; a package registers an entry point instead.

    ``[project.entry-points."weavegraph.sinks"]`` with ``kafka = "my_package:KafkaSink"`` makes ``kafka:…`` work
    wherever that package is installed.
    """
    SinkConfig(kind=name)  # checks the name
    _registered[name] = factory


def known_sinks() -> tuple[str, ...]:
    """Every name that a ``SinkConfig`` may have here."""
    return tuple(sorted({*_BUILT_IN, *_registered, *_entry_points()}))


def make_sink(config: SinkConfig) -> Any:
    """The sink that ``config`` describes.

    Raises:
        UnknownSinkError: no sink of that name; lists the known ones.
        ConfigError: the sink does not take this target or these options. MissingExtraError: its library is missing.
    """
    if config.sink is not None:
        return _set(config.sink, config)
    factory = _registered.get(config.kind) or _BUILT_IN.get(config.kind) or _load(config.kind)
    try:
        sink = factory(*([config.target] if config.target else []), **config.options)
    except TypeError as exc:
        raise ConfigError(f"sink {config.url!r} cannot be made of this target and these options: {exc}") from exc
    return _set(sink, config)


def _set(sink: Any, config: SinkConfig) -> Any:
    try:
        if config.name is not None:
            sink.name = config.name
        if config.capacity is not None:
            sink.capacity = config.capacity
    except AttributeError as exc:
        raise ConfigError(f"the sink {type(sink).__name__} takes no name or capacity from outside: {exc}") from exc
    return sink


def _load(kind: str) -> SinkFactory:
    found = _entry_points().get(kind)
    if found is None:
        raise UnknownSinkError(kind, known_sinks())
    try:
        factory: SinkFactory = found.load()
    except MissingExtraError:
        raise
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"sink {kind!r} is registered as {found.value}, which cannot be imported: {exc}") from exc
    return factory


def _entry_points() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # here: it takes as long as all of weavegraph's own modules

    return {point.name: point for point in entry_points(group="weavegraph.sinks")}


set_factory(make_sink)
