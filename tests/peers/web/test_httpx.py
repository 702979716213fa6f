"""The recipe of docs/web/clients.md with httpx itself; `make test` runs it with httpx2, which is in its environment."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support import clause
from tests.web.test_docs import gets_each_event_once


@clause("10.valid", "10.over")
async def test_the_httpx_client_gets_each_event_once(monkeypatch: Any) -> None:
    await gets_each_event_once(httpx, monkeypatch)
