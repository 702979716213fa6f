"""Who may come in, once for HTTP, server-sent events and WebSocket."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import clause
from tests.web.support import Client, Gated, chatty, eventually, serving
from weavegraph.errors import ConfigError, InsecureBindError
from weavegraph.web import Principal, WebConfig, bearer, create_app, serve
from weavegraph.web._serve import Server

TOKENS = {"alice-token": "alice", "bob-token": "bob", "root-token": Principal("root", everything=True)}
PATHS = ("/runs", "/runs/x/events", "/events", "/openapi.json", "/")


def as_(client: Client, name: str) -> Client:
    return client.like(Authorization=f"Bearer {name}-token")


@clause("12.6")
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil",
        "127.0.0.1.evil",
        "127.0.0.1@evil",
        "",
        "[::2]",
        "localhost:80:80",
        "127.0.0.1:x",
    ],
)
async def test_a_foreign_host_is_refused(host: str) -> None:
    async with serving(chatty()) as (_, client):
        for path in PATHS:
            answer = await client.ask("GET", path, Host=host or " ")
            assert answer.status in (400, 421), (path, answer)


@clause("12.6")
@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "[::1]", "tea.example", "tea.example:81"]
)
async def test_loopback_names_and_named_hosts_are_served(host: str) -> None:
    async with serving(chatty(), allowed_hosts=["tea.example"]) as (_, client):
        assert (await client.ask("GET", "/runs", Host=host)).status == 200


@clause("12.6")
async def test_another_sites_page_is_refused_everywhere() -> None:
    async with serving(chatty()) as (web, client):
        run_id = await client.start()
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"evil://127.0.0.1:{client.port}.evil"):
            for path in (*PATHS, f"/runs/{run_id}/events"):
                answer = await client.ask("GET", path, Origin=origin)
                assert (answer.status, answer.code) == (403, "origin"), (origin, path)
            assert (await client.ask("POST", "/runs", {}, Origin=origin)).status == 403
        answer = await client.ask("GET", "/runs", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")
        assert answer.status == 403
        assert (await client.ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")).status == 200
        own = await client.ask("GET", "/runs", Origin=f"http://127.0.0.1:{client.port}")
        assert own.status == 200 and "access-control-allow-origin" not in own.headers
        for scope in (_socket(client, origin="http://evil.example"), _socket(client, host="evil.example")):
            assert await _connect(web, scope) == [{"type": "websocket.close", "code": 1008, "reason": "origin"}] or (
                await _connect(web, scope) == [{"type": "websocket.close", "code": 1008, "reason": "host"}]
            )


@clause("12.6")
async def test_cors_is_for_named_origins_only() -> None:
    with pytest.raises(ConfigError, match="one by one"):
        create_app(chatty(), allowed_origins=["*"])
    async with serving(chatty(), allowed_origins=["https://app.example"]) as (_, client):
        answer = await client.ask("OPTIONS", "/runs", Origin="https://app.example")
        assert answer.status == 204 and "POST" in answer.headers["access-control-allow-methods"]
        run_id = (await client.ask("POST", "/runs", {}, Origin="https://app.example")).json["run_id"]
        stream = await client.watch(run_id, Origin="https://app.example")
        assert stream.headers["access-control-allow-origin"] == "https://app.example"
        answer = await client.ask("OPTIONS", "/runs", Origin="https://other.example")
        assert answer.status == 403 and "access-control-allow-origin" not in answer.headers


@clause("12.6")
async def test_a_wide_bind_without_an_auth_hook_is_refused() -> None:
    web = create_app(chatty())
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com", ""):
        with pytest.raises(InsecureBindError) as caught:
            Server(web, host=host)
        assert caught.value.code == "insecure_bind"
        with pytest.raises(InsecureBindError):
            serve(chatty(), host=host, port=0)
    Server(create_app(chatty(), auth=bearer(TOKENS)), host="0.0.0.0")
    Server(create_app(chatty(), insecure=True), host="0.0.0.0")
    await web.app.aclose()


@clause("12.6")
async def test_a_wide_bind_by_somebody_elses_server_is_refused_too() -> None:
    web = create_app(chatty())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**_socket(Client(1)), "type": "http", "method": "GET", "path": "/runs", "server": ("10.0.0.5", 80)}
    await web(scope, _receive, send)
    assert sent[0]["status"] == 403 and b"insecure_bind" in sent[1]["body"]
    await web.app.aclose()


async def test_only_json_is_taken_and_only_so_much_of_it() -> None:
    async with serving(chatty(), max_body_bytes=1000) as (_, client):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            assert (await client.ask("POST", "/runs", {}, Content_Type=kind)).status == 415
        assert (await client.ask("POST", "/runs", {}, Content_Encoding="gzip")).status == 415
        assert (await client.ask("POST", "/runs", {"input": {"x": "y" * 1000}})).status == 413
        for body in (b"", b"[", b"[]", b"{}x", b'{"input": NaN}', b'{"unknown": 1}', b"\xff", b"[" * 900):
            answer = await client.ask("POST", "/runs", body)
            assert (answer.status, answer.code) == (400, "request_invalid"), body
        answer = await client.ask("POST", "/runs", {"run_id": "../x"})
        assert (answer.status, answer.code) == (400, "event_invalid")
        assert (await client.ask("DELETE", "/runs")).status == 405
        assert (await client.ask("GET", "/nothing")).json["error"]["code"] == "request_invalid"


@clause("12.8", "12.7")
async def test_a_fault_of_ours_tells_its_code_and_nothing_else() -> None:
    app = chatty()
    async with serving(app) as (web, client):

        async def broken(*_: Any) -> Any:
            raise OSError("/etc/secret: Bearer abcdefgh")

        web.runs.list = broken  # type: ignore[method-assign]
        answer = await client.ask("GET", "/runs")
        assert answer.status == 500
        assert answer.json == {"error": {"code": "internal", "message": "the server's log tells more"}}
        assert "server" not in answer.headers


@clause("12.7")
async def test_without_a_valid_token_nothing_is_told() -> None:
    async with serving(chatty(), auth=bearer(TOKENS)) as (_, client):
        for headers in ({}, {"Authorization": "Bearer wrong-token"}, {"Authorization": "Basic alice-token"}):
            assert (await client.ask("GET", "/", **headers)).status == 200  # the page, which asks for a token
            for path in (*PATHS[:-1], "/runs?token=alice-token"):
                answer = await client.ask("GET", path, **headers)
                assert (answer.status, answer.code) == (401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/live", "/ready"):
            assert (await client.ask("GET", path, Host="10.0.0.1")).json == {"status": "ok"}
        assert (await client.ask("GET", "/runs", Cookie="weavegraph_token=alice-token")).status == 200
    with pytest.raises(ConfigError):
        bearer({"short": "x"})

    def raises(connection: Any) -> Any:
        raise KeyError("x")

    async with serving(chatty(), auth=raises) as (_, client):
        assert (await client.ask("GET", "/runs")).status == 401


@clause("12.6")
async def test_a_run_of_somebody_else_is_a_run_that_is_not_there() -> None:
    talk = Gated()
    async with serving(talk.app, auth=bearer(TOKENS)) as (_web, client):
        alice, bob, root = as_(client, "alice"), as_(client, "bob"), as_(client, "root")
        run_id = await alice.start(session_id="s")
        unknown = await bob.ask("GET", "/runs/unknown")
        for method, path in (
            ("GET", ""), ("GET", "/events"), ("GET", "/events?after=0"),
            ("POST", "/cancel"), ("POST", "/answer"), ("POST", "/resume"),
        ):  # fmt: skip
            answer = await bob.ask(method, f"/runs/{run_id}{path}", {} if method == "POST" else None)
            assert (answer.status, answer.code) == (unknown.status, unknown.code) == (404, "run_not_found")
        for method, path in (("GET", "/sessions/s/events"), ("POST", "/sessions/s/resume")):
            answer = await bob.ask(method, path, {} if method == "POST" else None)
            assert (answer.status, answer.code) == (404, "session_not_found")
        assert (await bob.ask("POST", "/runs", {"session_id": "s"})).status == 404
        assert (await bob.ask("POST", "/runs", {"tags": ["owner:alice"]})).status == 400
        answer = await bob.ask("GET", "/events")
        assert (answer.status, answer.code) == (403, "not_allowed")
        assert (await bob.ask("GET", "/runs")).json["runs"] == []
        assert [run["run_id"] for run in (await alice.ask("GET", "/runs")).json["runs"]] == [run_id]
        assert [run["run_id"] for run in (await root.ask("GET", "/runs")).json["runs"]] == [run_id]
        stream = await root.open("GET", "/events?after=0")
        talk.say("x", None)
        frames = await (await alice.watch(run_id)).rest()
        assert await stream.take(len(frames)) == [
            frame._replace(id=other.id) for frame, other in zip(frames, stream.parser.frames, strict=False)
        ]
        assert (await bob.ask("GET", f"/runs/{run_id}/events", Last_Event_ID=frames[0].id or "")).status == 404


@clause("12.6")
async def test_who_owns_a_run_outlives_the_process(tmp_path: Any) -> None:
    from tests.web.test_streams import durable

    async with serving(chatty(config=durable(tmp_path)), auth=bearer(TOKENS)) as (_, client):
        run_id = await as_(client, "alice").start(session_id="s")
        await (await as_(client, "alice").watch(run_id)).rest()
    async with serving(chatty(config=durable(tmp_path)), auth=bearer(TOKENS)) as (_, client):
        alice, bob = as_(client, "alice"), as_(client, "bob")
        assert (await alice.ask("GET", f"/runs/{run_id}")).json["status"] == "completed"
        assert (await bob.ask("GET", f"/runs/{run_id}")).status == 404
        assert (await bob.ask("GET", "/sessions/s/events")).status == 404
        assert (await bob.ask("GET", "/runs")).json["runs"] == []


async def test_quotas_of_streams() -> None:
    talk = Gated()
    config: dict[str, Any] = {"auth": bearer(TOKENS), "max_streams": 3, "max_streams_each": 2}
    async with serving(talk.app, **config) as (web, client):
        alice, bob = as_(client, "alice"), as_(client, "bob")
        run_id = await alice.start()
        streams = [await alice.watch(run_id) for _ in range(2)]
        answer = await alice.ask("GET", f"/runs/{run_id}/events")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "too_many_streams", "1")
        other = await bob.start()
        assert (await bob.watch(other)).status == 200
        answer = await bob.ask("GET", f"/runs/{other}/events")
        assert (answer.status, answer.code) == (503, "too_many_streams")
        streams[0].leave()
        await eventually(lambda: web.hub.streams == 2)
        assert (await alice.watch(run_id)).status == 200
        talk.say(None, None)


@clause("12.6")
async def test_a_token_that_is_revoked_ends_its_streams() -> None:
    tokens = dict(TOKENS)
    talk = Gated()

    def auth(connection: Any) -> Any:
        return tokens.get(connection.headers.get("authorization", "").removeprefix("Bearer "))

    async with serving(talk.app, auth=auth, recheck=0.05, heartbeat=0.1) as (_, client):
        alice, bob = as_(client, "alice"), as_(client, "bob")
        mine, other = await alice.start(), await bob.start()
        stream, others = await alice.watch(mine), await bob.watch(other)
        await stream.take(1)
        del tokens["alice-token"]
        frames = await stream.rest()
        assert frames[-1].event == "reauth" and frames[-1].id is None
        talk.say(None, None)
        assert (await others.rest())[-1].event == "end"


def test_settings_are_checked() -> None:
    for wrong in (
        {"max_streams": 0}, {"heartbeat": -1.0}, {"heartbeat": 0.0}, {"auth": 5}, {"allowed_hosts": "x"},
        {"on_disconnect": "stop"}, {"on_disconnect": -1}, {"redact": "x"},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            WebConfig(**wrong)  # type: ignore[arg-type]


def _socket(client: Client, host: str = "", origin: str = "") -> dict[str, Any]:
    headers = [(b"host", (host or f"127.0.0.1:{client.port}").encode())]
    if origin:
        headers.append((b"origin", origin.encode()))
    return {"type": "websocket", "path": "/ws", "query_string": b"", "headers": headers, "server": ("127.0.0.1", 1)}


async def _receive() -> Any:
    return {"type": "websocket.connect"}


async def _connect(web: Any, scope: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await web(scope, _receive, send)
    return sent
