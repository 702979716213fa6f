"""Failures as values: in the state's ``errors``, in checkpoints, and printed as a ladder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["ErrorRecord", "Failure", "failure_of", "ladder", "mark_failure", "said"]

_ATTRIBUTE = "__weavegraph_failure__"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_MAX_CAUSES = 16
_MAX_TEXT = 10_000


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Where an exception came from: node, step, attempt of the run, try of the node, and the enclosing sub-graphs."""

    node: str
    step: int
    attempt: int
    try_no: int
    run_id: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = "/".join((*self.path, self.node))
        again = f", try {self.try_no}" if self.try_no > 1 else ""
        return f"in node {place!r}, step {self.step}, attempt {self.attempt}{again} of run {self.run_id!r}"


def mark_failure(exc: BaseException, failure: Failure) -> None:
    """Remember where ``exc`` came from, in a note and for ``failure_of``. In one attempt the innermost place wins.

    An exception object that an earlier run or attempt raised too is marked anew.
    """
    before = failure_of(exc)
    if before is not None and (before.run_id, before.attempt) == (failure.run_id, failure.attempt):
        return
    notes = _own(exc).get("__notes__")
    kept = [note for note in notes if before is None or note != str(before)] if isinstance(notes, list) else []
    # Past the exception's own __setattr__: that of a frozen dataclass refuses.
    object.__setattr__(exc, _ATTRIBUTE, failure)
    object.__setattr__(exc, "__notes__", [*kept, str(failure)])


def failure_of(exc: BaseException) -> Failure | None:
    """Where in a run ``exc`` was raised; ``None`` if no node raised it."""
    found = _own(exc).get(_ATTRIBUTE)
    return found if isinstance(found, Failure) else None


def _own(exc: BaseException) -> dict[str, Any]:
    """An exception's attributes, past its own ``__getattr__``."""
    found: dict[str, Any] = object.__getattribute__(exc, "__dict__")
    return found


class ErrorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One failure, as data. ``causes`` are the exceptions behind it, nearest first."""

    when: datetime
    scope: Literal["node", "scheduler", "runner", "app"]
    kind: str
    message: str
    causes: tuple[str, ...] = ()
    node: str | None = None
    step: int | None = None
    attempt: int | None = None
    try_no: int | None = None
    path: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    context: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @classmethod
    def of(
        cls, exc: BaseException, when: datetime, scope: Literal["node", "scheduler", "runner", "app"] = "node"
    ) -> ErrorRecord:
        place = failure_of(exc)
        return cls(
            when=when,
            scope=scope,
            kind=type(exc).__name__,
            message=_text(exc),
            causes=tuple(said(cause) for cause in _causes(exc)),
            node=None if place is None else place.node,
            step=None if place is None else place.step,
            attempt=None if place is None else place.attempt,
            try_no=None if place is None else place.try_no,
            path=() if place is None else place.path,
        )

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        return Text("\n").join(Text(line, style="bold red" if n == 0 else "dim") for n, line in enumerate(self.lines()))

    def lines(self) -> Iterator[str]:
        """The failure on top, where it happened, and a rung for each cause."""
        yield f"✗ {_plain(self.kind)}: {_plain(self.message)}"
        if self.node is not None:
            place = _plain("/".join((*self.path, self.node)))
            again = f" · try {self.try_no}" if self.try_no and self.try_no > 1 else ""
            yield f"  at {place} · step {self.step} · attempt {self.attempt}{again} · {self.when:%H:%M:%S}"
        else:
            yield f"  in the {self.scope} · {self.when:%H:%M:%S}"
        for depth, cause in enumerate(self.causes):
            yield f"  {'   ' * depth}└─ because {_plain(cause)}"
        if self.tags:
            yield f"  tags: {_plain(', '.join(self.tags))}"


def ladder(errors: Iterable[ErrorRecord], *, color: bool = False) -> str:
    """Errors as text for people, one ladder each; with ``color`` in ANSI colours. Control characters never pass."""
    parts = []
    for error in errors:
        first, *rest = error.lines()
        parts += [f"\x1b[1;31m{first}\x1b[0m", *(f"\x1b[2m{line}\x1b[0m" for line in rest)] if color else [first, *rest]
    return "\n".join(parts)


def _causes(exc: BaseException) -> Iterator[BaseException]:
    seen = {id(exc)}
    while len(seen) <= _MAX_CAUSES:
        cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
        if cause is None or id(cause) in seen:
            return
        seen.add(id(cause))
        yield cause
        exc = cause


def said(exc: BaseException) -> str:
    """An exception's type and text, whatever its ``__str__`` does."""
    return f"{type(exc).__name__}: {_text(exc)}"


def _text(exc: BaseException) -> str:
    try:
        text = str(exc)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        text = "(its text cannot be had)"
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _plain(text: str) -> str:
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\n", " ⏎ "))
