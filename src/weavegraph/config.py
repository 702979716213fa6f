"""Settings: frozen values, from code, a URL, TOML, or the environment. Each has its unit and default here.

::

    RuntimeConfig(event_bus=EventBusConfig(sinks=("stdout:", "jsonl:events.jsonl")))
    RuntimeConfig.from_toml("weavegraph.toml")     # [event_bus] capacity = 20000, sinks = ["stdout:"]
    RuntimeConfig.from_env()                       # WEAVEGRAPH_EVENT_BUS_SINKS="stdout: jsonl:events.jsonl"
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from weavegraph.errors import ConfigError

if TYPE_CHECKING:
    from weavegraph.bus import DiagnosticsConfig
    from weavegraph.protocols import Clock

__all__ = ["EventBusConfig", "RuntimeConfig", "SinkConfig"]

_KIND = re.compile(r"[a-z][a-z0-9_+-]*")
_SECRET = re.compile(r"(//[^/@\s:]*:)[^@/\s]+@")
_PREFIX = "WEAVEGRAPH_"
T = TypeVar("T")


class SinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A sink by name: ``SinkConfig.parse("jsonl:events.jsonl?rotate_bytes=1000000")``, or an object of yours.

    ``kind`` is a registered name, ``target`` what it writes to, ``options`` its keywords. ``name`` and ``capacity``
    (events; default: bytes decide) may be set for any sink; in a URL as options of these names.
    """

    kind: str = "object"
    target: str = ""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    name: str | None = None
    capacity: int | None = None
    sink: Any = None

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise ConfigError(f"sink kind {self.kind!r}: use a-z, 0-9, _, + and -, as in 'jsonl'")
        if self.kind == "object" and self.sink is None:
            raise ConfigError("SinkConfig needs a kind, as in SinkConfig(kind='stdout'), or a sink object")
        if self.capacity is not None and (type(self.capacity) is not int or self.capacity < 1):
            raise ConfigError(f"sink {self.kind!r}: capacity={self.capacity!r}: give a whole number from 1")

    @classmethod
    def parse(cls, url: str) -> SinkConfig:
        """``kind:target?option=value&…``; the target and the options may be left out, the colon may not."""
        kind, colon, rest = url.partition(":")
        if not colon:
            raise ConfigError(f"sink {_masked(url)!r}: write it as kind:target, for instance 'stdout:'")
        target, _, query = rest.partition("?")
        options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
        name, capacity = options.pop("name", None), options.pop("capacity", None)
        if capacity is not None and not (capacity.isascii() and capacity.isdigit()):
            raise ConfigError(f"sink {_masked(url)!r}: capacity={capacity!r}: give a whole number from 1")
        return cls(kind=kind, target=target, options=options, name=name, capacity=int(capacity) if capacity else None)

    @classmethod
    def of(cls, value: SinkConfig | str | Mapping[str, Any] | Any) -> SinkConfig:
        """Whatever a user may write for a sink: a configuration, a URL, a table of TOML, or a sink object."""
        if isinstance(value, SinkConfig):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, Mapping):
            return _build(cls, value, "sinks")
        return cls(sink=value)

    @property
    def url(self) -> str:
        """The configuration as a URL, credentials masked."""
        extra = {key: value for key, value in (("name", self.name), ("capacity", self.capacity)) if value is not None}
        query = urlencode({**self.options, **extra}, quote_via=quote)
        return _masked(f"{self.kind}:{self.target}" + (f"?{query}" if query else ""))

    def __repr__(self) -> str:
        return f"SinkConfig({self.url if self.sink is None else self.sink!r})"


class EventBusConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a bus is made. Default: no sink (a library does not print).

    ``capacity``: events kept for late watchers; ``None``: bytes decide. ``max_bytes``: for each hub;
    ``bus_max_bytes``: for all hubs together. ``keep_runs``: finished runs that stay readable. ``block_timeout``,
    ``sink_timeout``: seconds. Sinks may be given as URLs, tables, objects or ``SinkConfig``; of equal ones one is kept.
    """

    capacity: int | None = 16_384
    sinks: tuple[Any, ...] = ()
    max_bytes: int = 64 * 1024 * 1024
    bus_max_bytes: int = 256 * 1024 * 1024
    keep_runs: int = 1000
    block_timeout: float = 5.0
    sink_timeout: float = 30.0
    diagnostics: Any = None

    def __post_init__(self) -> None:
        if self.capacity is not None and (type(self.capacity) is not int or self.capacity < 1):
            raise ConfigError(f"event_bus.capacity={self.capacity!r}: give a whole number of events from 1")
        for field in ("max_bytes", "bus_max_bytes", "keep_runs"):
            value = getattr(self, field)
            if type(value) is not int or value < (0 if field == "keep_runs" else 1024):
                raise ConfigError(f"event_bus.{field}={value!r}: give a whole number, large enough for one event")
        for field in ("block_timeout", "sink_timeout"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise ConfigError(f"event_bus.{field}={value!r}: give seconds, 0 or more")
        unique: list[SinkConfig] = []
        for sink in map(SinkConfig.of, self.sinks):
            if not any(_same(sink, other) for other in unique):
                unique.append(sink)
        msgspec.structs.force_setattr(self, "sinks", tuple(unique))
        diagnostics: DiagnosticsConfig | None = _diagnostics(self.diagnostics)
        msgspec.structs.force_setattr(self, "diagnostics", diagnostics)

    def with_stdout_only(self) -> EventBusConfig:
        """This configuration with the terminal as its only sink."""
        return msgspec.structs.replace(self, sinks=("stdout:",))

    def with_memory_sink(self) -> EventBusConfig:
        """This configuration with a memory sink added; read it through ``bus.sinks["memory"]``."""
        return self.with_additional_sink("memory:")

    def with_additional_sink(self, sink: SinkConfig | str | Any) -> EventBusConfig:
        """This configuration with one more sink."""
        return msgspec.structs.replace(self, sinks=(*self.sinks, sink))

    add_sink = with_additional_sink


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How an app runs its graph.

    ``event_bus``: see ``EventBusConfig``. ``step_limit``: steps after which a run fails. ``concurrency_limit``: nodes
    of one run at a time. ``clock``, ``ids``: injectable time and run ids, for tests.
    """

    event_bus: EventBusConfig = msgspec.field(default_factory=EventBusConfig)
    step_limit: int = 100
    concurrency_limit: int = 32
    clock: Any = None
    ids: Any = None

    def __post_init__(self) -> None:
        for field in ("step_limit", "concurrency_limit"):
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{field}={value!r}: give a whole number from 1")
        if isinstance(self.event_bus, Mapping):
            msgspec.structs.force_setattr(self, "event_bus", _build(EventBusConfig, self.event_bus, "event_bus"))

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> RuntimeConfig:
        """Settings as a table: the keys of this class, ``event_bus`` a table of its own. Unknown keys are refused."""
        return _build(cls, settings, "")

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> RuntimeConfig:
        """Settings from a TOML file: the same keys, at the top level or under ``[tool.weavegraph]``."""
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise ConfigError(f"{os.fspath(path)}: {exc}") from exc
        return cls.from_mapping(table.get("tool", {}).get("weavegraph", table))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> RuntimeConfig:
        """Settings from ``WEAVEGRAPH_STEP_LIMIT``, ``WEAVEGRAPH_EVENT_BUS_CAPACITY``, ``WEAVEGRAPH_EVENT_BUS_SINKS`` …

        Sinks are URLs separated by white space. Unknown names with the prefix ``WEAVEGRAPH_EVENT_BUS_`` are refused.
        """
        values = os.environ if environ is None else environ
        settings: dict[str, Any] = {}
        bus: dict[str, Any] = {}
        for name, text in values.items():
            if name.startswith(f"{_PREFIX}EVENT_BUS_"):
                key = name.removeprefix(f"{_PREFIX}EVENT_BUS_").lower()
                bus[key] = tuple(text.split()) if key == "sinks" else _value(name, text)
            elif name in (f"{_PREFIX}STEP_LIMIT", f"{_PREFIX}CONCURRENCY_LIMIT"):
                settings[name.removeprefix(_PREFIX).lower()] = _value(name, text)
        if bus:
            settings["event_bus"] = bus
        return cls.from_mapping(settings)

    def with_event_bus(self, event_bus: EventBusConfig) -> RuntimeConfig:
        """This configuration with another bus."""
        return msgspec.structs.replace(self, event_bus=event_bus)

    def with_stdout_only(self) -> RuntimeConfig:
        """This configuration with the terminal as its only sink."""
        return self.with_event_bus(self.event_bus.with_stdout_only())

    def with_memory_sink(self) -> RuntimeConfig:
        """This configuration with a memory sink added."""
        return self.with_event_bus(self.event_bus.with_memory_sink())

    def with_additional_sink(self, sink: SinkConfig | str | Any) -> RuntimeConfig:
        """This configuration with one more sink."""
        return self.with_event_bus(self.event_bus.with_additional_sink(sink))

    add_sink = with_additional_sink

    @property
    def run_clock(self) -> Clock | None:
        """The injected clock, if any."""
        clock: Clock | None = self.clock
        return clock


def _build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    known = tuple(field.name for field in msgspec.structs.fields(kind))  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            place = f"[{where}] " if where else ""
            raise ConfigError(f"{place}{key!r} is no setting; known: {', '.join(known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})


def _diagnostics(value: Any) -> DiagnosticsConfig | None:
    if isinstance(value, Mapping):
        from weavegraph.bus import DiagnosticsConfig

        return _build(DiagnosticsConfig, value, "event_bus.diagnostics")
    diagnostics: DiagnosticsConfig | None = value
    return diagnostics


def _same(one: SinkConfig, other: SinkConfig) -> bool:
    if one.sink is not None or other.sink is not None:
        return one.sink is other.sink
    return one == other


def _value(name: str, text: str) -> Any:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    if text.lower() == "none":
        return None
    raise ConfigError(f"{name}={text!r}: give a number")


def _masked(url: str) -> str:
    return _SECRET.sub(r"\1***@", url)
