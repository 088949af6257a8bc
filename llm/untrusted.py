"""Values on their way into a prompt template: data that cannot be printed by accident, and text of our own.

A template gets every text wrapped, and a wrapped text refuses to become part of a prompt: only the filter
`untrusted`, which is the fence, takes it out. So a template that forgets the filter fails at its first use,
in a test, and not years later with the first hostile text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any

from llm.errors import TemplateError

Harmless = bool | int | float | Decimal | date | time
"""Kinds of values that hold no text of anybody's, so that a template may print them as they are."""


class Trusted(str):
    """A text of our own, such as the name of a language, that a template may print as it is.

        use_llm(template="title", context={"mail": mail, "language": Trusted("Spanish")})

    Never make one from data: what strangers wrote belongs behind the filter `untrusted`.
    """

    __slots__ = ()


class Untrusted:
    """A text that came from data. It can be looked at and compared, but printed only by `untrusted`.

    Args:
        text: the text.
        name: what it is called, for the message and as the name of its fence.
    """

    __slots__ = ("_name", "_text")

    def __init__(self, text: str, name: str = "data") -> None:
        self._text, self._name = text, name

    def __str__(self) -> str:
        msg = f"{self._name!r} is data, which is printed with the filter: {{{{ {self._name} | untrusted }}}}"
        raise TemplateError(msg)

    def __repr__(self) -> str:
        return f"<Untrusted {self._name!r}, {len(self._text)} characters>"

    def __eq__(self, other: object) -> bool:
        return self._text == (other._text if isinstance(other, Untrusted) else other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __contains__(self, part: object) -> bool:
        return isinstance(part, str | Untrusted) and unwrapped(part) in self._text

    def __len__(self) -> int:
        return len(self._text)


def wrapped(value: Any, name: str) -> Any:
    """`value` for a template: every text in it as `Untrusted`, numbers and moments as they are.

    Args:
        value: text, number, moment, None, or lists and mappings of such.
        name: what it is called there.

    Raises:
        TemplateError: it is of another kind, or contains itself.
    """
    try:
        return _wrapped(value, name)
    except RecursionError:
        msg = f"{name!r} is nested too deeply for a prompt template"
        raise TemplateError(msg) from None


def _wrapped(value: Any, name: str) -> Any:
    match value:
        case Untrusted() | None | bool() | int() | float() | Decimal() | date() | time():
            return value
        case Trusted():
            return str.__str__(value)
        case str():
            return Untrusted(str.__str__(value), name)
        case Mapping():
            return {_key(key): _wrapped(inner, f"{name}.{key}") for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_wrapped(inner, f"{name}[{place}]") for place, inner in enumerate(value)]
    msg = f"{name!r} is a {type(value).__name__}; a prompt template takes texts, numbers, lists and mappings"
    raise TemplateError(msg)


def _key(key: Any) -> Any:
    return Untrusted(key, "a key") if isinstance(key, str) else key


def unwrapped(value: Any) -> Any:
    """The plain value again, for the fence."""
    match value:
        case Untrusted():
            return value._text  # noqa: SLF001 - its other half
        case Mapping():
            return {unwrapped(key): unwrapped(inner) for key, inner in value.items()}
        case list() | tuple():
            return [unwrapped(inner) for inner in value]
        case Iterator():
            return [unwrapped(inner) for inner in value]
    return value


def name_of(value: Any) -> str:
    """What a fence round `value` is called when the template does not say."""
    return value._name if isinstance(value, Untrusted) else "data"  # noqa: SLF001 - its other half
