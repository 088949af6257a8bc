"""What is wrong with a value, in plain words: pydantic's faults and the nearest known names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

_LONGEST = 60

_KINDS: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "string_type": "a text in quotes",
    "path_type": "a path in quotes",
    "tuple_type": 'a list such as ["one", "two"]',
    "list_type": 'a list such as ["one", "two"]',
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}

_SENTENCES: Mapping[str, str] = {
    "string_too_short": "must not be empty",
    "missing": "is needed and missing",
}

_LIMITS: Mapping[str, tuple[str, str]] = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}


def shown(value: Any) -> str:
    """A value as a person would write it in the file, shortened."""
    if isinstance(value, Mapping):
        return "a table"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'port'?`, or the list of all known names when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(names)}" if names else "none is known here"


def plain_words(fault: Mapping[str, Any], *, secret: bool = False) -> str:
    """One fault of a pydantic `ValidationError` as a sentence; a secret's value is left out."""
    kind, context = str(fault["type"]), fault.get("ctx") or {}
    but = "" if secret else f", not {shown(fault.get('input'))}"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}{but}"
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return f"must be {words} {context[limit]}{but}"
    if kind == "literal_error":
        return f"must be {context['expected']}{but}"
    return str(context.get("error", _SENTENCES.get(kind, fault["msg"])))


def problems_of(error: ValidationError) -> tuple[tuple[str, str], ...]:
    """Every fault as the dotted key and what is wrong with it; no value is repeated, it may be a secret."""
    return tuple(
        (".".join(str(part) for part in fault["loc"]), plain_words(fault, secret=True))
        for fault in error.errors(include_url=False, include_input=False)
    )


def aliases_of(spec: FieldInfo) -> list[str]:
    """The keys of a table by which a field is read instead of its name, none without an alias."""
    alias = spec.validation_alias
    if alias is None:
        return []
    if isinstance(alias, str):
        return [alias]
    places = alias.convert_to_aliases()
    tops = [place[0] for place in places if isinstance(place, list)] or places[:1]
    return [str(top) for top in tops]
