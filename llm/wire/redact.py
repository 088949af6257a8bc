"""Keeping keys out of messages: a server may echo the key that it refuses, whole or in part."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

SHOWN = "[redacted]"

_LONGEST_INPUT = 8000
_LONGEST = 300
_PART = 8
"""This many characters of a key in a row show it; fewer, like "...wxyz", only tell which one it is."""


def redact(text: str, secrets: Iterable[str]) -> str:
    """One printable line of at most about 300 characters, in which no part of a secret is left.

    Args:
        text: what a server said.
        secrets: the keys and passwords that were sent to it. They are found whole, in parts of 8 or more
            characters, in any letter case, and percent-, HTML-, JSON- or base64-encoded.
    """
    line = _one_line(text[:_LONGEST_INPUT])
    forms = {form for secret in secrets if secret for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        line = _without(line, form)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _one_line(text: str) -> str:
    """Control and invisible characters go: they could split a key, or drive a terminal."""
    spaced = "".join(" " if c in "\n\r\t\x0b\x0c" else c for c in text)
    return "".join(c for c in spaced if unicodedata.category(c)[0] != "C").strip()


def _forms(secret: str) -> set[str]:
    import html  # noqa: PLC0415 - its table of entities is read only when something went wrong

    raw = secret.encode("utf-8", errors="replace")
    return {
        secret,
        quote(secret, safe="", errors="replace"),
        quote_plus(secret, errors="replace"),
        html.escape(secret),
        json.dumps(secret)[1:-1],
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    }


def _without(line: str, secret: str) -> str:
    """`line` with every run that shares `_PART` or more characters in a row with `secret` replaced."""
    text, needle = _lowered(line), _lowered(secret)
    size = min(_PART, len(needle))
    parts = {needle[i : i + size] for i in range(len(needle) - size + 1)}
    runs: list[tuple[int, int]] = []
    for start in range(len(text) - size + 1):
        if text[start : start + size] not in parts:
            continue
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], start + size)
        else:
            runs.append((start, start + size))
    for start, end in reversed(runs):
        line = line[:start] + SHOWN + line[end:]
    return line


def _lowered(text: str) -> str:
    """Lower case letter by letter: `str.lower` may change the length, and positions must stay."""
    return "".join(c.lower() if c.isascii() else c for c in text)
