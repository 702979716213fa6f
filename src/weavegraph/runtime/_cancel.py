"""Asking to stop, from anywhere: a token that work looks at, and that passes the request on to its children."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable

from weavegraph.errors import RunCancelledError

__all__ = ["CancelToken"]


class CancelToken:
    """A request to stop, made once and never taken back. Any method from any thread; usable before a run starts.

    Give it to a run (``app.start(…, cancel=token)``), or take a node's own from ``ctx.cancel_token``. Cancelling a
    token cancels its children, never its parent.
    """

    __slots__ = ("__weakref__", "_callbacks", "_children", "_lock", "_reason")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._callbacks: dict[int, Callable[[str], None]] = {}
        self._children: weakref.WeakSet[CancelToken] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Why; ``None`` while nobody asked."""
        return self._reason

    def cancel(self, reason: str = "cancelled") -> bool:
        """Ask to stop; ``False`` if somebody had asked before. Callbacks run here, in the caller's thread."""
        with self._lock:
            if self._reason is not None:
                return False
            self._reason = reason
            callbacks, self._callbacks = self._callbacks, {}
            children = tuple(self._children or ())
        for callback in callbacks.values():
            callback(reason)
        for child in children:
            child.cancel(reason)
        return True

    def child(self) -> CancelToken:
        """A token that is cancelled with this one, and can be cancelled by itself."""
        token = CancelToken()
        with self._lock:
            if self._reason is None:
                if self._children is None:
                    self._children = weakref.WeakSet()
                self._children.add(token)
            else:
                token._reason = self._reason
        return token

    def on_cancel(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback(reason)`` once, at once if it has happened already; returns what takes it back."""
        key = id(callback)
        with self._lock:
            reason = self._reason
            if reason is None:
                self._callbacks[key] = callback
        if reason is not None:
            callback(reason)

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
