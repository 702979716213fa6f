"""Text for a terminal: one line an event, and nothing in it that a terminal would obey."""

from __future__ import annotations

import functools
import re

__all__ = ["escape_controls"]

# C0, DEL, C1; line and paragraph separators; marks that make text lie: of zero width, bidirectional, annotations, tags.
_UNSAFE = (
    r"[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_NAMES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape_controls(text: str) -> str:
    """``text`` with every control character made visible: ESC becomes ``\\x1b``. The result is one line."""
    return _unsafe().sub(_visible, text)


@functools.cache  # made when first needed: 0.7 ms of the import
def _unsafe() -> re.Pattern[str]:
    return re.compile(_UNSAFE)


def _visible(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    if code >= 65536:
        return f"\\U{code:08x}"
    return _NAMES.get(char) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
