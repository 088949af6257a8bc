"""Files that the installer wrote: a mark says so, and whether somebody changed them since."""

from __future__ import annotations

import hashlib
import re

_MARK = "Written by `askfirst service install`; do not change this file, use a drop-in. Digest "
_PATTERN = re.compile(re.escape(_MARK) + r"([0-9a-f]{16})")


def marked(text: str) -> str:
    """`text` of a unit with the mark before it."""
    return f"# {_MARK}{_digest(text)}\n{text}"


def marked_xml(text: str) -> str:
    """`text` of a plist with the mark after its two lines of preamble."""
    first, second, rest = text.split("\n", 2)
    return f"{first}\n{second}\n<!-- {_MARK}{_digest(text)} -->\n{rest}"


def is_ours(text: str) -> bool:
    """Whether the installer wrote it."""
    return _PATTERN.search(text) is not None


def is_untouched(text: str) -> bool:
    """Whether it is as the installer wrote it."""
    found = _PATTERN.search(text)
    return found is not None and found.group(1) == _digest(_without_mark(text))


def _without_mark(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not _PATTERN.search(line))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
