"""How the failures of a sink are met: how often, after which pause, and what is kept of them."""

from __future__ import annotations

from datetime import datetime

import msgspec

from weavegraph.config import check_seconds, check_whole
from weavegraph.errors import SinkError
from weavegraph.events import Event, clean_text

__all__ = ["DeadLetter", "RetryPolicy", "as_error", "describe"]

MAX_DESCRIPTION = 2000


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``tries`` in all; between them ``base`` seconds doubled each time up to ``cap``, with full jitter.

    Source of the jitter: M. Brooker, "Exponential Backoff And Jitter", 2015.
    """

    tries: int = 5
    base: float = 0.1
    cap: float = 5.0

    def __post_init__(self) -> None:
        check_whole("RetryPolicy.tries", self.tries, 1)
        check_seconds("RetryPolicy.base", self.base)
        check_seconds("RetryPolicy.cap", self.cap)

    def delay(self, failures: int) -> float:
        from random import uniform

        # Beyond 60 doublings every cap is reached, and a float still holds the product.
        return uniform(0.0, min(self.cap, self.base * 2.0 ** min(failures - 1, 60)))


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a sink could not take, with why and when."""

    event: Event
    sink: str
    error: str
    tries: int
    first_at: datetime
    last_at: datetime


def describe(error: BaseException) -> str:
    """``Type: text`` of whatever a sink raised: bounded, and also when its text cannot be had."""
    try:
        text = str(error)
    except BaseException:
        text = "(its text cannot be had)"
    return clean_text("error", f"{type(error).__name__}: {text}"[:MAX_DESCRIPTION])


def as_error(raised: BaseException) -> Exception:
    """What a sink raised, as an error that ends neither a loop nor a generator."""
    if isinstance(raised, Exception) and not isinstance(raised, (StopIteration, StopAsyncIteration)):
        return raised
    error = SinkError(f"the sink raised {describe(raised)}")
    error.__cause__ = raised
    return error
