"""JSON Schema of events, generated from the Python types: ``python -m weavegraph.events.schema``."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from weavegraph.events import SCHEMA_VERSION, DiagnosticEvent, LLMStreamingEvent, NodeEvent

__all__ = ["event_schema"]


def event_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every line of ``event.to_json()`` fulfils."""
    (reference,), definitions = msgspec.json.schema_components(
        [NodeEvent | DiagnosticEvent | LLMStreamingEvent], ref_template="#/$defs/{name}"
    )
    for definition in definitions.values():
        # Written always, though Python lets a constructor leave them out.
        always = ["type", "scope", "message", "metadata", "timestamp", "v"]
        if "chunk" in definition["properties"]:
            always += ["chunk", "phase", "is_final", "index"]
        definition["required"] = always
        definition["properties"]["timestamp"] = {"type": "string", "format": "date-time"}
        definition["properties"]["v"] = {"const": SCHEMA_VERSION}
        definition["description"] = definition.get("description", "").split("\n")[0]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "weavegraph event",
        **reference,
        "$defs": definitions,
    }
    plain: dict[str, Any] = json.loads(json.dumps(schema))  # tuples become lists, as in every reader of it
    return plain


if __name__ == "__main__":
    print(json.dumps(event_schema(), indent=2))
