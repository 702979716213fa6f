"""Waking readers that are parked, while others leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from weavegraph.bus._wakeups import LoopGroup


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
