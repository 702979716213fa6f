"""What the code of a node may know of the request that started its run."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from starlette.requests import HTTPConnection

from weavegraph.web._gate import Principal

__all__ = ["RequestContext", "current_request", "request_context"]

_HIDDEN = frozenset({"authorization", "cookie", "proxy-authorization"})
current_request: ContextVar[RequestContext | None] = ContextVar("weavegraph_request", default=None)


class RequestContext:
    """The request that started or resumed a run: who asked, and its headers without credentials. Read only."""

    __slots__ = ("client", "headers", "method", "path", "principal")

    def __init__(self, connection: HTTPConnection, principal: Principal) -> None:
        self.principal = principal
        self.method: str = connection.scope.get("method", "GET")
        self.path: str = connection.scope["path"]
        self.client: str | None = connection.client.host if connection.client is not None else None
        self.headers: Mapping[str, str] = MappingProxyType(
            {name: value for name, value in connection.headers.items() if name not in _HIDDEN}
        )

    def __repr__(self) -> str:
        return f"<RequestContext {self.method} {self.path!r} of {self.principal.name!r}>"  # no values of headers


def request_context() -> RequestContext | None:
    """The request that started this run, in a node, async or sync; ``None`` where no request did."""
    return current_request.get()
