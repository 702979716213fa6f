"""Ctrl-C and SIGTERM: the first asks to stop, the second ends the process at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable

__all__ = ["Signals", "until_told"]


class Signals:
    """While the block runs, the first signal calls ``ask(name)`` in the loop; ``exit_code`` says how to end then.

    Handlers of the signal module, not of the loop: they work while a node keeps the loop from turning.
    """

    def __init__(self, ask: Callable[[str], object]) -> None:
        self._ask, self._loop = ask, asyncio.get_running_loop()
        self.exit_code: int | None = None

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.exit_code is not None:
            os._exit(128 + number)
        self.exit_code = 128 + number
        name = "interrupted" if number == signal.SIGINT else "terminated"
        with contextlib.suppress(RuntimeError):  # the loop is closed: it is over anyway
            self._loop.call_soon_threadsafe(self._ask, name)


def until_told(work: Callable[[], Awaitable[int]]) -> int:
    """Run ``work`` in a loop of its own; a signal cancels it. Returns its exit code, or that of the signal."""

    async def main() -> int:
        task = asyncio.ensure_future(work())
        with Signals(lambda name: task.cancel()) as signals:
            try:
                return await task
            except asyncio.CancelledError:
                if signals.exit_code is None:
                    raise
                return signals.exit_code

    return asyncio.run(main())
