"""The demo's graph: split → a node for each section, side by side → rank ⟲ shorten until it fits → write."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, Any, TypedDict

from weavegraph import END, START, App, Command, GraphBuilder, NodeContext, RuntimeConfig, Send
from weavegraph.demo import _summary
from weavegraph.demo._summary import Section, Sentence
from weavegraph.demo._writers import Writer

__all__ = ["DigestState", "build"]

PACE = 0.012
"""Seconds between two words of the digest: about the speed of a model, so that there is something to watch."""
SCORERS = ("keywords", "place", "figures")


def add_scores(current: dict[int, float], update: dict[int, float]) -> dict[int, float]:
    """A reducer: each section brings the scores of its own sentences."""
    return {**current, **update}


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


Context = NodeContext[DigestState, Writer]


def build(config: RuntimeConfig, pace: float = PACE) -> App[DigestState]:
    """The app; its writer comes as ``deps``."""
    builder = GraphBuilder(DigestState, name="digest")

    @builder.node(to=["section"])
    async def split(state: DigestState, ctx: Context) -> Command[Any]:
        sections = _summary.split_sections(state["text"])
        if not sections:
            raise ValueError(f"{state['name']} has no sentences to work on")
        counts = _summary.keyword_scores(sections)
        ctx.emit("split", f"{len(sections)} sections", sections=[section.title for section in sections])
        return Command(
            update={"sections": sections, "rounds": 0, "keep": sum(len(part.sentences) for part in sections)},
            goto=[Send("section", {"section": part, "counts": dict(counts)}) for part in sections],
        )

    @builder.node
    async def section(work: dict[str, Any], ctx: Context) -> dict[str, Any]:
        """One section; runs beside the others. ``work`` is what was sent to it."""
        part, counts = work["section"], Counter(work["counts"])
        scores: dict[int, float] = {}
        total = len(part.sentences) * len(SCORERS)
        for number, sentence in enumerate(part.sentences):
            score = (
                _summary.score_by_keywords(sentence, counts),
                _summary.score_by_place(sentence),
                _summary.score_by_figures(sentence),
            )
            scores[sentence.number] = sum(score)
            for place, (kind, value) in enumerate(zip(SCORERS, score, strict=True)):
                done = number * len(SCORERS) + place + 1
                ctx.emit("score", f"{kind} {sentence.number}", section=part.title, score=round(value, 3),
                         done=done, total=total)  # fmt: skip
            await asyncio.sleep(pace)
        return {"scores": scores}

    @builder.node
    def rank(state: DigestState, ctx: Context) -> dict[str, Any]:
        scores = state["scores"]
        sentences = [sentence for part in state["sections"] for sentence in part.sentences]
        best = sorted(sentences, key=lambda sentence: (-scores[sentence.number], sentence.number))[: state["keep"]]
        chosen = tuple(sorted(best, key=lambda sentence: sentence.number))
        words = sum(sentence.words for sentence in chosen)
        ctx.emit("rank", f"{len(chosen)} sentences, {words} words", limit=state["limit"])
        return {"chosen": chosen, "rounds": state["rounds"] + 1}

    @builder.node
    def shorten(state: DigestState, ctx: Context) -> dict[str, Any]:
        keep = max(1, int(state["keep"] * 0.7))
        ctx.emit("shorten", f"too long: keeping the best {keep}")
        return {"keep": keep}

    @builder.node
    async def write(state: DigestState, ctx: Context) -> dict[str, Any]:
        writer = ctx.deps
        ctx.emit("writer", writer.about)
        reply = await ctx.stream_llm(
            writer.tokens(state["chosen"], state["limit"]), stream_id="digest", model=writer.name
        )
        return {"digest": reply.text}

    def fits(state: DigestState) -> str:
        words = sum(sentence.words for sentence in state["chosen"])
        return "write" if words <= state["limit"] or state["keep"] == 1 else "shorten"

    builder.add_edge(START, "split").add_edge("section", "rank")
    builder.add_conditional_edge("rank", fits, to=["write", "shorten"])
    builder.add_edge("shorten", "rank").add_edge("write", END)
    return builder.compile(config)
