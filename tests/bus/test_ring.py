"""The ring by itself: positions, bytes, pins; what a signal handler does to it in mid-change."""

from __future__ import annotations

from weavegraph import node_message
from weavegraph.bus._ring import MAX_SLICE_BYTES, Ring
from weavegraph.events import FLAT_BYTES, Event


def held(ring: Ring) -> list[str]:
    found = ring.read(ring.oldest(), ring.head)
    return [event.message for event in found or ()]


def store(ring: Ring, count: int = 1, extra: int = 0) -> None:
    for _ in range(count):
        seq = ring.head + 1
        ring.slots[seq % ring.size] = node_message("a", str(seq))
        ring.head = seq
        if extra:
            ring.weigh(seq, extra)


def test_it_holds_the_newest_and_reads_across_its_seam() -> None:
    ring = Ring(4)
    store(ring, 6)
    assert (ring.oldest(), held(ring)) == (2, ["3", "4", "5", "6"])
    assert ring.read(1, 6) is None  # overwritten
    ring.trim(1, pin=True)  # long gone
    ring.trim(4, pin=True)
    assert (ring.oldest(), held(ring), ring.lost_after(0), ring.lost_after(4)) == (4, ["5", "6"], 4, 0)
    assert ring.bytes == 2 * FLAT_BYTES


def test_readers_at_one_position_share_one_slice() -> None:
    ring = Ring(8)
    store(ring, 5)
    first = ring.read(0, 5)
    assert ring.read(0, 5) is first
    assert [event.message for event in ring.read(0, 5, most=2) or ()] == ["1", "2"]
    store(ring)
    assert len(ring.read(0, 6) or ()) == 6


def test_a_slice_is_bounded_in_bytes_and_holds_at_least_one_event() -> None:
    ring = Ring(8)
    store(ring, 3, extra=MAX_SLICE_BYTES // 2)
    store(ring, 1, extra=2 * MAX_SLICE_BYTES)
    assert [event.message for event in ring.read(0, 4) or ()] == ["1"]
    assert [event.message for event in ring.read(3, 4) or ()] == ["4"]
    store(ring, 1)
    assert [event.message for event in ring.read(4, 5) or ()] == ["5"]


def test_weights_noted_out_of_order_by_a_nested_emit_are_given_back_in_order() -> None:
    ring = Ring(8)
    store(ring, 2)
    ring.weigh(2, 700)  # the signal handler's event, weighed before the one it interrupted
    ring.weigh(1, 500)
    assert ring.bytes == 2 * FLAT_BYTES + 1200
    ring.trim(1, pin=False)
    assert ring.bytes == FLAT_BYTES + 700
    ring.trim(2, pin=False)
    assert ring.bytes == 0


def test_what_must_go_for_a_heavy_event_follows_from_the_weights() -> None:
    ring = Ring(8)
    store(ring, 2)
    store(ring, 1, extra=5000)
    store(ring, 2)
    assert ring.excess(6, 0, 100_000) == 0
    assert ring.excess(6, 0, 6 * FLAT_BYTES) == 3  # the two before the heavy one do not suffice
    assert ring.excess(6, 10**9, 6 * FLAT_BYTES) == 5  # never more than all


def test_a_trim_leaves_what_was_published_meanwhile_into_the_same_slot() -> None:
    class Busy(Ring):
        """A signal handler publishes while the old events are given up."""

        def _pin(self, seq: int, event: Event, kind: str) -> None:
            super()._pin(seq, event, kind)
            store(self)

    ring = Busy(2)
    ring.slots[1] = node_message("weavegraph.node.failed", "1")
    ring.head = 1
    store(ring)
    ring.trim(1, pin=True)
    assert (ring.head, held(ring)) == (3, ["2", "3"])
    pinned = ring.pinned_after(0)
    assert pinned is not None and pinned[1].message == "1"
    assert ring.pinned_after(1) is None


def test_a_resize_that_is_interrupted_by_an_emit_copies_again() -> None:
    class Interrupted(list[Event | None]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
            if ring.head == 3:
                store(ring)
            return super().__getitem__(index)

    ring = Ring(4)
    ring.slots = Interrupted(ring.slots)
    store(ring, 3)
    ring.resize(8)
    assert (ring.size, ring.head, held(ring)) == (8, 4, ["1", "2", "3", "4"])


def test_what_was_overwritten_stays_gone_after_growing() -> None:
    ring = Ring(2)
    store(ring, 5)
    ring.resize(8)
    assert (ring.oldest(), held(ring)) == (3, ["4", "5"])
    store(ring, 4)
    assert held(ring) == ["4", "5", "6", "7", "8", "9"]


def test_the_last_end_and_the_newest_sixteen_errors_stay() -> None:
    ring = Ring(64)
    for seq in range(1, 41):
        scope = "weavegraph.stream.end" if seq in (1, 40) else "weavegraph.node.failed"
        ring.slots[seq % ring.size] = node_message(scope, str(seq))
        ring.head = seq
    ring.trim(40, pin=True)
    found, position = [], 0
    while (pin := ring.pinned_after(position)) is not None:
        position = pin[0]
        found.append(position)
    assert found == [*range(24, 40), 40]
    assert ring.lost_after(0) == 40 - 17
