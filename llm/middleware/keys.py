"""The key of a call in the response cache: a hash of everything that shapes the answer, and of nothing else.

Fields of a request are in the key unless they are named in `SHAPES_NOTHING`, so that a new one is in it by
itself: a reply that is asked for once too often costs seconds, a wrong one costs trust. What shapes the
answer and is in no request (the server, its context length, the weights behind a name) is the namespace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from typing import Any

from llm.types import LLMMessage, LLMRequest

Namespace = Mapping[str, str | float | None]

KEY_FORMAT = 2
"""Part of every key: raised when keys or kept replies change their meaning; old ones are then not found."""

SHAPES_NOTHING = frozenset({"cache", "max_age", "caller", "template", "key"})
"""Fields of a request that no backend sends."""

SHAPING = tuple(f.name for f in fields(LLMRequest) if f.name not in SHAPES_NOTHING)
"""The other ones."""

LABEL_CHARACTERS = 1000
"""Characters of a question that are kept for lists."""

_shaping = attrgetter(*SHAPING)
# The types of the fields of a turn without parts of its own; with another field, every turn is written out.
_USUAL = {(str, str, tuple, type(None), str), (str, str, tuple, str, str)}
_PLAIN = frozenset({str, int, float, bool, type(None)})
_MESSAGES = SHAPING.index("messages")
_SCHEMA = SHAPING.index("schema")
_TOOLS = SHAPING.index("tools")
# 0, 0.0 and -0.0 mean the same; told by their annotation, so that a new number is not forgotten.
_FLOATS = [SHAPING.index(f.name) for f in fields(LLMRequest) if "float" in str(f.type) and f.name in SHAPING]
_KNOWN: dict[type, attrgetter[Any]] = {}


class Keys:
    """Makes the keys of one cache.

    Args:
        backend: the backend's name.
        namespace: what shapes the answer beside the request.
    """

    def __init__(self, backend: str, namespace: Namespace) -> None:
        self._place = {"format": KEY_FORMAT, "backend": backend, "namespace": dict(namespace)}
        self._begun: dict[str, bytes] = {}

    def key(self, request: LLMRequest, fingerprint: str) -> bytes | None:
        """SHA-256 of all that shapes the answer; None when it cannot be written down, and so not compared.

        Args:
            request: the call.
            fingerprint: tells apart models of one name, empty where nothing does.
        """
        try:
            text = _written(request)
        except (TypeError, ValueError, RecursionError):
            return None
        begun = self._begun.get(fingerprint)
        if begun is None:
            begun = self._begun[fingerprint] = self._begin(fingerprint)
        return hashlib.sha256(begun + text.encode("utf-8", "surrogatepass")).digest()

    def _begin(self, fingerprint: str) -> bytes:
        place = json.dumps({**self._place, "fingerprint": fingerprint}, sort_keys=True, default=str)
        return f"{place}\n".encode()


def shape_of(request: LLMRequest) -> Hashable | None:
    """What shapes the answer, as a value that can be looked up in a dict; None when it cannot.

    Cheaper than the key. Equal shapes have equal keys; the reverse does not hold for a schema whose words
    stand in another order.
    """
    values: tuple[Any, ...] = _shaping(request)
    for message in request.messages:
        if message.tool_calls:  # their arguments would be compared as Python does: 1 is True
            return None
    try:
        if values[_SCHEMA] is not None or values[_TOOLS]:
            made = list(values)
            made[_SCHEMA] = None if values[_SCHEMA] is None else json.dumps(values[_SCHEMA])
            made[_TOOLS] = json.dumps([_in_order(tool) for tool in values[_TOOLS]])
            values = tuple(made)
        hash(values)
    except (TypeError, ValueError, RecursionError):
        return None
    return values


def readable_key(request: LLMRequest) -> str:
    """What was asked, as a person knows it: `f"{prompt}::{system_prompt}"`."""
    return f"{request.prompt}::{request.system_prompt}"


def label_of(request: LLMRequest) -> str:
    """The readable key as it is kept: short, and fit for a database."""
    return readable_key(request)[:LABEL_CHARACTERS].encode(errors="replace").decode()


def _written(request: LLMRequest) -> str:
    """All that shapes the answer as one text, the same for the same and for nothing else.

    `repr` of texts and numbers is that, and takes half as long as JSON; what else there is goes in as JSON.
    """
    values = list(_shaping(request))
    for place in _FLOATS:
        if values[place] is not None:
            values[place] = float(values[place]) + 0.0
            if not isfinite(values[place]):
                msg = "not a number that can be sent"
                raise ValueError(msg)
    turns = list(map(_turn, values[_MESSAGES]))
    values[_MESSAGES] = None
    if values[_SCHEMA] is not None:
        values[_SCHEMA] = _schema_text(values[_SCHEMA])
    if values[_TOOLS]:
        values[_TOOLS] = [[_part(part) for part in _in_order(tool)] for tool in values[_TOOLS]]
    return repr((turns, [_plain(value) for value in values]))


def _turn(message: LLMMessage) -> Any:
    """One turn, field by field; as JSON where it has parts of its own."""
    parts = _in_order(message)
    if tuple(map(type, parts)) in _USUAL and not message.tool_calls:
        return parts
    return [_plain(part) for part in parts]


def _plain(value: Any) -> Any:
    """What `repr` writes the same for the same: the value, or its JSON, marked as such."""
    return value if type(value) in _PLAIN or value == () else (_ENCODE(value),)


def _part(value: Any) -> Any:
    """Part of a tool: its parameters are a schema."""
    return _schema_text(value) if isinstance(value, Mapping) else value


def _in_order(value: Any) -> Any:
    """The values of what JSON has no word for: our own frozen values, field by field."""
    known = _KNOWN.get(type(value))
    if known is None:
        if isinstance(value, Mapping):
            return dict(value)
        if not is_dataclass(value):
            msg = f"a {type(value).__name__} has no place in a key"
            raise TypeError(msg)
        known = _KNOWN[type(value)] = attrgetter(*(f.name for f in fields(value)))
    return known(value)


_ENCODE = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=_in_order
).encode


def _schema_text(schema: Any) -> str:
    """A schema as JSON text, the same whatever the order of its words."""
    return _canonical_text(json.dumps(schema, default=_in_order, allow_nan=False))


@lru_cache(maxsize=64)
def _canonical_text(schema: str) -> str:
    return _ENCODE(_canonical(json.loads(schema)))


def _canonical(schema: Any) -> Any:
    """The schema with its properties as lists: their order shapes a constrained reply, no other does."""
    if isinstance(schema, Mapping):
        return {
            key: [[name, _canonical(spec)] for name, spec in value.items()]
            if key == "properties" and isinstance(value, Mapping)
            else _canonical(value)
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return [_canonical(each) for each in schema]
    return schema
