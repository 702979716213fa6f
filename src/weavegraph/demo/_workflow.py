"""The demo's graph: read → split → three scores in parallel → rank ⟲ shorten until it fits → write → report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

from weavegraph import END, START, App, GraphBuilder, NodeContext, RuntimeConfig
from weavegraph.demo import _summary
from weavegraph.demo._summary import Section, Sentence

__all__ = ["DigestState", "build"]

PACE = 0.012
"""Seconds between two words of the digest: about the speed of a model, so that there is something to watch."""


def add_scores(current: dict[int, float] | None, update: dict[int, float]) -> dict[int, float]:
    """A reducer: scores of one sentence from several nodes add up."""
    merged = dict(current or {})
    for number, score in update.items():
        merged[number] = merged.get(number, 0.0) + score
    return merged


class DigestState(TypedDict, total=False):
    name: str
    text: str
    limit: int
    sections: tuple[Section, ...]
    scores: Annotated[dict[int, float], add_scores]
    keep: int
    chosen: tuple[Sentence, ...]
    rounds: int
    digest: str
    report: str


def build(config: RuntimeConfig, report_path: Path, pace: float = PACE) -> App[DigestState]:
    builder = GraphBuilder(DigestState, name="digest")

    @builder.node
    async def split(state: DigestState, ctx: NodeContext[DigestState, None]) -> dict[str, Any]:
        sections = _summary.split_sections(state["text"])
        if not sections:
            raise ValueError(f"{state['name']} has no sentences to work on")
        for section in sections:
            ctx.emit("section", section.title, sentences=len(section.sentences))
            await asyncio.sleep(0)
        return {"sections": sections, "rounds": 0, "keep": sum(len(section.sentences) for section in sections)}

    async def score(state: DigestState, ctx: NodeContext[DigestState, None], kind: str, scorer: Any) -> dict[str, Any]:
        scores: dict[int, float] = {}
        for section in state["sections"]:
            for sentence in section.sentences:
                scores[sentence.number] = scorer(sentence)
                ctx.emit("score", f"{kind} {sentence.number}", score=round(scores[sentence.number], 3))
            await asyncio.sleep(pace)
        return {"scores": scores}

    @builder.node
    async def keywords(state: DigestState, ctx: NodeContext[DigestState, None]) -> dict[str, Any]:
        counts = _summary.keyword_scores(state["sections"])
        return await score(state, ctx, "keywords", lambda sentence: _summary.score_by_keywords(sentence, counts))

    @builder.node
    async def place(state: DigestState, ctx: NodeContext[DigestState, None]) -> dict[str, Any]:
        return await score(state, ctx, "place", _summary.score_by_place)

    @builder.node
    async def figures(state: DigestState, ctx: NodeContext[DigestState, None]) -> dict[str, Any]:
        return await score(state, ctx, "figures", _summary.score_by_figures)

    @builder.node
    def rank(state: DigestState, ctx: NodeContext[DigestState, None]) -> dict[str, Any]:
        scores = state["scores"]
        sentences = [sentence for section in state["sections"] for sentence in section.sentences]
        best = sorted(sentences, key=lambda sentence: (-scores[sentence.number], sentence.number))[: state["keep"]]
        chosen = tuple(sorted(best, key=lambda sentence: sentence.number))
        words = sum(sentence.words for sentence in chosen)
        ctx.emit("rank", f"{len(chosen)} sentences, {words} words", limit=state["limit"])
        return {"chosen": chosen, "rounds": state["rounds"] + 1}

    @builder.node
    def shorten(state: DigestState, ctx: NodeContext[DigestState, None]) -> dict[str, Any]:
        keep = max(1, int(state["keep"] * 0.7))
        ctx.emit("shorten", f"too long: keeping the best {keep}")
        return {"keep": keep}

    @builder.node
    async def write(state: DigestState, ctx: NodeContext[DigestState, None]) -> dict[str, Any]:
        ctx.emit("writer", "an extractive summariser: it quotes sentences of the document and writes none")
        words = " ".join(sentence.text for sentence in state["chosen"]).split(" ")

        async def tokens() -> AsyncIterator[str]:
            for number, word in enumerate(words):
                await asyncio.sleep(pace)
                yield word if number == 0 else f" {word}"

        reply = await ctx.stream_llm(tokens(), stream_id="digest", model="extractive")
        return {"digest": reply.text}

    @builder.node
    def report(state: DigestState, ctx: NodeContext[DigestState, None]) -> dict[str, Any]:
        text = render(state)
        report_path.parent.mkdir(parents=True, exist_ok=True)
        report_path.write_text(text, encoding="utf-8")
        ctx.emit("report", f"written to {report_path}", bytes=len(text.encode()))
        return {"report": text}

    def fits(state: DigestState) -> str:
        words = sum(sentence.words for sentence in state["chosen"])
        return "write" if words <= state["limit"] or state["keep"] == 1 else "shorten"

    builder.add_edge(START, "split")
    for scorer in ("keywords", "place", "figures"):
        builder.add_edge("split", scorer)
        builder.add_edge(scorer, "rank")
    builder.add_conditional_edge("rank", fits, to=["write", "shorten"])
    builder.add_edge("shorten", "rank")
    builder.add_edge("write", "report")
    builder.add_edge("report", END)
    return builder.compile(config)


def render(state: DigestState) -> str:
    """The Markdown report."""
    chosen = {sentence.number for sentence in state["chosen"]}
    rows = "\n".join(
        f"| {section.title.replace('|', chr(92) + '|')} | {len(section.sentences)} | "
        f"{sum(sentence.number in chosen for sentence in section.sentences)} |"
        for section in state["sections"]
    )
    words = sum(sentence.words for sentence in state["chosen"])
    return (
        f"# Digest of {state['name']}\n\n{state['digest']}\n\n"
        f"*{words} words (limit {state['limit']}), {state['rounds']} rounds. Made by an extractive summariser: every "
        f"sentence is the document's own.*\n\n"
        f"| section | sentences | quoted |\n|---|---:|---:|\n{rows}\n"
    )
