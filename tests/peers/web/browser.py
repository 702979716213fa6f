"""Chromium for tests, driven through `browser.mjs`; `make test-peers` installs it."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import eventually
from tests.web.proxy import Proxy
from tests.web.support import Client
from tools import peers
from weavegraph.events import to_json
from weavegraph.log import SqliteLog

RECIPE = Path(__file__).resolve().parents[3] / "docs" / "web" / "eventsource.js"
PATIENCE = 30.0


def need(program: str) -> str:
    """The path of a program; without it the test is skipped, or fails with CI set (tests/peers/conftest.py)."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not here: make test-peers installs it")
    return found


def node_packages() -> Path:
    """The folder that has the npm packages; playwright-core drives the system's Chromium, and brings no browser."""
    need("node")
    if fault := peers.npm():
        pytest.skip(fault)
    return peers.NODE


class Browser:
    """One page of a headless Chromium. ``async with Browser() as page``."""

    def __init__(self) -> None:
        self._call = [
            "node",
            str(Path(__file__).with_name("browser.mjs")),
            str(node_packages()),
            need("chromium"),
        ]
        self.faults: list[str] = []

    async def __aenter__(self) -> Browser:
        pipe = subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._call, stdin=pipe, stdout=pipe, limit=2**24)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b'{"do": "end"}\n')
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            answer = json.loads(await self._process.stdout.readline())
        if "error" in answer:
            raise AssertionError(answer["error"])
        self.faults += answer["faults"]
        return answer["value"]

    async def open(self, url: str) -> None:
        await self._ask(do="open", url=url)

    async def run(self, code: str) -> Any:
        """The value of an expression in the page."""
        return await self._ask(do="run", code=code)

    async def until(self, code: str) -> Any:
        """Wait until an expression is true; its value."""
        return await eventually(lambda: self.run(code), PATIENCE)


async def watch_with_cuts(count: int, seed: int, serving: Any) -> dict[str, Any]:
    """The built-in page watches runs through a proxy that cuts and a server that dies, until it reconnected so often.

    What it shows in the end must be the log's events, each once and in order.
    """
    rng = random.Random(seed)
    figures = dict.fromkeys(("reconnects", "restarts", "runs", "events", "gaps", "repeats"), 0)
    with tempfile.TemporaryDirectory() as folder:
        server = serving(f"{folder}/runs.db")
        await server.start()
        proxy = Proxy(server.port)
        await proxy.start()
        async with Browser() as page:
            await page.open(f"http://127.0.0.1:{proxy.port}/")
            while figures["reconnects"] < count:
                straight = Client(server.port)
                wanted = {"words": 10, "steps": 60, "pause": 0.01}
                run_id = await straight.start({"extra": wanted}, session_id=f"s{figures['runs']}")
                await straight.aclose()
                figures["runs"] += 1
                await page.run(f"show({run_id!r})")
                await _trouble(page, proxy, server, rng, figures, count)
                await page.until("document.getElementById('status').textContent === 'over'")
                shown = await page.run(
                    "[...document.querySelectorAll('#events li[data-position]')].map((li) => +li.dataset.position)"
                )
                log = SqliteLog(f"{folder}/runs.db")
                held = [to_json(event) async for event in log.read(run_id)]
                await log.aclose()
                figures["events"] += len(shown)
                figures["repeats"] += len(shown) - len(set(shown))
                figures["gaps"] += len(set(range(1, len(held) + 1)) - set(shown))
                figures["gaps"] += shown != sorted(shown)
            faults = [fault for fault in page.faults if "Failed to load resource" not in fault]
        await proxy.stop()
        await server.stop()
    return {
        **figures,
        "faults of the page": len(faults),
        "problems": figures["gaps"] + figures["repeats"] + len(faults),
    }


async def _trouble(page: Browser, proxy: Proxy, server: Any, rng: random.Random, figures: Any, count: int) -> None:
    """Cut a live stream and wait for it to be live again, over and over; some times by ending the server."""
    for n in range(12):
        state = await page.until(
            "['live', 'over'].find((text) => document.getElementById('status').textContent === text)"
        )
        if state == "over" or figures["reconnects"] >= count:
            return
        if n % 4 == 3:
            figures["restarts"] += 1
            await server.stop(rng.choice([signal.SIGTERM, signal.SIGKILL]))
            await server.start()
        else:
            proxy.cut()
        await page.until("document.getElementById('status').textContent !== 'live' || performance.now() < 0")
        figures["reconnects"] += 1
