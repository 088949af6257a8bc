"""The mock backend: canned, deterministic, and able to fit a schema."""

from __future__ import annotations

import json
import socket
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from llm import BadRequest, ConfigurationError, LLMConfig, LLMMessage, MockBackend
from llm.sample import smallest
from llm.structured import validate


def mock(**values: Any) -> MockBackend:
    return MockBackend(LLMConfig(backend="mock", enable_cache=False, **values))


async def test_it_says_that_it_is_canned_and_is_always_healthy() -> None:
    async with mock() as client:
        assert await client.health_check() is True
        response = await client.generate("Name three vegetables")
    assert "canned" in response.content
    assert "no model was asked" in response.content
    assert (response.backend, response.model, response.finish_reason) == ("mock", "mock", "stop")


async def test_the_same_request_gets_the_same_text_and_another_one_another() -> None:
    async with mock() as one, mock() as other:
        texts = [
            (await one.generate("Hello")).content,
            (await other.generate("Hello")).content,
            (await one.generate("Hello!")).content,
            (await one.generate("Hello", "Be brief")).content,
            (await one.chat([LLMMessage("user", "Hi"), LLMMessage("user", "Hello")])).content,
        ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


async def test_a_word_is_a_token() -> None:
    async with mock() as client:
        response = await client.generate("three words here", "and two")
    assert response.prompt_tokens == 5
    assert response.completion_tokens == len(response.content.split())


async def test_max_tokens_cuts_the_text_and_the_reply_says_so() -> None:
    async with mock() as client:
        whole = await client.generate("Hello")
        cut = await client.generate("Hello", max_tokens=4)
        just = await client.generate("Hello", max_tokens=whole.completion_tokens)
    assert cut.content.split() == whole.content.split()[:4]
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 4)
    assert (just.finish_reason, just.content) == ("stop", whole.content)


async def test_no_connection_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the mock backend opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    async with mock(api_base="http://127.0.0.1:1") as client:
        assert (await client.generate("Hello")).content


# Replies that fit a schema


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 3
    HIGH = 9


class Part(BaseModel):
    label: Colour
    weight: float = Field(gt=0, lt=1)
    note: str = "not required"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]


class Node(BaseModel):
    value: int
    next: Node | None
    children: list[Node]


class Everything(BaseModel):
    answer: Literal["yes", "partly", "no"]
    colour: Colour
    described: Annotated[Colour, Field(description="again")]
    level: Level
    name: str = Field(min_length=2, max_length=5)
    code: str = Field(pattern=r"^[A-Z]{3}-[0-9]+(x|y)?$")
    ratio: float = Field(ge=0, le=1)
    count: int = Field(gt=3, multiple_of=5)
    below: int = Field(le=-4)
    strictly_below: int = Field(lt=0)
    flag: bool
    part: Part
    parts: list[Part] = Field(min_length=2)
    maybe: Part | None
    either: int | str
    pet: Cat | Dog = Field(discriminator="kind")
    pair: tuple[int, str]
    unique: set[str] = Field(min_length=3)
    numbers: set[int] = Field(min_length=3)
    table: dict[str, int]
    anything: Any
    fixed: Literal["k"]
    tree: Node
    when: datetime
    day: date
    at: time
    lasts: timedelta
    money: Decimal
    identity: UUID
    optional: int = 5


@pytest.mark.parametrize("model", [Everything, Part, Node])
async def test_a_reply_to_a_pydantic_model_is_an_instance_of_it(model: type[BaseModel]) -> None:
    async with mock() as client:
        response = await client.generate("Fill it in", schema=model)
    assert isinstance(validate(model, response.content), model)
    validate(model.model_json_schema(), response.content)


async def test_it_takes_the_first_the_shortest_the_lowest_and_only_what_is_required() -> None:
    async with mock() as client:
        data = (await client.generate("Fill it in", schema=Everything)).json()
    assert (data["answer"], data["colour"], data["level"]) == ("yes", "red", 3)
    assert (data["name"], data["code"], data["ratio"], data["count"]) == ("aa", "AAA-0", 0, 5)
    assert (data["below"], data["strictly_below"], data["flag"], data["fixed"]) == (-4, -1, False, "k")
    assert data["part"] == {"label": "red", "weight": 0.5}
    assert (len(data["parts"]), data["table"], data["anything"]) == (2, {}, None)
    assert data["tree"] == {"value": 0, "next": None, "children": []}
    assert "optional" not in data


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, None),
        ({"type": "null"}, None),
        ({"const": {"a": 1}}, {"a": 1}),
        ({"enum": [3, 4]}, 3),
        ({"type": ["string", "null"]}, ""),
        ({"type": "integer", "minimum": -3}, -3),
        ({"type": "integer", "exclusiveMaximum": 10}, 0),
        ({"type": "number", "maximum": -1.5}, -1.5),
        ({"type": "number", "exclusiveMaximum": -1}, -2.0),
        ({"type": "number", "exclusiveMinimum": 2, "exclusiveMaximum": 3}, 2.5),
        ({"type": "number", "multipleOf": 0.5, "minimum": 0.7}, 1.0),
        ({"type": "integer", "multipleOf": 4, "maximum": -1}, -4),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [False, False]),
        ({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "uniqueItems": True}, ["a", "b"]),
        ({"type": "object", "required": ["x"]}, {"x": None}),
        (
            {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}},
            {"key0": 0, "key1": 0},
        ),
        (
            {"type": "object", "properties": {"b": {}, "a": {}}, "required": ["a", "b"]},
            {"b": None, "a": None},
        ),
        ({"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"a": ""}),
        ({"allOf": [{"type": "integer"}, {"minimum": 4}]}, 4),
        ({"anyOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": {"const": 7}}}, 7),
        ({"type": "string", "format": "email"}, "a@b.cd"),
        ({"type": "string", "pattern": "a.c|b", "minLength": 5}, "aaccc"),
        ({"type": "string", "pattern": r"^\d{2}:\S+?[^,]\w$"}, "00:aaa"),
        ({"type": "string", "pattern": "^[^a]b*c+?$"}, "bc"),
        ({"type": "string", "pattern": "^[^ab]c$"}, "Ac"),
    ],
)
def test_the_smallest_value_of_a_schema(schema: dict[str, Any], expected: Any) -> None:
    found = smallest(schema)
    assert json.dumps(found) == json.dumps(expected)
    validate(schema, json.dumps(found))


@given(
    low=st.integers(-50, 50),
    span=st.integers(0, 30),
    step=st.sampled_from([None, 1, 3]),
    kind=st.sampled_from(["integer", "number"]),
    bounds=st.sampled_from(["minimum maximum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
)
def test_numbers_keep_within_their_bounds(
    low: int, span: int, step: int | None, kind: str, bounds: str
) -> None:
    schema: dict[str, Any] = {"type": kind}
    for name in bounds.split():
        schema[name] = low + span + 3 if "ax" in name else low
    if step is not None:
        schema["multipleOf"] = step
    validate(schema, json.dumps(smallest(schema)))


ENDLESS = {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "#/$defs/a", "$defs": ENDLESS}, "no end"),
        ({"type": "string", "pattern": "^(?=b)a$"}, "pattern"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "integer", "not": {"const": 0}}, "cannot make an answer that fits"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "cannot make an answer that fits"),
    ],
)
async def test_a_schema_that_it_cannot_serve_is_refused_and_not_answered_wrongly(
    schema: dict[str, Any], said: str
) -> None:
    async with mock() as client:
        with pytest.raises(BadRequest, match=said):
            await client.generate("Fill it in", schema=schema)


@pytest.mark.parametrize("reference", ["#/$defs/absent", "#/$defs/loop", "http://127.0.0.1:1/schema.json"])
async def test_a_reference_that_leads_nowhere_is_named(reference: str) -> None:
    schema = {"$ref": reference, "$defs": {"loop": {"$ref": "#/$defs/loop"}}}
    async with mock() as client:
        with pytest.raises(ConfigurationError, match=reference.replace("$", r"\$")):
            await client.generate("Fill it in", schema=schema)


async def test_it_ends_where_it_is_told_to_stop() -> None:
    async with mock() as backend:
        whole = await backend.generate("Hello")
        cut = await backend.generate("Hello", stop=["no model", "canned"])
    assert cut.content == whole.content.partition("canned")[0]


async def test_its_stream_is_its_answer_word_by_word() -> None:
    async with mock() as backend:
        pieces = [piece async for piece in backend.stream("Hello").texts()]
        whole = await backend.generate("Hello")
    assert len(pieces) > 5
    assert "".join(pieces) == whole.content


async def test_its_vectors_have_length_one_and_texts_that_share_words_are_near() -> None:
    async with mock() as backend:
        made = await backend.embed(["ripe tomatoes", "ripe pears", "a ladder", " "])
        again = await backend.embed(["ripe tomatoes"])
        can = await backend.capabilities()
    assert made.dimensions == 64
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-9 for vector in made.vectors)
    assert again.vectors[0] == made.vectors[0]
    near, far = (
        sum(a * b for a, b in zip(made.vectors[0], other, strict=True)) for other in made.vectors[1:3]
    )
    assert near > far
    assert can.embedding
