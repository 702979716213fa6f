"""The ASGI app: the gate, the routes, errors as JSON, and the lifespan that ends streams and drains the app."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from weavegraph.errors import (
    AppClosedError,
    CheckpointConflictError,
    ConfigError,
    EmitterError,
    HubClosedError,
    InvalidPositionError,
    LogUnavailableError,
    RunExistsError,
    RunNotFoundError,
    SessionBusyError,
    SessionError,
    SessionNotFoundError,
    StateError,
    TooManyRunsError,
    WeavegraphError,
    WebError,
)
from weavegraph.runtime import App
from weavegraph.web._config import WebConfig
from weavegraph.web._gate import Gate
from weavegraph.web._hub import StreamHub
from weavegraph.web._routes import Routes
from weavegraph.web._runs import Runs

__all__ = ["WebApp", "create_app", "router"]

_STATUS: tuple[tuple[type[WeavegraphError], int], ...] = (
    (RunNotFoundError, 404),
    (SessionNotFoundError, 404),
    (SessionBusyError, 409),
    (RunExistsError, 409),
    (CheckpointConflictError, 409),
    (SessionError, 409),
    (TooManyRunsError, 503),
    (AppClosedError, 503),
    (HubClosedError, 503),
    (LogUnavailableError, 503),
    (InvalidPositionError, 400),
    (StateError, 400),
    (ConfigError, 400),
    (EmitterError, 400),
)
_RETRY_AFTER = 1
_log = logging.getLogger("weavegraph.web")


class WebApp:
    """An ASGI app for one weavegraph ``App``; also to be mounted into another: ``Mount("/wg", web)`` with
    ``lifespan=web.lifespan``.

    *Without its lifespan* everything works, but nobody ends open streams when the server stops, or drains the app.
    *One event loop*: that of the server. ``end_streams`` may be called from any thread.
    """

    def __init__(self, app: App[Any], config: WebConfig) -> None:
        self.app, self.config = app, config
        self.hub = StreamHub(app, config)
        self.runs = Runs(app, config, self.hub)
        self._gate = Gate(config)
        routes = Routes(self)
        self._router = Router(routes.table(), redirect_slashes=False)
        self._loop: asyncio.AbstractEventLoop | None = None

    # ── its life ──────────────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def lifespan(self, parent: Any = None) -> AsyncIterator[None]:
        """Ends open streams on SIGTERM and SIGINT, before the server waits for them; closes the app at the end.

        In the main thread the server's own signal handlers are called after ours, and put back at the end.
        """
        self._loop = asyncio.get_running_loop()
        with self._hearing_signals():
            try:
                if self.config.resume:  # before anybody is served: who comes back finds the next attempt
                    for run_id in await self.runs.resume_cut():
                        _log.info("resumed run %r", run_id)
                yield
            finally:
                self.hub.end_streams()
                await self.app.aclose(grace=self.app.config.cancel_grace)

    def end_streams(self) -> None:
        """Tell every client that the server ends, and end its stream; admit nothing new. From any thread."""
        if self._loop is None:
            self.hub.end_streams()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: so are they
                self._loop.call_soon_threadsafe(self.hub.end_streams)

    @contextlib.contextmanager
    def _hearing_signals(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}

        def heard(signum: int, frame: FrameType | None) -> None:
            self.end_streams()
            handler = before.get(signum)
            if callable(handler):
                handler(signum, frame)

        for signum in (signal.SIGTERM, signal.SIGINT):
            if callable(handler := signal.getsignal(signum)):
                before[signum] = handler
                signal.signal(signum, heard)
        try:
            yield
        finally:
            for known, handler in before.items():
                if signal.getsignal(known) is heard:
                    signal.signal(known, handler)

    # ── requests ──────────────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Router(lifespan=self.lifespan)(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        # The router raises what is no route, instead of a text of its own, when it has an app.
        scope = {**scope, "app": self}
        try:
            scope["weavegraph.principal"] = await self._gate.enter(scope, _path(scope))
            if scope.get("method") == "OPTIONS":
                await send({"type": "http.response.start", "status": 204, "headers": self._gate.preflight(scope)})
                await send({"type": "http.response.body", "body": b""})
                return
            await self._router(scope, receive, sending if scope["type"] == "http" else send)
        except Exception as exc:
            if started or scope["type"] != "http":
                if scope["type"] == "websocket":
                    await _close_unaccepted(exc, send)
                    return
                raise
            status, code, text, retry_after = told(exc)
            headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *self._gate.cors(scope)]
            if retry_after is not None:
                headers.append((b"retry-after", str(retry_after).encode()))
            if status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            body = msgspec.json.encode({"error": {"code": code, "message": text}})
            headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The CORS headers of an answer to this request."""
        return self._gate.cors(scope)

    def recheck(self, scope: Scope) -> Callable[[], Any] | None:
        """What asks again whether the caller of an open stream is known; nothing where nobody is asked."""
        if self.config.auth is None:
            return None
        who = scope["weavegraph.principal"]
        return lambda: self._gate.still_welcome(scope, who)


def told(exc: Exception) -> tuple[int, str, str, int | None]:
    """Status, code, text and ``Retry-After`` for an exception. Faults of ours are told without their text."""
    if isinstance(exc, WebError):
        return exc.status, exc.code, str(exc), exc.retry_after
    if isinstance(exc, HTTPException):
        text = {404: "there is no such address here", 405: "that method does nothing here"}.get(exc.status_code, "")
        return exc.status_code, "request_invalid", text or exc.detail, None
    for kind, status in _STATUS:
        if isinstance(exc, kind):
            text = str(exc) if status < 500 or isinstance(exc, TooManyRunsError) else "ask again later"
            return status, exc.code, text, _RETRY_AFTER if status == 503 else None
    _log.error("a request failed", exc_info=exc)
    code = exc.code if isinstance(exc, WeavegraphError) else "internal"
    return 500, code, "the server's log tells more", None


async def _close_unaccepted(exc: Exception, send: Send) -> None:
    """A WebSocket that is closed before it was accepted is an HTTP 403 to its client."""
    _, code, _, _ = told(exc)
    with contextlib.suppress(RuntimeError, OSError):
        await send({"type": "websocket.close", "code": 1008, "reason": code})


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def create_app(app: App[Any], config: WebConfig | None = None, **settings: Any) -> WebApp:
    """An ASGI app that shows ``app`` to browsers: ``uvicorn.run(create_app(app))``; see ``WebConfig`` for settings."""
    if config is not None and settings:
        raise ConfigError("give a WebConfig, or settings by name, not both")
    return WebApp(app, config or WebConfig(**settings))


def router(app: App[Any], config: WebConfig | None = None, **settings: Any) -> WebApp:
    """The same without the built-in page, to be mounted into another app.

    ::

        web = router(app)
        Starlette(routes=[Mount("/weavegraph", web)], lifespan=web.lifespan)
        FastAPI(lifespan=web.lifespan).mount("/weavegraph", web)
    """
    if config is None:
        settings.setdefault("page", False)
    return create_app(app, config, **settings)
