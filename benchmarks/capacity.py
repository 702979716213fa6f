"""What a hub's capacity costs and saves: the table behind ``DEFAULT_CAPACITY``.

Contract L2: with default settings, one producer that emits 10,000 small events (at most 1 KiB encoded) without ever
awaiting loses nothing. A run's own stream and sinks are bounded by bytes only; this is about readers of the hub.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from benchmarks.measure import cpu_seconds, rounds, table
from weavegraph import EventHub, EventStream, node_message
from weavegraph.bus import DEFAULT_CAPACITY, DEFAULT_MAX_BYTES
from weavegraph.events import Event

__all__ = ["run"]

BURST = 10_000
CAPACITIES = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)


def run(quick: bool = False) -> str:
    """The table, as Markdown."""
    large = _large_event()
    speed = rounds(
        {str(capacity): lambda capacity=capacity: _publish(capacity, 2 * BURST) for capacity in CAPACITIES},
        3 if quick else 7,
    )
    rows = []
    for capacity in CAPACITIES:
        lost = _lost(capacity, large)
        tiny, _ = _memory(capacity, small=True)
        full, held = _memory(capacity, small=False)
        shown = f"**{capacity:,}**" if capacity == DEFAULT_CAPACITY else f"{capacity:,}"
        rows.append([shown, f"{lost:,}", f"{tiny:.1f}", f"{full:.1f}", f"{held:,}", speed[str(capacity)].text(_ns)])
    head = ["capacity", f"lost of {BURST:,}", "MiB, small", "MiB, 1 KiB", "held, 1 KiB", "publish ns"]
    return (
        f"### Capacity against a burst of {BURST:,} events without awaiting\n\n{table(head, rows)}\n\n"
        "Memory: the objects that a full hub holds; small events have no metadata, the others are 1 KiB as JSON. "
        f"Bytes decide beyond {DEFAULT_MAX_BYTES // 2**20} MiB of charges (`max_bytes`)."
    )


def _large_event() -> Event:
    event = _event(small=False)
    with EventHub() as hub:
        size = len(hub.emitter().emit(event).to_json())  # type: ignore[union-attr]
    if not 1000 <= size <= 1024:
        raise AssertionError(f"the event has {size} bytes; L2 speaks of at most 1,024")
    return event


def _event(number: int = 0, *, small: bool) -> Event:
    """An event with texts of its own: as small as they come, or just under 1 KiB as JSON."""
    if small:
        return node_message("bench", f"a small event {number}")
    return node_message("bench", f"{number:0>400}", text=f"{number:0>450}")


def _lost(capacity: int, event: Event) -> int:
    """Events that a reader of the hub loses when the producer does not await."""
    with EventHub(capacity) as hub, hub.subscribe() as stream:
        for _ in range(BURST):
            hub.publish(event)
        received, lost = _drain(stream)
        if received + lost != BURST or stream.stats().unaccounted:
            raise AssertionError(stream.stats())
    return lost


def _drain(stream: EventStream) -> tuple[int, int]:
    received = lost = 0
    while (event := stream.try_recv()) is not None:
        if event.seq:
            received += 1
        else:
            lost += event.metadata["count"]
    return received, lost


def _memory(capacity: int, *, small: bool) -> tuple[float, int]:
    """MiB that a full hub takes, and how many events it then holds. Every event has texts of its own."""
    with EventHub(capacity) as hub:
        for number in range(capacity + 10):
            hub.publish(_event(number, small=small))
        held: list[Event] = []
        with hub.subscribe(after=0, on_lag="skip") as stream:
            while (event := stream.try_recv()) is not None:
                held.append(event)
        seen: set[int] = set()
        size = len(hub._ring.slots) * 8 + sum(_size(event, seen) for event in held)
    return size / 2**20, len(held)


def _size(value: Any, seen: set[int]) -> int:
    """Bytes of ``value`` and of what only events hold; what several share is counted once."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, msgspec.Struct):
        size += sum(_size(getattr(value, field), seen) for field in value.__struct_fields__)
    elif isinstance(value, Mapping):
        size += sum(_size(key, seen) + _size(item, seen) for key, item in value.items())
    return size


def _publish(capacity: int, events: int) -> float:
    event = _event(small=True)
    with EventHub(capacity) as hub, hub.subscribe():
        publish = hub.publish
        before = cpu_seconds()
        for _ in range(events):
            publish(event)
        return (cpu_seconds() - before) / events


def _ns(value: float) -> str:
    return f"{value * 1e9:,.0f}"
