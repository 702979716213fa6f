"""Any provider's token stream as text: recognised by shape, no SDK is imported."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

__all__ = ["chunks_of", "text_of"]


def text_of(piece: Any) -> str:
    """The text of one piece: a str, or an OpenAI-shaped chunk (``choices[0].delta.content``), as object or mapping."""
    if isinstance(piece, str):
        return piece
    choices = _get(piece, "choices")
    if choices is None:
        raise TypeError(f"a token stream gives text or OpenAI-shaped chunks, not {type(piece).__name__}")
    if not choices:
        return ""  # a chunk that only carries usage
    content = _get(_get(choices[0], "delta"), "content")
    return content if isinstance(content, str) else ""


async def chunks_of(source: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[str]:
    """The texts of a sync or async stream, empty ones left out. A sync one is read in place, piece by piece."""
    if isinstance(source, AsyncIterable):
        async for piece in source:
            if text := text_of(piece):
                yield text
        return
    for piece in source:
        if text := text_of(piece):
            yield text


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else getattr(value, key, None)
