"""How `make docs` builds these pages. No network: themes and scripts come with the packages."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
project = "weavegraph"
author = project_copyright = "weavegraph contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["snippets", "design/due.toml"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = "weavegraph"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
maximum_signature_line_length = 100
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

suppress_warnings = [
    "misc.highlighting_failure",  # … in programs
    "ref.python",  # `bytes` of a signature is the built-in one
]


def raises_as_sentences(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our "Raises:" hold sentences, often about several exceptions; napoleon expects one name a line."""
    if "Raises:" not in lines:
        return
    start = lines.index("Raises:")
    end = next((n for n in range(start + 1, len(lines)) if lines[n] and not lines[n].startswith(" ")), len(lines))
    entries = [line[4:] for line in lines[start + 1 : end] if line.strip()]
    items = [f"  {line}" if line.startswith(" ") else f"- {line}" for line in entries]
    lines[start:end] = ["**Raises**", "", *items, ""]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", raises_as_sentences, priority=400)  # before napoleon
