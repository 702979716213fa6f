"""Who may come in: one gate for HTTP, server-sent events and WebSocket, before anything else looks at a request.

Decided on the raw headers, never on an address rebuilt from them. In this order: the address the server is bound to,
``Host``, ``Origin``, then the auth hook.
"""

from __future__ import annotations

import hmac
import inspect
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias
from urllib.parse import unquote

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import Scope

from weavegraph.errors import (
    ConfigError,
    HostRefusedError,
    InsecureBindError,
    OriginRefusedError,
    RequestInvalidError,
    UnauthorizedError,
)
from weavegraph.events import check_id
from weavegraph.web._config import WebConfig

__all__ = ["ANYBODY", "Auth", "Gate", "Principal", "bearer", "check_bind", "is_loopback"]

COOKIE = "weavegraph_token"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_OPEN_PATHS = frozenset({"/live", "/ready"})
_PAGE_PATHS = frozenset({"/", "/page.js", "/style.css", "/favicon.ico"})
"""The built-in page, which tells nothing until it has a token."""
_log = logging.getLogger("weavegraph.web")


class Principal(msgspec.Struct, frozen=True):
    """Who asks. ``everything``: may also see and stop what others started, and watch all runs at once."""

    name: str
    everything: bool = False

    def __post_init__(self) -> None:
        check_id("principal", self.name)


ANYBODY = Principal("anybody", everything=True)
"""Who asks where there is no auth hook."""

Auth: TypeAlias = Callable[[HTTPConnection], Principal | str | Awaitable[Principal | str | None] | None]


def bearer(tokens: Mapping[str, Principal | str]) -> Auth:
    """An auth hook: the header ``Authorization: Bearer TOKEN``, or the cookie ``weavegraph_token`` (for browsers, whose
    ``EventSource`` sends no header). Tokens are compared in constant time, and never taken from the address.
    """
    if not tokens or not all(isinstance(token, str) and len(token) >= 8 for token in tokens):
        raise ConfigError("bearer(…): give tokens of at least 8 characters, each with who it stands for")
    known = [(token.encode(), who if isinstance(who, Principal) else Principal(who)) for token, who in tokens.items()]

    def auth(connection: HTTPConnection) -> Principal | None:
        scheme, _, given = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = unquote(connection.cookies.get(COOKIE, ""))
        found = None
        for token, who in known:  # all of them: how long it takes tells nothing
            if hmac.compare_digest(token, given.strip().encode("utf-8", "replace")):
                found = who
        return found

    return auth


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Gate:
    """``enter`` lets a request in, or raises why not."""

    def __init__(self, config: WebConfig) -> None:
        self._config = config
        self._hosts = _LOOPBACK | set(config.allowed_hosts)

    async def enter(self, scope: Scope, path: str) -> Principal:
        """Who asks. Liveness and readiness are told to everybody; they tell nothing else.

        Raises:
            InsecureBindError, HostRefusedError, OriginRefusedError, UnauthorizedError.
        """
        if path in _OPEN_PATHS:
            return ANYBODY
        self._check_bind(scope)
        host = self._check_host(scope)
        self._check_origin(scope, host)
        if self._config.auth is None or scope.get("method") == "OPTIONS" or path in _PAGE_PATHS:
            return ANYBODY
        return await self.who(scope)

    async def who(self, scope: Scope) -> Principal:
        """What the auth hook says. A hook that raises lets nobody in."""
        try:
            found = self._config.auth(HTTPConnection(scope))
            if inspect.isawaitable(found):
                found = await found
            if isinstance(found, str):
                found = Principal(found)
        except Exception:
            _log.exception("the auth hook raised; nobody is let in")
            found = None
        if not isinstance(found, Principal):
            raise UnauthorizedError
        return found

    async def still_welcome(self, scope: Scope, who: Principal) -> bool:
        """Whether the same caller would be let in now."""
        try:
            return self._config.auth is None or await self.who(scope) == who
        except UnauthorizedError:
            return False

    def cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The headers that let a page of an allowed origin read the answer; none for anybody else."""
        origin = _header(scope, b"origin")
        if origin is None or origin not in self._config.allowed_origins:
            return [(b"vary", b"Origin")] if self._config.allowed_origins else []
        return [
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-allow-credentials", b"true"),
            (b"vary", b"Origin"),
        ]

    def preflight(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The headers with which pages of allowed origins may post; they ask before."""
        headers = self.cors(scope)
        if headers and headers[0][0] == b"access-control-allow-origin":
            headers += [
                (b"access-control-allow-methods", b"GET, POST"),
                (b"access-control-allow-headers", b"content-type, authorization, last-event-id"),
                (b"access-control-max-age", b"600"),
            ]
        return headers

    def _check_bind(self, scope: Scope) -> None:
        """A server that somebody else started may be bound to the world."""
        config = self._config
        if config.auth is not None or config.insecure:
            return
        server = scope.get("server")
        address = server[0] if server else None
        if not isinstance(address, str):
            return
        try:
            wide = not ipaddress.ip_address(address).is_loopback
        except ValueError:
            return  # a name, or the path of a socket
        if wide:
            raise InsecureBindError(address)

    def _check_host(self, scope: Scope) -> str:
        host = _header(scope, b"host")
        if host is None:
            raise HostRefusedError
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        port = host[len(name) :]
        if port and not (port[0] == ":" and port[1:].isascii() and port[1:].isdigit()):
            raise HostRefusedError
        if name not in self._hosts and host not in self._hosts:
            raise HostRefusedError
        return host

    def _check_origin(self, scope: Scope, host: str) -> None:
        """Same origin or a named one; without ``Origin`` only what browsers do not call cross-site."""
        origin = _header(scope, b"origin")
        if origin is not None:
            if origin in self._config.allowed_origins:
                return
            _, scheme, place = origin.partition("://")
            if not scheme or place != host:
                raise OriginRefusedError
            return
        site, mode = _header(scope, b"sec-fetch-site"), _header(scope, b"sec-fetch-mode")
        if site in ("cross-site", "same-site") and (mode != "navigate" or scope.get("method") != "GET"):
            raise OriginRefusedError


def _header(scope: Scope, name: bytes) -> str | None:
    """A header that may be there once, in lower case."""
    found = [value for key, value in scope["headers"] if key == name]
    if len(found) > 1:
        raise RequestInvalidError(f"more than one header {name.decode()}")
    return found[0].decode("latin-1").strip().lower() if found else None


def check_bind(host: str, config: WebConfig) -> None:
    """Refuse to listen where others reach it and nobody is asked.

    Raises:
        InsecureBindError: ``host`` is not a loopback address, and there is no auth hook.
    """
    if config.auth is None and not config.insecure and not is_loopback(host):
        raise InsecureBindError(host)
