"""The programs of docs/web, as they stand there."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import httpx2

from tests.support import POLL, clause
from tests.web.proxy import Proxy
from tests.web.support import Client, chatty, listening, serving

DOCS = Path(__file__).resolve().parents[2] / "docs" / "web"


def program(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def gets_each_event_once(library: Any, monkeypatch: Any) -> None:
    """The recipe with that library for its ``httpx``, over connections that are cut."""
    monkeypatch.setitem(sys.modules, "httpx", library)
    watch = program("httpx_client").watch
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real(min(seconds, POLL)))
    async with serving(chatty(200)) as (_, client):
        proxy = Proxy(client.port)
        await proxy.start()
        proxy.cut_after = 20_000
        run_id = await client.start()
        async with library.AsyncClient(base_url=f"http://127.0.0.1:{proxy.port}") as http:
            seen = [event["run_seq"] async for _, event in watch(http, run_id)]
        assert seen == [*range(1, len(seen) + 1)] and len(seen) > 200 and proxy.cuts >= 3
        await proxy.stop()


@clause("10.valid", "10.over")
async def test_the_httpx_client_gets_each_event_once(monkeypatch: Any) -> None:
    await gets_each_event_once(httpx2, monkeypatch)


async def test_the_mounted_app() -> None:
    module = program("mount_app")
    async with listening(module.web, module.app) as server:
        client = Client(server.servers[0].sockets[0].getsockname()[1], **{"X-Name": "Ada", "X-Tenant": "acme"})
        assert (await client.ask("GET", "/")).body == b"mine"
        answer = await client.ask("POST", "/weavegraph/runs", {})
        frames = await (await client.open("GET", answer.json["events"])).rest()
        (greeting,) = [frame.json for frame in frames if frame.event == "node"]
        assert greeting["message"] == "hello Ada" and greeting["metadata"] == {"tenant": "acme"}
        await client.aclose()
