"""How `make docs` builds these pages. No network: themes and scripts come with the packages."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
project = "weavegraph"
author = "weavegraph contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["snippets", "design/due.toml"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = "weavegraph"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Raises"]  # ours are sentences: several exceptions and their reasons in a line

suppress_warnings = ["misc.highlighting_failure"]  # … in programs
