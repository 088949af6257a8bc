"""Random requests and changes to them, for what must hold of every key of the response cache."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from llm import LLMMessage, LLMRequest, Tool, ToolCall
from llm.middleware.keys import SHAPES_NOTHING, Keys, shape_of

KEYS = Keys("mock", {"api_base": None})
TEXTS = (
    "",
    "a",
    "b",
    "a::b",
    "Hello",
    '"',
    "\\",
    "[]",
    "None",
    "null",
    "🍅",
    "\ud83c",
    "\x00",
    "a\n",
    " a",
    "1",
)


def key(request: LLMRequest) -> bytes:
    found = KEYS.key(request, "")
    assert found is not None
    return found


class Maker:
    """Makes requests, and changes exactly one thing that shapes the answer."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        return "".join(self.random.choices(TEXTS, k=self.random.randint(1, 3)))

    def other(self, make: Callable[[], Any], old: Any) -> Any:
        """Another value than the old one."""
        while True:
            new = make()
            if repr(new) != repr(old) and new != old:
                return new

    def value(self) -> Any:
        kinds: list[Callable[[], Any]] = [
            self.text,
            lambda: self.random.randint(-3, 3),
            lambda: self.random.choice([True, False, None]),
            lambda: [self.text()],
        ]
        return self.random.choice(kinds)()

    def schema(self) -> dict[str, Any]:
        names = self.random.sample(["why", "fits", "a", "b", "type"], k=self.random.randint(1, 3))
        properties = {name: {"type": "string", "description": self.text()} for name in names}
        return {"type": "object", "title": self.text(), "properties": properties, "required": names}

    def call(self) -> ToolCall:
        return ToolCall(self.text(), self.text(), {"x": self.value(), "y": {"z": self.value()}})

    def message(self) -> LLMMessage:
        role: Any = self.random.choice(["system", "user", "assistant", "tool"])
        calls = (self.call(),) if self.random.random() < 0.2 else ()
        answers: str | None = self.random.choice([None, "a", "b"])
        return LLMMessage(role, self.text(), calls, answers, self.random.choice(["", "", "{}"]))

    def tool(self) -> Tool:
        return Tool(self.text(), self.text(), self.schema())

    def field(self, name: str) -> Any:
        one_of = self.random.choice
        makers: dict[str, Callable[[], Any]] = {
            "messages": lambda: tuple(self.message() for _ in range(self.random.randint(1, 3))),
            "model": self.text,
            "temperature": lambda: one_of([None, 0.0, 0.7, 1.0, 1.1]),
            "max_tokens": lambda: self.random.randint(1, 9),
            "top_p": lambda: one_of([None, 0.5, 0.9, 1.0]),
            "seed": lambda: one_of([None, 0, 1, 2**62]),
            "schema": lambda: one_of([None, self.schema()]),
            "stop": lambda: tuple(self.text() for _ in range(self.random.randint(0, 2))),
            "think": lambda: one_of([False, True, "low", "high"]),
            "tools": lambda: tuple(self.tool() for _ in range(one_of([0, 0, 1, 2]))),
        }
        return makers[name]()

    def request(self) -> LLMRequest:
        return LLMRequest(**{name: self.field(name) for name in SHAPING})

    def changed(self, request: LLMRequest) -> LLMRequest:
        name = self.random.choice(SHAPING)
        new = self.other(lambda: self.field(name), getattr(request, name))
        return dataclasses.replace(request, **{name: new})


SHAPING = [f.name for f in dataclasses.fields(LLMRequest) if f.name not in SHAPES_NOTHING]


def reordered(value: Any, *, inside: str = "") -> Any:
    """The same with the words of each mapping the other way round, but for the properties of a schema."""
    if isinstance(value, dict):
        words = value.items() if inside == "properties" else reversed(value.items())
        return {name: reordered(each, inside=name) for name, each in words}
    if isinstance(value, list | tuple):
        return type(value)(reordered(each) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: reordered(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def fuzz_keys(cases: int, seed: int) -> None:
    """That a change which shapes the answer changes the key, and another order of the same words does not."""
    maker = Maker(seed)
    for number in range(cases):
        request = maker.request()
        changed = maker.changed(request)
        before = key(request)
        assert key(changed) != before, (number, request, changed)
        assert key(reordered(request)) == before, (number, request)
        shape, other = shape_of(request), shape_of(changed)
        assert shape is None or shape != other, (number, request, changed)
