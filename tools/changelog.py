"""Puts the fragments `changes/<slug>.<added|changed|fixed|removed>.md` together.

Without an option: prints the next section of the changelog. `--check`: exit 1 when a file in changes/ is not a
fragment. `--release VERSION`: moves the fragments into CHANGELOG.md, under that version and today's date.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from pathlib import Path

KINDS = ("added", "changed", "fixed", "removed")
NAME = re.compile(rf"[a-z0-9][a-z0-9-]*\.({'|'.join(KINDS)})\.md")


def faults(folder: Path) -> list[str]:
    """What is wrong with the folder, one sentence a file."""
    found = []
    for path in fragments(folder):
        if not NAME.fullmatch(path.name):
            found.append(f"changes/{path.name}: the name must be <slug>.<{'|'.join(KINDS)}>.md, in a-z, 0-9 and -")
        elif not path.read_text(encoding="utf-8").strip():
            found.append(f"changes/{path.name}: is empty")
    return found


def fragments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != "README.md" and not path.name.startswith("."))


def section(folder: Path) -> str:
    """The fragments as lists under the headings of their kinds; empty when there are none."""
    parts = []
    for kind in KINDS:
        texts = [path.read_text(encoding="utf-8") for path in fragments(folder) if path.name.endswith(f".{kind}.md")]
        if texts:
            items = "\n".join("- " + "\n  ".join(text.strip().splitlines()) for text in texts)
            parts.append(f"### {kind.capitalize()}\n\n{items}\n")
    return "\n".join(parts)


def release(root: Path, version: str, day: datetime.date) -> None:
    changelog = root / "CHANGELOG.md"
    introduction, mark, older = changelog.read_text(encoding="utf-8").partition("\n## ")
    entry = f"\n## {version} ({day.isoformat()})\n\n{section(root / 'changes')}"
    changelog.write_text(introduction.rstrip("\n") + "\n" + entry + mark + older, encoding="utf-8")
    for path in fragments(root / "changes"):
        path.unlink()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="changelog", description="The fragments in changes/, put together.")
    parser.add_argument("--check", action="store_true", help="only look at names and content of the fragments")
    parser.add_argument("--release", metavar="VERSION", help="move the fragments into CHANGELOG.md")
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args(argv)
    folder = options.root / "changes"
    if found := faults(folder):
        print("\n".join(f"error: {fault}" for fault in found), file=sys.stderr)
        return 1
    if options.check:
        return 0
    if not fragments(folder):
        print("no fragments in changes/")
    elif options.release:
        release(options.root, options.release, datetime.date.today())
    else:
        print(section(folder), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
