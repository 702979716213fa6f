"""What other programs are told of the wire, and the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from jsonschema.validators import Draft202012Validator

from tests.support import clause
from tests.web.support import chatty, serving
from weavegraph.errors import ConfigError
from weavegraph.web import create_app
from weavegraph.web._routes import Routes
from weavegraph.web._schema import FRAMES, asyncapi, openapi, typescript
from weavegraph.web._serve import load


def schema_of(document: Any, name: str) -> Draft202012Validator:
    text = json.dumps({"$ref": f"#/$defs/{name}", "$defs": document["components"]["schemas"]})
    return Draft202012Validator(json.loads(text.replace("#/components/schemas/", "#/$defs/")))


async def test_openapi_describes_every_route_and_its_answers() -> None:
    web = create_app(chatty())
    paths = openapi()["paths"]
    routes = [route for route in Routes(web).table() if hasattr(route, "methods")]
    for route in routes:
        path = getattr(route, "path", "")
        if (
            path in ("/openapi.json", "/asyncapi.json", "/events.d.ts", "/favicon.ico")
            or path.count(".")
            or path in ("/", "/{path:path}")
        ):
            continue
        for method in (getattr(route, "methods", None) or set()) - {"HEAD"}:
            assert method.lower() in paths[path], (method, path)
    await web.app.aclose()
    async with serving(chatty()) as (_, client):
        document = (await client.ask("GET", "/openapi.json")).json
        answer = await client.ask("POST", "/runs", {})
        schema_of(document, "RunInfo").validate(answer.json)
        schema_of(document, "RunPage").validate((await client.ask("GET", "/runs")).json)
        schema_of(document, "Refusal").validate((await client.ask("GET", "/runs/x")).json)
        with pytest.raises(jsonschema.ValidationError):
            schema_of(document, "StartRequest").validate({"tags": 5})


async def test_asyncapi_describes_every_frame() -> None:
    async with serving(chatty()) as (_, client):
        document = (await client.ask("GET", "/asyncapi.json")).json
        assert document == json.loads(json.dumps(asyncapi()))
        events = schema_of(document, "Event")
        for frame in await (await client.watch(await client.start())).rest():
            name = document["components"]["messages"][frame.event]["payload"]["$ref"].rpartition("/")[2]
            schema_of(document, name).validate(frame.json)
            events.validate(frame.json)


async def test_typescript_has_every_type_and_every_frame() -> None:
    text = typescript()
    for name in ("NodeEvent", "DiagnosticEvent", "LLMStreamingEvent", "StartRequest", "RunInfo", "Refusal"):
        assert f"export interface {name} {{" in text
    assert "export type Event = NodeEvent | DiagnosticEvent | LLMStreamingEvent;" in text
    assert 'type: "node";' in text and "message: string;" in text and 'phase: "cancelled" | "chunk"' in text
    assert all(f'"{name}"' in text for name in FRAMES)
    assert text.count("{") == text.count("}")
    async with serving(chatty()) as (_, client):
        assert (await client.ask("GET", "/events.d.ts")).body.decode() == text
    made = subprocess.run(
        [sys.executable, "-m", "weavegraph.web._schema", "typescript"], capture_output=True, check=True
    )
    assert made.stdout.decode() == text + "\n" or made.stdout.decode() == text


@clause("12.6")
async def test_the_page_is_plain_and_loads_nothing_from_elsewhere() -> None:
    async with serving(chatty()) as (_, client):
        page = await client.ask("GET", "/")
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'self';")
        html = page.body.decode()
        assert not re.search(r"<script[^>]*>[^<]|<style|\son\w+=|https?://|javascript:", html)
        for name, kind in (("page.js", "text/javascript"), ("style.css", "text/css")):
            answer = await client.ask("GET", f"/{name}")
            assert answer.headers["content-type"].startswith(kind) and name in html
            assert not re.search(rb"innerHTML|insertAdjacentHTML|document\.write|eval\(|https?://|@import", answer.body)
        assert (await client.ask("GET", "/../errors.py")).status == 404
    assert files("weavegraph.web._page").joinpath("index.html").is_file()
    async with serving(chatty(), page=False) as (_, client):
        assert (await client.ask("GET", "/")).status == 404


def test_an_app_is_found_by_its_place(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "placed.py").write_text(
        "from weavegraph import END, START, GraphBuilder\n"
        "builder = GraphBuilder()\n"
        "builder.add_node('a', lambda state: None)\n"
        "builder.add_edge(START, 'a').add_edge('a', END)\n"
        "app = builder.compile()\n"
        "def make():\n    return app\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    apps = [load(f"placed:{name}") for name in ("app", "make", "builder")]
    assert apps[0] is apps[1] and apps[2].graph.fingerprint == apps[0].graph.fingerprint
    for wrong in ("placed", "placed:", ":app", "placed:nothing", "nowhere:app", "json:loads.x"):
        with pytest.raises(ConfigError):
            load(wrong)
