"""WHAT to run: the builder, its checks, and the compiled description."""

from weavegraph.graph._builder import GraphBuilder
from weavegraph.graph._compiled import END, START, CompiledGraph, ConditionalEdge

__all__ = ["END", "START", "CompiledGraph", "ConditionalEdge", "GraphBuilder"]
