"""Judges a broker, and a transport over it, by what was given to it and what its readers got. Pure.

::

    history = History()
    history.given("run-1", 1, "ok")               # or "unknown" (no answer), or "refused" (it said no)
    history.delivered("reader", "run-1", 1)       # in the order in which that reader got them
    history.missing("reader", "run-1", 2, 4)      # a gap that it was told of
    history.trimmed("run-1", 4)                   # the broker was told to forget up to here
    history.ended("reader", "run-1")              # that reader has read to the end
    assert history.problems() == []
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import msgspec

from weavegraph.events import GAP_SCOPE, Event

__all__ = ["Given", "History", "Problem"]

Given: TypeAlias = Literal["ok", "unknown", "refused"]
Kind: TypeAlias = Literal["lost", "repeated", "reordered", "phantom", "wrong gap", "contradiction"]


class Problem(msgspec.Struct, frozen=True):
    """``lost``: acknowledged, and neither delivered nor in a gap that a trim explains. ``repeated``, ``reordered``:
    at or behind a position that the reader had passed. ``phantom``: never given. ``wrong gap``: covers what was not
    trimmed, or was delivered. ``contradiction``: two readers disagree about one position."""

    kind: Kind
    reader: str
    run_id: str
    position: int


class History:
    """What happened, from all who took part; one thread at a time."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, int], Given] = {}
        self._trimmed: dict[str, int] = defaultdict(int)
        self._seen: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)  # (position, 0), or a gap's ends
        self._ended: set[tuple[str, str]] = set()

    def given(self, run_id: str, position: int, answer: Given) -> None:
        """A publish, and how it ended. Of several tries of one position the clearest answer counts."""
        key = run_id, position
        known = self._given.get(key)
        if known != "ok" and not (known == "unknown" and answer == "refused"):
            self._given[key] = answer

    def trimmed(self, run_id: str, upto: int) -> None:
        self._trimmed[run_id] = max(upto, self._trimmed[run_id])

    def delivered(self, reader: str, run_id: str, position: int) -> None:
        self._seen[reader, run_id].append((position, 0))

    def missing(self, reader: str, run_id: str, first: int, last: int) -> None:
        self._seen[reader, run_id].append((first, last))

    def saw(self, reader: str, run_id: str, events: Iterable[Event]) -> None:
        """Events and gap notices, as a log's reader got them."""
        for event in events:
            if event.scope == GAP_SCOPE and event.run_seq is None:
                self.missing(reader, run_id, event.metadata["first_seq"], event.metadata["last_seq"])
            else:
                self.delivered(reader, run_id, event.run_seq or 0)

    def ended(self, reader: str, run_id: str) -> None:
        """The reader has read that run to its end: what it has not seen by now, it will not."""
        self._ended.add((reader, run_id))
        self._seen[reader, run_id]

    def counts(self) -> dict[str, int]:
        """How many positions were given with which answer, and how many were delivered."""
        found = {"ok": 0, "unknown": 0, "refused": 0, "delivered": 0}
        for answer in self._given.values():
            found[answer] += 1
        found["delivered"] = sum(last == 0 for seen in self._seen.values() for _, last in seen)
        return found

    def problems(self) -> list[Problem]:
        """What was wrong; empty when nothing was."""
        by_run: dict[str, list[int]] = defaultdict(list)
        for (run_id, position), answer in self._given.items():
            if answer == "ok":
                by_run[run_id].append(position)
        found = [
            problem
            for (reader, run_id), seen in self._seen.items()
            for problem in self._of_reader(reader, run_id, seen, by_run[run_id])
        ]
        return found + list(self._contradictions())

    def _of_reader(
        self, reader: str, run_id: str, seen: list[tuple[int, int]], acknowledged: list[int]
    ) -> Iterator[Problem]:
        passed: set[int] = set()
        missing: set[int] = set()
        at = 0
        for first, last in seen:
            if last:
                for position in range(first, last + 1):
                    if position > self._trimmed[run_id] or position in passed:
                        yield Problem("wrong gap", reader, run_id, position)
                    missing.add(position)
                at = max(at, last)
                continue
            if first in passed:
                yield Problem("repeated", reader, run_id, first)
            elif first <= at:
                yield Problem("reordered", reader, run_id, first)
            if self._given.get((run_id, first)) not in ("ok", "unknown"):
                yield Problem("phantom", reader, run_id, first)
            passed.add(first)
            at = max(at, first)
        if (reader, run_id) in self._ended:
            for position in acknowledged:
                if position not in passed and position not in missing:
                    yield Problem("lost", reader, run_id, position)

    def _contradictions(self) -> Iterator[Problem]:
        """An unknown publish happened or not, but for everyone alike: among readers that read the run to its end."""
        readers: dict[str, list[str]] = defaultdict(list)
        for reader, run_id in sorted(self._ended):
            readers[run_id].append(reader)
        for run_id, names in readers.items():
            sets = [{first for first, last in self._seen[name, run_id] if not last} for name in names]
            gaps = [
                {n for first, last in self._seen[name, run_id] if last for n in range(first, last + 1)}
                for name in names
            ]
            everything = set().union(*sets)
            for name, have, excused in zip(names, sets, gaps, strict=True):
                for position in sorted(everything - have - excused):
                    if self._given.get((run_id, position)) == "unknown":
                        yield Problem("contradiction", name, run_id, position)
