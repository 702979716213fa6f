"""Any browser can watch: an ASGI app, or a router for yours, with runs, streams and a plain page. Extra ``web``.

::

    from weavegraph.web import create_app

    web = create_app(app)            # uvicorn module:web, or: weavegraph serve module:app

    POST /runs {"input": …}          start; 201 with run_id and the address of its events
    GET  /runs/{id}/events?after=0   server-sent events; NDJSON by Accept; /runs/{id}/ws is a WebSocket
    POST /runs/{id}/answer, /cancel, /resume
    GET  /runs, /runs/{id}, /events, /sessions/{id}/events, /live, /ready, /openapi.json, /asyncapi.json, /events.d.ts

An event's way: a run's log (or its lane, without a log) → one ``Feed`` a run, which encodes it once → each ``Viewer``'s
position → ``EventResponse`` or a WebSocket. Only loopback is served unless there is an ``auth`` hook.
"""

try:
    import starlette as _starlette  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ModuleNotFoundError as exc:  # pragma: no cover - depends on what is installed
    raise ModuleNotFoundError("weavegraph.web needs Starlette and uvicorn: pip install 'weavegraph[web]'") from exc

from weavegraph.events import mask_secrets
from weavegraph.web._app import WebApp, create_app, router
from weavegraph.web._config import WebConfig
from weavegraph.web._context import RequestContext, request_context
from weavegraph.web._gate import Principal, bearer
from weavegraph.web._serve import serve

__all__ = [
    "Principal",
    "RequestContext",
    "WebApp",
    "WebConfig",
    "bearer",
    "create_app",
    "mask_secrets",
    "request_context",
    "router",
    "serve",
]
