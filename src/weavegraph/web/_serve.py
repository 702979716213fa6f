"""``serve``: a web app on a port of its own, with uvicorn. Every stream ends within two seconds of SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
import sys
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from weavegraph.errors import ConfigError
from weavegraph.runtime import App
from weavegraph.web._app import WebApp, create_app
from weavegraph.web._gate import Principal, bearer, check_bind

__all__ = ["Server", "load", "serve"]

SEND_BUFFER = 64 * 1024
"""Bytes that the kernel keeps for a client that does not read; what bounds a thousand of them."""


class Server(uvicorn.Server):
    """Uvicorn whose end begins with the end of the streams: an open stream would keep it from ending."""

    def __init__(
        self, web: WebApp, *, host: str = "127.0.0.1", port: int = 8000, head_timeout: float = 10.0, **options: Any
    ) -> None:
        check_bind(host, web.config)
        self.web, self.head_timeout = web, head_timeout
        config = uvicorn.Config(
            web, host=host, port=port, timeout_graceful_shutdown=2, ws_max_size=64 * 1024,
            ws_per_message_deflate=False, server_header=False, proxy_headers=False,
            timeout_keep_alive=30, backlog=4096, **options,
        )  # fmt: skip
        super().__init__(config)

    @property
    def address(self) -> str:
        """``http://host:port``, once it listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config = self.config
        kind: Any = config.http_protocol_class
        config.http_protocol_class = watched(kind, self.head_timeout)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.web.hub.end_streams()
        await super().shutdown(sockets)


def watched(kind: type[Any], head_timeout: float) -> type[Any]:
    """An HTTP protocol of uvicorn whose connections can be given up at once, and that waits for a request so long.

    An ASGI app can only stop sending; the server then waits for the client to take what was sent, which one that does
    not read never does. The app finds ``abort`` in ``scope["extensions"]["weavegraph.connection"]``. A client that
    sends half of a request, or none, is cut off after ``head_timeout`` seconds.
    """

    class Connection(kind):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            super().connection_made(transport)
            app: ASGIApp = getattr(self, "app")  # noqa: B009 - of a class that is not known here
            self._wg_transport, self._wg_asking = transport, 0
            self._wg_timer: asyncio.TimerHandle | None = None
            self._wg_expect()

            async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
                self._wg_asking += 1
                self._wg_heard()
                scope.setdefault("extensions", {})["weavegraph.connection"] = {"abort": transport.abort}
                try:
                    await app(scope, receive, send)
                finally:
                    self._wg_asking -= 1

            self.app = with_abort

        def data_received(self, data: bytes) -> None:
            if not self._wg_asking and self._wg_timer is None:
                self._wg_expect()
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self._wg_heard()
            super().connection_lost(exc)

        def _wg_expect(self) -> None:
            loop = asyncio.get_running_loop()
            self._wg_timer = loop.call_later(head_timeout, self._wg_transport.abort)

        def _wg_heard(self) -> None:
            if self._wg_timer is not None:
                self._wg_timer.cancel()
                self._wg_timer = None

    return Connection


def load(place: str) -> App[Any]:
    """The app at ``MODULE:NAME``: an ``App``, a ``GraphBuilder``, or a function that returns one.

    Raises:
        ConfigError: there is no such thing.
    """
    module_name, colon, name = place.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"{place!r}: write it as MODULE:APP, for instance 'flows.tea:app'")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and module_name.startswith(exc.name):
            raise ConfigError(f"{place!r}: there is no module {exc.name!r}") from exc
        raise
    for part in name.split("."):
        found = getattr(found, part, None)
    if callable(found) and not isinstance(found, App) and not hasattr(found, "compile"):
        found = found()
    if hasattr(found, "compile"):
        found = found.compile()
    if not isinstance(found, App):
        raise ConfigError(f"{place!r} is no App: name what builder.compile() returned")
    return found


def with_log(app: App[Any], log: str | None) -> App[Any]:
    """The same graph with another log, and with a checkpointer in the same file unless it has one."""
    if log is None:
        return app
    changes: dict[str, Any] = {"log": log}
    if app.config.checkpointer is None and log.startswith("sqlite:"):
        changes["checkpointer"] = log.partition("?")[0]
    return App(app.graph, msgspec.structs.replace(app.config, **changes))


def serve(
    app_path: str | App[Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    log: str | None = None,
    token: str | None = None,
    log_level: str = "warning",
    **settings: Any,
) -> None:
    """Serve an app until SIGTERM or Ctrl-C, with the built-in page at ``/``.

    Streams end within two seconds, live runs are given their grace, sinks are drained.

    Args:
        app_path: ``MODULE:APP``, or an app. log: ``sqlite:runs.db``; also keeps checkpoints unless the app says where.
        token: what callers must show as bearer, or as the page's cookie. settings: of ``WebConfig``.

    Raises:
        ConfigError: there is no such app. InsecureBindError: other machines reach ``host``, and nobody is asked.
    """
    if token is not None:
        settings["auth"] = bearer({token: Principal("owner", everything=True)})
    if "allowed_hosts" not in settings and host not in ("0.0.0.0", "::", ""):
        settings["allowed_hosts"] = (host,)
    web = create_app(with_log(load(app_path) if isinstance(app_path, str) else app_path, log), **settings)
    server = Server(web, host=host, port=port, log_level=log_level)

    async def main() -> None:
        serving = asyncio.get_running_loop().create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            print(f"serving {web.app.graph.name!r} on {server.address}/", flush=True)
        await serving

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
