"""Schema in, validated text out: what a model is shown, how its reply is checked, and one round of repair.

A schema is a pydantic model class or a JSON schema. pydantic and fastjsonschema are imported only when used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llm.errors import BadReply, ConfigurationError, SchemaMismatch
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
    root = as_json_schema(schema)
    properties: Mapping[str, Any] = follow(root, root).get("properties", {})
    lines = [f'- "{name}": {_describe(follow(spec, root), root)}' for name, spec in properties.items()]
    return "Answer with one JSON object with these fields:\n" + "\n".join(lines)


def follow(spec: Any, root: JSONSchema) -> Mapping[str, Any]:
    """`spec` with its `$ref` into `root` replaced by what it points to; the keywords beside it win.

    pydantic puts every nested model and every enum class behind such a reference.

    Raises:
        ConfigurationError: the reference leads nowhere, in a circle or out of the schema.
    """
    found: Mapping[str, Any] = spec if isinstance(spec, Mapping) else {}
    passed: set[str] = set()
    while (reference := found.get("$ref")) is not None:
        target = _at(root, reference) if reference not in passed else None
        if not isinstance(target, Mapping):
            msg = f"the schema refers to {reference!r}, which leads to nothing inside it"
            raise ConfigurationError(msg)
        passed.add(reference)
        found = {**target, **{key: value for key, value in found.items() if key != "$ref"}}
    return found


def _at(root: JSONSchema, reference: str) -> Any:
    """What a local reference points to (JSON pointer, RFC 6901), None if nothing."""
    if not reference.startswith("#"):
        return None
    place: Any = root
    for part in filter(None, reference[1:].split("/")):
        place = place.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def _describe(spec: Mapping[str, Any], root: JSONSchema) -> str:
    choices = spec.get("anyOf") or spec.get("oneOf")
    kinds = [follow(choice, root) for choice in choices] if choices else [spec]
    kind = " or ".join(dict.fromkeys(_kind(each) for each in kinds))
    meaning = spec.get("description")
    return f"{kind}: {meaning}" if meaning else kind


def _kind(spec: Mapping[str, Any]) -> str:
    values = [spec["const"]] if "const" in spec else spec.get("enum")
    if values:
        return "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in values)
    kind = spec.get("type", "value")
    return kind if isinstance(kind, str) else " or ".join(kind)


def validate(schema: Schema, text: str) -> Any:
    """Parse `text` and check it: a model instance for a pydantic class, plain data for a JSON schema.

    Raises:
        BadReply: the text is not JSON.
        SchemaMismatch: it does not fit; the message says where.
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
        broken = any(fault["type"] == "json_invalid" for fault in error.errors(include_input=False))
        raise (BadReply if broken else SchemaMismatch)(msg) from error


def _validate_plain(schema: JSONSchema, text: str) -> Any:
    from fastjsonschema import JsonSchemaValueException  # noqa: PLC0415 - only structured calls pay for it

    check = _compiled(_as_text(schema))
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        msg = f"the reply is not JSON: {error}"
        raise BadReply(msg) from error
    try:
        check(data)
    except JsonSchemaValueException as error:
        msg = f"the reply does not fit the schema: {error.message}"
        raise SchemaMismatch(msg) from error
    except RecursionError as error:
        msg = "the reply does not fit the schema: it is nested too deeply"
        raise SchemaMismatch(msg) from error
    return data


def _refuse_constant(name: str) -> None:
    msg = f"{name} is no JSON value"  # Python reads NaN and Infinity, the standard does not know them
    raise ValueError(msg)


def _as_text(schema: JSONSchema) -> str:
    try:
        return json.dumps(schema, default=dict)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"the schema itself is wrong, it cannot be written as JSON: {error}"
        raise ConfigurationError(msg) from error


@lru_cache(maxsize=64)
def _compiled(schema: str) -> Callable[[Any], Any]:
    """The validator of one schema, kept because making it costs a hundred times what running it does."""
    import fastjsonschema  # noqa: PLC0415 - only structured calls pay for it

    try:
        made: Callable[[Any], Any] = fastjsonschema.compile(
            json.loads(schema), handlers=dict.fromkeys(_SCHEMES, _refuse_remote)
        )
    except Exception as error:  # re.error, AttributeError, ...: whatever a wrong schema makes it stumble over
        msg = f"the schema itself is wrong: {error}"
        raise ConfigurationError(msg) from error
    return made


_SCHEMES = ("", "http", "https", "ftp", "file", "data")


def _refuse_remote(uri: str) -> Any:
    """Stand where fastjsonschema would open the address that a `$ref` names."""
    msg = f"it refers to {uri!r}, and a schema is never fetched"
    raise ValueError(msg)


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
        SchemaMismatch: the repaired reply does not fit either, or is no JSON.
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
        _validate_repaired(schema, response.content)
    return response


def _validate_repaired(schema: Schema, text: str) -> None:
    try:
        validate(schema, text)
    except SchemaMismatch:
        raise
    except BadReply as error:
        msg = f"{error}, also after the model was shown its mistake"
        raise SchemaMismatch(msg) from error
