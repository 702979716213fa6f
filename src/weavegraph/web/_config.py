"""Settings of the web part."""

from __future__ import annotations

from typing import Any

import msgspec

from weavegraph.config import check_seconds, check_whole
from weavegraph.errors import ConfigError
from weavegraph.events import Redact

__all__ = ["WebConfig", "check_policy"]


class WebConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a web app behaves. Seconds are floats.

    *Who may ask.* ``auth``: a function, sync or async, of the connection (headers, cookies, client) that returns who
    asks: a ``Principal``, a name, or ``None`` for nobody; without it everybody who gets through may do everything, so
    only loopback addresses are served. ``allowed_hosts``: names beside the loopback ones, with or without a port.
    ``allowed_origins``: origins of other web sites, as ``https://app.example``; they get CORS headers.
    ``insecure``: serve addresses that other machines reach though there is no ``auth``.

    *What they see.* ``redact``: ``redact(event, "wire")`` returns the event as clients see it; see ``mask_secrets``;
    without one that of the app's ``RuntimeConfig`` is asked.
    ``expose_state``: tell the final state of a run with it. ``page``: the built-in page at ``/``.

    *Runs.* ``on_disconnect``: what happens to a run when its last viewer left: ``"continue"``, ``"cancel"``, or
    seconds after which it is cancelled unless somebody came back; a start request may choose for itself. ``deps``:
    ``ctx.deps`` of runs that are started here, a function of the ``RequestContext``. ``resume``: when the server
    starts, go on with the runs of the log that were stopped or died with it; for the only server of a log.

    *Bounds.* ``max_streams`` of the server, ``max_streams_each`` of one principal, ``max_body_bytes`` of a request.
    ``heartbeat``: silence after which a comment is sent. ``send_timeout``: after that a client that takes nothing is
    given up. ``retry``: what browsers are told to wait before they come back. ``recheck``: between two looks whether an
    open stream's caller is still known. ``catch_up``: how long a position of another server is waited for.
    """

    auth: Any = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    insecure: bool = False
    redact: Redact | None = None
    expose_state: bool = False
    page: bool = True
    on_disconnect: str | float = "continue"
    deps: Any = None
    resume: bool = False
    max_streams: int = 10_000
    max_streams_each: int = 100
    max_body_bytes: int = 1024 * 1024
    heartbeat: float = 15.0
    send_timeout: float = 10.0
    retry: float = 1.0
    recheck: float = 30.0
    catch_up: float = 5.0

    def __post_init__(self) -> None:
        for name in ("max_streams", "max_streams_each", "max_body_bytes"):
            check_whole(name, getattr(self, name), 1)
        for name in ("heartbeat", "send_timeout", "retry", "recheck", "catch_up"):
            check_seconds(name, getattr(self, name))
        for name in ("heartbeat", "send_timeout"):
            if getattr(self, name) < 0.01:
                raise ConfigError(f"{name}={getattr(self, name)!r}: give at least 0.01 seconds")
        for name in ("auth", "redact", "deps"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(f"{name}: give a function")
        for name in ("allowed_hosts", "allowed_origins"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(each, str) for each in value):
                raise ConfigError(f"{name}={value!r}: give a list of names")
            msgspec.structs.force_setattr(self, name, tuple(each.lower().rstrip("/") for each in value))
            if "*" in value:
                raise ConfigError(f"{name}={value!r}: name them one by one; '*' would let every web site in")
        check_policy(self.on_disconnect)


def check_policy(policy: object) -> float | None:
    """Seconds after which an unwatched run is cancelled; ``None``: it goes on."""
    if policy == "continue":
        return None
    if policy == "cancel":
        return 0.0
    if isinstance(policy, bool) or not isinstance(policy, (int, float)) or not 0 <= policy < 1e9:
        raise ConfigError(f"on_disconnect={policy!r}: choose 'continue', 'cancel', or seconds")
    return float(policy)
