"""What a node is given: where it is, how it speaks, and whether it should stop."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from datetime import datetime
from typing import Any, Generic, TypeVar

from weavegraph.bus import RunEmitter
from weavegraph.errors import EventInvalidError, LLMStreamClosedError, SessionError
from weavegraph.events import DiagnosticEvent, Event, LLMPhase, NodeEvent, check_id
from weavegraph.runtime._attempt import Attempt
from weavegraph.runtime._cancel import CancelToken
from weavegraph.runtime._llm import LLMRecord, LLMStream
from weavegraph.state import OpenQuestion, isolate, weigh

__all__ = ["NodeContext", "NodePaused"]

S = TypeVar("S")
D = TypeVar("D")


class NodePaused(BaseException):
    """A node waits for an answer. No ``Exception``, so that a node's own ``except`` does not swallow it. Internal."""

    def __init__(self, questions: tuple[OpenQuestion, ...]) -> None:
        self.questions = questions
        super().__init__("this node waits for an answer; app.resume(session_id, answer) runs it again")


class NodeContext(Generic[S, D]):
    """One try of one node. ``emit`` works from any thread and never waits; there is no context variable.

    ``NodeContext[State, Deps]`` gives ``deps`` its type. ``path`` names the enclosing sub-graphs, outermost first;
    ``step`` counts the supersteps of the node's own graph, ``try_no`` its tries, ``attempt`` those of the run.
    """

    __slots__ = (
        "_asked", "_attempt", "_index", "_inner", "_over", "_place", "_records", "_token",
        "node_id", "path", "step", "try_no",
    )  # fmt: skip

    def __init__(
        self,
        attempt: Attempt,
        node_id: str,
        step: int,
        path: tuple[str, ...],
        try_no: int,
        index: int = 0,
        place: str = "",
    ) -> None:
        self._attempt = attempt
        self.node_id, self.step, self.path, self.try_no = node_id, step, path, try_no
        self._index = index  # among the tasks of its step
        self._place = place  # of its graph: as the path, but unlike for each of several sends of one sub-graph
        self._over = False  # this try has ended, or was left behind
        self._inner: dict[int, NodeContext[Any, Any]] | None = None  # of a sub-graph: those of its present step
        self._asked = 0
        self._records: dict[str, LLMRecord] | None = None
        self._token: CancelToken | None = None

    # ── where ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def run_id(self) -> str:
        return self._attempt.lane.run_id

    @property
    def session_id(self) -> str:
        return self._attempt.lane.session_id

    @property
    def attempt(self) -> int:
        """Of the run; a resume opens the next."""
        return self._attempt.number

    @property
    def deps(self) -> D:
        """What ``app.start(deps=…)`` was given."""
        deps: D = self._attempt.deps
        return deps

    @property
    def tags(self) -> tuple[str, ...]:
        """What ``app.start(tags=…)`` was given."""
        return self._attempt.tags

    def now(self) -> datetime:
        """Aware UTC, by the app's clock."""
        return self._attempt.clock.now()

    # ── speaking ──────────────────────────────────────────────────────────────────────────────────

    @property
    def emitter(self) -> RunEmitter:
        """An ``EventEmitter`` for code that should only emit; the events are given as objects."""
        return self._attempt.emitter

    def emit(self, scope: str, message: str = "", /, **metadata: Any) -> Event | None:
        """Say something: ``ctx.emit("drafting", "started", words=120)``. Returns the stamped event.

        Never waits; ``None`` when a reader with ``overflow="block"`` is full: the event reached nobody.

        Raises:
            NodeContextError: the event breaks a rule (``EventInvalidError``, ``EventTooLargeError``), or the run is
                over (``RunClosedError``).
        """
        return self._attempt.emitter.say(NodeEvent, scope, message, metadata, self.node_id, self.step, self.path)

    async def emit_async(self, scope: str, message: str = "", /, **metadata: Any) -> Event:
        """As ``emit``, but waits for subscribers with ``overflow="block"``; then ``BackpressureError``.

        With a log (``RuntimeConfig(log=…)``) it returns when the log has acknowledged the event.
        """
        stamped = await self._attempt.emitter.emit_async(
            NodeEvent(scope, message, metadata, node_id=self.node_id, step=self.step, path=self.path)
        )
        if self._attempt.acknowledge is not None:
            await self._attempt.acknowledge(stamped.run_seq or 0)
        return stamped

    def emit_diagnostic(self, scope: str, message: str = "", /, **metadata: Any) -> Event | None:
        """As ``emit``, for what is about the system rather than the work."""
        return self._attempt.emitter.say(DiagnosticEvent, scope, message, metadata, self.node_id, self.step, self.path)

    # ── models ────────────────────────────────────────────────────────────────────────────────────

    def stream_llm(
        self, source: AsyncIterable[Any] | Iterable[Any], /, *, stream_id: str | None = None, **metadata: Any
    ) -> LLMStream:
        """Pass a model's token stream on as LLM events: chunk …, then exactly one of final, error, cancelled.

        ``reply = await ctx.stream_llm(tokens)`` gives the whole; ``async for chunk in ctx.stream_llm(tokens)`` each
        piece. If the node ends before the stream does, the runtime writes the terminal event. A sync source is read on
        a thread, unless it is a list or tuple.

        Args:
            source: an async or sync iterable of text, or of OpenAI-shaped chunks.
            stream_id: as in the events; a second use in one run gets ``:2`` appended, and so on; one in a later
                attempt of the run ``..2``.

        Raises:
            LLMStreamClosedError: this try of the node has ended. EventInvalidError: ``stream_id`` is no id, or that of
                another open stream of this node.
        """
        return LLMStream(self, source, self._open(stream_id, metadata))

    def emit_llm_chunk(self, chunk: str, /, *, stream_id: str | None = None, **metadata: Any) -> Event | None:
        """One piece of a model's answer, by hand. The runtime counts the index, and ends what the node leaves open."""
        return self._record(stream_id).chunk(chunk, metadata)

    def emit_llm_final(self, chunk: str = "", /, *, stream_id: str | None = None, **metadata: Any) -> Event | None:
        """The last piece of a model's answer, by hand."""
        return self._record(stream_id).end("final", chunk, metadata)

    def emit_llm_error(self, message: str, /, *, stream_id: str | None = None, **metadata: Any) -> Event | None:
        """The end of a model's answer by a failure, by hand."""
        return self._record(stream_id).end("error", message, metadata)

    def _record(self, stream_id: str | None) -> LLMRecord:
        name = self.node_id if stream_id is None else stream_id
        with self._attempt.lock:
            found = None if self._records is None else self._records.get(name)
            return found if found is not None else self._open(name, {})

    def _open(self, stream_id: str | None, metadata: dict[str, Any]) -> LLMRecord:
        name = self.node_id if stream_id is None else check_id("stream_id", stream_id)
        attempt = self._attempt
        with attempt.lock:
            if self._records is None:
                self._records = {}
            elif name in self._records and not self._records[name].ended and stream_id is not None:
                problem = f"{name!r} is used by another open stream of this node; give another, or none"
                raise EventInvalidError("stream_id", problem)
            unique = attempt.stream_id(name)
            record = LLMRecord(self, unique, metadata)
            self._records[name if name not in self._records else unique] = record
            attempt.open_streams[record] = None
            if self._over or attempt.over:  # looked at last: whoever sets it closes what it finds afterwards
                record.close("cancelled", "")
                raise LLMStreamClosedError(unique)
        return record

    def close_streams(self, phase: LLMPhase, message: str = "") -> None:
        """This try of the node ended: streams that it left open end with it. Called by the runtime."""
        self._over = True
        if self._records is not None:
            with self._attempt.lock:
                records = tuple(self._records.values())
            for record in records:
                record.close(phase, message)

    def leave(self) -> None:
        """Its task would not end, and the run goes on without it. Called by the runtime."""
        self.close_streams("cancelled")
        for inner in tuple((self._inner or {}).values()):
            inner.leave()

    def _call_in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._attempt.threads.call(function, *arguments)

    # ── asking ────────────────────────────────────────────────────────────────────────────────────

    async def interrupt(self, question: Any = None) -> Any:
        """Ask somebody outside, and go on with the answer.

        The first time, the attempt ends as ``paused`` when the rest of the step has finished. After
        ``app.resume(session_id, answer)`` this node runs again from its top, and gets the answers here, in the order
        in which it asks: what comes before a question is done again, so keep it free of side effects. Needs a
        checkpointer; without one it raises ``SessionError``.
        """
        return self.interrupt_sync(question)

    def interrupt_sync(self, question: Any = None) -> Any:
        """As ``interrupt``, for a sync node."""
        key = f"{self._place}{self.node_id}:{self.step}:{self._index}"
        answers, number = self._attempt.answers.get(key, ()), self._asked
        self._asked += 1
        if number < len(answers):
            return isolate(answers[number], weigh(answers[number]))
        if not self._attempt.can_pause:
            raise SessionError(
                f"node {self.node_id!r} asks, and nothing remembers this run until it is answered: "
                "compile(RuntimeConfig(checkpointer=…))"
            )
        raise NodePaused((OpenQuestion(f"{key}:{number}", self.node_id, question, self.path),))

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────

    @property
    def cancel_token(self) -> CancelToken:
        """A child of the run's token: look at it between pieces of work, pass ``.child()`` on to helpers."""
        if self._token is None:
            self._token = self._attempt.token.child()
        return self._token

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the run to stop: a node that returns soon is not cut off."""
        return self._attempt.token.cancelled

    def raise_if_cancelled(self) -> None:
        """Raise ``RunCancelledError`` if somebody asked to stop; it ends the run as cancelled, not failed."""
        self._attempt.token.raise_if_cancelled()

    def __repr__(self) -> str:
        return f"<NodeContext {'/'.join((*self.path, self.node_id))!r} step={self.step} run={self.run_id!r}>"
