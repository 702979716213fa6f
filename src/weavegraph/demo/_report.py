"""The Markdown report: the digest, where it came from, the run's diagram and its timings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weavegraph import Event
from weavegraph.demo._workflow import DigestState

__all__ = ["render"]


def render(state: DigestState, about: str, diagram: str, events: Iterable[Event]) -> str:
    chosen = {sentence.number for sentence in state["chosen"]}
    quoted = "\n".join(
        f"| {_cell(part.title)} | {len(part.sentences)} | "
        f"{sum(sentence.number in chosen for sentence in part.sentences)} |"
        for part in state["sections"]
    )
    words = len(state["digest"].split())
    return (
        f"# Digest of {state['name']}\n\n{state['digest']}\n\n"
        f"*{words} words (limit {state['limit']}), {state['rounds']} rounds. Made by {about}.*\n\n"
        f"## Where it came from\n\n| section | sentences | chosen |\n|---|---:|---:|\n{quoted}\n\n"
        f"## The run\n\n```mermaid\n{diagram}```\n\n"
        f"| node | times | seconds |\n|---|---:|---:|\n{_timings(events)}\n"
    )


def _timings(events: Iterable[Event]) -> str:
    rows: dict[str, list[float]] = {}
    for event in events:
        if event.scope == "weavegraph.node.finished":
            metadata: Any = event.metadata
            rows.setdefault(metadata["node"], []).append(metadata["duration"])
    return "\n".join(f"| {node} | {len(times)} | {sum(times):.3f} |" for node, times in rows.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
