"""Whether a structured answer says that the model is unsure: where its schema lets it say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm.structured import follow
from llm.types import JSONSchema

UNSURE = "unsure"
"""The value by which a model says so; an enum of the schema must hold it."""


def says_unsure(answer: Any, schema: JSONSchema) -> bool:
    """Whether a field of `answer`, at any depth, is "unsure" where the schema has that among its choices.

    Raises:
        ConfigurationError: the schema refers to something that is not in it.
    """
    return _unsure(answer, schema, schema)


def _unsure(value: Any, spec: Any, root: JSONSchema) -> bool:
    kinds = list(_kinds(spec, root))
    if isinstance(value, Mapping):
        return any(
            _unsure(inner, kind["properties"][name], root)
            for name, inner in value.items()
            for kind in kinds
            if name in kind.get("properties", {})
        )
    if isinstance(value, list):
        return any(_unsure(inner, kind.get("items"), root) for inner in value for kind in kinds)
    return value == UNSURE and any(_may_say_so(kind) for kind in kinds)


def _kinds(spec: Any, root: JSONSchema) -> Iterator[Mapping[str, Any]]:
    """What a value at this place may be: the specification itself, and its alternatives."""
    found = follow(spec, root)
    yield found
    for word in ("anyOf", "oneOf", "allOf"):
        for choice in found.get(word, ()):
            yield follow(choice, root)


def _may_say_so(kind: Mapping[str, Any]) -> bool:
    return UNSURE in kind.get("enum", ()) or kind.get("const") == UNSURE
