"""Which clauses of the contract have a test. ``python tools/clauses.py [--root DIR]``

Clauses are the bold ids of ``docs/design/contract.md``; a test names those it holds with ``@clause("O1")``. Exit 1
when a clause of a finished section has neither a test nor an entry in ``docs/design/due.toml``, or when a test or an
entry names a clause that does not exist.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from pathlib import Path

ID = re.compile(r"\*\*([A-Z]\d+(?:\.\w+)?|\d+\.\w+)\*\*")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    root: Path = parser.parse_args().root
    sections = contract(root / "docs/design/contract.md")
    known = {clause for clauses in sections.values() for clause in clauses}
    plan = tomllib.loads((root / "docs/design/due.toml").read_text(encoding="utf-8"))
    due = {clause: stage for stage, clauses in plan["due"].items() for clause in clauses}
    tested = tests(root / "tests")
    problems = [f"{place}: no clause is called {clause!r}" for clause, place in tested.items() if clause not in known]
    problems += [f"docs/design/due.toml: no clause is called {clause!r}" for clause in due if clause not in known]
    print(f"{'section':<10}{'tested':>8}{'due':>6}{'missing':>9}")
    for section, clauses in sections.items():
        missing = [clause for clause in clauses if clause not in tested and clause not in due]
        later = sum(clause in due for clause in clauses)
        done = sum(clause in tested and clause not in due for clause in clauses)  # due: tested in part at most
        print(f"{section:<10}{done:>8}{later:>6}{len(missing):>9}")
        for clause in missing:
            line = f"{clause} has no test: {clauses[clause]}…"
            if section in plan["finished_sections"]:
                problems.append(line)
            else:
                print(f"    {line}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def contract(path: Path) -> dict[str, dict[str, str]]:
    """Section number → clause id → its first words."""
    sections: dict[str, dict[str, str]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## (\d+)\.", line):
            section = heading[1]
        for found in ID.finditer(line):
            sections.setdefault(section, {})[found[1]] = line[found.end() : found.end() + 70].strip(" |*")
    return sections


def tests(folder: Path) -> dict[str, str]:
    """Clause id → the first place in a test that names it."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "clause":
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        found.setdefault(argument.value, f"{path.relative_to(folder.parent)}:{node.lineno}")
    return found


if __name__ == "__main__":
    sys.exit(main())
