"""Paths as they stand in an agent's table."""

from __future__ import annotations

import os
from pathlib import Path


def absolute(text: str, base_dir: Path) -> str:
    """The path or pattern `text` from `base_dir`; "~" is the home, where there is one."""
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path's own fails on a user whom nobody knows
    return os.path.normpath(base_dir / expanded)
