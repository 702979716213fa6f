"""Sinks by name: built in, registered, and from other packages' entry points."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from weavegraph import EventBus, EventBusConfig, SinkConfig, node_message
from weavegraph.errors import ConfigError, UnknownSinkError
from weavegraph.sinks import JsonLinesSink, MemorySink, known_sinks, make_sink, register_sink


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownSinkError) as caught:
        make_sink(SinkConfig.parse("carrier-pigeon:coop"))
    assert caught.value.known == known_sinks()
    assert "jsonl, memory, redis, rediss, sqlite, stdout" in str(caught.value)


def test_options_of_a_url_become_what_they_say(tmp_path: Path) -> None:
    sink = make_sink(
        SinkConfig.parse(f"jsonl:{tmp_path}/e.jsonl?rotate_bytes=none&keep=2&sync=true&name=file&capacity=7")
    )
    assert isinstance(sink, JsonLinesSink)
    assert (sink.path, sink._rotate_bytes, sink._keep, sink._sync) == (tmp_path / "e.jsonl", None, 2, True)
    assert (sink.name, sink.capacity) == ("file", 7)  # type: ignore[attr-defined]


def test_an_option_that_the_sink_does_not_take_is_a_named_error() -> None:
    with pytest.raises(ConfigError, match=r"memory:.*colour"):
        make_sink(SinkConfig.parse("memory:?colour=red"))


def test_a_registered_name_works_in_a_configuration() -> None:
    register_sink("notebook", MemorySink)
    assert "notebook" in known_sinks()
    assert isinstance(make_sink(SinkConfig.parse("notebook:?limit=3")), MemorySink)
    with pytest.raises(ConfigError):
        register_sink("Not A Name", MemorySink)


async def test_a_third_partys_sink_works_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thirdparty.py").write_text(
        textwrap.dedent(
            """
            class LoudSink:
                name = "loud"
                def __init__(self, target):
                    self.target, self.heard = target, []
                async def handle(self, batch):
                    self.heard.extend(event.message.upper() for event in batch)
            """
        )
    )
    information = tmp_path / "thirdparty-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[weavegraph.sinks]\nloud = thirdparty:LoudSink\nbroken = no_such_module:Sink\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "thirdparty", raising=False)
    assert "loud" in known_sinks()
    with pytest.raises(ConfigError, match="no_such_module"):
        make_sink(SinkConfig.parse("broken:"))
    async with EventBus.from_config(EventBusConfig(sinks=("loud:square",))) as bus:
        bus.emitter().emit(node_message("a", "hello"))
        await bus.flush(timeout=30)
        loud: Any = bus.sinks["loud"]
        assert (loud.target, loud.heard) == ("square", ["HELLO"])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("stdout:foo", "give an open text stream"),
        ("stdout:?format=json", "give a function from an event to its text"),
        ("stdout:?color=red", "give True, False or None"),
        ("jsonl:", "cannot be made of this target and these options"),
        ("jsonl:x?sync=maybe", "sync='maybe'"),
        ("memory:many", "give a whole number from 1"),
    ],
)
def test_what_a_built_in_sink_cannot_use_is_refused_before_any_event(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_sink(SinkConfig.parse(url))


async def test_a_name_and_a_capacity_may_be_given_to_a_sink_object() -> None:
    memory = MemorySink()
    config = EventBusConfig(sinks=(SinkConfig(sink=memory, name="mine", capacity=5),))
    async with EventBus.from_config(config) as bus:
        assert bus.sinks == {"mine": memory}
        assert bus.metrics().sinks[0].distance_to_loss == 5

    class Slotted:
        __slots__ = ()

        def handle(self, batch: object) -> None: ...

    with pytest.raises(ConfigError, match="Slotted takes no name or capacity"):
        make_sink(SinkConfig(sink=Slotted(), name="x"))


def test_an_entry_point_without_its_attribute_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from weavegraph.sinks import _registry

    point = EntryPoint("foo", "json:Nope", "weavegraph.sinks")
    monkeypatch.setattr(_registry, "_entry_points", lambda: {"foo": point})
    with pytest.raises(ConfigError, match=r"registered as json:Nope, which cannot be imported"):
        make_sink(SinkConfig(kind="foo"))
