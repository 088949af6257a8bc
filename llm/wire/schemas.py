"""JSON schemas on their way to a server: made as strict as vendors want them, or put into words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llm.types import JSONSchema, LLMMessage

_LIMITS = frozenset(
    {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "uniqueItems",
        "minProperties",
        "maxProperties",
    }
)
"""Keywords outside the subset that every vendor's strict mode takes."""

_USELESS = "default"
"""Says nothing once every property is required, and is refused by OpenAI's strict mode."""

_MAPS = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")


def strict_schema(schema: JSONSchema, *, limits: bool) -> JSONSchema | None:
    """The schema with every property required and none beside them, as strict modes demand.

    Whatever fits the result fits `schema` too, but for limits: those are checked after the reply.

    Args:
        schema: any JSON schema; it is not changed.
        limits: whether the server takes limits on numbers and lengths; without, they are left out.

    Returns:
        None when an object must stay open (a mapping with free keys), which strict modes cannot say.
    """
    try:
        made = _strict(schema, limits=limits)
    except _FreeKeysError:
        return None
    return made if isinstance(made, dict) else None


class _FreeKeysError(Exception):
    """An object of the schema has keys that are not listed."""


def _strict(node: Any, *, limits: bool) -> Any:
    if not isinstance(node, Mapping):
        return node
    made = {k: v for k, v in node.items() if k != _USELESS and (limits or k not in _LIMITS)}
    for key in _MAPS:
        if isinstance(made.get(key), Mapping):
            made[key] = {k: _strict(v, limits=limits) for k, v in made[key].items()}
    for key in _LISTS:
        if isinstance(made.get(key), Sequence):
            made[key] = [_strict(v, limits=limits) for v in made[key]]
    if "items" in made:
        made["items"] = _strict(made["items"], limits=limits)
    return _closed(made)


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    """An object node with its properties required and others refused."""
    if node.get("type") != "object" and "properties" not in node:
        return node
    open_ended = node.get("additionalProperties") not in (None, False)
    if open_ended or not node.get("properties"):
        raise _FreeKeysError
    return {**node, "required": list(node["properties"]), "additionalProperties": False}


def told(messages: Sequence[LLMMessage], schema: JSONSchema) -> tuple[LLMMessage, ...]:
    """The conversation with the schema in words, for models whose server cannot hold them to it."""
    text = json.dumps(schema, ensure_ascii=False, default=dict)
    order = (
        f"Answer with one JSON value and nothing else, no code fence. It must fit this JSON schema: {text}"
    )
    first, *rest = messages
    if first.role == "system":
        return (LLMMessage("system", f"{first.content}\n\n{order}"), *rest)
    return (LLMMessage("system", order), *messages)
