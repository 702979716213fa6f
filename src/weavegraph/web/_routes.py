"""What each address does. Bodies and queries are decoded strictly; what is unknown is refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Message

from weavegraph.errors import EventInvalidError, NotAllowedError, RequestInvalidError, RunNotFoundError, SessionError
from weavegraph.events import EventFilter, check_id
from weavegraph.web._context import RequestContext
from weavegraph.web._feed import Form
from weavegraph.web._gate import Principal
from weavegraph.web._ids import MAX_CHARS
from weavegraph.web._runs import ResumeRequest, RunInfo, StartRequest
from weavegraph.web._schema import asyncapi, openapi, typescript
from weavegraph.web._sse import EventResponse
from weavegraph.web._ws import event_socket

if TYPE_CHECKING:
    from weavegraph.web._app import WebApp

__all__ = ["Routes"]

T = TypeVar("T")
BODY_TIMEOUT = 10.0
PAGE = 50
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_PAGE_FILES = {"": "text/html", "page.js": "text/javascript", "style.css": "text/css"}


class Routes:
    """The endpoints of a web app."""

    def __init__(self, web: WebApp) -> None:
        self._web = web

    def table(self) -> list[BaseRoute]:
        """Addresses, each with its endpoint and method."""
        found: list[BaseRoute] = [
            Route("/runs", self.start, methods=["POST"]),
            Route("/runs", self.list),
            Route("/runs/{run_id}", self.get),
            Route("/runs/{run_id}/cancel", self.cancel, methods=["POST"]),
            Route("/runs/{run_id}/answer", self.answer, methods=["POST"]),
            Route("/runs/{run_id}/resume", self.resume, methods=["POST"]),
            Route("/sessions/{session_id}/resume", self.resume_session, methods=["POST"]),
            Route("/runs/{run_id}/events", self.run_events),
            Route("/sessions/{session_id}/events", self.session_events),
            Route("/events", self.all_events),
            WebSocketRoute("/runs/{run_id}/ws", self.run_socket),
            WebSocketRoute("/sessions/{session_id}/ws", self.session_socket),
            WebSocketRoute("/ws", self.all_socket),
            Route("/live", self.live),
            Route("/ready", self.ready),
            Route("/openapi.json", self.openapi),
            Route("/asyncapi.json", self.asyncapi),
            Route("/events.d.ts", self.typescript),
        ]
        if self._web.config.page:
            found += [Route(f"/{name}", self.page) for name in _PAGE_FILES]
            found += [Route("/favicon.ico", self.no_icon)]
        return found

    # ── runs ──────────────────────────────────────────────────────────────────────────────────────

    async def start(self, request: Request) -> Response:
        wanted = await _body(request, StartRequest, self._web.config.max_body_bytes)
        info = await self._web.runs.start(wanted, self._context(request))
        return self._told(request, info, 201)

    async def list(self, request: Request) -> Response:
        limit, before = request.query_params.get("limit", str(PAGE)), request.query_params.get("before")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= 500 and len(limit) < 4):
            raise RequestInvalidError("limit: give a number from 1 to 500")
        if before is not None:
            _id("before", before)
        found, more = await self._web.runs.list(_principal(request), int(limit), before)
        page = {"runs": [self._linked(request, info) for info in found], "next_before": more}
        return self._json(request, page)

    async def get(self, request: Request) -> Response:
        run_id = await self._run(request)
        return self._told(request, await self._web.runs.info(run_id), 200)

    async def cancel(self, request: Request) -> Response:
        run_id = await self._run(request)
        await _body(request, dict[str, Any], self._web.config.max_body_bytes, optional=True)
        self._web.runs.cancel(run_id)
        return self._told(request, await self._web.runs.info(run_id), 202)

    async def resume(self, request: Request) -> Response:
        run_id = await self._run(request)
        return await self._resume(request, await self._web.runs.session_of(run_id))

    async def answer(self, request: Request) -> Response:
        run_id = await self._run(request)
        if (await self._web.runs.info(run_id)).status != "paused":
            raise SessionError(f"run {run_id!r} has asked nothing")
        return await self._resume(request, await self._web.runs.session_of(run_id))

    async def resume_session(self, request: Request) -> Response:
        session_id = _id("session_id", request.path_params["session_id"])
        return await self._resume(request, session_id)

    async def _resume(self, request: Request, session_id: str) -> Response:
        wanted = await _body(request, ResumeRequest, self._web.config.max_body_bytes, optional=True)
        info = await self._web.runs.resume(session_id, wanted, self._context(request))
        return self._told(request, info, 202)

    # ── streams ───────────────────────────────────────────────────────────────────────────────────

    async def run_events(self, request: Request) -> EventResponse:
        return self._events(request, await self._run(request), _filter(request))

    async def session_events(self, request: Request) -> EventResponse:
        return self._events(request, None, await self._session_filter(request))

    async def all_events(self, request: Request) -> EventResponse:
        _needs_everything(request)
        return self._events(request, None, _filter(request))

    def _events(self, request: Request, run_id: str | None, wanted: EventFilter | None) -> EventResponse:
        web, form = self._web, _form(request)
        after = _after(request)

        def watch() -> Any:
            return web.hub.watch(
                run_id, after, form=form, wanted=wanted, principal=self._counted(request),
                recheck=web.recheck(request.scope),
            )  # fmt: skip

        return EventResponse(watch, form, web.config.retry, web.cors(request.scope))

    async def run_socket(self, socket: Any) -> None:
        await self._socket(socket, await self._run(socket), _filter(socket))

    async def session_socket(self, socket: Any) -> None:
        await self._socket(socket, None, await self._session_filter(socket))

    async def all_socket(self, socket: Any) -> None:
        _needs_everything(socket)
        await self._socket(socket, None, _filter(socket))

    async def _socket(self, socket: Any, run_id: str | None, wanted: EventFilter | None) -> None:
        web = self._web
        watching = web.hub.watch(
            run_id, _after(socket), form="ndjson", wanted=wanted, principal=self._counted(socket),
            recheck=web.recheck(socket.scope),
        )  # fmt: skip
        await event_socket(watching, socket)

    async def _session_filter(self, request: HTTPConnection) -> EventFilter:
        session_id = _id("session_id", request.path_params["session_id"])
        await self._web.runs.check_session(session_id, _principal(request))
        return _filter(request, session_id) or EventFilter(session_id=session_id)

    def _counted(self, request: HTTPConnection) -> str | None:
        return None if self._web.config.auth is None else _principal(request).name

    # ── health and descriptions ───────────────────────────────────────────────────────────────────

    async def live(self, request: Request) -> Response:
        return self._json(request, {"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether a start would be taken: not closing, and the log, where there is one, answers."""
        problem = "closing" if self._web.hub.closing or self._web.app.event_bus.closed else None
        log = self._web.app.log
        if problem is None and log is not None:
            try:
                async with asyncio.timeout(2.0):
                    await log.last_position("readiness")
            except Exception:
                problem = "log"
        return self._json(request, {"status": problem or "ok"}, 200 if problem is None else 503)

    async def openapi(self, request: Request) -> Response:
        return self._json(request, openapi(request.scope.get("root_path", "")))

    async def asyncapi(self, request: Request) -> Response:
        return self._json(request, asyncapi(request.scope.get("root_path", "")))

    async def typescript(self, request: Request) -> Response:
        return Response(typescript(), media_type="text/plain; charset=utf-8", headers=self._headers(request))

    async def page(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        text = files("weavegraph.web._page").joinpath(name or "index.html").read_bytes()
        return Response(text, media_type=_PAGE_FILES[name], headers=_PAGE_HEADERS)

    async def no_icon(self, request: Request) -> Response:
        """Browsers ask for one whatever a page says."""
        return Response(status_code=204, headers={"cache-control": "max-age=86400"})

    # ── shared ────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, request: HTTPConnection) -> str:
        """The run that the address names, if the caller may know of it."""
        run_id: str = request.path_params["run_id"]
        try:
            check_id("run_id", run_id)
        except EventInvalidError as exc:
            raise RunNotFoundError(run_id[:128]) from exc
        await self._web.runs.check(run_id, _principal(request))
        return run_id

    def _context(self, request: Request) -> RequestContext:
        return RequestContext(request, _principal(request))

    def _told(self, request: Request, info: RunInfo, status: int) -> Response:
        return self._json(request, self._linked(request, info), status)

    def _linked(self, request: Request, info: RunInfo) -> RunInfo:
        root = request.scope.get("root_path", "")
        return msgspec.structs.replace(info, events=f"{root}/runs/{info.run_id}/events?after=0")

    def _json(self, request: Request, value: Any, status: int = 200) -> Response:
        headers = {**self._headers(request), "content-type": "application/json"}
        return Response(msgspec.json.encode(value, enc_hook=repr), status, headers)

    def _headers(self, request: Request) -> dict[str, str]:
        cors = {name.decode(): value.decode() for name, value in self._web.cors(request.scope)}
        return {"cache-control": "no-store", "x-content-type-options": "nosniff", **cors}


def _principal(request: HTTPConnection) -> Principal:
    found: Principal = request.scope["weavegraph.principal"]
    return found


def _needs_everything(request: HTTPConnection) -> None:
    if not _principal(request).everything:
        raise NotAllowedError("watch all runs")


def _id(field: str, value: str) -> str:
    try:
        return check_id(field, value)
    except EventInvalidError as exc:
        raise RequestInvalidError(str(exc)) from exc


async def _body(request: Request, kind: type[T], limit: int, *, optional: bool = False) -> T:
    """The body as a value of a type: JSON, of limited size, in limited time."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise RequestInvalidError("send the body without an encoding", 415)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Also for no body at all: another site's page cannot send this type without asking first.
        raise RequestInvalidError("send Content-Type: application/json", 415)
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in _parts(request.receive):
                data += part
                if len(data) > limit:
                    raise RequestInvalidError(f"the body has more than {limit} bytes", 413)
    except TimeoutError:
        raise RequestInvalidError(f"the body did not come within {BODY_TIMEOUT:g} s", 408) from None
    if not data and optional:
        data += b"{}"
    try:
        return msgspec.json.decode(bytes(data), type=kind, strict=True)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise RequestInvalidError(f"the body: {exc}") from exc


async def _parts(receive: Callable[[], Awaitable[Message]]) -> Any:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestInvalidError("the client left")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _form(request: Request) -> Form:
    wanted = request.query_params.get("format")
    if wanted is None:
        wanted = "ndjson" if "application/x-ndjson" in request.headers.get("accept", "") else "sse"
    if wanted not in ("sse", "ndjson"):
        raise RequestInvalidError("format: choose sse or ndjson")
    return wanted  # type: ignore[return-value]


def _after(request: HTTPConnection) -> str | None:
    """The position: what a browser sends when it comes back counts more than the address it began with."""
    given = request.headers.getlist("last-event-id")
    if len(given) > 1:
        raise RequestInvalidError("more than one header Last-Event-ID")
    after = given[0] if given and given[0] else request.query_params.get("after")
    return after[: MAX_CHARS + 1] if after is not None else None


def _filter(request: HTTPConnection, session_id: str | None = None) -> EventFilter | None:
    """The filter of a query: ``kinds=node,llm``, ``scopes=a,b*``, ``path=outer,inner``."""
    query = request.query_params
    lists: dict[str, Any] = {}
    for name in ("kinds", "scopes", "path"):
        values = [part for given in query.getlist(name) for part in given.split(",") if part]
        if len(values) > 32 or any(len(value) > 256 for value in values):
            raise RequestInvalidError(f"{name}: at most 32 of 256 characters")
        if values:
            lists[name] = tuple(values)
    if "session_id" in query and session_id is None:
        session_id = _id("session_id", query["session_id"])
    if not lists and session_id is None:
        return None
    return EventFilter(session_id=session_id, **lists)
