"""Behind Debian's nginx with its defaults, buffering on, and gzip on for everything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.peers.web.browser import need
from tests.support import clause, eventually
from tests.web.support import Client, Gated, chatty, serving

pytestmark = pytest.mark.timeout(300)
LOCATIONS = Path(__file__).resolve().parents[3] / "docs" / "web" / "nginx.conf"
CONFIG = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_min_length 0;
    gzip_proxied any;
    gzip_types *;
    upstream weavegraph {{ server 127.0.0.1:{upstream}; }}
    server {{
        listen 127.0.0.1:{port};
{locations}
    }}
}}
"""


@contextlib.asynccontextmanager
async def behind_nginx(folder: Path, upstream: int) -> AsyncIterator[Client]:
    program = need("nginx")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = CONFIG.format(folder=folder, upstream=upstream, port=port, locations=LOCATIONS.read_text(encoding="utf-8"))
    (folder / "nginx.conf").write_text(config)
    process = await asyncio.create_subprocess_exec(program, "-p", str(folder), "-c", str(folder / "nginx.conf"))
    client = Client(port)
    try:

        async def live() -> bool:
            with contextlib.suppress(OSError):
                return (await client.ask("GET", "/live")).status == 200
            return False

        await eventually(live)
        yield client
    finally:
        await client.aclose()
        process.terminate()
        await process.wait()


@clause("10.valid", "10.over")
async def test_events_and_heartbeats_pass_at_once(tmp_path: Path) -> None:
    talk = Gated()
    async with serving(talk.app, heartbeat=0.1) as (_web, direct), behind_nginx(tmp_path, direct.port) as client:
        run_id = await client.start()
        began = time.monotonic()
        stream = await client.watch(run_id, Accept_Encoding="gzip, deflate")
        await stream.take(1)
        assert time.monotonic() - began < 0.2
        assert stream.headers.get("content-encoding", "identity") == "identity"
        delays = []
        for n in range(20):
            before, said = len(stream.parser.frames), time.monotonic()
            talk.say(str(n))
            await stream.frames(lambda found, before=before: len(found) > before)
            delays.append(time.monotonic() - said)
        assert sorted(delays)[10] < 0.1 and max(delays) < 0.5, delays
        stream.parser.comments.clear()
        await stream.comment()
        talk.say(None)
        frames = await stream.rest()
        assert [frame.json["run_seq"] for frame in frames] == [*range(1, len(frames) + 1)]
        assert (await client.watch(run_id, frames[-1].id)).status == 204
        stream.leave()


@clause("8.disconnect")
async def test_a_client_that_leaves_nginx_leaves_the_server(tmp_path: Path) -> None:
    talk = Gated()
    async with serving(talk.app) as (web, direct), behind_nginx(tmp_path, direct.port) as client:
        run_id = await client.start()
        stream = await client.watch(run_id)
        await stream.take(1)
        stream.leave()
        await eventually(lambda: web.hub.streams == 0, 2)
        talk.say(None)


async def test_other_answers_are_compressed_and_the_gate_still_holds(tmp_path: Path) -> None:
    async with serving(chatty()) as (_, direct), behind_nginx(tmp_path, direct.port) as client:
        page = await client.ask("GET", "/page.js", Accept_Encoding="gzip")
        assert page.headers["content-encoding"] == "gzip"
        assert (await client.ask("GET", "/runs", Host="evil.example")).status == 421
        assert (await client.ask("GET", "/runs", Origin="http://evil.example")).status == 403
        assert (await client.ask("GET", "/runs", Origin=f"http://127.0.0.1:{client.port}")).status == 200
