"""What all nodes of one attempt of a run share, and the runtime's own events."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from weavegraph.bus import Lane, Note, RunEmitter
from weavegraph.config import RuntimeConfig
from weavegraph.errors import EventInvalidError, EventTooLargeError
from weavegraph.events import (
    LLM_SCOPE,
    STREAM_END_SCOPE,
    DiagnosticEvent,
    Event,
    FrozenDict,
    FrozenList,
    LLMStreamingEvent,
    admit,
    clean_text,
    freeze_metadata,
)
from weavegraph.protocols import Clock
from weavegraph.runtime._cancel import CancelToken
from weavegraph.runtime._threads import NodeThreads
from weavegraph.state import OpenQuestion, Task

if TYPE_CHECKING:
    from weavegraph.runtime._llm import LLMRecord

__all__ = ["Attempt", "code_of", "describe", "plain"]

MAX_NAMES = 1000
"""Node names that one event lists; a step may have many more tasks."""
MAX_ID = 128
_MARK = re.compile(r"\.\.[0-9]+$")
_NODE_SCOPES = {what: f"weavegraph.node.{what}" for what in ("started", "finished", "failed", "retried", "skipped")}
_GONE = "(its text cannot be had)"
_log = logging.getLogger("weavegraph.runtime")


class Attempt:
    """One attempt of one run: its lane, its token, its limits. Nodes come and go; this is what they have in common."""

    def __init__(
        self,
        lane: Lane,
        config: RuntimeConfig,
        clock: Clock,
        token: CancelToken,
        *,
        deps: Any = None,
        tags: tuple[str, ...] = (),
        observers: Iterable[Any] = (),
    ) -> None:
        self.lane, self.config, self.clock, self.token = lane, config, clock, token
        self.deps, self.tags = deps, tags
        self.emitter: RunEmitter = lane.run_emitter()
        self.number = lane.attempt
        self.lock = threading.RLock()
        """Guards the LLM streams of this attempt. Re-entrant: a signal handler or the collector may emit (E3)."""
        self.over = False
        """The terminal event is being written: what still runs was left behind."""
        self.open_streams: dict[LLMRecord, None] = {}
        """LLM streams without a terminal, oldest first."""
        self.answers: dict[str, list[Any]] = {}
        """Answers to questions of nodes that ran before, by task, in call order."""
        self.acknowledge: Callable[[int], Awaitable[None]] | None = None
        """With a durable log: waits until it holds the run up to a position."""
        self.can_pause = True
        """Whether somebody remembers the run, so that a question can be answered later."""
        self.killed = False
        """The tasks of this attempt are being cancelled by us."""
        self._limit: asyncio.Semaphore | None = None
        self._limit_loop: asyncio.AbstractEventLoop | None = None
        self._stream_ids: set[str] = set()
        self._stream_uses: dict[str, int] = {}
        self._observers = tuple(observers)
        self._complained: set[Any] = set()
        self._noted: list[Note] = []
        self._lists: dict[str, FrozenList] = {}
        self._threads: NodeThreads | None = None

    @property
    def limit(self) -> asyncio.Semaphore:
        """A slot for each node that may run; of the running loop, since an ``AppRunner`` may step in several."""
        loop = asyncio.get_running_loop()
        if self._limit is None or self._limit_loop is not loop:
            self._limit, self._limit_loop = asyncio.Semaphore(self.config.concurrency_limit), loop
        return self._limit

    def stream_id(self, name: str) -> str:
        """An id for an LLM stream that no other stream of the run has, in any attempt, whatever nodes name theirs.

        The first use of a name in the first attempt gets it as it is, further ones end in ``:2``, ``:3`` …, all of
        a later attempt in ``..2``, ``..3`` …: earlier ids are not known here, and none of them ends like that.
        """
        mark = "" if self.number == 1 else f"..{self.number}"
        with self.lock:
            use = self._stream_uses.get(name, 0)
            while True:
                use += 1
                end = mark if use == 1 else f":{use}{mark}"
                unique = name[: MAX_ID - len(end)] + end
                if unique not in self._stream_ids and (mark or not _MARK.search(unique)):
                    break
            self._stream_uses[name] = use
            self._stream_ids.add(unique)
        return unique

    @property
    def threads(self) -> NodeThreads:
        if self._threads is None:
            self._threads = NodeThreads(self.config.concurrency_limit)
        return self._threads

    def close(self) -> None:
        if self._threads is not None:
            self._threads.close()

    # ── the runtime's own events (contract section 9) ─────────────────────────────────────────────
    #
    # Those of a step follow each other without an await: they are noted, and written together before anybody else has
    # a turn, that is before a node's code runs, before an await, and at the end. On a chain of nodes that and metadata
    # that is frozen as it is made take 4 µs a node instead of 40.

    def note(
        self, scope: str, message: str, metadata: FrozenDict, node: str | None, step: int, path: tuple[str, ...]
    ) -> None:
        """An event that is small and made of plain parts; ``flush`` writes it."""
        self._noted.append((scope, message, metadata, node, step, path))

    def flush(self) -> None:
        """Write what was noted."""
        noted = self._noted
        if noted:
            self._noted = []
            if self.lane.attempt == self.number:  # else: a task that outlived its attempt
                self.lane.tell(noted)

    def say(
        self,
        scope: str,
        message: str,
        metadata: Mapping[str, Any],
        *,
        node: str | None = None,
        step: int | None = None,
        path: tuple[str, ...] = (),
    ) -> None:
        """Write one event of any size. It is never refused: what does not fit is left out, and said to be."""
        self.flush()
        if self.lane.attempt == self.number:
            self.lane._store(*_fitting(scope, message, metadata, node, step, path))

    def started(self, graph: str, fingerprint: str, inputs: Iterable[str]) -> None:
        metadata: dict[str, Any] = {"graph": graph, "fingerprint": fingerprint, "session": self.lane.session_id}
        metadata["input_keys"] = sorted(inputs)
        if self.tags:
            metadata["tags"] = self.tags
        self.say("weavegraph.run.started", graph, metadata)
        self.observe("on_run_started", self.lane.run_id, self.lane.session_id, self.number)

    def step_started(self, tasks: tuple[Task, ...], step: int, path: tuple[str, ...]) -> FrozenDict:
        """The beginning of a step; returns what ``step_finished`` needs to know of it."""
        if len(tasks) == 1:
            text = tasks[0].node
            facts = FrozenDict({"step": step, "nodes": self._alone(text)})
            self.note("weavegraph.step.started", f"step {step}: {text}", facts, None, step, path)
        else:
            names, text = _names(tasks)
            facts = FrozenDict({"step": step, "nodes": names})
            self.say("weavegraph.step.started", f"step {step}: {text}", facts, step=step, path=path)
        return facts

    def step_finished(
        self, facts: FrozenDict, step: int, path: tuple[str, ...], more: Mapping[str, Any] | None
    ) -> None:
        if len(facts["nodes"]) == 1 and not more:
            self.note("weavegraph.step.finished", f"step {step}", facts, None, step, path)
            return
        full: dict[str, Any] = facts
        if more:
            try:
                full = {**facts, **freeze_metadata(more)}
                admit(DiagnosticEvent("weavegraph.step.finished", "", freeze_metadata(full)), reserved=True)
            except (EventInvalidError, EventTooLargeError):
                # Too large for an event: say where it can be had.
                full = {**facts, "checkpoint": {"session": self.lane.session_id, "step": step}}
        self.say("weavegraph.step.finished", f"step {step}", full, step=step, path=path)

    def _alone(self, name: str) -> FrozenList:
        found = self._lists.get(name)
        if found is None:
            found = self._lists[name] = FrozenList((name,))
        return found

    def node_started(self, name: str, step: int, path: tuple[str, ...], try_no: int) -> None:
        metadata = FrozenDict({"node": name, "step": step, "attempt": self.number, "try": try_no})
        self._noted.append((_NODE_SCOPES["started"], name, metadata, name, step, path))
        self.flush()

    def node_finished(self, name: str, step: int, path: tuple[str, ...], try_no: int, duration: float) -> None:
        metadata = FrozenDict({"node": name, "step": step, "attempt": self.number, "try": try_no, "duration": duration})
        self._noted.append((_NODE_SCOPES["finished"], name, metadata, name, step, path))
        if self._observers:
            self.observe("on_node_finished", self.lane.run_id, name, step, "finished", duration)

    def node(
        self,
        what: str,
        name: str,
        step: int,
        path: tuple[str, ...],
        try_no: int,
        duration: float | None = None,
        error: str | None = None,
        code: str | int | None = None,
    ) -> None:
        """``weavegraph.node.failed``, ``retried`` or ``skipped``."""
        metadata: dict[str, Any] = {"node": name, "step": step, "attempt": self.number, "try": try_no}
        if duration is not None:
            metadata["duration"] = duration
        if error is None:
            self._noted.append((_NODE_SCOPES[what], name, FrozenDict(metadata), name, step, path))
        else:
            metadata["error"] = error[:10_000]
            if code is not None:
                metadata["code"] = code
            self.say(_NODE_SCOPES[what], error, metadata, node=name, step=step, path=path)
        if self._observers:
            self.observe("on_node_finished", self.lane.run_id, name, step, what, duration or 0.0)

    def paused(
        self, name: str, step: int, path: tuple[str, ...], try_no: int, questions: tuple[OpenQuestion, ...]
    ) -> None:
        """``weavegraph.node.paused``: the node waits for answers. An enclosing sub-graph does not say it again."""
        own = [question for question in questions if question.node == name and question.path == path]
        for question in own:
            metadata = {"node": name, "step": step, "attempt": self.number, "try": try_no}
            metadata |= {"question": plain(question.question), "id": question.id}
            self.say("weavegraph.node.paused", name, metadata, node=name, step=step, path=path)

    def end_cut_off(self, chunk: LLMStreamingEvent) -> None:
        """The end of an LLM stream that stood at ``chunk`` when its process died (contract O5)."""
        event = LLMStreamingEvent(
            LLM_SCOPE, "", chunk.metadata, phase="cancelled", is_final=True, index=chunk.index + 1,
            stream_id=chunk.stream_id, node_id=chunk.node_id, step=chunk.step, path=chunk.path,
        )  # fmt: skip
        self.lane._accept(event, reserved=True)

    def conclude(
        self, outcome: str, step: int, error: BaseException | None = None, code: str | int | None = None
    ) -> None:
        """The attempt's terminal event, always its last: LLM streams of nodes that were left behind end before it."""
        self.over = True
        self.flush()
        with self.lock:
            left = tuple(self.open_streams)
        for record in left:
            record.close("cancelled", "")
        metadata: dict[str, Any] = {"outcome": outcome, "step": step}
        if error is not None:
            metadata["error"] = describe(error)
            code = code_of(error) if code is None else code
        if code is not None:
            metadata["code"] = code
        if self.lane.attempt == self.number:
            self.lane.conclude(*_fitting(STREAM_END_SCOPE, outcome, metadata))

    # ── observers ─────────────────────────────────────────────────────────────────────────────────

    def observe(self, hook: str, *facts: Any) -> None:
        """Call the hook of every observer that has it. What one raises is logged once and changes nothing."""
        for observer in self._observers:
            try:
                call = getattr(observer, hook, None)
                if call is not None:
                    call(*facts)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                if (id(observer), hook) not in self._complained:
                    self._complained.add((id(observer), hook))
                    _log.warning("the observer %r raised in %s; the run goes on", observer, hook, exc_info=True)


def describe(exc: BaseException) -> str:
    """An exception in one line, whatever its ``__str__`` does."""
    try:
        return f"{type(exc).__name__}: {exc!s}"[:10_000]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return f"{type(exc).__name__}: {_GONE}"


def code_of(exc: BaseException) -> str | int | None:
    """The ``code`` that an exception carries, if it is text or a number; gRPC's, for one, is a method."""
    try:
        code = getattr(exc, "code", None)
        if isinstance(code, str):
            return str.__str__(code)[:1000]
        return int(code) if isinstance(code, int) and not isinstance(code, bool) and abs(code) < 2**63 else None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return None


def plain(value: Any) -> Any:
    """What JSON can say of ``value``."""
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=repr)
    except Exception:
        try:
            return repr(value)[:1000]
        except Exception:
            return f"<{type(value).__name__}>"


def _fitting(
    scope: str,
    message: str,
    metadata: Mapping[str, Any],
    node: str | None = None,
    step: int | None = None,
    path: tuple[str, ...] = (),
) -> tuple[Event, int]:
    """An event that is fit to be stored, and its charge. What of it does not fit is left out, and said to be."""
    if len(message) > 10_000:
        message = message[:10_000] + "…"
    message = clean_text("message", message)
    try:
        event = DiagnosticEvent(scope, message, freeze_metadata(metadata), node_id=node, step=step, path=path)
        return admit(event, reserved=True)
    except (EventInvalidError, EventTooLargeError) as exc:
        why = "too large" if isinstance(exc, EventTooLargeError) else str(exc)
        kept = {key: value for key, value in metadata.items() if _small(value)}
        short = freeze_metadata({**kept, "left_out": why[:1000]})
        event = DiagnosticEvent(scope, message[:1000], short, node_id=node, step=step, path=path)
        return admit(event, reserved=True)


def _small(value: Any) -> bool:
    """Whether ``value`` fits into any event."""
    if isinstance(value, str):
        return len(value) <= 10_000
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63)


def _names(tasks: tuple[Task, ...]) -> tuple[FrozenList, str]:
    """What an event says of the nodes of a step. They are ids, and need no freezing."""
    names = [task.node for task in tasks]
    counts = Counter(names)
    shown = [name if count == 1 else f"{name} ×{count}" for name, count in islice(counts.items(), 20)]
    if len(counts) > 20:
        shown.append(f"and {len(counts) - 20} more")
    return FrozenList(names[:MAX_NAMES]), ", ".join(shown)
