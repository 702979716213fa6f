"""Who may import whom: see section 2 of docs/design/architecture.md. The imports are read, not run.

An optional library is imported inside functions, or at the top of the file that is there for it.

Exempt: the front door (`weavegraph/__init__.py`), and imports inside functions or under `if TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src" / "weavegraph"
LAYERS = (
    "errors clock | events state | protocols config | bus sinks graph storage llm | checkpoint log | runtime"
    " | web observe cli demo"
)
ORDER = [name for name in LAYERS.split() if name != "|"]
EDGES = LAYERS.split("|")[-1].split()
OPTIONAL = {  # library → where it may be imported at the top: files and folders below src/weavegraph
    "aiokafka": ("log/kafka.py",),
    "anyio": ("web/",),
    "nats": ("log/nats.py",),
    "opentelemetry": ("observe/",),
    "prometheus_client": ("observe/",),
    "psycopg": ("log/postgres.py", "checkpoint/postgres.py"),
    "pydantic": (),
    "redis": ("log/redis_streams.py",),
    "rich": ("cli/",),
    "starlette": ("web/",),
    "typer": ("cli/",),
    "uvicorn": ("web/",),
}


def test_imports_point_inward() -> None:
    wrong = [fault for path in sorted(SRC.rglob("*.py")) for fault in faults(path)]
    assert not wrong, f"allowed, each from those to its left: {LAYERS}\n" + "\n".join(wrong)


def test_optional_libraries_stay_in_their_files() -> None:
    wrong = [fault for path in sorted(SRC.rglob("*.py")) for fault in strays(path.read_text(encoding="utf-8"), path)]
    assert not wrong, "\n".join(wrong)


def test_a_stray_library_is_shown() -> None:
    assert list(strays("import json\nimport redis.asyncio", SRC / "bus" / "_bus.py")) == [
        "src/weavegraph/bus/_bus.py:2: redis belongs inside a function, or in log/redis_streams.py"
    ]
    assert not list(strays("from redis import asyncio", SRC / "log" / "redis_streams.py"))
    assert not list(strays("def f():\n    import rich", SRC / "sinks" / "_stdout.py"))


def test_a_wrong_arrow_is_shown() -> None:
    assert fault_of("bus", "errors") is None
    assert fault_of("sinks", "bus") is None
    assert fault_of("web", None) is None
    assert fault_of("bus", "sinks") == "bus → sinks"
    assert fault_of("events", "runtime") == "events → runtime"
    assert fault_of("cli", "testing") == "cli → testing"
    assert fault_of("bus", None) == "bus → the front door"
    assert fault_of("utils", "errors") == "utils has no place among the layers"


def test_local_and_type_imports_are_exempt() -> None:
    source = """
if TYPE_CHECKING:
    from weavegraph.runtime import App
else:
    import weavegraph.errors
def later():
    import weavegraph.cli
try:
    from ..events import Event
except ImportError:
    from weavegraph import sinks, Event
"""
    found = imports(ast.parse(source), ["weavegraph", "bus"])
    assert [target for _, target in found] == ["errors", "events", "sinks", None]


def faults(path: Path) -> Iterator[str]:
    package = ["weavegraph", *path.relative_to(SRC).parent.parts]
    here = path.relative_to(SRC).with_suffix("").parts[0]
    if here == "__init__":
        return
    for line, target in imports(ast.parse(path.read_text(encoding="utf-8")), package):
        if fault := fault_of(here, target):
            yield f"src/weavegraph/{path.relative_to(SRC).as_posix()}:{line}: {fault}"


def fault_of(here: str, target: str | None) -> str | None:
    """What is wrong with an import; a target of None is the front door."""
    if here in (target, "testing"):
        return None
    if here not in ORDER:
        return f"{here} has no place among the layers"
    if target is None:
        return None if here in EDGES else f"{here} → the front door"
    if target not in ORDER or ORDER.index(target) > ORDER.index(here):
        return f"{here} → {target}"
    return None


def strays(source: str, path: Path) -> Iterator[str]:
    """Optional libraries that the module imports at its top although it is not their file."""
    here = path.relative_to(SRC).as_posix()
    for node in at_import(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for library in {name.split(".")[0] for name in names if isinstance(node, ast.Import) or not node.level}:
            if library in OPTIONAL and not here.startswith(OPTIONAL[library]):
                allowed = "".join(f", or in {place}" for place in OPTIONAL[library])
                yield f"src/weavegraph/{here}:{node.lineno}: {library} belongs inside a function{allowed}"


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str | None]]:
    """Line and first name below `weavegraph` of each import that runs when the module is imported."""
    for node in at_import(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root, *rest = alias.name.split(".")
                if root == "weavegraph":
                    yield node.lineno, rest[0] if rest else None
        else:
            above = package[: len(package) - node.level + 1] if node.level else []
            root, *rest = [*above, *(node.module or "").split(".")] if node.module else above
            if root == "weavegraph":
                for alias in node.names if not rest else node.names[:1]:
                    yield node.lineno, rest[0] if rest else module_or_front_door(alias.name)


def at_import(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import(ast.Module(node.orelse, []))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import(node)


def module_or_front_door(name: str) -> str | None:
    return name if name in ORDER or name == "testing" else None
