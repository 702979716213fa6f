"""Configuration: from code, URL, TOML and environment; each mistake is a named error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import clause
from weavegraph import EventBus, EventBusConfig, MemorySink, RuntimeConfig, SinkConfig
from weavegraph.bus import DEFAULT_BLOCK_TIMEOUT, DEFAULT_CAPACITY, DEFAULT_MAX_BYTES, DiagnosticsConfig
from weavegraph.bus._bus import DEFAULT_BUS_MAX_BYTES, DEFAULT_KEEP_RUNS, DEFAULT_SINK_TIMEOUT
from weavegraph.errors import ConfigError


def test_the_defaults_are_those_of_the_bus() -> None:
    config = EventBusConfig()
    assert (config.capacity, config.max_bytes, config.bus_max_bytes) == (
        DEFAULT_CAPACITY,
        DEFAULT_MAX_BYTES,
        DEFAULT_BUS_MAX_BYTES,
    )
    assert (config.keep_runs, config.block_timeout, config.sink_timeout) == (
        DEFAULT_KEEP_RUNS,
        DEFAULT_BLOCK_TIMEOUT,
        DEFAULT_SINK_TIMEOUT,
    )
    assert config.sinks == ()


def test_one_configuration_in_four_ways(tmp_path: Path) -> None:
    code = RuntimeConfig(event_bus=EventBusConfig(capacity=9, sinks=("stdout:", "jsonl:e.jsonl")), step_limit=7)
    toml = tmp_path / "w.toml"
    toml.write_text('step_limit = 7\n[event_bus]\ncapacity = 9\nsinks = ["stdout:", "jsonl:e.jsonl"]\n')
    nested = tmp_path / "pyproject.toml"
    nested.write_text(
        "[tool.weavegraph]\nstep_limit = 7\n[tool.weavegraph.event_bus]\ncapacity = 9\n"
        'sinks = ["stdout:", { kind = "jsonl", target = "e.jsonl" }]\n'
    )
    environ = {
        "WEAVEGRAPH_STEP_LIMIT": "7",
        "WEAVEGRAPH_EVENT_BUS_CAPACITY": "9",
        "WEAVEGRAPH_EVENT_BUS_SINKS": "stdout: jsonl:e.jsonl",
        "PATH": "/bin",
    }
    assert RuntimeConfig.from_toml(toml) == code
    assert RuntimeConfig.from_toml(nested) == code
    assert RuntimeConfig.from_env(environ) == code
    assert (
        RuntimeConfig.from_mapping({"step_limit": 7, "event_bus": {"capacity": 9, "sinks": code.event_bus.sinks}})
        == code
    )


def test_the_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVEGRAPH_EVENT_BUS_BLOCK_TIMEOUT", "0.5")
    monkeypatch.setenv("WEAVEGRAPH_EVENT_BUS_CAPACITY", "none")
    assert RuntimeConfig.from_env().event_bus == EventBusConfig(block_timeout=0.5, capacity=None)


def test_duplicate_sinks_are_removed_and_order_is_kept() -> None:
    mine = MemorySink()
    config = EventBusConfig(sinks=("memory:", mine, "stdout:", "memory:", mine, "memory:?name=second"))
    assert [sink.url if sink.sink is None else sink.sink for sink in config.sinks] == [
        "memory:",
        mine,
        "stdout:",
        "memory:?name=second",
    ]


def test_the_blueprints_helpers() -> None:
    config = RuntimeConfig().with_memory_sink().add_sink("jsonl:e.jsonl").with_additional_sink("memory:")
    assert [sink.url for sink in config.event_bus.sinks] == ["memory:", "jsonl:e.jsonl"]
    assert [sink.url for sink in config.with_stdout_only().event_bus.sinks] == ["stdout:"]
    assert RuntimeConfig().event_bus.sinks == ()
    bus = EventBusConfig(capacity=5)
    assert RuntimeConfig().with_event_bus(bus).event_bus is bus


def test_diagnostics_may_be_a_table() -> None:
    config = RuntimeConfig.from_mapping({"event_bus": {"diagnostics": {"enabled": False}}})
    assert config.event_bus.diagnostics == DiagnosticsConfig(enabled=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steplimit": 3}, "'steplimit' is no setting; known: event_bus, step_limit"),
        ({"step_limit": 0}, "step_limit=0"),
        ({"step_limit": True}, "step_limit=True"),
        ({"event_bus": {"capacty": 3}}, "[event_bus] 'capacty' is no setting; known: capacity"),
        ({"event_bus": {"capacity": 0}}, "event_bus.capacity=0"),
        ({"event_bus": {"capacity": "many"}}, "event_bus.capacity='many'"),
        ({"event_bus": {"max_bytes": 5}}, "event_bus.max_bytes=5"),
        ({"event_bus": {"keep_runs": -1}}, "event_bus.keep_runs=-1"),
        ({"event_bus": {"block_timeout": -0.1}}, "event_bus.block_timeout=-0.1"),
        ({"event_bus": {"sink_timeout": float("nan")}}, "event_bus.sink_timeout=nan"),
        ({"event_bus": {"sinks": ["stdout"]}}, "sink 'stdout': write it as kind:target"),
        ({"event_bus": {"sinks": ["stdout:?capacity=x"]}}, "capacity='x'"),
        ({"event_bus": {"sinks": [{"kind": "memory", "colour": 1}]}}, "[sinks] 'colour' is no setting"),
        ({"event_bus": {"sinks": [{"target": "x"}]}}, "SinkConfig needs a kind"),
        ({"event_bus": {"sinks": [{"kind": "memory", "capacity": 0}]}}, "capacity=0"),
        ({"event_bus": {"diagnostics": {"on": True}}}, "[event_bus.diagnostics] 'on' is no setting"),
    ],
)
def test_a_wrong_setting_says_where_and_what_is_right(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuntimeConfig.from_mapping(settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("environ", [{"WEAVEGRAPH_EVENT_BUS_CAPACITY": "lots"}, {"WEAVEGRAPH_EVENT_BUS_NOPE": "1"}])
def test_a_wrong_variable_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        RuntimeConfig.from_env(environ)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("= nonsense")
    for name in ("none.toml", "bad.toml"):
        with pytest.raises(ConfigError, match=name):
            RuntimeConfig.from_toml(tmp_path / name)


def test_credentials_of_a_url_are_never_shown() -> None:
    config = EventBusConfig(sinks=("redis://ada:hunter2@host/0?prefix=w",))
    assert "hunter2" not in repr(config)
    assert config.sinks[0].url == "redis://ada:***@host/0?prefix=w"
    assert config.sinks[0].target == "//ada:hunter2@host/0"
    with pytest.raises(ConfigError) as caught:
        SinkConfig.parse("//ada:hunter2@host")
    assert "hunter2" not in str(caught.value)


SECRETS = (  # of sinks that nobody here knows, so that making one is an error
    "kafka:h?sasl_password=hunter2",
    "kafka:h?SASL_PASSWORD=hunter2",
    "nats:h?access_token=hunter2&name=n",
    "s3:b?secret_access_key=hunter2",
    "x:h?credentials=hunter2",
    "amqp://u:hunter2@h/0",
    "amqp://u:p@hunter2@h",
    "amqp://u:p/hunter2@h",
    "amqp://hunter2@h",
    "amqp:u:hunter2@h",
    "amqp:hunter2@h",
    "kafka:h?url=redis://u:hunter2@h/0",
)


@clause("12.7")
@pytest.mark.parametrize("url", SECRETS)
def test_no_secret_of_a_url_is_shown_in_a_repr_or_an_error(url: str) -> None:
    config = EventBusConfig(sinks=(url,))
    shown = [repr(config), config.sinks[0].url, str(config)]
    for wrong in (
        lambda: EventBus.from_config(config),
        lambda: SinkConfig.parse(url.partition(":")[2].replace(":", ";")),
    ):
        with pytest.raises(ConfigError) as caught:
            wrong()
        shown.append(str(caught.value))
    assert not [text for text in shown if "hunter2" in text]
    whole = repr(config.sinks[0].options) + config.sinks[0].target
    assert "hunter2" in whole  # the sink itself is given it


@clause("12.7")
def test_a_question_mark_in_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="%3F") as caught:
        SinkConfig.parse("redis://u:hunt?er2@h")
    assert "hunt" not in str(caught.value) and "er2" not in str(caught.value)


@clause("12.7")
@pytest.mark.parametrize("url", ["jsonl:/home/a@b/events.jsonl", "stdout:", "kafka:h1,h2?linger_ms=5&user=ada"])
def test_what_is_no_secret_is_shown(url: str) -> None:
    assert SinkConfig.parse(url).url == url


def test_secrets_stay_text_and_other_options_become_what_they_say() -> None:
    options = SinkConfig.parse("x:?keep=3&password=123&sync=no&a=yes&b=off&c=on&d=none&e=true&f=-1&g=word").options
    assert options == {
        "keep": 3, "password": "123", "sync": False, "a": True, "b": False, "c": True, "d": None, "e": True, "f": "-1",
        "g": "word",
    }  # fmt: skip


def test_a_sink_said_in_two_ways_is_one() -> None:
    table = {"kind": "jsonl", "target": "a", "options": {"keep": 3}}
    assert len(EventBusConfig(sinks=("jsonl:a?keep=3", table)).sinks) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EventBus(keep_runs=-1), "keep_runs=-1: give a whole number from 0"),
        (lambda: EventBus(keep_runs="x"), "keep_runs='x'"),  # type: ignore[arg-type]
        (lambda: EventBus(bus_max_bytes="x"), "bus_max_bytes='x'"),  # type: ignore[arg-type]
        (lambda: EventBus(sink_timeout="x"), "sink_timeout='x': give seconds"),  # type: ignore[arg-type]
        (lambda: EventBus(sink_timeout=float("nan")), "sink_timeout=nan"),
        (lambda: EventBus(block_timeout="5"), "block_timeout='5'"),  # type: ignore[arg-type]
        (lambda: EventBus(max_bytes=1.5), "max_bytes=1.5"),  # type: ignore[arg-type]
        (lambda: EventBus(diagnostics=True), "diagnostics=True: give a DiagnosticsConfig"),  # type: ignore[arg-type]
        (lambda: DiagnosticsConfig(capacity=0), "capacity=0"),
        (lambda: DiagnosticsConfig(enabled="no"), "diagnostics.enabled='no'"),  # type: ignore[arg-type]
        (lambda: DiagnosticsConfig(emit_to_events=1), "diagnostics.emit_to_events=1"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(event_bus=5), "event_bus=5: give an EventBusConfig"),  # type: ignore[arg-type]
        (lambda: EventBusConfig(diagnostics=True), "event_bus.diagnostics=True"),
        (lambda: EventBusConfig(diagnostics={"capacity": -1}), "capacity=-1"),
        (lambda: EventBusConfig(sinks="stdout:"), "event_bus.sinks='stdout:': give a list"),  # type: ignore[arg-type]
        (lambda: EventBusConfig(sinks=MemorySink()), "give a list"),  # type: ignore[arg-type]
        (lambda: SinkConfig(kind=5), "sink kind '5'"),  # type: ignore[arg-type]
        (lambda: SinkConfig(kind="memory", options=5), "options are a table"),  # type: ignore[arg-type]
        (lambda: SinkConfig(kind="memory", options={1: 2}), "options are a table"),  # type: ignore[dict-item]
        (lambda: SinkConfig(kind="memory", name=5), "a sink's name=5"),  # type: ignore[arg-type]
        (lambda: SinkConfig(kind="memory", target=5), "target=5"),  # type: ignore[arg-type]
        (lambda: SinkConfig(kind="memory", capacity=True), "capacity=True"),
    ],
)
def test_a_wrong_value_in_code_is_a_config_error_at_once(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("w.toml", "tool = 5", "no table [tool.weavegraph]"),
        ("w.toml", "[tool.weavegraph]\nstep_limit = 0", "step_limit=0"),
        ("w.toml", "[tool]\nweavegraph = 5", "no table [tool.weavegraph]"),
        ("w.toml", "[tool.other]\nx = 1\n[build-system]\nrequires = []", "no table [tool.weavegraph]"),
        ("pyproject.toml", "[build-system]\nrequires = []", "no table [tool.weavegraph]"),
        ("w.toml", "event_bus = 5", "event_bus=5"),
        ("w.toml", '[event_bus]\nsinks = "stdout:"', "give a list, as in sinks=['stdout:']"),
    ],
)
def test_a_file_with_our_settings_in_the_wrong_place_says_so(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        RuntimeConfig.from_toml(tmp_path / name)
    assert words in str(caught.value)
