"""The recipe for EventSource outside a browser: Node.js, with the package `eventsource` from npm."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.peers.web.browser import RECIPE, need, node_packages
from tests.support import clause
from tests.web.proxy import Proxy
from tests.web.support import chatty, serving

pytestmark = pytest.mark.timeout(300)


@clause("10.valid", "10.over")
async def test_event_source_of_npm_gets_each_event_once() -> None:
    program = Path(__file__).with_name("eventsource.mjs")
    async with serving(chatty(200), retry=0.01) as (_, client):
        proxy = Proxy(client.port)
        await proxy.start()
        proxy.cut_after = 20_000
        run_id = await client.start()
        base = f"http://127.0.0.1:{proxy.port}/"
        node = await asyncio.create_subprocess_exec(
            need("node"), str(program), str(node_packages()), str(RECIPE), base, run_id,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            told, _ = await node.communicate()
        found = json.loads(told)
        assert found["status"] == "completed" and len(found["seen"]) > 200 and proxy.cuts >= 3
        assert found["seen"] == [*range(1, len(found["seen"]) + 1)]
        await proxy.stop()
