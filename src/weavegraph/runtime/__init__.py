"""RUNS it: the step (pure), the scheduler, the node's context, the handle of a run, the app."""

from weavegraph.runtime._app import App
from weavegraph.runtime._context import LLMReply, LLMStream, NodeContext
from weavegraph.runtime._run import InvocationHandle, RunStatus

__all__ = ["App", "InvocationHandle", "LLMReply", "LLMStream", "NodeContext", "RunStatus"]
