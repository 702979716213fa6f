"""WHAT to run: the builder, its checks, the compiled description, and its drawings."""

from weavegraph.graph._builder import GraphBuilder
from weavegraph.graph._compiled import END, START, CompiledGraph, ConditionalEdge, GraphMetadata, NodePlan, Retry

__all__ = [
    "END",
    "START",
    "CompiledGraph",
    "ConditionalEdge",
    "GraphBuilder",
    "GraphMetadata",
    "NodePlan",
    "Retry",
]
