"""Descriptions for other programs, generated from the Python types: OpenAPI of the routes, AsyncAPI and TypeScript of
the events. ``python -m weavegraph.web._schema typescript`` prints one.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

import msgspec

from weavegraph.events.schema import event_schema
from weavegraph.web._runs import ResumeRequest, RunInfo, StartRequest

__all__ = ["asyncapi", "openapi", "typescript"]

VERSION = "1"
"""Of the wire; it grows when a client has to change."""
FRAMES = {
    "node": "what a node says",
    "diagnostic": "what the runtime says",
    "llm": "a piece of a model's answer",
    "pause": "an attempt ended as paused or interrupted; the stream goes on with the next one",
    "end": "the run ended as completed, failed or cancelled; nothing follows",
    "gap": "events are lost to this client: metadata has count, first_seq, last_seq, or reason=epoch; no id",
    "shutdown": "the server ends: come back with the last id; no id",
    "reauth": "the caller is no longer known; no id",
    "broken": "the stream broke: code; no id",
}


class Error(msgspec.Struct):
    """Why a request was refused; ``code`` is stable."""

    code: str
    message: str


class Refusal(msgspec.Struct):
    """The body of every answer from 400 on."""

    error: Error


class RunPage(msgspec.Struct):
    """Runs, the newest first; ``next_before`` for the next page."""

    runs: list[RunInfo]
    next_before: str | None


_TYPES = (StartRequest, ResumeRequest, RunInfo, RunPage, Refusal)


@cache
def _components() -> dict[str, Any]:
    _, found = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    event = event_schema()
    union = {key: event[key] for key in event if key in ("anyOf", "discriminator")}
    text = json.dumps({"Event": union, **event["$defs"]})
    events: dict[str, Any] = json.loads(text.replace("#/$defs/", "#/components/schemas/"))
    return {**json.loads(json.dumps(found)), **events}


def _run_parameter(name: str = "run_id") -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,128}$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, description: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": {"type": kind}}


_FILTER = [
    _query("kinds", "node, diagnostic, llm: any of them"),
    _query("scopes", "exact names, or prefixes that end in *"),
    _query("path", "the first elements of the event's path and node"),
]
_POSITION = [
    _query("after", "0 for the start, or the id of a frame; nothing: live from now"),
    _query("format", "sse (default) or ndjson, also by Accept"),
    {"name": "Last-Event-ID", "in": "header", "description": "counts more than after", "schema": {"type": "string"}},
]


def _json_body(name: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def _answers(ok: int, name: str, *more: int) -> dict[str, Any]:
    found: dict[str, Any] = {str(ok): {"description": "done", **_json_body(name)}}
    for status in (400, 401, 403, 421, *more):
        found[str(status)] = {"description": "refused", **_json_body("Refusal")}
    return dict(sorted(found.items()))


def _stream(summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    answers = _answers(200, "Refusal", 404, 429, 503)
    answers["200"] = {
        "description": "frames, until the run is over or the server ends",
        "content": {kind: {"schema": {"type": "string"}} for kind in ("text/event-stream", "application/x-ndjson")},
    }
    answers["204"] = {"description": "the run is over and everything was read"}
    return {"get": {"summary": summary, "parameters": [*parameters, *_POSITION, *_FILTER], "responses": answers}}


def _resume(summary: str, name: str = "run_id") -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "parameters": [_run_parameter(name)],
            "requestBody": _json_body("ResumeRequest"),
            "responses": _answers(202, "RunInfo", 404, 409, 413, 415, 503),
        }
    }


def openapi(root: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document of the routes."""
    get = {"summary": "one run", "parameters": [_run_parameter()], "responses": _answers(200, "RunInfo", 404)}
    answers = _answers(202, "RunInfo", 404, 409, 413, 415)
    cancel = {"summary": "ask it to stop", "parameters": [_run_parameter()], "responses": answers}
    health = {"get": {"responses": {"200": {"description": "ok"}, "503": {"description": "not now"}}}}
    paths = {
        "/runs": {
            "post": {
                "summary": "start a run",
                "requestBody": {"required": True, **_json_body("StartRequest")},
                "responses": _answers(201, "RunInfo", 404, 409, 413, 415, 503),
            },
            "get": {
                "summary": "runs, the newest first",
                "parameters": [_query("limit", "1 to 500", "integer"), _query("before", "a run id")],
                "responses": _answers(200, "RunPage"),
            },
        },
        "/runs/{run_id}": {"get": get},
        "/runs/{run_id}/cancel": {"post": cancel},
        "/runs/{run_id}/answer": _resume("answer what a paused run asked"),
        "/runs/{run_id}/resume": _resume("go on with a run that was paused, interrupted, failed or cut"),
        "/sessions/{session_id}/resume": _resume("the same, by its session", "session_id"),
        "/runs/{run_id}/events": _stream("watch a run", [_run_parameter()]),
        "/sessions/{session_id}/events": _stream("watch a session", [_run_parameter("session_id")]),
        "/events": _stream("watch everything", []),
        "/live": health,
        "/ready": health,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "weavegraph", "version": VERSION},
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {"schemas": _components()},
    }


def asyncapi(root: str = "") -> dict[str, Any]:
    """The AsyncAPI 3.0 document of the streams."""
    messages = {}
    for name, meaning in FRAMES.items():
        kind = {"node": "NodeEvent", "llm": "LLMStreamingEvent"}.get(name, "DiagnosticEvent")
        payload: dict[str, Any] = {"$ref": f"#/components/schemas/{kind}"}
        if name in ("shutdown", "reauth", "broken"):
            payload = {"type": "object", "properties": {"code": {"type": "string"}}}
        messages[name] = {"name": name, "summary": meaning, "contentType": "application/json", "payload": payload}
    references = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    channels, operations = {}, {}
    for name, address, protocols in (
        ("run", "/runs/{run_id}/events", "server-sent events, NDJSON"), ("runSocket", "/runs/{run_id}/ws", "WebSocket"),
        ("session", "/sessions/{session_id}/events", "server-sent events, NDJSON"),
        ("sessionSocket", "/sessions/{session_id}/ws", "WebSocket"),
        ("everything", "/events", "server-sent events, NDJSON"), ("everythingSocket", "/ws", "WebSocket"),
    ):  # fmt: skip
        channel: dict[str, Any] = {"address": root + address, "description": protocols, "messages": references}
        parameters = [part[1:-1] for part in address.split("/") if part.startswith("{")]
        if parameters:
            channel["parameters"] = {parameter: {"description": "its id"} for parameter in parameters}
        channels[name] = channel
        operations[f"watch_{name}"] = {"action": "send", "channel": {"$ref": f"#/channels/{name}"}}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "weavegraph events", "version": VERSION},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": _components()},
    }


# ── TypeScript ────────────────────────────────────────────────────────────────────────────────────────


@cache
def typescript() -> str:
    """Types of the events, the requests and the answers, as a ``.d.ts`` file."""
    schemas = _components()
    lines = ["// Generated by weavegraph from its Python types. Do not edit.", ""]
    for name, schema in schemas.items():
        text = schema.get("description", "").split("\n")[0].strip()
        if text:
            lines.append(f"/** {text.replace('*/', '* /')} */")
        if schema.get("type") == "object":
            lines.append(f"export interface {name} {_object(schema, '')}")
        else:
            lines.append(f"export type {name} = {_type(schema, '')};")
        lines.append("")
    lines.append("/** The names of frames, for `addEventListener`. */")
    lines.append(f"export type FrameName = {' | '.join(json.dumps(name) for name in FRAMES)};")
    lines += ["", "/** One line of NDJSON, one message of a WebSocket. */"]
    lines.append("export interface Frame { id?: string; event: FrameName; data: Event | { code?: string } }")
    return "\n".join(lines) + "\n"


def _object(schema: dict[str, Any], indent: str) -> str:
    inner, required = indent + "  ", set(schema.get("required", ()))
    lines = []
    for name, each in schema.get("properties", {}).items():
        lines.append(f"{inner}{name}{'' if name in required else '?'}: {_type(each, inner)};")
    if not lines:
        more = schema.get("additionalProperties")
        return f"Record<string, {_type(more, indent) if isinstance(more, dict) and more else 'unknown'}>"
    return "{\n" + "\n".join(lines) + f"\n{indent}}}"


def _type(schema: dict[str, Any], indent: str) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(_type(each, indent) for each in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(json.dumps(each) for each in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        item = _type(schema.get("items") or {}, indent)
        return f"({item})[]" if " " in item else f"{item}[]"
    if kind == "object":
        return _object(schema, indent)
    plain = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
    return plain.get(str(kind), "unknown")


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "openapi"
    make = asyncapi if wanted == "asyncapi" else openapi
    print(typescript() if wanted == "typescript" else json.dumps(make(), indent=2))
