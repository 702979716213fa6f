"""Ends inside the process: terminal, memory, file, queue; and sinks by name."""

from weavegraph.sinks._channel import ChannelSink
from weavegraph.sinks._jsonlines import JsonLines, JsonLinesSink, read_jsonlines
from weavegraph.sinks._memory import MemorySink
from weavegraph.sinks._registry import SinkFactory, known_sinks, make_sink, register_sink
from weavegraph.sinks._stdout import StdOutSink
from weavegraph.sinks._terminal import escape_controls

__all__ = [
    "ChannelSink",
    "JsonLines",
    "JsonLinesSink",
    "MemorySink",
    "SinkFactory",
    "StdOutSink",
    "escape_controls",
    "known_sinks",
    "make_sink",
    "read_jsonlines",
    "register_sink",
]
