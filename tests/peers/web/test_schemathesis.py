"""What the OpenAPI says is what the server does, and no request makes it fail: schemathesis asks, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support import clause
from tests.web.support import Client, listening
from weavegraph import END, START, App, GraphBuilder, NodeContext, RuntimeConfig
from weavegraph.checkpoint import MemoryCheckpointer
from weavegraph.web import create_app

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
OPERATIONS = (
    *(("post", path) for path in ("/runs", "/runs/{run_id}/cancel", "/runs/{run_id}/answer", "/runs/{run_id}/resume")),
    ("post", "/sessions/{session_id}/resume"),
    *(("get", path) for path in ("/runs", "/runs/{run_id}", "/runs/{run_id}/events", "/sessions/{session_id}/events")),
    *(("get", path) for path in ("/events", "/live", "/ready")),
)


def asking() -> App[Any]:
    builder = GraphBuilder()

    @builder.node
    async def ask(state: Any, ctx: NodeContext[Any, Any]) -> None:
        if "fail" in state["extra"]:
            raise ConnectionError("as told")
        if "ask" in state["extra"]:
            await ctx.interrupt("tea?")
        if "wait" in state["extra"]:
            await asyncio.Event().wait()

    builder.add_edge(START, "ask").add_edge("ask", END)
    return builder.compile(RuntimeConfig(checkpointer=MemoryCheckpointer(), max_runs=20, cancel_grace=0.01))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, list[str]]]:
    """A server in a thread, and the ids of a run of each kind, which are also those of their sessions."""
    ready, over = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        async with asking() as app, listening(create_app(app, max_streams_each=10_000)) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            client = Client(port)
            for kind in ("done", "fail", "ask", "wait"):
                await client.start({"extra": {kind: True}}, run_id=kind, session_id=kind)
            await client.aclose()
            found["url"] = f"http://127.0.0.1:{port}"
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(20)
        yield found["url"], ["done", "fail", "ask", "wait"]
    finally:
        over.set()
        thread.join()


def test_every_operation_of_the_description_is_tried(served: tuple[str, list[str]]) -> None:
    described = requests.get(f"{served[0]}/openapi.json", timeout=10).json()["paths"]
    assert {(method, path) for path, methods in described.items() for method in methods} == set(OPERATIONS)


@clause("12.6")
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_makes_the_server_fail_or_answer_what_it_does_not_say(
    served: tuple[str, list[str]], method: str, path: str
) -> None:
    url, known = served
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    ids = itertools.cycle([*known, None, None])
    statuses: set[int] = set()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(schema[path][method.upper()].as_strategy())
    def ask(case: Any) -> None:
        id = next(ids)
        if id is not None and case.path_parameters:
            case.path_parameters = dict.fromkeys(case.path_parameters, id)
        wanted = case.as_transport_kwargs(base_url=url)
        with contextlib.closing(requests.request(**wanted, stream=True, timeout=20)) as got:
            statuses.add(got.status_code)
            if got.headers.get("Content-Type", "").startswith(("text/event-stream", "application/x-ndjson")):
                assert (got.status_code, path.endswith("/events")) == (200, True)  # it may go on for ever: not read
            else:
                case.validate_response(got, checks=CHECKS)

    ask()
    assert statuses - {503} and max(statuses - {503}) < 500
