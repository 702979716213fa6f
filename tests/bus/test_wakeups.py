"""Waking readers that are parked, while others leave."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from weavegraph import EventHub
from weavegraph.bus._wakeups import LoopGroup, _wake


@pytest.mark.parametrize("way", ["notify", "flush"])
async def test_a_receive_that_is_collected_meanwhile_keeps_nobody_from_being_woken(way: str) -> None:
    """The collector may run in another thread, and there take a receive out of those that are being woken."""
    group = LoopGroup(asyncio.get_running_loop())
    woken: list[str] = []

    class Parked:
        def __init__(self, name: str) -> None:
            self.name = name

        def done(self) -> bool:
            return False

        def set_result(self, _: None) -> None:
            woken.append(self.name)
            held.pop("b", None)
            held["d"] = Parked("d")

    held: dict[Any, Any] = {name: Parked(name) for name in "abc"}
    group.parked = held
    assert group.notify() if way == "notify" else group._flush() is None
    assert woken == ["a", "b", "c"]
    assert group.parked == {}


class Leaver:
    """Garbage whose collection changes a dictionary, as that of a receive or of a stream does."""

    def __init__(self, held: dict[Any, Any], late: Any) -> None:
        self.held, self.late = held, late
        self.me = self  # only the collector finds it

    def __del__(self) -> None:
        for key in list(self.held)[:2]:
            del self.held[key]
        self.held["late"] = self.late


@pytest.mark.parametrize("which", ["loops", "threads", "readers", "heeded", "producers"])
def test_a_collection_in_the_midst_of_a_copy_spoils_it_not(which: str) -> None:
    """Python 3.11 collects wherever something is allocated, and so while a tuple of a dictionary is being made."""
    spoilt = []
    for more in range(-3, 12):  # the collection comes at each allocation of the copy once
        hub = EventHub()
        group = LoopGroup(asyncio.new_event_loop())
        held: dict[Any, Any]
        if which == "loops":
            held = {n: group.loop.create_future() for n in range(9)}
        elif which == "producers":
            held = hub._producers
            held |= {group.loop.create_future(): group.loop for _ in range(9)}
        elif which == "threads":
            held = hub._wakeups._threads
            for n in range(9):
                hub._wakeups.park_thread(n)
        else:
            held = hub._streams if which == "readers" else hub._heed
            held |= {n: lambda: None for n in range(9)}
        gc.collect()
        gc.disable()
        old = gc.get_threshold()
        Leaver(held, next(iter(held.values())))
        gc.set_threshold(max(1, gc.get_count()[0] + more))
        gc.enable()
        try:
            if which == "loops":
                _wake(held)
            elif which == "producers":
                hub._room_freed()
            elif which == "threads":
                hub._wakeups.notify()
            elif which == "readers":
                hub._living()
            else:
                hub._heeded()
        except RuntimeError as exc:
            spoilt.append((more, str(exc)))
        finally:
            gc.set_threshold(*old)
            gc.enable()
            held.clear()
            group.loop.close()
    assert spoilt == []
