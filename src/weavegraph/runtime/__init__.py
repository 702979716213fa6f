"""RUNS it: the step (pure), the walk through a graph, the node's context, the handle of a run, the app, the runner."""

from weavegraph.runtime._app import App, StateSnapshot
from weavegraph.runtime._cancel import CancelToken
from weavegraph.runtime._context import NodeContext
from weavegraph.runtime._execution import RunStatus
from weavegraph.runtime._llm import LLMReply, LLMStream
from weavegraph.runtime._run import InvocationHandle
from weavegraph.runtime._runner import AppRunner, PausedReport, RunMetadata, Session, StepOptions, StepReport

__all__ = [
    "App",
    "AppRunner",
    "CancelToken",
    "InvocationHandle",
    "LLMReply",
    "LLMStream",
    "NodeContext",
    "PausedReport",
    "RunMetadata",
    "RunStatus",
    "Session",
    "StateSnapshot",
    "StepOptions",
    "StepReport",
]
