"""A sink for a broker, outside of the package: the seam carries one (blueprint steps 14 and 24)."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support import clause
from weavegraph import Event, EventBus, from_json, node_message, to_json
from weavegraph.bus import RetryPolicy
from weavegraph.protocols import Delivery


class Broker:
    """A server double: appends under ids, refuses an id it has, and is down when told so."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.down = 0
        self.lost_answers = 0

    async def add(self, entry_id: str, body: bytes) -> None:
        if self.down:
            self.down -= 1
            raise ConnectionError("broker is down")
        self.entries.setdefault(entry_id, body)
        if self.lost_answers:
            self.lost_answers -= 1
            raise TimeoutError("the answer was lost")


class BrokerSink:
    name = "broker"
    delivery: Delivery = "at_least_once"

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def handle(self, batch: Sequence[Event]) -> None:
        for event in batch:
            await self.broker.add(f"{event.epoch}-{event.seq}", to_json(event))


@clause("S2", "S4")
async def test_a_broker_that_fails_and_loses_answers_gets_each_event_under_one_id() -> None:
    broker = Broker()
    broker.down, broker.lost_answers = 2, 1
    retry = RetryPolicy(tries=5, base=0.0, cap=0.0)
    async with EventBus([BrokerSink(broker)], sink_retry=retry) as bus:
        sent = [bus.emitter().emit(node_message("a", str(n))) for n in range(50)]
        assert (await bus.flush(timeout=30)).complete
        (stats,) = bus.metrics().sinks
    assert [from_json(body) for body in broker.entries.values()] == sent
    assert (stats.delivered, stats.dead_lettered, stats.unaccounted) == (50, 0, 0)
