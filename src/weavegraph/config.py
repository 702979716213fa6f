"""Settings: frozen values, from code, a URL, TOML, or the environment. Each has its unit and default here.

::

    RuntimeConfig(event_bus=EventBusConfig(sinks=("stdout:", "jsonl:events.jsonl")))
    RuntimeConfig.from_toml("weavegraph.toml")     # [event_bus] capacity = 20000, sinks = ["stdout:"]
    RuntimeConfig.from_env()                       # WEAVEGRAPH_EVENT_BUS_SINKS="stdout: jsonl:events.jsonl"
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from weavegraph.errors import ConfigError

if TYPE_CHECKING:
    from weavegraph.bus import DiagnosticsConfig
    from weavegraph.protocols import Clock

__all__ = ["EventBusConfig", "RuntimeConfig", "SinkConfig", "check_seconds", "check_sink_name", "check_whole"]

_KIND = re.compile(r"[a-z][a-z0-9_+-]*")
_SECRET_KEY = re.compile(r"pass|secret|token|key|credential", re.IGNORECASE)
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None}
MAX_NAME_CHARS = 128
_PREFIX = "WEAVEGRAPH_"
_CHOICES = {
    "on_node_error": ("cancel", "finish"),
    "state_events": ("off", "updates", "values"),
    "durability": ("step", "end", "off"),
}
_TEXTS = ("log", "checkpointer", *_CHOICES)
_FROM_ENV = ("step_limit", "concurrency_limit", "max_runs", "timeout", "cancel_grace", "version_gating", *_TEXTS)
"""Settings of the runtime that the environment may give."""
T = TypeVar("T")


class SinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A sink by name: ``SinkConfig.parse("jsonl:events.jsonl?rotate_bytes=1000000")``, or an object of yours.

    ``kind`` is a registered name, ``target`` what it writes to, ``options`` its keywords. ``name`` and ``capacity``
    (events; default: bytes decide) may be set for any sink, in a URL as options of these names; they are written to
    the sink object. Options of a URL are text: numbers, ``yes``, ``no``, ``true``, ``false``, ``on``, ``off`` and
    ``none`` become what they say, but not in one whose name speaks of a secret.
    """

    kind: str = "object"
    target: str = ""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    name: str | None = None
    capacity: int | None = None
    sink: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not _KIND.fullmatch(self.kind):
            raise ConfigError(f"sink kind {_masked(str(self.kind))!r}: use a-z, 0-9, _, + and -, as in 'jsonl'")
        if self.kind == "object" and self.sink is None:
            raise ConfigError("SinkConfig needs a kind, as in SinkConfig(kind='stdout'), or a sink object")
        if not isinstance(self.target, str):
            raise ConfigError(f"sink {self.kind!r}: target={self.target!r}: give text")
        if not isinstance(self.options, Mapping) or not all(isinstance(key, str) for key in self.options):
            raise ConfigError(f"sink {self.kind!r}: options are a table of names and values")
        if self.name is not None:
            check_sink_name(self.name)
        if self.capacity is not None:
            check_whole(f"sink {self.kind!r}: capacity", self.capacity, 1)

    @classmethod
    def parse(cls, url: str) -> SinkConfig:
        """``kind:target?option=value&…``; the target and the options may be left out, the colon may not."""
        from urllib.parse import parse_qsl

        kind, colon, rest = url.partition(":")
        if not colon:
            raise ConfigError(f"sink {_masked(url)!r}: write it as kind:target, for instance 'stdout:'")
        target, _, query = rest.partition("?")
        texts = dict(parse_qsl(query, keep_blank_values=True))
        if any("@" in key for key in texts):
            raise ConfigError(f"sink {_masked(kind + ':' + target + '@')!r}: write a '?' of a password as %3F")
        name, capacity = texts.pop("name", None), texts.pop("capacity", None)
        if capacity is not None and not (capacity.isascii() and capacity.isdigit()):
            raise ConfigError(f"sink {_masked(url)!r}: capacity={capacity!r}: give a whole number from 1")
        options = {key: _typed(key, text) for key, text in texts.items()}
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
        from urllib.parse import quote, urlencode

        extra = {key: value for key, value in (("name", self.name), ("capacity", self.capacity)) if value is not None}
        options = {key: _shown(key, value) for key, value in {**self.options, **extra}.items()}
        query = urlencode(options, quote_via=quote, safe="*")
        return f"{self.kind}:{_masked(self.target)}" + (f"?{query}" if query else "")

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
        if self.capacity is not None:
            check_whole("event_bus.capacity", self.capacity, 1)
        for field, least in (("max_bytes", 1024), ("bus_max_bytes", 1024), ("keep_runs", 0)):
            check_whole(f"event_bus.{field}", getattr(self, field), least)
        for field in ("block_timeout", "sink_timeout"):
            check_seconds(f"event_bus.{field}", getattr(self, field))
        if not isinstance(self.sinks, (tuple, list)):
            raise ConfigError(f"event_bus.sinks={_shown('', self.sinks)!r}: give a list, as in sinks=['stdout:']")
        unique: list[SinkConfig] = []
        for sink in map(SinkConfig.of, self.sinks):
            if not any(_same(sink, other) for other in unique):
                unique.append(sink)
        msgspec.structs.force_setattr(self, "sinks", tuple(unique))
        msgspec.structs.force_setattr(self, "diagnostics", _diagnostics(self.diagnostics))

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
    of one run at a time, and threads for sync ones. ``max_runs``: runs of one app at a time. ``timeout``: seconds that
    a run may take. ``cancel_grace``: seconds that nodes are given to stop by themselves before they are cancelled.
    ``on_node_error``: what happens to the siblings of a node that raises. ``version_gating``: run a node again only if
    a key has changed since it last ran. ``state_events``: what the end of a step tells of the state.

    ``log``: keeps the events of runs, an ``EventLog`` or a URL (``"sqlite:runs.db"``); ``checkpointer``: remembers
    sessions, a ``Checkpointer`` or a URL (``"memory:"``, ``"sqlite:runs.db"``). With both in one file a step and the
    event that announces it commit together. ``durability``: when a session is saved. ``"step"``: a run's input before
    its first event is in the log, and each step; ``"end"``: its input and its end, two commits a run: killed in between
    it is resumed from its input and runs all its nodes again; ``"off"``: never, and a run that was killed is lost.
    ``redact``: ``redact(event, audience)`` returns the event as an audience sees it: each sink by its name, ``"log"``,
    and ``"wire"`` (browsers); texts and metadata may change, positions, indexes and counts stay. ``unredacted``: the
    audiences that see events as they are. Streams in this process are no audience. What is read from a log is the
    log's view; of that an outbox's sink is shipped what its own audience sees.

    ``observers``: objects with ``Observer`` hooks. ``clock``, ``ids``: injectable time, and ids by kind (``"run"``,
    ``"session"``, ``"epoch"``, ``"question"``), for tests.
    """

    event_bus: EventBusConfig = msgspec.field(default_factory=EventBusConfig)
    step_limit: int = 100
    concurrency_limit: int = 32
    max_runs: int | None = None
    timeout: float | None = None
    cancel_grace: float = 1.0
    on_node_error: Literal["cancel", "finish"] = "cancel"
    version_gating: bool = False
    state_events: Literal["off", "updates", "values"] = "off"
    log: Any = None
    checkpointer: Any = None
    durability: Literal["step", "end", "off"] = "step"
    redact: Any = None
    unredacted: tuple[str, ...] = ()
    observers: tuple[Any, ...] = ()
    clock: Any = None
    ids: Any = None

    def __post_init__(self) -> None:
        for field in ("step_limit", "concurrency_limit", "max_runs"):
            value = getattr(self, field)
            if not (field == "max_runs" and value is None) and (type(value) is not int or value < 1):
                raise ConfigError(f"{field}={value!r}: give a whole number from 1")
        for field in ("timeout", "cancel_grace"):
            value = getattr(self, field)
            if field == "timeout" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise ConfigError(f"{field}={value!r}: give seconds, 0 or more")
        for field, words in _CHOICES.items():
            if getattr(self, field) not in words:
                raise ConfigError(f"{field}={getattr(self, field)!r}: choose {', '.join(map(repr, words))}")
        if self.redact is not None and not callable(self.redact):
            raise ConfigError(f"redact={self.redact!r}: give a function of an event and its audience")
        if isinstance(self.unredacted, str) or not all(isinstance(name, str) for name in self.unredacted):
            raise ConfigError(f"unredacted={self.unredacted!r}: give a list of names: of sinks, 'log', 'wire'")
        if type(self.version_gating) is not bool:
            raise ConfigError(f"version_gating={self.version_gating!r}: give True or False")
        if isinstance(self.event_bus, Mapping):
            msgspec.structs.force_setattr(self, "event_bus", _build(EventBusConfig, self.event_bus, "event_bus"))
        if not isinstance(self.event_bus, EventBusConfig):
            raise ConfigError(f"event_bus={self.event_bus!r}: give an EventBusConfig, or a table of its settings")

    def redact_for(self, audience: str) -> Any:
        """The redaction hook that is asked for that audience, or ``None``."""
        return None if audience in self.unredacted else self.redact

    @property
    def fingerprint(self) -> str:
        """A hash of the settings that are plain values; objects (a clock, a checkpointer) count by their type."""
        import hashlib

        parts = [f"{name}={_plainly(getattr(self, name))}" for name in self.__struct_fields__]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> RuntimeConfig:
        """Settings as a table: the keys of this class, ``event_bus`` a table of its own. Unknown keys are refused."""
        return _build(cls, settings, "")

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> RuntimeConfig:
        """Settings from a TOML file: the same keys, at the top level or under ``[tool.weavegraph]``."""
        import tomllib
        from pathlib import Path

        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise ConfigError(f"{os.fspath(path)}: {exc}") from exc
        if "tool" in table or Path(path).name == "pyproject.toml":
            tool: Any = table.get("tool")
            ours = tool.get("weavegraph") if isinstance(tool, dict) else None
            if not isinstance(ours, dict):
                raise ConfigError(f"{os.fspath(path)}: there is no table [tool.weavegraph]; add one, it may be empty")
            table = ours
        return cls.from_mapping(table)

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
            elif name.startswith(_PREFIX) and (key := name.removeprefix(_PREFIX).lower()) in _FROM_ENV:
                settings[key] = text if key in _TEXTS else _value(name, text)
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
    from weavegraph.bus import DiagnosticsConfig

    if isinstance(value, Mapping):
        return _build(DiagnosticsConfig, value, "event_bus.diagnostics")
    if value is not None and not isinstance(value, DiagnosticsConfig):
        raise ConfigError(f"event_bus.diagnostics={value!r}: give a DiagnosticsConfig, or a table of its settings")
    return value


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
    if text.lower() in (words := {"none": None, "true": True, "false": False}):
        return words[text.lower()]
    raise ConfigError(f"{name}={text!r}: give a number")


def _plainly(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (EventBusConfig, SinkConfig)):
        return f"{type(value).__name__}({', '.join(_plainly(getattr(value, n)) for n in value.__struct_fields__)})"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_plainly, value))}]"
    return type(value).__qualname__


def _typed(key: str, text: str) -> Any:
    if _SECRET_KEY.search(key):
        return text
    return _WORDS.get(text.lower(), int(text) if text.isascii() and text.isdigit() else text)


def _shown(key: str, value: Any) -> Any:
    """An option as it may be shown."""
    if _SECRET_KEY.search(key):
        return "***"
    return _masked(value) if isinstance(value, str) else value


def _masked(url: str) -> str:
    """``url`` without its credentials: greedily, up to the last ``@``, for a password may hold anything."""
    before, at, rest = url.rpartition("@")
    if at:
        slashes, colon, path = before.find("//"), before.rfind(":"), "/" in before
        if slashes >= 0:  # scheme://user:password@host
            user = before[slashes + 2 :].partition(":")
            before = before[: slashes + 2] + (f"{user[0]}:***" if user[1] else "***")
        elif colon >= 0:
            before = before[: before.find(":") + 1] + "***"
        elif not path:
            before = "***"
    head, mark, query = rest.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")] if mark else []
    shown = "&".join(f"{key}{is_}{_shown(key, value)}" for key, is_, value in pairs)
    return f"{before}{at}{head}{mark}{shown}"


# ── checks that the bus shares ──────────────────────────────────────────────────────────────────────


def check_whole(field: str, value: object, least: int) -> None:
    """Refuse what is no whole number from ``least``."""
    if type(value) is not int or value < least:
        raise ConfigError(f"{field}={value!r}: give a whole number from {least}")


def check_seconds(field: str, value: object) -> None:
    """Refuse what is no time."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ConfigError(f"{field}={value!r}: give seconds, 0 or more")


def check_sink_name(name: object) -> str:
    """``name`` if it may name a sink: it is shown in terminals, metrics and diagnostics."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        shown = repr(name) if not isinstance(name, str) else repr(name[:40])
        raise ConfigError(f"a sink's name={shown}: use 1 to {MAX_NAME_CHARS} printable characters")
    return str.__str__(name)
