"""What nodes read and write: schemas, reducers, messages, typed slots, routes, and what a step leaves behind. Pure."""

from weavegraph.state._checkpoint import (
    Checkpoint,
    CheckpointStatus,
    Finished,
    OpenQuestion,
    Task,
    with_finished,
)
from weavegraph.state._isolation import StateView, isolate, weigh
from weavegraph.state._messages import Message, as_message
from weavegraph.state._plain import flatten, flatten_finished, revive
from weavegraph.state._records import ErrorRecord, Failure, failure_of, ladder, mark_failure
from weavegraph.state._reducers import add_messages, append, label, merge_patch
from weavegraph.state._routes import Command, FrontierCommand, Goto, NodePartial, Send, Writes
from weavegraph.state._schema import INVOCATION, Reduce, StateSchema, Values
from weavegraph.state._slots import StateKey

__all__ = [
    "INVOCATION",
    "Checkpoint",
    "CheckpointStatus",
    "Command",
    "ErrorRecord",
    "Failure",
    "Finished",
    "FrontierCommand",
    "Goto",
    "Message",
    "NodePartial",
    "OpenQuestion",
    "Reduce",
    "Send",
    "StateKey",
    "StateSchema",
    "StateView",
    "Task",
    "Values",
    "Writes",
    "add_messages",
    "append",
    "as_message",
    "failure_of",
    "flatten",
    "flatten_finished",
    "isolate",
    "label",
    "ladder",
    "mark_failure",
    "merge_patch",
    "revive",
    "weigh",
    "with_finished",
]
