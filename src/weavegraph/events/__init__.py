"""WHAT flows: events as frozen values, their constructors, and their wire form both ways. No loop, thread or I/O."""

from weavegraph.events._admit import (
    FLAT_BYTES,
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    admit,
    check_id,
    check_scope,
    clean_text,
    freeze_metadata,
    freeze_usual,
)
from weavegraph.events._factories import diagnostic, llm_chunk, llm_error, llm_final, node_message
from weavegraph.events._filter import EventFilter, Predicate
from weavegraph.events._frozen import EMPTY, FrozenDict, FrozenList
from weavegraph.events._redact import LOOK_BACK, Redact, Redactor, View, mask_secrets
from weavegraph.events._types import (
    GAP_SCOPE,
    INVOCATION_END_SCOPE,
    LLM_SCOPE,
    RESERVED_PREFIX,
    SCHEMA_VERSION,
    STREAM_END_SCOPE,
    DiagnosticEvent,
    Event,
    LLMPhase,
    LLMStreamingEvent,
    NodeEvent,
)
from weavegraph.events._wire import from_json, to_json

__all__ = [
    "EMPTY",
    "FLAT_BYTES",
    "GAP_SCOPE",
    "INVOCATION_END_SCOPE",
    "LLM_SCOPE",
    "LOOK_BACK",
    "MAX_DEPTH",
    "MAX_EVENT_BYTES",
    "RESERVED_PREFIX",
    "SCHEMA_VERSION",
    "STREAM_END_SCOPE",
    "DiagnosticEvent",
    "Event",
    "EventFilter",
    "FrozenDict",
    "FrozenList",
    "LLMPhase",
    "LLMStreamingEvent",
    "NodeEvent",
    "Predicate",
    "Redact",
    "Redactor",
    "View",
    "admit",
    "check_id",
    "check_scope",
    "clean_text",
    "diagnostic",
    "freeze_metadata",
    "freeze_usual",
    "from_json",
    "llm_chunk",
    "llm_error",
    "llm_final",
    "mask_secrets",
    "node_message",
    "to_json",
]
