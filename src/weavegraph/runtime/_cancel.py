"""Asking to stop, from anywhere: a token that work looks at, and that passes the request on to its children."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable

from weavegraph.errors import RunCancelledError

__all__ = ["CancelToken"]

_log = logging.getLogger("weavegraph.runtime")


class CancelToken:
    """A request to stop, made once and never taken back. Any method from any thread; usable before a run starts.

    Give it to a run (``app.start(…, cancel=token)``), or take a node's own from ``ctx.cancel_token``. Cancelling a
    token cancels its children, never its parent.
    """

    __slots__ = ("__weakref__", "_callbacks", "_children", "_lock", "_reason")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may cancel what this thread is just looking at
        self._reason: str | None = None
        self._callbacks: dict[object, Callable[[str], None]] = {}
        self._children: weakref.WeakKeyDictionary[CancelToken, None] | None = None  # in order of birth

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Why; ``None`` while nobody asked."""
        return self._reason

    def cancel(self, reason: str = "cancelled") -> bool:
        """Ask to stop; ``False`` if somebody had asked before.

        Children are cancelled first; then callbacks run here, in the caller's thread. What one raises is logged.
        """
        with self._lock:
            if self._reason is not None:
                return False
            self._reason = reason
            callbacks, self._callbacks = self._callbacks, {}
            children = tuple(self._children or ())
        for child in children:
            child.cancel(reason)
        for callback in callbacks.values():
            _tell(callback, reason)
        return True

    def child(self) -> CancelToken:
        """A token that is cancelled with this one, and can be cancelled by itself."""
        token = CancelToken()
        with self._lock:
            if self._children is None:
                self._children = weakref.WeakKeyDictionary()
            self._children[token] = None
        if self._reason is not None:  # before, or by a signal handler meanwhile
            token.cancel(self._reason)
        return token

    def on_cancel(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback(reason)`` once, at once if it has happened already; returns what takes it back.

        A callback that is given twice is called twice. What it raises is logged.
        """
        key = object()
        with self._lock:
            self._callbacks[key] = callback
        if self._reason is not None and self._callbacks.pop(key, None) is not None:
            _tell(callback, self._reason)

        def forget() -> None:
            self._callbacks.pop(key, None)

        return forget

    async def wait(self) -> str:
        """Wait until somebody asks to stop; returns the reason."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()

        def resolve(reason: str) -> None:
            if not future.done():
                future.set_result(reason)

        def wake(reason: str) -> None:
            try:
                loop.call_soon_threadsafe(resolve, reason)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass

        forget = self.on_cancel(wake)
        try:
            return await future
        finally:
            forget()

    def raise_if_cancelled(self) -> None:
        """Raise ``RunCancelledError`` if somebody asked to stop; in a node that ends the run as cancelled."""
        if self._reason is not None:
            raise RunCancelledError(None, self._reason)

    def __repr__(self) -> str:
        return f"<CancelToken {'cancelled: ' + self._reason if self._reason is not None else 'live'}>"


def _tell(callback: Callable[[str], None], reason: str) -> None:
    try:
        callback(reason)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        _log.exception("a callback of a cancel token raised; the others are called all the same")
