"""Starting, looking at, stopping and answering runs over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support import clause
from tests.web.support import Client, Gated, chatty, eventually, listening, serving
from tests.web.test_streams import durable
from weavegraph import END, START, App, GraphBuilder, NodeContext, RunCancelledError, RuntimeConfig
from weavegraph.web import bearer, request_context, router


def asking(config: RuntimeConfig) -> App[Any]:
    builder = GraphBuilder()

    @builder.node
    async def ask(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        ctx.emit("asked", "once")
        answer = await ctx.interrupt({"question": "tea?"})
        ctx.emit("answered", str(answer))
        return {"extra": {"answer": answer}}

    return builder.add_edge(START, "ask").add_edge("ask", END).compile(config)


async def test_a_run_is_told_as_it_goes() -> None:
    talk = Gated()
    async with serving(talk.app, expose_state=True) as (_, client):
        answer = await client.ask("POST", "/runs", {"input": {"extra": {"x": 1}}, "tags": ["t"], "run_id": "r"})
        assert answer.status == 201
        assert answer.json | {"session_id": "", "last_id": ""} == {
            "run_id": "r", "session_id": "", "status": "running", "attempt": 1, "last_id": "",
            "events": "/runs/r/events?after=0",
        }  # fmt: skip
        assert (await client.ask("POST", "/runs", {"run_id": "r"})).code == "run_exists"
        assert (await client.ask("POST", "/runs", {"input": {"nope": 1}})).code == "state"
        stream = await client.watch("r")
        assert "t" in (await stream.take(1))[0].json["metadata"]["tags"]
        talk.say(None)
        frames = await stream.rest()
        told = (await client.ask("GET", "/runs/r")).json
        assert told["status"] == "completed" and told["last_id"] == frames[-1].id
        assert told["state"]["extra"] == {"x": 1}
        assert [run["run_id"] for run in (await client.ask("GET", "/runs")).json["runs"]] == ["r"]


@clause("8.cancel")
async def test_a_run_is_cancelled() -> None:
    talk = Gated(RuntimeConfig(cancel_grace=0.01))
    async with serving(talk.app) as (_, client):
        run_id = await client.start()
        stream = await client.watch(run_id)
        assert (await client.ask("POST", f"/runs/{run_id}/cancel")).status == 202
        frames = await stream.rest()
        assert frames[-1].json["metadata"]["outcome"] == "cancelled"
        answer = await client.ask("POST", f"/runs/{run_id}/cancel")
        assert (answer.status, answer.code) == (409, "run_elsewhere")


@clause("8.cancel")
@pytest.mark.parametrize("kept", ["memory", "disk"])
async def test_a_run_that_code_started_is_listed_and_cancelled(tmp_path: Path, kept: str) -> None:
    talk = Gated(durable(tmp_path) if kept == "disk" else RuntimeConfig(cancel_grace=0.01))
    async with serving(talk.app) as (_, client):
        first = await client.start()
        run = talk.app.start({}, run_id="by-code")
        stream = await client.watch("by-code")
        await stream.take(1)
        assert (await client.ask("GET", "/runs/by-code")).json["status"] == "running"
        listed = (await client.ask("GET", "/runs")).json["runs"]
        assert [told["run_id"] for told in listed] == ["by-code", first]
        assert (await client.ask("POST", "/runs/by-code/cancel")).status == 202
        assert (await stream.rest())[-1].json["metadata"]["outcome"] == "cancelled"
        with pytest.raises(RunCancelledError):
            await run
        assert (await client.ask("POST", "/runs/by-code/cancel")).code == "run_elsewhere"  # it is over


async def test_as_many_runs_as_max_runs_allows() -> None:
    talk = Gated(RuntimeConfig(max_runs=2))
    async with serving(talk.app) as (_, client):
        runs = [await client.start() for _ in range(2)]
        answer = await client.ask("POST", "/runs", {})
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "too_many_runs", "1")
        talk.say(None, None)
        for run_id in runs:
            await (await client.watch(run_id)).rest()
        talk.say(None)
        await client.start()


@clause("D4")
@pytest.mark.parametrize("kept", ["memory", "disk"])
async def test_a_question_is_answered_and_the_stream_goes_on(tmp_path: Path, kept: str) -> None:
    config = durable(tmp_path) if kept == "disk" else RuntimeConfig(checkpointer="memory:")
    async with serving(asking(config)) as (_, client):
        run_id = await client.start(session_id="s")
        stream = await client.watch(run_id)
        frames = await stream.frames(lambda found: bool(found) and found[-1].event == "pause")
        told = (await client.ask("GET", f"/runs/{run_id}")).json
        assert told["status"] == "paused" and told["questions"][0]["question"] == {"question": "tea?"}
        assert (await client.ask("POST", "/runs", {"session_id": "s"})).code == "session_busy"
        answer = await client.ask("POST", f"/runs/{run_id}/answer", {"answer": "yes"})
        assert answer.status == 202 and answer.json["attempt"] == 2
        frames = await stream.rest()
        assert "yes" in [frame.json["message"] for frame in frames if frame.event == "node"]
        assert frames[-1].event == "end"
        assert [frame.json["run_seq"] for frame in frames] == [*range(1, len(frames) + 1)]
        assert (await client.ask("POST", f"/runs/{run_id}/answer", {"answer": "yes"})).code == "session"


async def test_a_paused_run_is_told_and_answered_by_another_process(tmp_path: Path) -> None:
    async with serving(asking(durable(tmp_path))) as (_, client):
        run_id = await client.start()
        await (await client.watch(run_id)).frames(lambda found: bool(found) and found[-1].event == "pause")
    async with serving(asking(durable(tmp_path))) as (_, client):
        told = (await client.ask("GET", f"/runs/{run_id}")).json
        assert told["status"] == "paused" and told["questions"][0]["node"] == "ask"
        (listed,) = (await client.ask("GET", "/runs")).json["runs"]
        assert listed["status"] == "paused" and listed["started_at"]
        stream = await client.watch(run_id, told["last_id"])
        assert (await client.ask("POST", f"/sessions/{told['session_id']}/resume", {"answer": "yes"})).status == 202
        assert (await stream.rest())[-1].json["metadata"]["outcome"] == "completed"


async def test_pages_of_runs(tmp_path: Path) -> None:
    for config in (RuntimeConfig(), durable(tmp_path)):
        async with serving(chatty(1, config)) as (_, client):
            ids = [await client.start() for _ in range(5)]
            found: list[str] = []
            query = "?limit=2"
            while True:
                page = (await client.ask("GET", f"/runs{query}")).json
                found += [run["run_id"] for run in page["runs"]]
                if page["next_before"] is None:
                    break
                query = f"?limit=2&before={page['next_before']}"
            assert found == ids[::-1]
            for wrong in ("limit=0", "limit=x", "limit=501", "before=../x", "limit=99999999999"):
                assert (await client.ask("GET", f"/runs?{wrong}")).status == 400


@clause("8.disconnect")
@pytest.mark.parametrize("policy", ["continue", "cancel", 0.5])
async def test_what_happens_when_the_last_viewer_left(policy: Any) -> None:
    talk = Gated(RuntimeConfig(cancel_grace=0.01))
    async with serving(talk.app) as (web, client):
        run_id = await client.start(on_disconnect=policy)
        one, two = await client.watch(run_id), await client.watch(run_id)
        one.leave()
        await eventually(lambda: web.hub.streams == 1)
        assert (await client.ask("GET", f"/runs/{run_id}")).json["status"] == "running"
        two.leave()
        await eventually(lambda: web.hub.streams == 0)
        if policy == 0.5:  # somebody comes back in time
            three = await client.watch(run_id)
            assert web.runs._known[run_id].timer is None
            assert (await client.ask("GET", f"/runs/{run_id}")).json["status"] == "running"
            three.leave()
        if policy == "continue":
            talk.say("on", None)
        frames = await (await client.open("GET", "/events?after=0")).frames(
            lambda found: bool(found) and found[-1].event == "end"
        )
        assert frames[-1].json["metadata"]["outcome"] == ("completed" if policy == "continue" else "cancelled")
        if policy != "continue":
            assert frames[-1].json["metadata"]["code"] == "no_viewers"


async def test_a_request_reaches_the_nodes_it_started() -> None:
    seen: list[Any] = []
    builder = GraphBuilder()

    @builder.node
    async def coroutine(state: Any, ctx: NodeContext[Any, Any]) -> None:
        seen.append((ctx.deps, request_context()))

    @builder.node
    def function(state: Any, ctx: NodeContext[Any, Any]) -> None:
        seen.append((ctx.deps, request_context()))

    builder.add_edge(START, "coroutine").add_edge("coroutine", "function").add_edge("function", END)
    auth = bearer({"alice-token": "alice"})
    async with serving(builder.compile(), auth=auth, deps=lambda request: request.headers["x-tenant"]) as (_, client):
        alice = client.like(Authorization="Bearer alice-token", X_Tenant="", **{"X-Tenant": "acme"})
        await (await alice.watch(await alice.start())).rest()
    (deps, request), other = seen
    assert (deps, request) == other and deps == "acme"
    assert request.principal.name == "alice" and request.path == "/runs" and request.client == "127.0.0.1"
    assert "authorization" not in request.headers
    assert "acme" not in repr(request) and "token" not in repr(request)
    assert request_context() is None


async def test_it_mounts_into_another_app() -> None:
    web = router(chatty())
    outer = Starlette(routes=[Mount("/tea", web)], lifespan=web.lifespan)
    async with listening(web, outer) as server:
        client = Client(server.servers[0].sockets[0].getsockname()[1])
        answer = await client.ask("POST", "/tea/runs", {})
        assert answer.json["events"].startswith("/tea/runs/")
        frames = await (await client.open("GET", answer.json["events"])).rest()
        assert frames[-1].event == "end"
        assert (await client.ask("GET", "/tea/runs", Origin="http://evil.example")).code == "origin"
        assert (await client.ask("GET", "/tea/")).code == "request_invalid"
        assert (await client.ask("GET", "/tea/ready")).status == 200
        assert (await client.ask("GET", "/tea/openapi.json")).json["servers"] == [{"url": "/tea"}]
        await client.aclose()
    assert web.app.event_bus.closed  # its lifespan drained the app


async def test_health_tells_whether_a_start_would_be_taken(tmp_path: Path) -> None:
    async with serving(chatty(config=durable(tmp_path))) as (web, client):
        assert (await client.ask("GET", "/ready")).json == {"status": "ok"}
        assert web.app.log is not None
        await web.app.log.aclose()
        answer = await client.ask("GET", "/ready")
        assert (answer.status, answer.json) == (503, {"status": "log"})
        web.hub.end_streams()
        answer = await client.ask("GET", "/ready")
        assert (answer.status, answer.json) == (503, {"status": "closing"})
        assert (await client.ask("GET", "/live")).status == 200
        assert (await client.ask("POST", "/runs", {})).code == "server_closing"


async def test_httpx_is_a_client() -> None:
    """The recipe of docs/web/clients.md."""
    async with serving(chatty()) as (_, client), httpx.AsyncClient(base_url=f"http://127.0.0.1:{client.port}") as http:
        run = (await http.post("/runs", json={"input": {}})).json()
        seen = []
        async with http.stream("GET", run["events"], headers={"accept": "application/x-ndjson"}) as answer:
            async for line in answer.aiter_lines():
                if line:
                    seen.append(json.loads(line))
        assert seen[-1]["event"] == "end"
        headers = {"accept": "application/x-ndjson", "last-event-id": seen[-1]["id"]}
        assert (await http.get(run["events"], headers=headers)).status_code == 204
