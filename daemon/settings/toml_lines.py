"""Where each key of a TOML text stands: `tomllib` gives the values, this gives their lines.

The text must be one that `tomllib` has accepted, so this reads on where a strict parser would stop.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]
"""The way to a value: names of tables and keys, and numbers inside lists."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'")
_TEXT = re.compile(
    r'"""(?:\\.|[^\\])*?"""{1,3}'  # a multi-line text may end in one or two quotes of its own
    r"|'''.*?'''{1,3}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^,\]}#\n]*")


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """The line, counted from 1, of every table, key and list element of a valid TOML text."""
    return _Reader(text).read()


class _Reader:
    """One pass over the text; `_at` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}
        self._counted_to = 0
        self._line = 1

    def read(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            table = self._header() if self._peek("[") else self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _header(self) -> KeyPath:
        """Read `[a.b]` or `[[a.b]]`; the path has the current element's number for each list of tables."""
        is_list = self._peek("[[")
        start, self._at = self._at, self._at + (2 if is_list else 1)
        path: KeyPath = ()
        for part in self._key():
            path = (*path, part)
            if path in self._elements:
                path = (*path, self._elements[path])
        if is_list:
            name = path[:-1] if isinstance(path[-1], int) else path
            self._elements[name] = self._elements.get(name, -1) + 1
            path = (*name, self._elements[name])
        self._note(path, start)
        self._at += 2 if is_list else 1
        return path

    def _pair(self, table: KeyPath) -> KeyPath:
        start = self._at
        path = (*table, *self._key())
        self._note(path, start)
        self._at += 1  # the equals sign
        self._value(path)
        return table

    def _key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            parts.append(_unquoted(self._take(_KEY_PART)))
            self._skip(_BLANK)
            if not self._peek("."):
                return tuple(parts)
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        self._skip(_BLANK)
        if self._peek("["):
            self._array(path)
        elif self._peek("{"):
            self._inline_table(path)
        elif self._peek('"') or self._peek("'"):
            self._skip(_TEXT)
        else:
            self._skip(_PLAIN)
        self._skip(_BLANK)

    def _array(self, path: KeyPath) -> None:
        count = 0
        while not self._closed("]"):
            self._note((*path, count), self._at)
            self._value((*path, count))
            count += 1

    def _inline_table(self, path: KeyPath) -> None:
        while not self._closed("}"):
            self._pair(path)

    def _closed(self, bracket: str) -> bool:
        """Step over the opening bracket or a comma; whether the list or table ends here."""
        if not self._peek(bracket):
            self._at += 1
            self._skip(_BLANK)
        closed = self._peek(bracket) or self._at >= len(self._text)
        self._at += closed
        return closed

    def _note(self, path: KeyPath, position: int) -> None:
        self._line += self._text.count("\n", self._counted_to, position)
        self._counted_to = position
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], self._line)

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:  # cannot be in a text that tomllib accepted; never loop on it
            self._at = len(self._text)
            return ""
        self._at = found.end()
        return found[0]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._take(pattern)


def _unquoted(part: str) -> str:
    if part.startswith('"'):
        return next(iter(tomllib.loads(f"{part} = 0")))
    return part[1:-1] if part.startswith("'") else part
