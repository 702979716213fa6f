"""No property test is judged by the clock: under load an example of a millisecond takes a second."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st


def test_an_example_that_takes_long_once_is_no_failure() -> None:
    waited: list[int] = []

    @given(st.integers(0, 9))
    def slow_once(number: int) -> None:
        if not waited:
            waited.append(number)
            begun = time.perf_counter()
            while time.perf_counter() - begun < 0.3:
                pass

    slow_once()
    assert len(waited) == 1
