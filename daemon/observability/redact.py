"""What may stand in a log line: no secrets, no control characters, nothing endless."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "[redacted]"

MAX_TEXT = 2_000
"""Characters of one value; a traceback may have eight times as many."""

_MAX_ITEMS = 50
_MAX_DEPTH = 5
_SHORTEST_SECRET = 8
"""A shorter value, such as LLM_API_KEY=ollama, is a placeholder, and would black out ordinary words."""

_LONGEST_SECRET = 4_096

_SECRET_VARIABLE = re.compile(r"_(API_KEY|KEY|TOKEN|SECRET|PASSWORD)$")
_SECRET_NAME = re.compile(
    r"(^|[_-])(api[_-]?key|authorization|password|passwd|secret|(access|auth)[_-]?token)$", re.IGNORECASE
)

_KEY_SHAPES = re.compile(
    r"""
      \b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}                    # OpenAI, Anthropic and many others
    | \bhf_[A-Za-z0-9]{16,}                                # Hugging Face
    | \b(?:gh[opusr]_|github_pat_)[A-Za-z0-9_]{20,}        # GitHub
    | \bAIza[A-Za-z0-9_-]{30,}                             # Google
    | \b(?:gsk_|xai-|r8_)[A-Za-z0-9]{16,}                  # Groq, xAI, Replicate
    | (?<=[Bb]earer\ )[A-Za-z0-9._~+/=-]{8,}               # any Authorization header
    | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)                      # user and password in an address
    """,
    re.VERBOSE,
)

# C0 and C1 controls, line and paragraph separators, and the marks that reorder text on a screen.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def secrets_of(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The values of the environment's variables whose names say that they are secret."""
    source = os.environ if environ is None else environ
    return tuple(value for name, value in source.items() if _SECRET_VARIABLE.search(name))


def escaped(text: str) -> str:
    r"""`text` on one line, its control characters written as \n or \u001b."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    character = match.group()
    return short.get(character) or f"\\u{ord(character):04x}"


class Cleaner:
    """Makes any value fit for a log line.

    Args:
        secrets: values that must not appear; those of fewer than 8 characters are ignored.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: frozenset[str] = frozenset()
        self._known: re.Pattern[str] | None = None
        self.hide(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Let these values not appear either, from now on."""
        self._secrets |= {s for s in secrets if len(s) >= _SHORTEST_SECRET}
        known = sorted(self._secrets, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, value: str, limit: int = MAX_TEXT) -> str:
        """`value` without secrets, shortened; control characters are left to the format of the line."""
        head = value[: limit + _LONGEST_SECRET]  # so that no secret is cut in two before it is found
        if self._known is not None:
            head = self._known.sub(HIDDEN, head)
        head = _KEY_SHAPES.sub(HIDDEN, head)
        return head if len(head) <= limit else f"{head[:limit]}... ({len(value) - limit} more characters)"

    def value(self, value: Any, depth: int = 0) -> Any:
        """`value` as plain JSON data without secrets."""
        if value is None or (isinstance(value, int) and value.bit_length() <= 64):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, str):
            return self.text(str(value))
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            return self.mapping(value, depth + 1)
        if isinstance(value, list | tuple | set | frozenset) and depth < _MAX_DEPTH:
            return [self.value(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
        return self.text(_shown(value))

    def mapping(self, values: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
        """All of `values` as plain JSON data; one whose name says that it is secret is hidden."""
        return {
            self.text(str(name)): HIDDEN if _SECRET_NAME.search(str(name)) else self.value(item, depth)
            for name, item in list(values.items())[:_MAX_ITEMS]
        }


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - any object may be logged, and some cannot be shown
        return f"<{type(value).__name__}>"
