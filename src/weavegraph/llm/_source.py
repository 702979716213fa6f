"""Any provider's token stream as text: recognised by shape, no SDK is imported."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from typing import Any

__all__ = ["close_early", "pieces_of", "text_of"]

_END: Any = object()


def text_of(piece: Any) -> str:
    """The text of one piece: a str, or an OpenAI-shaped chunk (``choices[0].delta.content``), as object or mapping.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(piece, str):
        return piece
    choices = _get(piece, "choices")
    if choices is None:
        raise TypeError(f"a token stream gives text or OpenAI-shaped chunks, not {type(piece).__name__}")
    if not choices:
        return ""  # a chunk that only carries usage
    content = _get(_get(choices[0], "delta"), "content")
    return content if isinstance(content, str) else ""


async def pieces_of(
    source: AsyncIterable[Any] | Iterable[Any], in_thread: Callable[..., Any]
) -> AsyncGenerator[str, None]:
    """The texts of a sync or async stream, empty ones left out.

    A sync one may block, so each piece is fetched with ``await in_thread(next, …)``; a list or tuple cannot. A stream
    that is left before its end is closed.
    """
    if isinstance(source, AsyncIterable):
        flow = source.__aiter__()
        try:
            while True:
                try:
                    piece = await flow.__anext__()
                except StopAsyncIteration:
                    return
                if text := text_of(piece):
                    yield text
        except BaseException:
            await _close_async(flow, source)
            raise
    if isinstance(source, str) or not isinstance(source, Iterable):
        raise TypeError(f"a token stream is an async or sync iterable of pieces, not a {type(source).__name__}")
    if isinstance(source, (list, tuple)):
        for piece in source:
            if text := text_of(piece):
                yield text
        return
    pieces = iter(source)
    try:
        while (piece := await in_thread(next, pieces, _END)) is not _END:
            if text := text_of(piece):
                yield text
    except BaseException:
        if _has_loop():
            with contextlib.suppress(Exception):
                await in_thread(close_early, pieces, source)
        else:
            close_early(pieces, source)
        raise


def close_early(*sources: Any) -> None:
    """Close what a sync stream came from: an iterator and what made it. What that raises is nobody's business."""
    for close in _closers(("close",), sources):
        with contextlib.suppress(Exception):
            close()


async def _close_async(*sources: Any) -> None:
    if not _has_loop():
        return  # the loop was closed under us: nothing can be awaited
    for close in _closers(("aclose", "close"), sources):
        with contextlib.suppress(Exception):
            done = close()
            if inspect.isawaitable(done):
                await done


def _closers(names: Iterable[str], sources: Iterable[Any]) -> Iterator[Callable[[], Any]]:
    seen: list[Any] = []
    for source in sources:
        if any(source is each for each in seen) or isinstance(source, (list, tuple)):
            continue
        seen.append(source)
        found = (getattr(source, name, None) for name in names)
        close = next((each for each in found if callable(each)), None)
        if close is not None:
            yield close


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else getattr(value, key, None)
