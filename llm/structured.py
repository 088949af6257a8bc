"""Schema in, validated text out: what a model is shown, how its reply is checked, and one round of repair.

A schema is a pydantic model class or a JSON schema. pydantic and fastjsonschema are imported only when used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm.errors import BadReply, ConfigurationError
from llm.types import JSONSchema, LLMMessage, LLMResponse

if TYPE_CHECKING:
    from pydantic import BaseModel

    from llm.client import LLMClient

    Schema = type[BaseModel] | JSONSchema


def as_json_schema(schema: Schema) -> JSONSchema:
    """The JSON schema of a pydantic model class, or the JSON schema itself.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(schema, Mapping):
        return schema
    make = getattr(schema, "model_json_schema", None)
    if make is None:
        msg = f"schema must be a pydantic model class or a JSON schema, not {schema!r}"
        raise ConfigurationError(msg)
    made: dict[str, Any] = make()
    return made


def field_list(schema: Schema) -> str:
    """The schema's fields as lines for the prompt.

    Ollama constrains the reply to `format` but does not show the schema to the model (ollama issue 8162),
    and small models answer better when they have read what each field means.
    """
    properties: Mapping[str, Any] = as_json_schema(schema).get("properties", {})
    lines = [f'- "{name}": {_describe(spec)}' for name, spec in properties.items()]
    return "Answer with one JSON object with these fields:\n" + "\n".join(lines)


def _describe(spec: Mapping[str, Any]) -> str:
    if "enum" in spec:
        kind = "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in spec["enum"])
    else:
        kind = str(spec.get("type", "value"))
    meaning = spec.get("description")
    return f"{kind}: {meaning}" if meaning else kind


def validate(schema: Schema, text: str) -> Any:
    """Parse `text` and check it: a model instance for a pydantic class, plain data for a JSON schema.

    Raises:
        BadReply: the text is not JSON, or does not fit; the message says where.
    """
    if isinstance(schema, Mapping):
        return _validate_plain(schema, text)
    from pydantic import ValidationError  # noqa: PLC0415 - only callers with a model class pay for it

    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'reply'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        msg = f"the reply does not fit the schema: {faults}"
        raise BadReply(msg) from error


def _validate_plain(schema: JSONSchema, text: str) -> Any:
    import fastjsonschema  # noqa: PLC0415 - only structured calls pay for it

    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"the reply is not JSON: {error}"
        raise BadReply(msg) from error
    try:
        fastjsonschema.compile(dict(schema))(data)
    except fastjsonschema.JsonSchemaValueException as error:
        msg = f"the reply does not fit the schema: {error.message}"
        raise BadReply(msg) from error
    except fastjsonschema.JsonSchemaDefinitionException as error:
        msg = f"the schema itself is wrong: {error}"
        raise ConfigurationError(msg) from error
    return data


async def ask(
    client: LLMClient, messages: Sequence[LLMMessage], schema: Schema, **options: Any
) -> LLMResponse:
    """Ask for a reply that fits `schema`; a reply that does not is shown to the model once, with its fault.

    Args:
        client: the model.
        messages: the conversation; the field list is added to its last turn.
        schema: pydantic model class or JSON schema.
        options: those of `LLMClient.chat`.

    Returns:
        The response whose content fits the schema.

    Raises:
        BadReply: the repaired reply does not fit either.
        LLMError: the call failed.
    """
    last = messages[-1]
    turns = [*messages[:-1], LLMMessage(last.role, f"{last.content}\n\n{field_list(schema)}")]
    response = await client.chat(turns, schema=schema, **options)
    try:
        validate(schema, response.content)
    except BadReply as fault:
        complaint = f"That was refused: {fault}. Answer again with the JSON object only."
        turns += [LLMMessage("assistant", response.content), LLMMessage("user", complaint)]
        response = await client.chat(turns, schema=schema, **options)
        validate(schema, response.content)
    return response
