from __future__ import annotations

import os

import pytest
from hypothesis import settings

# The same examples on every machine, so that a change is judged by what it changed. `make stress` explores.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("WEAVEGRAPH_HYPOTHESIS", "repeatable"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The core is plain asyncio; anyio's plugin only runs the coroutines."""
    return "asyncio"
