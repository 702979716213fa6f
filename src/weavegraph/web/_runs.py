"""Runs that were started through the web: their owners, their handles, and what happens when nobody watches them.

Who started a run is one of its tags, so it is in the run's first event and outlives the process with a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from typing import Any, NamedTuple

import msgspec

from weavegraph.errors import (
    NotCaughtUpError,
    RequestInvalidError,
    RunElsewhereError,
    RunNotFoundError,
    ServerClosingError,
    SessionNotFoundError,
    WeavegraphError,
)
from weavegraph.events import Event
from weavegraph.protocols import LoggedRun
from weavegraph.runtime import App, InvocationHandle
from weavegraph.state import OpenQuestion
from weavegraph.web._config import WebConfig, check_policy
from weavegraph.web._context import RequestContext, current_request
from weavegraph.web._gate import ANYBODY, Principal
from weavegraph.web._hub import StreamHub
from weavegraph.web._source import durable_log

__all__ = ["ResumeRequest", "RunInfo", "Runs", "StartRequest"]

KEPT = 1000
"""Runs that are over and still known by their handles; owners of ten times as many are remembered."""
_OWNER = "owner:"
STARTED = "weavegraph.run.started"


class StartRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /runs``."""

    input: Any = None
    session_id: str | None = None
    run_id: str | None = None
    timeout: float | None = None
    tags: tuple[str, ...] = ()
    on_disconnect: str | float | None = None


class ResumeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``resume`` and ``answer``; ``answer``: of several open questions, a mapping from their ids."""

    answer: Any = None
    timeout: float | None = None
    tags: tuple[str, ...] = ()
    on_disconnect: str | float | None = None


class RunInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run as the routes tell it. ``events``: where its stream is; ``last_id``: the id of its last event."""

    run_id: str
    session_id: str
    status: str
    attempt: int
    events: str = ""
    last_id: str | None = None
    started_at: str | None = None
    questions: tuple[Any, ...] = ()
    error: str | None = None
    state: Any = None


class _First(NamedTuple):
    """What a run's first event tells. ``owner`` is ``None`` for a run that nobody owns."""

    session_id: str
    owner: str | None
    graph: str


class _Known:
    """A run of this process. ``viewers`` and ``timer``: for the policy ``grace`` when the last viewer left."""

    __slots__ = ("grace", "handle", "timer", "viewers", "waiting")

    def __init__(self, handle: InvocationHandle[Any], grace: float | None, waiting: asyncio.Task[Any]) -> None:
        self.handle, self.grace, self.waiting = handle, grace, waiting
        self.viewers = 0
        self.timer: asyncio.TimerHandle | None = None


class Runs:
    """Starts, finds and stops runs for the routes. Of one event loop."""

    def __init__(self, app: App[Any], config: WebConfig, hub: StreamHub) -> None:
        self._app, self._config, self._hub = app, config, hub
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._firsts: OrderedDict[str, _First] = OrderedDict()
        self._sessions: OrderedDict[str, str | None] = OrderedDict()  # owners
        hub.on_viewers = self._viewers_changed

    # ── starting ──────────────────────────────────────────────────────────────────────────────────

    async def start(self, wanted: StartRequest, request: RequestContext) -> RunInfo:
        """Start a run; it is in the log, where there is one, when this returns."""
        if wanted.session_id is not None:
            await self._check_session(wanted.session_id, request.principal, unknown=True)
        grace = self._grace(wanted.on_disconnect)
        with self._context(request) as deps:
            handle = self._app.start(
                wanted.input, session_id=wanted.session_id, run_id=wanted.run_id, deps=deps,
                timeout=wanted.timeout, tags=self._tags(wanted.tags, request.principal),
            )  # fmt: skip
        return await self._enter(handle, grace, request.principal)

    async def resume(self, session_id: str, wanted: ResumeRequest, request: RequestContext) -> RunInfo:
        """The next attempt of a session's run."""
        await self._check_session(session_id, request.principal)
        grace = self._grace(wanted.on_disconnect)
        with self._context(request) as deps:
            handle = await self._app.resume_async(
                session_id, wanted.answer, deps=deps, timeout=wanted.timeout,
                tags=self._tags(wanted.tags, request.principal),
            )  # fmt: skip
        return await self._enter(handle, grace, request.principal)

    async def resume_cut(self) -> list[str]:
        """Go on with every run of the log that was stopped or died with its server; returns their ids.

        Their next attempts are in the log when this returns. Only for the one server of a log: a run that another
        process drives is taken from it.
        """
        found: list[str] = []
        log = durable_log(self._app)
        if log is None or self._app.checkpointer is None:
            return found
        for run in await log.runs(limit=1000):
            with contextlib.suppress(WeavegraphError):
                if await self._was_cut(run):
                    owner = (await self._first(run.run_id)).owner
                    tags = () if owner is None else (_OWNER + owner,)
                    handle = await self._app.resume_async(run.session_id, tags=tags)
                    self._adopt(handle, self._grace(None), owner)
                    await self._logged(run.run_id, run.last_position + 1)
                    found.append(run.run_id)
        return found

    async def _was_cut(self, run: LoggedRun) -> bool:
        if run.outcome in (None, "interrupted"):
            return True
        if run.outcome != "cancelled":
            return False
        last = await self._last(run.run_id, run.last_position)
        return last is not None and last.metadata.get("code") == "app_closed"

    async def _logged(self, run_id: str, position: int) -> None:
        """Wait until the log holds a run of this process up to a position, or the run gave up.

        Raises:
            NotCaughtUpError: the log takes nothing; the run goes on.
        """
        log, known = durable_log(self._app), self._known[run_id]
        until = time.monotonic() + self._config.catch_up
        while log is not None and known.handle.status == "running" and await log.last_position(run_id) < position:
            if time.monotonic() > until:
                raise NotCaughtUpError(self._config.catch_up)
            await asyncio.sleep(0.002)

    async def _enter(self, handle: InvocationHandle[Any], grace: float | None, who: Principal) -> RunInfo:
        run_id = handle.run_id
        self._adopt(handle, grace, None if who == ANYBODY else who.name)
        await self._logged(run_id, 1)  # what is told here holds for every other server of this log
        return await self.info(run_id)

    def _adopt(self, handle: InvocationHandle[Any], grace: float | None, owner: str | None) -> None:
        run_id = handle.run_id
        before = self._known.pop(run_id, None)
        waiting = asyncio.get_running_loop().create_task(_outcome(handle))
        known = self._known[run_id] = _Known(handle, grace, waiting)
        if before is not None:
            known.viewers = before.viewers
            if before.timer is not None:
                before.timer.cancel()
        self._sessions[handle.session_id] = owner
        self._firsts.setdefault(run_id, _First(handle.session_id, owner, self._app.graph.name))
        self._forget_old()

    @contextlib.contextmanager
    def _context(self, request: RequestContext) -> Any:
        """Run tasks copy the context of whoever starts them: nodes find the request in it."""
        if self._hub.closing:
            raise ServerClosingError
        token = current_request.set(request)
        try:
            yield None if self._config.deps is None else self._config.deps(request)
        finally:
            current_request.reset(token)

    def _grace(self, policy: str | float | None) -> float | None:
        return check_policy(self._config.on_disconnect if policy is None else policy)

    def _tags(self, tags: tuple[str, ...], who: Principal) -> tuple[str, ...]:
        if len(tags) > 32 or any(len(tag) > 128 for tag in tags):
            raise RequestInvalidError("at most 32 tags of 128 characters")
        if any(tag.startswith(_OWNER) for tag in tags):
            raise RequestInvalidError(f"tags that begin with {_OWNER!r} are the server's own")
        return tags if who == ANYBODY else (*tags, _OWNER + who.name)

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    async def check(self, run_id: str, who: Principal) -> None:
        """Raises ``RunNotFoundError`` for a run that is not there, and for somebody else's: nobody learns which."""
        first = await self._first(run_id)
        if not who.everything and first.owner != who.name:
            raise RunNotFoundError(run_id)

    async def check_session(self, session_id: str, who: Principal) -> None:
        await self._check_session(session_id, who, unknown=who.everything)

    async def _check_session(self, session_id: str, who: Principal, *, unknown: bool = False) -> None:
        if who.everything:
            return
        if session_id in self._sessions:
            owner = self._sessions[session_id]
        else:
            saver = self._app.checkpointer
            latest = None if saver is None else await saver.latest(session_id)
            if latest is None:
                if unknown:
                    return
                raise SessionNotFoundError(session_id)
            owner = (await self._first(latest.run_id)).owner
        if owner != who.name:
            raise SessionNotFoundError(session_id)

    async def info(self, run_id: str) -> RunInfo:
        """A run as it stands. RunNotFoundError."""
        source = self._hub.source(run_id)
        known = self._known.get(run_id)
        first = await self._first(run_id)
        head = await source.head()
        status, attempt, error = "running", 1, None
        questions: tuple[OpenQuestion, ...] = ()
        if known is not None:
            handle = known.handle
            status, attempt = handle.status, handle.attempt
            questions = handle.questions if status == "paused" else ()
        else:
            last = await self._last(run_id, head)
            if last is not None:
                attempt = last.attempt or 1
                status = str(last.metadata.get("outcome", "running"))
                error = last.metadata.get("error")
                if status == "paused":
                    questions = await self._questions(first.session_id, run_id)
        return RunInfo(
            run_id, first.session_id, status, attempt,
            last_id=source.ids.of(head), error=error,
            questions=tuple(_plain(question) for question in questions),
            state=self._state(known),
        )  # fmt: skip

    async def list(self, who: Principal, limit: int, before: str | None) -> tuple[list[RunInfo], str | None]:
        """Runs, the newest first, and where the next page begins."""
        log = durable_log(self._app)
        found: list[RunInfo] = []
        if log is None:
            live = [run.run_id for run in self._app.runs() if run.run_id not in self._known]
            ids = [*reversed(live), *reversed(self._known)]
            ids = ids[ids.index(before) + 1 :] if before in ids else ids
            for run_id in ids:
                if len(found) == limit:
                    return found, found[-1].run_id
                with contextlib.suppress(RunNotFoundError):
                    await self.check(run_id, who)
                    found.append(await self.info(run_id))
            return found, None
        while True:
            page = await log.runs(limit=limit, before=before)
            for run in page:
                before = run.run_id
                with contextlib.suppress(RunNotFoundError):
                    await self.check(run.run_id, who)
                    found.append(
                        RunInfo(
                            run.run_id,
                            run.session_id,
                            run.outcome or "running",
                            run.attempt,
                            last_id=self._hub.source(run.run_id).ids.of(run.last_position),
                            started_at=run.started_at.isoformat(),
                        )
                    )
                if len(found) == limit:
                    return found, before
            if len(page) < limit:
                return found, None

    async def session_of(self, run_id: str) -> str:
        return (await self._first(run_id)).session_id

    async def _first(self, run_id: str) -> _First:
        """What the run's first event says; a run whose first event is gone is owned by nobody."""
        found = self._firsts.get(run_id)
        if found is None:
            source = self._hub.source(run_id)
            await source.head()
            reader = source.open(0)
            try:
                async with asyncio.timeout(5.0):
                    event = next((each for each in await reader.batch() if each.run_id is not None), None)
            finally:
                await reader.aclose()
            found = _told_by(event)
            self._firsts[run_id] = found
            self._forget_old()
        return found

    async def _last(self, run_id: str, head: int) -> Event | None:
        """The run's last event, if it is the end of an attempt."""
        reader = self._hub.source(run_id).open(head - 1)
        try:
            async with asyncio.timeout(5.0):
                event = (await reader.batch())[-1]
        finally:
            await reader.aclose()
        return event if "outcome" in event.metadata and event.scope == "weavegraph.stream.end" else None

    async def _questions(self, session_id: str, run_id: str) -> tuple[OpenQuestion, ...]:
        saver = self._app.checkpointer
        latest = None if saver is None else await saver.latest(session_id)
        return latest.questions if latest is not None and latest.run_id == run_id else ()

    def _state(self, known: _Known | None) -> Any:
        if known is None or not self._config.expose_state or known.handle.status == "running":
            return None
        return _plain(known.handle.state)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────

    def cancel(self, run_id: str, reason: str = "cancelled") -> None:
        """Ask the run to stop, whoever of this process started it.

        Raises:
            RunElsewhereError: it is over, or this process does not drive it.
        """
        try:
            self._app.run(run_id).cancel(reason)
        except RunNotFoundError:
            raise RunElsewhereError(run_id) from None

    def _viewers_changed(self, run_id: str, change: int) -> None:
        known = self._known.get(run_id)
        if known is None:
            return
        known.viewers += change
        if known.timer is not None:
            known.timer.cancel()
            known.timer = None
        if not known.viewers and known.grace is not None and known.handle.status == "running":
            loop = asyncio.get_running_loop()
            known.timer = loop.call_later(known.grace, known.handle.cancel, "no_viewers")

    def _forget_old(self) -> None:
        over = [run_id for run_id, known in self._known.items() if known.waiting.done()]
        for run_id in over[: max(0, len(over) - KEPT)]:
            del self._known[run_id]
        for remembered in (self._firsts, self._sessions):
            while len(remembered) > 10 * KEPT:
                remembered.popitem(last=False)


async def _outcome(handle: InvocationHandle[Any]) -> None:
    """Ask for the result, as somebody must; it is told by the run's events."""
    with contextlib.suppress(Exception):
        await handle.join()


def _told_by(event: Event | None) -> _First:
    if event is None:
        return _First("", None, "")
    tags = event.metadata.get("tags", ()) if event.scope == STARTED else ()
    owner = next((tag.removeprefix(_OWNER) for tag in tags if tag.startswith(_OWNER)), None)
    return _First(event.session_id or "", owner, event.message)


def _plain(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value, str_keys=True)
    except (TypeError, ValueError):
        return repr(value)[:200]
