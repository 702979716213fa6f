"""Any provider's token stream → text, recognised by shape."""

from weavegraph.llm._source import close_early, pieces_of, text_of

__all__ = ["close_early", "pieces_of", "text_of"]
