"""Structured answers: what the model is shown, how its reply is checked, and the one round of repair."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from llm import BadReply, ConfigurationError, LLMMessage, SchemaMismatch, ServerError
from llm.structured import as_json_schema, ask, field_list, follow, validate
from llm.testing import ScriptedBackend
from tests.support.loopback import LoopbackServer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"why": {"type": "string"}, "fits": {"enum": ["yes", "no"]}},
    "required": ["why", "fits"],
    "additionalProperties": False,
}
GOOD = '{"why": "both are vegetables", "fits": "yes"}'


class Verdict(StrEnum):
    YES = "yes"
    NO = "no"


class Answer(BaseModel):
    """What a small model is asked."""

    why: str = Field(description="one short sentence")
    fits: Literal["yes", "partly", "no"]
    verdict: Annotated[Verdict, Field(description="the same in short")]
    units: int | None = None
    tags: list[str] = []


# Schemas


def test_a_schema_is_a_pydantic_class_or_a_mapping() -> None:
    assert as_json_schema(Answer) == Answer.model_json_schema()
    assert as_json_schema(SCHEMA) is SCHEMA
    with pytest.raises(ConfigurationError, match="pydantic model class or a JSON schema"):
        as_json_schema("yes or no")  # type: ignore[arg-type]


def test_the_field_list_shows_each_field_its_choices_and_its_meaning() -> None:
    assert field_list(Answer).splitlines() == [
        "Answer with one JSON object with these fields:",
        '- "why": string: one short sentence',
        '- "fits": one of "yes", "partly", "no"',
        '- "verdict": one of "yes", "no": the same in short',
        '- "units": integer or null',
        '- "tags": array',
    ]


def test_the_field_list_of_a_plain_schema_keeps_other_alphabets_readable() -> None:
    schema = {"properties": {"país": {"enum": ["España", "日本"]}, "one": {"const": 1}, "any": {}, "two": {"type": ["string", "null"]}}}  # fmt: skip  # noqa: E501 - one line is one schema
    assert field_list(schema).splitlines()[1:] == [
        '- "país": one of "España", "日本"',
        '- "one": one of 1',
        '- "any": value',
        '- "two": string or null',
    ]


def test_a_reference_is_followed_and_what_stands_beside_it_wins() -> None:
    root = {"$defs": {"a": {"$ref": "#/$defs/b", "title": "A"}, "b": {"type": "string", "title": "B"}}}
    assert follow({"$ref": "#/$defs/a"}, root) == {"type": "string", "title": "A"}
    assert follow({"$ref": "#/$defs/a", "title": "here"}, root)["title"] == "here"
    assert follow({"$ref": "#"}, root) == root
    assert follow(True, root) == {}


# Checking


@pytest.mark.parametrize("text", [GOOD, f"  {GOOD}\n", '{"fits": "no", "why": ""}'])
def test_a_reply_that_fits_comes_back_as_data(text: str) -> None:
    assert set(validate(SCHEMA, text)) == {"why", "fits"}


def test_a_reply_to_a_pydantic_class_comes_back_as_an_instance() -> None:
    answer = validate(Answer, '{"why": "x", "fits": "partly", "verdict": "no"}')
    assert isinstance(answer, Answer)
    assert (answer.verdict, answer.units) == (Verdict.NO, None)


@pytest.mark.parametrize(
    ("schema", "text", "said"),
    [
        (SCHEMA, "no JSON", "not JSON"),
        (SCHEMA, "", "not JSON"),
        (SCHEMA, GOOD[:-5], "not JSON"),
        (SCHEMA, GOOD + "!", "not JSON"),
        (SCHEMA, f"```json\n{GOOD}\n```", "not JSON"),
        (SCHEMA, '{"why": NaN, "fits": "yes"}', "NaN is no JSON value"),
        (SCHEMA, "[" * 100_000, "not JSON"),
        (SCHEMA, "1" * 10_000, "not JSON"),
        (SCHEMA, "[]", "must be object"),
        (SCHEMA, '{"why": "x"}', "must contain .*fits"),
        (SCHEMA, '{"why": "x", "fits": "maybe"}', "fits must be one of"),
        (SCHEMA, '{"why": "x", "fits": "yes", "more": 1}', "must not contain .*more"),
        (Answer, "no JSON", "reply: Invalid JSON"),
        (Answer, '{"why": "x", "verdict": "no"}', "fits: Field required"),
        (Answer, '{"why": "x", "fits": "no", "verdict": "no", "tags": [1]}', r"tags\.0: Input should be"),
    ],
)
def test_a_reply_that_does_not_fit_is_refused_and_the_place_is_named(
    schema: Any, text: str, said: str
) -> None:
    with pytest.raises(BadReply, match=said):
        validate(schema, text)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nope"},
        {"enum": 3},
        {"properties": 3},
        {"type": "string", "pattern": "("},
        {"$ref": "#/$defs/absent"},
        {"enum": {"a", "b"}},
    ],
)
def test_a_schema_that_is_wrong_itself_is_not_blamed_on_the_reply(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="the schema itself is wrong"):
        validate(schema, '"x"')


async def test_a_schema_elsewhere_is_never_fetched() -> None:
    async with LoopbackServer() as server:
        with pytest.raises(ConfigurationError, match="a schema is never fetched"):
            validate({"$ref": f"{server.url}/schema.json"}, "{}")
        assert server.connections == 0
    with pytest.raises(ConfigurationError, match="a schema is never fetched"):
        validate({"$ref": "file:///etc/hostname"}, "{}")


def test_a_reply_nested_deeper_than_python_goes_is_refused_like_any_other() -> None:
    parts = {"a": {"type": "array", "items": {"$ref": "#/$defs/b"}}, "b": {"$ref": "#/$defs/a"}}
    with pytest.raises(BadReply, match="nested too deeply"):
        validate({"$ref": "#/$defs/a", "$defs": parts}, "[" * 700 + "]" * 700)


# Asking


async def test_the_fields_stand_in_the_prompt_and_the_schema_goes_along() -> None:
    async with ScriptedBackend(GOOD) as client:
        turns = [LLMMessage("system", "Be fair"), LLMMessage("user", "Tomatoes?")]
        response = await ask(client, turns, SCHEMA, temperature=0, max_tokens=60)
    assert response.json()["fits"] == "yes"
    (request,) = client.requests
    assert request.schema == SCHEMA
    assert (request.temperature, request.max_tokens) == (0, 60)
    assert request.prompt == f"Tomatoes?\n\n{field_list(SCHEMA)}"
    assert request.system_prompt == "Be fair"
    assert turns[1].content == "Tomatoes?"


async def test_a_reply_that_does_not_fit_is_shown_to_the_model_once_with_its_fault() -> None:
    async with ScriptedBackend('{"why": "x"}', GOOD) as client:
        response = await ask(client, [LLMMessage("user", "Tomatoes?")], SCHEMA)
    assert response.content == GOOD
    first, second = client.requests
    assert second.messages[:1] == first.messages
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1].content == '{"why": "x"}'
    assert "fits" in second.prompt


async def test_after_one_repair_it_is_given_up() -> None:
    async with ScriptedBackend("no", "still no", GOOD) as client:
        with pytest.raises(BadReply, match="Invalid JSON"):
            await ask(client, [LLMMessage("user", "Tomatoes?")], Answer)
    assert len(client.requests) == 2


async def test_a_failed_call_is_not_repaired() -> None:
    async with ScriptedBackend(ServerError("down"), GOOD) as client:
        with pytest.raises(ServerError):
            await ask(client, [LLMMessage("user", "Tomatoes?")], SCHEMA)
    assert len(client.requests) == 1


@pytest.mark.parametrize("schema", [Answer, Answer.model_json_schema()])
async def test_a_reply_that_does_not_fit_after_its_repair_is_a_schema_mismatch(schema: Any) -> None:
    for last in ("still no JSON", "{}"):
        client = ScriptedBackend("no JSON", last)
        with pytest.raises(SchemaMismatch):
            await client.structured("Does it fit?", schema)
        assert len(client.requests) == 2


def test_what_is_no_json_and_what_does_not_fit_are_told_apart() -> None:
    for schema in (Answer, Answer.model_json_schema()):
        with pytest.raises(SchemaMismatch):
            validate(schema, "{}")
        with pytest.raises(BadReply) as caught:
            validate(schema, "{")
        assert type(caught.value) is BadReply
