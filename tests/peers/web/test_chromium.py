"""The built-in page and plain EventSource in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.peers.web.browser import RECIPE, Browser, watch_with_cuts
from tests.support import clause
from tests.web.proxy import Proxy
from tests.web.support import Gated, serving
from tests.web.test_runs import asking
from tests.web.test_streams import durable
from tools.web_campaign import Serving
from weavegraph import END, START, GraphBuilder, NodeContext
from weavegraph.web import Principal, bearer

pytestmark = pytest.mark.timeout(300)
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> javascript:alert(3)"


@clause("12.6")
async def test_a_run_is_started_and_shown_and_hostile_text_stays_text() -> None:
    builder = GraphBuilder()

    @builder.node
    async def talk(state: Any, ctx: NodeContext[Any, Any]) -> None:
        ctx.emit(HOSTILE[:40], HOSTILE)
        await ctx.stream_llm(["green ", HOSTILE], stream_id="answer")

    app = builder.add_edge(START, "talk").add_edge("talk", END).compile()
    async with serving(app) as (_, client), Browser() as page:
        await page.open(f"http://127.0.0.1:{client.port}/")
        await page.run("document.querySelector('#start button').click()")
        await page.until("document.getElementById('status').textContent === 'over'")
        assert await page.run("document.querySelector('#answers pre').textContent") == f"green {HOSTILE}"
        assert HOSTILE in await page.run("document.getElementById('events').textContent")
        assert await page.run("document.querySelectorAll('#run img, #run script').length") == 0
        assert await page.run("document.getElementById('outcome').textContent") == "completed"
        await page.until("document.getElementById('runs').textContent.includes('completed')")
        shown = "[...document.querySelectorAll('#events .llm')].filter((line) => line.offsetParent).length"
        assert await page.run(shown) == 0  # tokens are read in the answer; who wants a line for each says so
        await page.run("document.getElementById('tokens').click()")
        assert await page.run(shown) == 3
        assert await page.run("document.querySelector('#answers h3').textContent") == "talk"
        assert page.faults == []


async def test_an_answer_that_was_cut_off_an_error_and_the_state_are_shown() -> None:
    builder = GraphBuilder()

    @builder.node
    async def talk(state: Any, ctx: NodeContext[Any, Any]) -> dict[str, Any]:
        ctx.emit("brewing", "tea", cups=2)

        async def tokens() -> Any:
            yield "green "
            if state["extra"].get("fail"):
                raise ValueError(f"the kettle is {HOSTILE}")

        await ctx.stream_llm(tokens(), stream_id="answer")
        return {"extra": {"done": "yes"}}

    app = builder.add_edge(START, "talk").add_edge("talk", END).compile()
    async with serving(app, expose_state=True) as (_, client), Browser() as page:
        await page.open(f"http://127.0.0.1:{client.port}/")
        await page.run("document.getElementById('input').value = '{\"extra\": {\"fail\": true}}'")
        await page.run("document.querySelector('#start button').click()")
        await page.until("document.getElementById('status').textContent === 'over'")
        assert await page.run("document.querySelector('#answers h3').textContent") == "talk, failed"
        assert f"the kettle is {HOSTILE}" in await page.run("document.getElementById('error').textContent")
        assert 'brewing tea {"cups":2}' in await page.run("document.getElementById('events').textContent")
        await page.run("document.getElementById('input').value = '{}'")
        await page.run("document.querySelector('#start button').click()")
        await page.until("document.getElementById('outcome').textContent === 'completed'")
        await page.until("JSON.parse(document.getElementById('state').textContent || '{}').extra?.done === 'yes'")
        assert await page.run("document.getElementById('error').hidden")
        assert page.faults == []


async def test_a_question_is_answered_and_a_run_cancelled(tmp_path: Path) -> None:
    async with serving(asking(durable(tmp_path))) as (_, client), Browser() as page:
        await page.open(f"http://127.0.0.1:{client.port}/")
        await page.run("document.querySelector('#start button').click()")
        await page.until("!document.getElementById('questions').hidden")
        await page.run("document.querySelector('#questions input').value = 'green'")
        await page.run("document.querySelector('#questions button').click()")
        await page.until("document.getElementById('outcome').textContent === 'completed'")
        assert "answered green" in await page.run("document.getElementById('events').textContent")
    talk = Gated()
    async with serving(talk.app) as (_, client), Browser() as page:
        await page.open(f"http://127.0.0.1:{client.port}/#{await client.start()}")
        await page.until("document.getElementById('events').childElementCount > 2")
        await page.run("document.getElementById('cancel').click()")
        await page.until("document.getElementById('outcome').textContent === 'cancelled'")
        assert page.faults == []


async def test_the_page_asks_for_a_token() -> None:
    talk = Gated()
    auth = bearer({"root token; ü": Principal("root", everything=True)})
    async with serving(talk.app, auth=auth, page=True) as (_, client), Browser() as page:
        assert (await client.ask("GET", "/page.js")).status == 200  # the page itself tells nothing
        await page.open(f"http://127.0.0.1:{client.port}/")
        await page.until("!document.getElementById('login').hidden")
        await page.run("document.getElementById('token').value = 'root token; ü'")
        await page.run("document.querySelector('#login button').click()")
        await page.until("document.getElementById('login').hidden")
        await page.run("document.querySelector('#start button').click()")
        await page.until("document.getElementById('events').childElementCount > 2")
        talk.say(None)
        await page.until("document.getElementById('status').textContent === 'over'")


@clause("10.valid", "8.kill", "8.sigterm")
async def test_the_page_shows_each_event_once_through_cuts_and_restarts() -> None:
    figures = await watch_with_cuts(8, 7, Serving)
    assert figures["problems"] == 0 and figures["restarts"] >= 1, figures


@clause("10.valid", "10.over")
async def test_plain_event_source_comes_back_and_stops_at_the_end() -> None:
    """The recipe of docs/web/browser.md, as it stands there."""
    talk = Gated()
    async with serving(talk.app, retry=0.05) as (_, client), Browser() as page:
        proxy = Proxy(client.port)
        await proxy.start()
        run_id = await client.start()
        await page.open(f"http://127.0.0.1:{proxy.port}/")
        code = RECIPE.read_text(encoding="utf-8")
        await page.run(f"{code}\nwindow.seen = []; window.done = false; watch({json.dumps(run_id)}, "
                       "(event) => window.seen.push(event.run_seq), () => { window.done = true; }); 0")  # fmt: skip
        for n in range(10):
            talk.say(str(n))
            await page.until(f"window.seen.length >= {3 + n}")
            proxy.cut()
        talk.say(None)
        await page.until("window.done")
        seen = await page.run("window.seen")
        assert seen == [*range(1, len(seen) + 1)]
        await proxy.stop()
