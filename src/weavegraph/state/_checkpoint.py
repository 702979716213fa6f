"""What a step leaves behind, as a value: enough to go on from there, in this process or another."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from weavegraph.state._records import ErrorRecord

__all__ = ["Checkpoint", "CheckpointStatus", "Finished", "OpenQuestion", "Task", "Unsaid", "with_finished"]

Unsaid: TypeAlias = tuple[tuple[tuple[str | int, ...], Literal["nan", "inf", "-inf"]], ...]
"""Where plain data has ``None`` for a number that JSON cannot say (fields, keys and places from the top), and which."""
CheckpointStatus: TypeAlias = Literal["running", "completed", "failed", "cancelled", "paused", "interrupted"]


class Task(msgspec.Struct, frozen=True, array_like=True):
    """One node that is to run; with ``sent``, on a payload of its own instead of the state."""

    node: str
    sent: bool = False
    payload: Any = None


class Finished(msgspec.Struct, frozen=True):
    """The output of a task of the open step that had finished, kept so that a resume need not run it again."""

    index: int
    """The task's place in the frontier."""
    writes: tuple[tuple[str, Any], ...]
    goto: tuple[Any, ...] | None
    """Where it wants to go; ``None``: along its edges."""
    added: tuple[Any, ...] = ()
    unsaid: Unsaid = ()
    """Of an output that is plain data."""


class OpenQuestion(msgspec.Struct, frozen=True):
    """What a node asked with ``ctx.interrupt`` and nobody has answered yet."""

    id: str
    node: str
    question: Any
    path: tuple[str, ...] = ()


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A session after a step. ``number`` counts the session's checkpoints: 1, 2, 3 …, across runs.

    ``frontier`` is what runs next, ``finished`` what of it has run already, ``seen`` the versions that each node last
    saw, ``answers`` what was answered to questions of the open step, by task and in call order.
    """

    session_id: str
    number: int
    run_id: str
    attempt: int
    run_seq: int
    """The run's position when this was taken."""
    step: int
    status: CheckpointStatus
    values: Mapping[str, Any]
    versions: Mapping[str, int]
    frontier: tuple[Task, ...]
    created_at: datetime
    finished: tuple[Finished, ...] = ()
    questions: tuple[OpenQuestion, ...] = ()
    answers: Mapping[str, tuple[Any, ...]] = msgspec.field(default_factory=dict)
    seen: Mapping[str, Mapping[str, int]] = msgspec.field(default_factory=dict)
    ran_nodes: tuple[str, ...] = ()
    skipped_nodes: tuple[str, ...] = ()
    updated_keys: tuple[str, ...] = ()
    errors: tuple[ErrorRecord, ...] = ()
    iterative: bool = False
    """An iterative session between two inputs."""
    parent: int | None = None
    """The checkpoint this one follows; of another session when ``forked_from`` names it."""
    forked_from: str | None = None
    fingerprint: str = ""
    """Of the graph that took it."""
    encoded: bool = False
    """Values, payloads and answers are plain data, as a durable checkpointer holds them."""
    unsaid: Unsaid = ()
    """Of one that is plain data: NaN and infinity in it, which ``revive`` puts back."""


def with_finished(checkpoint: Checkpoint, added: Mapping[int, Finished]) -> Checkpoint:
    """The checkpoint with outputs that were kept after it was taken."""
    if not added:
        return checkpoint
    known = {done.index: done for done in checkpoint.finished} | dict(added)
    return msgspec.structs.replace(checkpoint, finished=tuple(known[index] for index in sorted(known)))
