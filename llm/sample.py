"""The smallest JSON value that fits a schema: what the mock backend answers where a model would think.

First enum value, shortest text, number at its minimum, required fields only, first alternative. Understood is
what pydantic v2 writes: `$ref`, `anyOf` and `oneOf`, `const`, nested and recursive models, tuples, sets,
formats and patterns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from re import _constants as op  # type: ignore[attr-defined]  # the only parser of patterns there is
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from llm.errors import BadRequest, LLMError
from llm.structured import follow
from llm.types import JSONSchema

_FORMATS: Mapping[str, str] = {
    "date-time": "2000-01-01T00:00:00Z",
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "a@b.cd",
    "idn-email": "a@b.cd",
    "hostname": "a",
    "ipv4": "0.0.0.0",  # noqa: S104 - an example of a format; nothing binds to it
    "ipv6": "::",
    "uri": "a:b",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def smallest(schema: JSONSchema) -> Any:
    """The smallest value that fits `schema`.

    Raises:
        BadRequest: no such value can be found.
    """
    return _Sampler(schema).value(schema)


class _Sampler:
    """Walks one schema. `nth` asks for another value than the first, for sets."""

    def __init__(self, root: JSONSchema) -> None:
        self._root = root
        self._open: list[str] = ["#"]  # references that are being filled in

    def value(self, spec: Any, nth: int = 0) -> Any:
        reference = spec.get("$ref") if isinstance(spec, Mapping) else None
        if reference is None:
            return self._plain(follow(spec, self._root), nth)
        if reference in self._open:  # a value within itself is never the smallest
            msg = f"the schema has no end: {reference} requires itself"
            raise BadRequest(msg)
        self._open.append(reference)
        try:
            return self._plain(follow(spec, self._root), nth)
        finally:
            self._open.pop()

    def _plain(self, spec: Mapping[str, Any], nth: int) -> Any:
        for merged in spec.get("allOf", ()):
            spec = {**follow(merged, self._root), **spec}
        if "const" in spec:
            return spec["const"]
        if spec.get("enum"):
            return spec["enum"][min(nth, len(spec["enum"]) - 1)]
        for word in ("anyOf", "oneOf"):
            if spec.get(word):
                return self._first_that_ends(spec[word], nth)
        return self._of_type(spec, nth)

    def _first_that_ends(self, choices: list[Any], nth: int) -> Any:
        fault: LLMError | None = None
        for choice in choices:
            try:
                return self.value(choice, nth)
            except BadRequest as error:
                fault = error
        raise fault or BadRequest("the schema offers no alternative")

    def _of_type(self, spec: Mapping[str, Any], nth: int) -> Any:
        kind = spec.get("type", "object" if "properties" in spec else None)
        match kind[0] if isinstance(kind, list) else kind:
            case "object":
                return self._object(spec)
            case "array":
                return self._array(spec)
            case "string":
                return _text(spec, nth)
            case "integer" | "number" as which:
                return _number(spec, nth, whole=which == "integer")
            case "boolean":
                return bool(nth % 2)
        return None

    def _object(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        fields: Mapping[str, Any] = spec.get("properties", {})
        names = list(spec.get("required", ()))
        names += [name for name in fields if name not in names]
        wanted = max(len(spec.get("required", ())), int(spec.get("minProperties", 0)))
        names += [f"key{number}" for number in range(wanted - len(names))]
        chosen = set(names[:wanted])
        ordered = [name for name in fields if name in chosen]
        ordered += [name for name in names[:wanted] if name not in fields]
        other = spec.get("additionalProperties", {})
        return {name: self.value(fields.get(name, other)) for name in ordered}

    def _array(self, spec: Mapping[str, Any]) -> list[Any]:
        first: list[Any] = spec.get("prefixItems", [])
        values = [self.value(each) for each in first]
        missing = range(int(spec.get("minItems", 0)) - len(values))
        distinct = spec.get("uniqueItems", False)
        return values + [self.value(spec.get("items", {}), i if distinct else 0) for i in missing]


def _text(spec: Mapping[str, Any], nth: int) -> str:
    if "pattern" in spec:
        return _matching(spec["pattern"], int(spec.get("minLength", 0)))
    if spec.get("format") in _FORMATS:
        return _FORMATS[spec["format"]]
    return chr(ord("a") + nth % 26) * max(int(spec.get("minLength", 0)), nth)


def _number(spec: Mapping[str, Any], nth: int, *, whole: bool) -> float:
    """The number at the minimum; without one 0, or the maximum where that is below 0."""
    low = max(spec.get("minimum", -math.inf), spec.get("exclusiveMinimum", -math.inf))
    high = min(spec.get("maximum", math.inf), spec.get("exclusiveMaximum", math.inf))
    upward = low > -math.inf
    edge: float = low if upward else min(0, high)
    excluded = edge == spec.get("exclusiveMinimum" if upward else "exclusiveMaximum")
    direction = 1 if upward else -1
    step: float = spec.get("multipleOf", 1 if whole else 0)
    if step:
        steps = edge / step * direction
        return direction * step * ((math.floor(steps) + 1 if excluded else math.ceil(steps)) + nth) + 0
    room = min(high - low, 2) / 2
    return edge + direction * room * (excluded + nth / 100) if excluded or nth else edge


def _matching(pattern: str, least: int) -> str:
    """A text that `pattern` is found in, at least `least` characters long where the pattern lets it grow."""
    try:
        made = "".join(_pieces(_parser.parse(pattern)))
    except (re.error, ValueError, RecursionError) as error:
        msg = f"the mock backend cannot make a text for the pattern {pattern!r}: {error}"
        raise BadRequest(msg) from error
    padding = made[-1:] or "a"
    candidates = (made, made.ljust(least, padding), made.rjust(least, made[:1] or "a"))
    for text in candidates:
        if len(text) >= least and re.search(pattern, text):
            return text
    msg = f"the mock backend cannot make a text for the pattern {pattern!r}"
    raise BadRequest(msg)


def _pieces(parsed: Any) -> Iterator[str]:
    """The shortest text for each part of a parsed pattern."""
    for kind, detail in parsed:
        if kind is op.LITERAL:
            yield chr(detail)
        elif kind is op.ANY:
            yield "a"
        elif kind is op.IN:
            yield _member(detail)
        elif kind in {op.MAX_REPEAT, op.MIN_REPEAT}:
            yield "".join(_pieces(detail[2])) * detail[0]
        elif kind is op.SUBPATTERN:
            yield from _pieces(detail[3])
        elif kind is op.BRANCH:
            yield from _pieces(detail[1][0])
        elif kind is op.NOT_LITERAL:
            yield "b" if detail == ord("a") else "a"


_CANDIDATES = "aA0 -_.,:/" + "".join(chr(code) for code in range(33, 127)) + "éß中"


def _member(members: Any) -> str:
    """A character of a set such as `[A-Z]` or `[^,]`."""
    negated = members[0][0] is op.NEGATE
    for character in _CANDIDATES:
        if any(_within(character, each) for each in members) != negated:
            return character
    msg = "a set of unusual characters"
    raise ValueError(msg)


_CLASSES = {op.CATEGORY_DIGIT: r"\d", op.CATEGORY_WORD: r"\w", op.CATEGORY_SPACE: r"\s"}
_CLASSES |= {op.CATEGORY_NOT_DIGIT: r"\D", op.CATEGORY_NOT_WORD: r"\W", op.CATEGORY_NOT_SPACE: r"\S"}


def _within(character: str, member: tuple[Any, Any]) -> bool:
    kind, detail = member
    if kind is op.LITERAL:
        return character == chr(detail)
    if kind is op.RANGE:
        return ord(character) in range(detail[0], detail[1] + 1)
    return bool(kind is op.CATEGORY and re.match(_CLASSES[detail], character))
