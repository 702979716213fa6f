"""Any provider's token stream as text: recognised by shape, no SDK is imported."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any

__all__ = ["pieces_of", "text_of"]

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

    A sync one may block, so each piece is fetched with ``await in_thread(next, …)``; a list or tuple cannot.
    """
    if isinstance(source, AsyncIterable):
        async for piece in source:
            if text := text_of(piece):
                yield text
        return
    if isinstance(source, str) or not isinstance(source, Iterable):
        raise TypeError(f"a token stream is an async or sync iterable of pieces, not a {type(source).__name__}")
    if isinstance(source, (list, tuple)):
        for piece in source:
            if text := text_of(piece):
                yield text
        return
    pieces = iter(source)
    while (piece := await in_thread(next, pieces, _END)) is not _END:
        if text := text_of(piece):
            yield text


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else getattr(value, key, None)
