"""Schemas on their way to a server, and what is concluded when a server refuses a parameter."""

from __future__ import annotations

from typing import Any

import fastjsonschema
import pytest

from llm.types import LLMMessage
from llm.wire.schemas import strict_schema, told
from llm.wire.takes import Takes

VERDICT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "fits": {"type": "boolean"},
        "reason": {"type": "string", "maxLength": 80, "default": ""},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}, "minItems": 1},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "required": ["fits"],
    "$defs": {"Part": {"type": "object", "properties": {"minimum": {"type": "number", "minimum": 0}}}},
}


def test_a_strict_schema_requires_every_property_and_closes_every_object() -> None:
    made = strict_schema(VERDICT, limits=True)
    assert made is not None
    assert made["required"] == ["fits", "reason", "parts", "note"]
    assert made["additionalProperties"] is False
    assert made["$defs"]["Part"]["required"] == ["minimum"]
    assert made["$defs"]["Part"]["additionalProperties"] is False
    assert "default" not in made["properties"]["reason"]


def test_what_fits_the_strict_schema_fits_the_given_one() -> None:
    made = strict_schema(VERDICT, limits=True)
    assert made is not None
    reply = {"fits": True, "reason": "ripe", "parts": [{"minimum": 1}], "note": None}
    fastjsonschema.compile(dict(made))(reply)
    fastjsonschema.compile(VERDICT)(reply)


def test_limits_are_left_out_where_the_server_takes_none_and_a_property_of_that_name_stays() -> None:
    made = strict_schema(VERDICT, limits=False)
    assert made is not None
    assert "maxLength" not in made["properties"]["reason"]
    assert "minItems" not in made["properties"]["parts"]
    assert made["$defs"]["Part"]["properties"]["minimum"] == {"type": "number"}


def test_the_given_schema_is_not_changed() -> None:
    before = repr(VERDICT)
    strict_schema(VERDICT, limits=False)
    assert repr(VERDICT) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}},
        {
            "type": "object",
            "properties": {"a": {"type": "object", "additionalProperties": {"type": "integer"}}},
        },
    ],
)
def test_an_object_with_free_keys_cannot_be_strict(schema: dict[str, Any]) -> None:
    assert strict_schema(schema, limits=True) is None


def test_a_schema_in_words_joins_the_system_prompt_or_becomes_it() -> None:
    question = LLMMessage("user", "Does it fit?")
    alone = told([question], {"type": "boolean"})
    assert [m.role for m in alone] == ["system", "user"]
    assert '{"type": "boolean"}' in alone[0].content
    joined = told([LLMMessage("system", "Be brief."), question], {"type": "boolean"})
    assert [m.role for m in joined] == ["system", "user"]
    assert joined[0].content.startswith("Be brief.\n\n")


ALL = Takes()


@pytest.mark.parametrize(
    ("complaint", "left"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            Takes(cap="max_completion_tokens"),
        ),
        (
            "Unsupported value: 'temperature' does not support 0.7 with this model. Only 1 is supported.",
            Takes(temperature=False),
        ),
        ("temperature: Extra inputs are not permitted", Takes(temperature=False)),
        ("top_p: Extra inputs are not permitted", Takes(top_p=False)),
        ("`temperature` and `top_p` cannot both be specified for this model.", Takes(both=False)),
        ("Unrecognized request argument supplied: seed", Takes(seed=False)),
        ("'response_format' of type 'json_schema' is not supported with this model", Takes(schema=False)),
        ("output_config.format: not supported on this model", Takes(schema=False)),
    ],
)
def test_a_parameter_that_a_server_refuses_is_left_out(complaint: str, left: Takes) -> None:
    assert ALL.after(complaint) == left


@pytest.mark.parametrize(
    "complaint",
    [
        "temperature: must be between 0 and 2",
        "messages: at least one message is required",
        "Invalid schema for response_format 'reply': 'oneOf' is not permitted",
        "this feature is not supported",
        "",
    ],
)
def test_a_complaint_about_something_else_changes_nothing(complaint: str) -> None:
    assert ALL.after(complaint) is None


def test_what_is_left_out_already_is_not_left_out_again() -> None:
    assert Takes(temperature=False).after("temperature: Extra inputs are not permitted") is None
