"""Every exception of weavegraph, split by who caused it.

::

    WeavegraphError
    ├── NodeContextError            what a node's context may raise
    │   ├── LLMStreamClosedError    an LLM stream was used after its end, or read twice
    │   └── EmitterError            an event was not accepted
    │       ├── HubClosedError      you emitted after close()
    │       │   └── ForkedHubError  you used the parent's hub in a forked child
    │       ├── RunClosedError      you emitted after the run's terminal event
    │       ├── BackpressureError   a reader with overflow="block" had no room
    │       ├── EventInvalidError   the event breaks a rule
    │       └── EventTooLargeError  the event breaks a size limit
    ├── EventDecodeError            bytes that are not one of our events
    ├── StreamError                 a subscription was used wrongly or ended by force
    │   ├── StreamBusyError         two receives at once on one stream
    │   ├── WrongLoopError          one stream used from two event loops
    │   ├── BlockingInLoopError     a blocking read on a thread that runs a loop
    │   ├── InvalidPositionError    `after` is not a position of this hub
    │   └── SubscriberOverflowError overflow="disconnect" closed this subscriber
    ├── ConfigError                 a setting is wrong
    │   ├── MissingExtraError       an optional library is not installed
    │   ├── UnknownSinkError        no sink of that name
    │   └── CommandError            a command was given words that mean nothing here
    ├── LogError                    the event log cannot do that
    │   ├── LogFencedError          another writer owns the run
    │   ├── LogHoleError            a position is missing before this event
    │   ├── LogLateError            the log has gone past this position without it
    │   ├── LogCorruptError         what is stored is not what was written
    │   ├── LogVersionError         written by a release that this one does not know
    │   ├── LogClosedError          you used the log or store after aclose()
    │   │   └── ForkedLogError      you used the parent's open file in a forked child
    │   ├── LogAccessError          the server refuses this user, password or command
    │   └── LogUnavailableError     disk full, read-only, locked, I/O error, server away; try again later
    ├── SinkError                   raised by sinks
    │   └── PermanentSinkError      retrying cannot help
    ├── WebError                    a request was refused; `status` is what HTTP answers
    │   ├── HostRefusedError        the Host header names none of ours
    │   ├── InsecureBindError       a wide bind without an auth hook
    │   ├── InvalidCursorError      Last-Event-ID or `after` is no position of this stream
    │   ├── NotAllowedError         the caller may not do that
    │   ├── NotCaughtUpError        the position is ahead of this server's copy
    │   ├── OriginRefusedError      another web site asks
    │   ├── RequestInvalidError     path, method, headers or body
    │   ├── RunElsewhereError       the run is not live in this process
    │   ├── ServerClosingError      the server is shutting down
    │   ├── TooManyStreamsError     a quota of open streams is used up
    │   └── UnauthorizedError       nobody we know asks
    └── GraphError                  a graph, its state or a run of it is wrong
        ├── CompileError            compile() found faults: all of them
        ├── StateError              a node returned what its state cannot take
        │   └── StateSlotError      a typed slot is empty, or holds something else
        ├── NodeOutputError         a node returned something that is no update
        ├── StepLimitError          the run took more steps than allowed
        ├── RunCancelledError       the run was cancelled before its end
        ├── NodeTimeoutError        a node took longer than its timeout
        ├── NodeCancelledError      a node raised CancelledError though nobody had cancelled it
        ├── NoRunningLoopError      app.start() without a running loop
        ├── AppClosedError          a run was started after aclose()
        ├── TooManyRunsError        max_runs are live already
        ├── RunExistsError          the run id is taken
        ├── RunNotFoundError        no such run here
        ├── SessionError            a session cannot do that now
        │   ├── SessionBusyError    it has an open run
        │   └── SessionNotFoundError no such session
        └── CheckpointConflictError somebody else saved the session meanwhile

    Lagged, EndOfStream             signals, not faults: they answer "what happened?"

Facts are attributes, the sentence is written by the class, and ``code`` is a stable word for programs.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AppClosedError",
    "BackpressureError",
    "BlockingInLoopError",
    "CheckpointConflictError",
    "CommandError",
    "CompileError",
    "ConfigError",
    "EmitterError",
    "EndOfStream",
    "EventDecodeError",
    "EventInvalidError",
    "EventTooLargeError",
    "ForkedHubError",
    "ForkedLogError",
    "GraphError",
    "HostRefusedError",
    "HubClosedError",
    "InsecureBindError",
    "InvalidCursorError",
    "InvalidPositionError",
    "LLMStreamClosedError",
    "Lagged",
    "LogAccessError",
    "LogClosedError",
    "LogCorruptError",
    "LogError",
    "LogFencedError",
    "LogHoleError",
    "LogLateError",
    "LogUnavailableError",
    "LogVersionError",
    "MissingExtraError",
    "NoRunningLoopError",
    "NodeCancelledError",
    "NodeContextError",
    "NodeOutputError",
    "NodeTimeoutError",
    "NotAllowedError",
    "NotCaughtUpError",
    "OriginRefusedError",
    "PermanentSinkError",
    "RequestInvalidError",
    "RunCancelledError",
    "RunClosedError",
    "RunElsewhereError",
    "RunExistsError",
    "RunNotFoundError",
    "ServerClosingError",
    "SessionBusyError",
    "SessionError",
    "SessionNotFoundError",
    "SinkError",
    "StateError",
    "StateSlotError",
    "StepLimitError",
    "StreamBusyError",
    "StreamError",
    "SubscriberOverflowError",
    "TooManyRunsError",
    "TooManyStreamsError",
    "UnauthorizedError",
    "UnknownSinkError",
    "WeavegraphError",
    "WebError",
    "WrongLoopError",
]


class WeavegraphError(Exception):
    """Base of every fault. ``code`` never changes between releases."""

    code: ClassVar[str] = "weavegraph"


class NodeContextError(WeavegraphError):
    """Something that a node asked of its context could not be done."""

    code = "node_context"


class LLMStreamClosedError(NodeContextError):
    """An LLM stream was written to after its terminal, or read a second time."""

    code = "llm_stream_closed"

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        super().__init__(f"LLM stream {stream_id!r} has ended or was read already; begin another with ctx.stream_llm")


class EmitterError(NodeContextError):
    """An event was not accepted. It reached nobody."""

    code = "emitter"


class HubClosedError(EmitterError):
    """The hub was closed before this event."""

    code = "hub_closed"

    def __init__(self) -> None:
        super().__init__("the hub is closed: nothing can be emitted after close() or shutdown()")


class ForkedHubError(HubClosedError):
    """A hub that the parent process had used is used in a forked child."""

    code = "hub_forked"

    def __init__(self) -> None:
        EmitterError.__init__(
            self,
            "this hub was in use before os.fork(): its readers and threads live in the parent; "
            "create a new EventHub, EventBus or App in the child",
        )


class RunClosedError(EmitterError):
    """The run has written its terminal event; nothing of this attempt is accepted any more."""

    code = "run_closed"

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id!r} is over: its terminal event is written, this event was not accepted")


class BackpressureError(EmitterError):
    """A subscriber with ``overflow="block"`` had no room; the event reached nobody."""

    code = "backpressure"

    def __init__(self, waited: float) -> None:
        self.waited = waited
        super().__init__(
            f"a subscriber with overflow='block' is full (waited {waited:g} s); "
            "read faster, give it more capacity, or choose overflow='drop_oldest'"
        )


class EventInvalidError(EmitterError):
    """The event breaks a rule; ``field`` says where."""

    code = "event_invalid"

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"event refused: {field}: {problem}")


class EventTooLargeError(EmitterError):
    """The event is larger or deeper than allowed."""

    code = "event_too_large"

    def __init__(self, what: str, size: int, limit: int) -> None:
        self.what, self.size, self.limit = what, size, limit
        super().__init__(f"event refused: {what} is {size}, the limit is {limit}; send a reference instead")


class EventDecodeError(WeavegraphError):
    """The bytes are not an event of a known version."""

    code = "event_decode"

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"not a weavegraph event: {problem}")


class StreamError(WeavegraphError):
    """A subscription was used wrongly, or was ended by force."""

    code = "stream"


class StreamBusyError(StreamError):
    """A second receive while one is waiting."""

    code = "stream_busy"

    def __init__(self) -> None:
        super().__init__(
            "this stream is already being received from: one reader each; "
            "subscribe() once more for a second reader (every reader sees every event)"
        )


class WrongLoopError(StreamError):
    """The stream belongs to another event loop."""

    code = "wrong_loop"

    def __init__(self) -> None:
        super().__init__(
            "this stream was first used in another event loop; subscribe() in this one, or use .blocking()"
        )


class BlockingInLoopError(StreamError):
    """A blocking receive was tried on a thread that runs an event loop."""

    code = "blocking_in_loop"

    def __init__(self) -> None:
        super().__init__(
            "blocking iteration would stop the event loop of this thread; "
            "use 'async for' here, or iterate in a thread (asyncio.to_thread)"
        )


class InvalidPositionError(StreamError):
    """``after`` is not a position that this hub can resume from."""

    code = "invalid_position"

    def __init__(self, after: object, head: int) -> None:
        self.after, self.head = after, head
        super().__init__(f"after={after!r} is no position here: give an int from 0 to the head, {head}")


class SubscriberOverflowError(StreamError):
    """``overflow="disconnect"``: the reader was too slow; resume after ``last_position``."""

    code = "subscriber_overflow"

    def __init__(self, last_position: int, capacity: int | None) -> None:
        self.last_position, self.capacity = last_position, capacity
        super().__init__(
            f"this subscriber was closed because it fell more than {capacity} events behind; "
            f"subscribe again with after={last_position}"
        )


class ConfigError(WeavegraphError):
    """A setting is wrong; the text names it and what is allowed."""

    code = "config"


class UnknownSinkError(ConfigError):
    """No sink is registered under that name."""

    code = "unknown_sink"

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        self.name, self.known = name, known
        super().__init__(f"no sink is called {name!r}; known: {', '.join(known)}")


class MissingExtraError(ConfigError, ImportError):
    """An optional library is not installed; the text says how to get it."""

    code = "missing_extra"

    def __init__(self, what: str, extra: str) -> None:
        self.what, self.extra = what, extra
        super().__init__(f"{what} needs a library that is not installed: pip install 'weavegraph[{extra}]'")


class CommandError(ConfigError):
    """A command of the command line was given words that mean nothing here."""

    code = "command"


class LogError(WeavegraphError):
    """The event log, or the store it shares with checkpoints, cannot do what was asked."""

    code = "log"


class LogFencedError(LogError):
    """Another writer owns this run; nothing was written."""

    code = "log_fenced"

    def __init__(self, run_id: str, attempt: int, owner: int) -> None:
        self.run_id, self.attempt, self.owner = run_id, attempt, owner
        super().__init__(
            f"run {run_id!r} is written by another process (attempt {owner}; this is {attempt}): "
            "stop this one, or resume the run, which opens the next attempt"
        )


class LogHoleError(LogError):
    """Positions would be missing before this event; nothing was written."""

    code = "log_hole"

    def __init__(self, run_id: str, position: int, last: int) -> None:
        self.run_id, self.position, self.last = run_id, position, last
        super().__init__(f"run {run_id!r} ends at {last} in the log; position {position} cannot follow it")


class LogLateError(LogError):
    """The log has gone past this position without this event; a log only grows at its end. Nothing was written."""

    code = "log_late"

    def __init__(self, run_id: str, position: int, last: int) -> None:
        self.run_id, self.position, self.last = run_id, position, last
        super().__init__(
            f"run {run_id!r} is at {last} in the log and went past position {position} without it: "
            "readers see a gap there, which cannot be filled any more"
        )


class LogCorruptError(LogError):
    """What is stored is not what was written; nothing of it was returned as data."""

    code = "log_corrupt"

    def __init__(self, place: str, problem: str) -> None:
        self.place, self.problem = place, problem
        super().__init__(f"{place}: {problem}; restore it from a copy, or move it away to begin anew")


class LogVersionError(LogError):
    """The store was written by a release that this one does not know; nothing was changed."""

    code = "log_version"

    def __init__(self, place: str, found: object, known: int) -> None:
        self.place, self.found, self.known = place, found, known
        super().__init__(f"{place} has version {found}; this release knows up to {known}: use a newer weavegraph")


class LogClosedError(LogError):
    """The log, or the store below it, was closed before this call."""

    code = "log_closed"

    def __init__(self, place: str) -> None:
        self.place = place
        super().__init__(f"{place} is closed: nothing can be read or written after aclose(); open it anew")


class ForkedLogError(LogClosedError):
    """The file was open in the parent process when this one was forked."""

    code = "log_forked"

    def __init__(self, place: str) -> None:
        self.place = place
        LogError.__init__(
            self,
            f"{place} was open before os.fork(), and SQLite's locks do not survive that; "
            "close it before forking, open it in the children only, or start them with spawn",
        )


class LogAccessError(LogError):
    """The server refuses this user, this password, or this command to this user."""

    code = "log_access"

    def __init__(self, place: str, problem: str) -> None:
        self.place, self.problem = place, problem
        super().__init__(f"{place} refuses access ({problem}): check user, password and rights")


class LogUnavailableError(LogError):
    """The store cannot be reached or written now: disk full, read-only, locked, no connection. Nothing is damaged."""

    code = "log_unavailable"

    def __init__(self, place: str, problem: str) -> None:
        self.place, self.problem = place, problem
        super().__init__(f"{place}: {problem}")


class SinkError(WeavegraphError):
    """A sink could not take a batch; it is tried again unless it delivers at most once."""

    code = "sink"


class PermanentSinkError(SinkError):
    """A sink could not take a batch, and trying again cannot help."""

    code = "sink_permanent"


class WebError(WeavegraphError):
    """A request was refused. ``status``: what HTTP answers; ``retry_after``: seconds after which to ask again."""

    code = "web"
    status: int = 400
    retry_after: int | None = None


class InsecureBindError(WebError):
    """The address can be reached from other machines, and nothing asks who comes."""

    code = "insecure_bind"
    status = 403

    def __init__(self, host: str) -> None:
        self.host = host
        super().__init__(
            f"host={host!r} can be reached from other machines: give an auth hook (auth=…, or a token), "
            "or bind to 127.0.0.1"
        )


class HostRefusedError(WebError):
    """The ``Host`` header names none of the hosts that this server answers for."""

    code = "host"
    status = 421

    def __init__(self) -> None:
        super().__init__("this server does not answer for that Host: add it to allowed_hosts")


class OriginRefusedError(WebError):
    """A page of another web site asks."""

    code = "origin"
    status = 403

    def __init__(self) -> None:
        super().__init__("pages of that origin may not ask here: add it to allowed_origins")


class UnauthorizedError(WebError):
    """The request does not tell who asks, or tells it wrongly."""

    code = "unauthorized"
    status = 401

    def __init__(self) -> None:
        super().__init__("say who you are: the header 'Authorization: Bearer …'")


class NotAllowedError(WebError):
    """The caller is known, and may not do that."""

    code = "not_allowed"
    status = 403

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"you may not {what}: it needs a principal with everything=True")


class RequestInvalidError(WebError):
    """The path, the method, a header or the body cannot be used; ``status`` says which."""

    code = "request_invalid"

    def __init__(self, problem: str, status: int = 400) -> None:
        self.problem, self.status = problem, status
        super().__init__(problem)


class InvalidCursorError(WebError):
    """``Last-Event-ID`` or ``after`` is malformed, or beyond the last event. It is never guessed."""

    code = "invalid_cursor"

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"no position of this stream: {problem}; give an id that this stream sent, or after=0")


class NotCaughtUpError(WebError):
    """The position is ahead of what this server can see yet; another server issued it. Ask again."""

    code = "not_caught_up"
    status, retry_after = 503, 1

    def __init__(self, waited: float) -> None:
        self.waited = waited
        super().__init__(f"that position has not arrived here yet (waited {waited:g} s): ask again")


class TooManyStreamsError(WebError):
    """As many streams are open as are allowed: of the server (503) or of one principal (429)."""

    code = "too_many_streams"
    retry_after = 1

    def __init__(self, limit: int, status: int) -> None:
        self.limit, self.status = limit, status
        super().__init__(f"{limit} streams are open, as many as are allowed: close one, or ask again later")


class RunElsewhereError(WebError):
    """The run is over, or is not driven by this process, so that this process cannot stop it."""

    code = "run_elsewhere"
    status = 409

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id!r} is not live in this server: it is over, or another process drives it")


class ServerClosingError(WebError):
    """The server is about to end: streams end, nothing new begins."""

    code = "server_closing"
    status, retry_after = 503, 1

    def __init__(self) -> None:
        super().__init__("the server is shutting down: ask again")


class GraphError(WeavegraphError):
    """A graph, its state, or a run of it is wrong."""

    code = "graph"


class CompileError(GraphError):
    """``compile()`` found faults; ``faults`` holds one sentence for each."""

    code = "compile"

    def __init__(self, faults: tuple[str, ...]) -> None:
        self.faults = faults
        lines = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(f"the graph has {len(faults)} fault{'s' * (len(faults) != 1)}:{lines}")


class StateError(GraphError):
    """A node's update does not fit the state."""

    code = "state"


class StateSlotError(StateError):
    """A typed slot (``StateKey``) is empty, of a version without a migration, or holds something else."""

    code = "state_slot"


class NodeOutputError(GraphError):
    """A node returned something that is neither an update nor a command."""

    code = "node_output"

    def __init__(self, node: str, value: object) -> None:
        self.node = node
        super().__init__(
            f"node {node!r} returned a {type(value).__name__}; return a mapping of the state keys that change, "
            "a Command, a NodePartial, a Send or a list of them, or None"
        )


class StepLimitError(GraphError):
    """The run reached its step limit; a loop that never ends, or a limit that is too low."""

    code = "step_limit"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the run took {limit} steps without reaching END; raise RuntimeConfig(step_limit=…)")


class RunCancelledError(GraphError):
    """The run was cancelled."""

    code = "run_cancelled"

    def __init__(self, run_id: str | None, reason: str) -> None:
        self.run_id, self.reason = run_id, reason
        super().__init__(f"{'the run' if run_id is None else f'run {run_id!r}'} was cancelled: {reason}")


class NoRunningLoopError(GraphError):
    """``app.start`` needs a running event loop."""

    code = "no_running_loop"

    def __init__(self) -> None:
        super().__init__(
            "app.start() needs a running event loop; from a script use asyncio.run(app.invoke(…)) or app.invoke_sync(…)"
        )


class RunNotFoundError(GraphError):
    """The run is unknown here, or was forgotten."""

    code = "run_not_found"

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"no run {run_id!r} here: it never started, or its events are no longer kept")


class NodeTimeoutError(GraphError, TimeoutError):
    """A try of a node took longer than the node's timeout."""

    code = "node_timeout"

    def __init__(self, node: str, seconds: float) -> None:
        self.node, self.seconds = node, seconds
        super().__init__(f"node {node!r} did not end within {seconds:g} s; give it more: add_node(…, timeout=…)")


class NodeCancelledError(GraphError):
    """A node or a router raised ``asyncio.CancelledError`` though neither the run nor the node was cancelled."""

    code = "node_cancelled"

    def __init__(self, node: str, *, router: bool = False) -> None:
        self.node = node
        who = f"the router after {node!r}" if router else f"node {node!r}"
        super().__init__(f"{who} raised CancelledError by itself: something that it awaited was cancelled")


class AppClosedError(GraphError):
    """The app was closed."""

    code = "app_closed"

    def __init__(self) -> None:
        super().__init__("the app is closed: no new runs after aclose(); compile() gives a new app")


class TooManyRunsError(GraphError):
    """As many runs are live as ``max_runs`` allows."""

    code = "too_many_runs"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"{limit} runs are live, as many as max_runs allows; wait for one to end, or raise max_runs")


class RunExistsError(GraphError):
    """There is or was a run of that id."""

    code = "run_exists"

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run_id={run_id!r} is taken: give each run another, or none")


class SessionError(GraphError):
    """A session cannot do what was asked of it."""

    code = "session"


class SessionBusyError(SessionError):
    """The session has an open run; a session has one at a time."""

    code = "session_busy"

    def __init__(self, session_id: str, run_id: str) -> None:
        self.session_id, self.run_id = session_id, run_id
        super().__init__(f"session {session_id!r} is busy with run {run_id!r}: await, resume or cancel that one first")


class SessionNotFoundError(SessionError):
    """No such session."""

    code = "session_not_found"

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(f"no session {session_id!r} here: it was never created, or it was deleted")


class CheckpointConflictError(GraphError):
    """The session moved on since the step that this write was based on; nothing was written."""

    code = "checkpoint_conflict"

    def __init__(self, session_id: str, expected: int | None, found: int | None) -> None:
        self.session_id, self.expected, self.found = session_id, expected, found
        super().__init__(
            f"session {session_id!r} is at checkpoint {found}, not {expected}: read it again and decide anew"
        )


class Lagged(Exception):
    """Signal: ``missed`` events were lost to this reader, ``first_seq`` to ``last_seq``; go on receiving."""

    code: ClassVar[str] = "lagged"

    def __init__(self, missed: int, first_seq: int, last_seq: int) -> None:
        self.missed, self.first_seq, self.last_seq = missed, first_seq, last_seq
        super().__init__(f"missed {missed} events ({first_seq} to {last_seq})")


class EndOfStream(Exception):
    """Signal: the stream is over and everything was read. Asking again gives the same answer."""

    code: ClassVar[str] = "end_of_stream"

    def __init__(self) -> None:
        super().__init__("the stream has ended")
