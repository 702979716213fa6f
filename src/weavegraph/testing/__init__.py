"""For tests of your own: conformance kits, one for each seam. Nothing in weavegraph imports this."""

from weavegraph.testing._log_kit import CompactingLogKit, DurableLogKit, LogKit, logged

__all__ = ["CompactingLogKit", "DurableLogKit", "LogKit", "logged"]
