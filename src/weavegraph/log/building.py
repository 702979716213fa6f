"""For who writes a log: the rules that every log follows, and reading by pages. Pure but for the two readers.

An ``append`` is: ``check_batch``; look up the run's ``RunRecord``; ``held`` tells how many of the batch are there
already (compare them: ``fenced``); ``check_writer`` whether the rest may follow; ``advance`` gives the new record. A
log that can fetch a ``Page`` after a position gets ``read`` and ``follow`` from ``read_run`` and ``follow_run``.
``docs/howto/write-a-sink-log-checkpointer.md`` builds one.
"""

from weavegraph.log._reading import Page, follow_run, read_run
from weavegraph.log._rules import (
    FINAL,
    RunRecord,
    advance,
    check_after,
    check_batch,
    check_writer,
    fenced,
    held,
    outcome_of,
)
from weavegraph.storage import Notices, Watch

__all__ = [
    "FINAL",
    "Notices",
    "Page",
    "RunRecord",
    "Watch",
    "advance",
    "check_after",
    "check_batch",
    "check_writer",
    "fenced",
    "follow_run",
    "held",
    "outcome_of",
    "read_run",
]
