"""Any provider's token stream → text, recognised by shape."""

from weavegraph.llm._source import pieces_of, text_of

__all__ = ["pieces_of", "text_of"]
