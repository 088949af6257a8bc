"""Finds the code blocks of a Markdown file, with the directive that may stand before each.

A directive is a comment on the line before the fence:

    <!-- example: not run, needs a Mac -->      the block is shown only; the reason is printed
    <!-- example: exit 1 -->                    a shell block that is meant to fail so
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"^(?:<!-- example: (?P<directive>[^\n]*?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Example:
    """One code block of a document."""

    path: Path
    line: int
    language: str
    code: str
    directive: str

    @property
    def reason_not_run(self) -> str | None:
        """Why the block is only shown, None when it runs."""
        return self.directive.removeprefix("not run, ") if self.directive.startswith("not run, ") else None

    @property
    def exit_code(self) -> int:
        """The exit code a shell block must end with."""
        return int(self.directive.removeprefix("exit ")) if self.directive.startswith("exit ") else 0

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


def examples_of(path: Path, *languages: str) -> list[Example]:
    """The blocks of `path` in one of `languages`, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Example(
            path=path,
            line=text.count("\n", 0, match.start("code")) + 1,
            language=match["language"],
            code=match["code"],
            directive=match["directive"] or "",
        )
        for match in _FENCE.finditer(text)
        if match["language"] in languages
    ]
