"""A key that tests send and servers echo, and the search for it in whatever could be shown."""

from __future__ import annotations

import traceback

CANARY = "sk-canary-0123456789abcdefghij"

_PART = 8
_PARTS = tuple(CANARY[i : i + _PART] for i in range(len(CANARY) - _PART + 1))


def shows_key(text: str) -> bool:
    """Whether 8 characters of the key in a row are in `text`."""
    return any(part in text for part in _PARTS)


def links(error: BaseException) -> list[BaseException]:
    """The error and all that hangs on it, what is hidden by `from None` included."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        link = link.__cause__ or link.__context__
    return found


def shown(error: BaseException) -> str:
    """All that a log or a debugger could show of an error's values."""
    return "".join(f"{link!r}{link}{link.args}{link.__dict__}" for link in links(error))


def shown_with_traceback(error: BaseException) -> str:
    """The same with the lines of code."""
    return "".join(traceback.format_exception(error)) + shown(error)
