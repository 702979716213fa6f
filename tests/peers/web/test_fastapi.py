"""The recipe of docs/web/mounting.md for FastAPI, as it stands there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.support import clause
from tests.web.support import Client, eventually, listening
from tests.web.test_docs import program


@contextlib.asynccontextmanager
async def recipe() -> AsyncIterator[tuple[Any, Client]]:
    module = program("fastapi_app")
    async with listening(module.web, module.api) as server:
        client = Client(server.servers[0].sockets[0].getsockname()[1])
        try:
            yield module, client
        finally:
            await client.aclose()
    assert module.flow.event_bus.closed  # FastAPI ran our lifespan, which drained the app


@clause("10.valid", "10.over")
async def test_the_mounted_router_serves_runs_and_streams() -> None:
    async with recipe() as (_, client):
        answer = await client.ask("POST", "/weavegraph/runs", {"input": {"extra": {"topic": "oolong"}}})
        assert answer.status == 201
        stream = await client.open("GET", answer.json["events"])
        frames = await stream.rest()
        assert [frame.json["run_seq"] for frame in frames] == [*range(1, len(frames) + 1)]
        assert "".join(frame.json["chunk"] for frame in frames if frame.event == "llm") == "all about oolong."
        assert frames[-1].json["metadata"]["outcome"] == "completed"
        again = await client.open("GET", answer.json["events"], Last_Event_ID=str(frames[-1].id))
        assert again.status == 204
        assert (await client.ask("GET", "/openapi.json")).json["info"]["title"] == "FastAPI"  # its own goes on


@clause("8.disconnect")
async def test_a_run_is_cancelled_when_its_last_viewer_leaves_the_router() -> None:
    async with recipe() as (module, client):
        answer = await client.ask("POST", "/weavegraph/runs", {"input": {"extra": {"pause": 60}}})
        run = module.flow.run(answer.json["run_id"])
        one, two = [await client.open("GET", answer.json["events"]) for _ in range(2)]
        await asyncio.gather(one.take(3), two.take(3))
        one.leave()
        await eventually(lambda: module.web.hub.streams == 1)
        assert run.status == "running"
        two.leave()
        await eventually(lambda: run.status == "cancelled")


@clause("8.with", "8.disconnect")
async def test_a_run_of_an_own_route_ends_with_its_request() -> None:
    async with recipe() as (module, client):
        stream = await client.open("GET", "/ask?topic=mint")
        frames = await stream.rest()
        assert "".join(frame.json.get("chunk", "") for frame in frames) == "all about mint."
        assert frames[-1].json["metadata"]["outcome"] == "completed"
        stream = await client.open("GET", "/ask?topic=mint&pause=60")
        await stream.frames(lambda found: any("chunk" in frame.json for frame in found))
        (run,) = module.flow.runs()
        stream.leave()
        await eventually(lambda: run.status == "cancelled")


@clause("8.sigterm")
async def test_open_streams_end_when_the_server_does() -> None:
    async with recipe() as (module, client):
        answer = await client.ask("POST", "/weavegraph/runs", {"input": {"extra": {"pause": 60}}})
        stream = await client.open("GET", answer.json["events"])
        await stream.take(3)
        module.web.end_streams()
        assert (await stream.rest())[-1].event == "shutdown"
