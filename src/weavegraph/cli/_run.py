"""``weavegraph run``: a run, its events as they come, its final state; Ctrl-C and SIGTERM end it cleanly.

What is printed is read on a thread of its own: a terminal that stands still stops the printing and not the run. With a
log, an event is printed once the log holds it (contract D9), so that a position anybody has seen is never given to
another event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from weavegraph.cli._lines import Lines
from weavegraph.cli._load import EXAMPLE, where_raised
from weavegraph.cli._screen import Screen, data_of, plain, say
from weavegraph.cli._signals import Signals
from weavegraph.errors import CommandError, RunCancelledError, SessionNotFoundError, WeavegraphError
from weavegraph.events import STREAM_END_SCOPE, Event
from weavegraph.protocols import EventLog
from weavegraph.runtime import App, InvocationHandle
from weavegraph.state import ErrorRecord, ladder

__all__ = ["PAUSED", "PIPE_CLOSED", "run"]

PAUSED = 3
"""Exit code of a run that waits for an answer."""
PIPE_CLOSED = 141
"""Exit code when nobody reads the output any more: as if by SIGPIPE."""
PATIENCE = 5.0
"""Seconds that the log is given to take a run's last events after its end."""


def run(app: App[Any], given: Any, *, session: str | None, resume: bool, as_json: bool) -> int:
    """Run ``app``, printing; returns the exit code."""
    if not resume and given is not None and not isinstance(given, dict):
        raise CommandError(f"INPUT is a mapping of state keys: write it like {EXAMPLE}")
    if resume and session is None:
        raise CommandError("--resume needs --session ID: the session whose run goes on")
    return asyncio.run(_run(app, given, session, resume, as_json))


async def _run(app: App[Any], given: Any, session: str | None, resume: bool, as_json: bool) -> int:
    screen, failure = Screen.out(), None
    async with app:
        for keeper in (app.log, app.checkpointer):  # what cannot be opened is told before anything has run
            start = getattr(keeper, "start", None)
            if start is not None:
                await start()
        handle = _begin(app, given, session, resume)
        printer = _Printer(handle, app.log, screen, as_json, asyncio.get_running_loop())
        printer.start()
        with Signals(handle.cancel) as signals:
            try:
                await handle
            except asyncio.CancelledError:
                raise
            except BaseException as exc:
                failure = exc
            await printer.finish()
            if printer.broken:
                return PIPE_CLOSED
            _conclude(handle, failure, app, screen, as_json)
    if signals.exit_code is not None and handle.status == "cancelled":
        return signals.exit_code
    if printer.unkept:
        return 1
    return {"completed": 0, "paused": PAUSED}.get(handle.status, 1)


def _begin(app: App[Any], given: Any, session: str | None, resume: bool) -> InvocationHandle[Any]:
    if not resume:
        return app.start(given, session_id=session)
    assert session is not None
    if app.checkpointer is None:
        raise CommandError("--resume needs what keeps the session: --checkpointer URL, as when the run was started")
    try:
        return app.resume(session, given)
    except SessionNotFoundError as exc:
        raise CommandError(f"{exc}; --checkpointer URL says where sessions are kept") from exc


# ── printing ────────────────────────────────────────────────────────────────────────────────────────


class _Printer:
    """Prints a run's events on a thread with a loop of its own."""

    def __init__(
        self,
        run: InvocationHandle[Any],
        log: EventLog | None,
        screen: Screen,
        as_json: bool,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._run, self._log, self._screen, self._json, self._loop = run, log, screen, as_json, loop
        self._thread = threading.Thread(target=self._work, name="weavegraph-printer", daemon=True)
        self._ready: asyncio.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = loop.create_future()
        self._done = asyncio.Event()
        self._failure: BaseException | None = None
        self.broken = False
        """Nobody reads the output any more."""
        self.unkept = False
        """The log did not take all of the run."""

    def start(self) -> None:
        self._thread.start()

    async def finish(self) -> None:
        """The run is over: wait until all of it is printed, however slowly it is read."""
        loop, over = await self._ready
        with contextlib.suppress(RuntimeError):  # it has printed everything, and its loop is closed
            loop.call_soon_threadsafe(over.set)
        await self._done.wait()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            asyncio.run(self._show())
        except (BrokenPipeError, ConnectionResetError):
            self.broken = True
            self._tell(lambda: self._run.cancel("nobody reads its output"))
        except BaseException as exc:
            self._failure = exc
            self._tell(lambda: self._run.cancel("its output cannot be written"))
        finally:
            self._tell(self._done.set)

    def _tell(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    async def _show(self) -> None:
        over = asyncio.Event()
        ready = (asyncio.get_running_loop(), over)
        self._tell(lambda: self._ready.set_result(ready))
        screen = self._screen
        lines = Lines(width=screen.width, color=screen.color, unicode=screen.unicode)
        async for event in self._run.events(name="terminal") if self._log is None else self._held(self._log, over):
            if self._json:
                screen.json(event.to_json())
            else:
                screen.write(lines.feed(event))
        if not self._json:
            screen.write(lines.close())

    async def _held(self, log: EventLog, over: asyncio.Event) -> AsyncIterator[Event]:
        """The run's events, each once the log holds it; what an ailing log does not take comes when the run is over."""
        run, position, last_look = self._run, 0, False
        while not last_look:
            last_look = over.is_set()
            with contextlib.suppress(WeavegraphError):
                async for event in patient(log.follow(run.run_id, position), over):
                    position = event.run_seq or position
                    if (event.attempt or 1) != run.attempt:
                        continue  # of earlier attempts
                    yield event
                    if event.scope == STREAM_END_SCOPE:
                        return
            await asyncio.sleep(0.02)  # the end of an earlier attempt is the last that the log holds: ours is to come
        self.unkept = True
        say(f"the log does not hold what follows position {position}")
        async for event in run.events(after=position, name="terminal"):
            yield event


async def patient(events: AsyncIterator[Event], over: asyncio.Event) -> AsyncIterator[Event]:
    """``events``, until none has come for a while after it was ``over``."""
    ended = asyncio.ensure_future(over.wait())
    try:
        while True:
            coming: asyncio.Future[Event] = asyncio.ensure_future(anext(events))  # type: ignore[arg-type]
            await asyncio.sleep(0)  # lets it begin, and end if the event is there already
            if not coming.done():
                await asyncio.wait((coming, ended), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                await asyncio.wait((coming,), timeout=PATIENCE)
            if not coming.done():
                coming.cancel()
                await asyncio.wait((coming,))
                return
            try:
                yield coming.result()
            except StopAsyncIteration:
                return
    finally:
        ended.cancel()
        await events.aclose()  # type: ignore[attr-defined]


# ── its end ─────────────────────────────────────────────────────────────────────────────────────────


def _conclude(
    run: InvocationHandle[Any], error: BaseException | None, app: App[Any], screen: Screen, as_json: bool
) -> None:
    """The final state, and why it is not the one that was wished for."""
    state = data_of(run.state)
    if as_json:
        facts = {"type": "state", "run_id": run.run_id, "session_id": run.session_id, "outcome": run.status}
        screen.json(msgspec.json.encode({**facts, "state": state}))
    elif state is not None:
        screen.line()
        for line in json.dumps(state, indent=2, ensure_ascii=False).split("\n"):
            screen.line(plain(line))
    remembered = app.checkpointer is not None
    if run.status == "failed" and error is not None:
        errors = run.errors or (ErrorRecord.of(error, datetime.now(UTC), "runner"),)
        screen = Screen(sys.stderr)
        screen.line(("" if as_json else "\n") + ladder(errors, color=screen.color))
        if place := where_raised(error):
            screen.line(f"  raised in {plain(place)}")
        if remembered:
            say(f"go on from its last step: weavegraph run … --session {run.session_id} --resume")
    elif run.status == "cancelled" and isinstance(error, RunCancelledError):
        more = f"; go on: weavegraph run … --session {run.session_id} --resume" if remembered else ""
        say(f"the run was cancelled: {error.reason}{more}")
    elif run.status == "paused":
        for question in run.questions:
            say(f"{question.node} asks: {json.dumps(data_of(question.question), ensure_ascii=False)}")
        say(f"answer: weavegraph run … 'ANSWER AS JSON' --session {run.session_id} --resume")
