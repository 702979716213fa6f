"""Configuration: from code, URL, TOML and environment; each mistake is a named error that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from weavegraph import EventBusConfig, MemorySink, RuntimeConfig, SinkConfig
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
