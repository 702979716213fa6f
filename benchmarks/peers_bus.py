"""Other ways to give every event to every reader, beside the hub: the same events, in turns, in one process.

A reader of the hub may also be late, slow, dead or in a thread, and is told what it lost; a queue each has no
positions, no bound, no accounts. The table compares what they cost when nothing of that happens.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import warnings
from functools import partial
from importlib.metadata import version
from typing import Any

from benchmarks.measure import Curve, Table, cpu_seconds, rounds
from weavegraph import EndOfStream, EventHub, node_message

__all__ = ["run"]

FILES = (
    "asyncio_queues", "reactivex_", "aiologic_", "broadcaster_", "culsans_", "anyio_", "janus_", "bubus_",
)  # fmt: skip
EVENT = node_message("bench", "a small event")


class Watch:
    def start(self) -> None:
        self.began = cpu_seconds()

    def stop(self) -> None:
        self.spent = cpu_seconds() - self.began


class Iterating:
    NAME, PACKAGE = "weavegraph, `async for`", "weavegraph"

    @staticmethod
    async def read(stream: Any) -> int:
        count = 0
        async for _ in stream:
            count += 1
        return count

    @classmethod
    async def fan_out(cls, readers: int, events: int, burst: int, watch: Watch) -> list[int]:
        hub = EventHub()
        tasks = [asyncio.ensure_future(cls.read(hub.subscribe())) for _ in range(readers)]
        await asyncio.sleep(0)
        publish = hub.publish
        watch.start()
        for number in range(1, events + 1):
            publish(EVENT)
            if number % burst == 0:
                await asyncio.sleep(0)
        hub.close()
        got = await asyncio.gather(*tasks)
        watch.stop()
        return got


class Batches(Iterating):
    NAME = "weavegraph, `recv_many`"

    @staticmethod
    async def read(stream: Any) -> int:
        count = 0
        try:
            while True:
                count += len(await stream.recv_many())
        except EndOfStream:
            return count


def run(quick: bool = False) -> list[Table]:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    contenders = [Iterating, Batches, *(importlib.import_module(f"benchmarks.peers.{name}") for name in FILES)]
    result = [fan_out(contenders, burst, quick) for burst in (64, 1)]
    versions = {c.PACKAGE: version(c.PACKAGE) for c in contenders if c.PACKAGE}
    result[0].notes.append(f"Versions: {', '.join(f'{name} {text}' for name, text in versions.items())}.")
    return result


def fan_out(contenders: list[Any], burst: int, quick: bool) -> Table:
    wanted = (20_000 if quick else 64_000) if burst > 1 else (8_000 if quick else 24_000)
    # So many that the beginning and the end of a thousand readers do not show; the slower ones need none of that.
    least = (4 if quick else 30) * burst if burst > 1 else (40 if quick else 200)
    count, sizes = 3, (1, 8, 64, 1000)
    result = Table(
        f"Every event to every reader, bursts of {burst}, deliveries per CPU second, {count} rounds",
        ["contender", *(f"N = {size:,}" for size in sizes), "× asyncio.Queue, N = 64"],
        notes=["reactivex calls its observers on the producer's stack; there is no reader with a pace of its own."],
    )
    found: dict[int, Any] = {}
    for size in sizes:
        calls = {}
        for peer in contenders:
            deliveries = min(wanted, getattr(peer, "MOST", wanted) // (4 if quick else 1))
            whole = min(burst, 16) if hasattr(peer, "MOST") else burst
            events = max(whole, deliveries // size // whole * whole)
            if peer in (Iterating, Batches) or not peer.PACKAGE:
                events = max(least, events)
            if peer.PACKAGE != "bubus" or size < 1000:
                calls[peer.NAME] = partial(once, peer, size, events, burst)
        found[size] = rounds(calls, count)
    for peer in contenders:
        cells = [found[size][peer.NAME].text(_rate) if peer.NAME in found[size] else "not run" for size in sizes]
        ratio = found[64][peer.NAME].over(found[64]["asyncio.Queue each"])
        result.add(peer.NAME, *cells, f"{ratio:.2g}" if ratio < 1 else f"{ratio:.1f}")
    result.curve = Curve(
        f"peers-bus-{burst}", "readers", "deliveries per CPU second",
        {peer.NAME.replace("`", ""): [(n, found[n][peer.NAME].median) for n in sizes if peer.NAME in found[n]]
         for peer in contenders},
    )  # fmt: skip
    return result


def once(peer: Any, readers: int, events: int, burst: int) -> float:
    watch = Watch()
    got = asyncio.run(peer.fan_out(readers, events, burst, watch))
    assert list(got) == [events] * readers, (peer.NAME, events, min(got), max(got))
    return readers * events / watch.spent


def _rate(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.3g} k"
