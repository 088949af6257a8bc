"""The fence for untrusted text, under the name by which agents know it; it lives in `llm.fence`."""

from __future__ import annotations

from llm import clean, fenced
from llm.fence import MAX_FIELD_CHARACTERS

__all__ = ["MAX_FIELD_CHARACTERS", "clean", "fenced"]
