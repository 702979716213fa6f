"""An extractive summariser: it picks sentences, it does not write any. Deterministic, no model, no network."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

__all__ = ["Section", "Sentence", "keyword_scores", "split_sections"]

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'“(A-Z0-9])")
_WORD = re.compile(r"[^\W\d_]{3,}", re.UNICODE)
_COMMON = frozenset(
    """
    the and for that with was were had has have his her its their this they them from which when what
    who not but are all any one two out each could would should than then there where been being into
    over after before because since about just only own you your our can will may did does no nor she
    him
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Sentence:
    number: int
    """Position in the document, from 0."""
    section: int
    place: int
    """Position in its section, from 0."""
    text: str

    @property
    def words(self) -> int:
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class Section:
    number: int
    title: str
    sentences: tuple[Sentence, ...]


def split_sections(text: str) -> tuple[Section, ...]:
    """The document's sections by its Markdown headings; without headings, by paragraphs. Empty ones are left out."""
    titles: list[str] = []
    bodies: list[list[str]] = []
    headed = any(line.startswith("#") for line in text.splitlines())
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        if lines and lines[0].startswith("#"):
            titles.append(lines.pop(0).lstrip("# "))
            bodies.append([])
        elif not bodies or (not headed and lines):
            titles.append(f"Part {len(titles) + 1}")
            bodies.append([])
        if lines:
            bodies[-1].append(" ".join(lines))
    sections: list[Section] = []
    number = 0
    for title, paragraphs in zip(titles, bodies, strict=True):
        texts = [part for paragraph in paragraphs for part in _SENTENCE.split(paragraph) if part]
        if not texts:
            continue
        sentences = tuple(Sentence(number + i, len(sections), i, part) for i, part in enumerate(texts))
        number += len(texts)
        sections.append(Section(len(sections), title, sentences))
    return tuple(sections)


def keyword_scores(sections: tuple[Section, ...]) -> Counter[str]:
    """How often each telling word occurs in the whole document."""
    return Counter(
        word
        for section in sections
        for sentence in section.sentences
        for word in map(str.lower, _WORD.findall(sentence.text))
        if word not in _COMMON
    )


def score_by_keywords(sentence: Sentence, counts: Counter[str]) -> float:
    """The mean frequency of a sentence's telling words, relative to the most frequent."""
    words = [word for word in map(str.lower, _WORD.findall(sentence.text)) if word not in _COMMON]
    top = max(counts.values(), default=1)
    return sum(counts[word] for word in words) / (len(words) * top) if words else 0.0


def score_by_place(sentence: Sentence) -> float:
    """Early sentences of a section say what it is about."""
    return 1.0 / (1 + sentence.place)


def score_by_figures(sentence: Sentence) -> float:
    """Sentences with figures hold facts."""
    return min(1.0, len(re.findall(r"\d[\d.,]*", sentence.text)) / 3)
