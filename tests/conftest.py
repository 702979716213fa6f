from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every machine, so that a change is judged by what it changed. `make stress` explores.
# Nothing here is judged by the clock: an example of 1 ms takes a second where other work has the processors.
_PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, database=None, **_PATIENT)
settings.register_profile("explore", derandomize=False, **_PATIENT)
settings.load_profile(os.environ.get("WEAVEGRAPH_HYPOTHESIS", "repeatable"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The core is plain asyncio; anyio's plugin only runs the coroutines."""
    return "asyncio"
