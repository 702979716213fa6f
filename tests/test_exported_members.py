"""`__all__` of every public package is sorted as ruff sorts it (CONSTANTS, Classes, functions), and true."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import weavegraph


def public_packages(name: str, path: list[str]) -> Iterator[str]:
    yield name
    for module in pkgutil.iter_modules(path):
        if module.ispkg and not module.name.startswith("_"):
            below = importlib.import_module(f"{name}.{module.name}")
            yield from public_packages(below.__name__, list(below.__path__))


def rank(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("name", list(public_packages("weavegraph", list(weavegraph.__path__))))
def test_exported_members(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__ == sorted(set(package.__all__), key=rank)
    missing = [member for member in package.__all__ if not hasattr(package, member)]
    assert not missing
