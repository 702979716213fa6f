"""The kit for logs, over Redis: Valkey, and the distribution's Redis where it is installed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.conformance.servers import RedisServer, binaries, running
from tests.support import clause
from weavegraph.log.redis_streams import RedisLog
from weavegraph.protocols import EventLog
from weavegraph.testing import CompactingLogKit, DurableLogKit

pytestmark = clause("D2", "D6", "10.none", "10.valid", "10.trimmed", "10.malformed", "X2", "X3")
_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=sorted({"valkey", *binaries()}))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running(request.param) as server:
        yield server


class TestRedisLog(CompactingLogKit, DurableLogKit):
    @pytest.fixture(autouse=True)
    def _place(self, server: RedisServer) -> None:
        self.url = f"{server.url}?prefix=test-{next(_numbers)}"

    async def make(self) -> EventLog:
        return RedisLog.from_url(self.url)
