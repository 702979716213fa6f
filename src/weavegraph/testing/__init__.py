"""For tests of your own: conformance kits, one for each seam; a proxy with faults, and a judge of what a broker did.

Nothing in weavegraph imports this.
"""

from weavegraph.testing._checkpoint_kit import CheckpointerKit, DurableCheckpointerKit, KitState, checkpointed
from weavegraph.testing._history import Given, History, Problem
from weavegraph.testing._log_kit import CompactingLogKit, DurableLogKit, LogKit, logged
from weavegraph.testing._proxy import Fault, FaultProxy
from weavegraph.testing._sink_kit import BrokerSinkKit, DurableSinkKit, SinkKit

__all__ = [
    "BrokerSinkKit",
    "CheckpointerKit",
    "CompactingLogKit",
    "DurableCheckpointerKit",
    "DurableLogKit",
    "DurableSinkKit",
    "Fault",
    "FaultProxy",
    "Given",
    "History",
    "KitState",
    "LogKit",
    "Problem",
    "SinkKit",
    "checkpointed",
    "logged",
]
