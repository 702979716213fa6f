"""HOW it flows: hubs, streams, emitters, and the bus that composes them with sinks."""

from weavegraph.bus._blocking import BlockingEvents
from weavegraph.bus._bus import (
    SINK_ERROR_SCOPE,
    DiagnosticsConfig,
    EventBus,
    EventBusMetrics,
    FlushReport,
    ShutdownReport,
    SinkGuard,
)
from weavegraph.bus._emitter import HubEmitter
from weavegraph.bus._hub import DEFAULT_BLOCK_TIMEOUT, DEFAULT_CAPACITY, DEFAULT_MAX_BYTES, EventHub
from weavegraph.bus._lane import Lane, Note, RunEmitter
from weavegraph.bus._replay import ReplayHub
from weavegraph.bus._retry import DeadLetter, RetryPolicy
from weavegraph.bus._stats import EventHubMetrics, ProducerStats, SinkStats, SinkTotals, SubscriberStats
from weavegraph.bus._stream import EventStream, OnLag, Overflow, gap_event
from weavegraph.bus._threads import LoopThread
from weavegraph.bus._worker import SinkHealth

SubscriberHandle = EventStream
EmitterHandle = HubEmitter

__all__ = [
    "DEFAULT_BLOCK_TIMEOUT",
    "DEFAULT_CAPACITY",
    "DEFAULT_MAX_BYTES",
    "SINK_ERROR_SCOPE",
    "BlockingEvents",
    "DeadLetter",
    "DiagnosticsConfig",
    "EmitterHandle",
    "EventBus",
    "EventBusMetrics",
    "EventHub",
    "EventHubMetrics",
    "EventStream",
    "FlushReport",
    "HubEmitter",
    "Lane",
    "LoopThread",
    "Note",
    "OnLag",
    "Overflow",
    "ProducerStats",
    "ReplayHub",
    "RetryPolicy",
    "RunEmitter",
    "ShutdownReport",
    "SinkGuard",
    "SinkHealth",
    "SinkStats",
    "SinkTotals",
    "SubscriberHandle",
    "SubscriberStats",
    "gap_event",
]
