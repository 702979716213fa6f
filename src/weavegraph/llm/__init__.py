"""Any provider's token stream → text, recognised by shape."""

from weavegraph.llm._source import chunks_of, text_of

__all__ = ["chunks_of", "text_of"]
