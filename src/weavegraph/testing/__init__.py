"""For tests of your own: conformance kits, one for each seam. Nothing in weavegraph imports this."""

from weavegraph.testing._checkpoint_kit import CheckpointerKit, DurableCheckpointerKit, KitState, checkpointed
from weavegraph.testing._log_kit import CompactingLogKit, DurableLogKit, LogKit, logged

__all__ = [
    "CheckpointerKit",
    "CompactingLogKit",
    "DurableCheckpointerKit",
    "DurableLogKit",
    "KitState",
    "LogKit",
    "checkpointed",
    "logged",
]
