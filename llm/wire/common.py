"""What all wires share: JSON in and out within bounds, and reading fields of a reply that may be anything."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from llm.errors import BadReply, BadRequest
from llm.types import LLMRequest

MOST_TOKENS = 10**9
"""A counter above this is no token count: kept out of totals and metrics."""

_LONGEST_NAME = 200
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_FENCE = re.compile(r"\A\s*```(?:json)?[ \t]*\n(?P<inside>.*?)\n?[ \t]*```\s*\Z", re.DOTALL | re.IGNORECASE)


def clean(text: str) -> str:
    """Replace what SQLite, UTF-8 or a terminal cannot hold: lone surrogates and NUL become U+FFFD.

    Replaced and not refused: a model cut in the middle of an emoji has still answered.
    """
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def is_clean(text: str) -> bool:
    """Whether `clean` would leave it as it is."""
    return _UNSTORABLE.search(text) is None


def encode(body: Any) -> bytes:
    """A request's body as JSON bytes; lone surrogates of a prompt become question marks.

    Raises:
        BadRequest: something in it, a schema most likely, cannot be written as JSON.
    """
    try:
        text = _ENCODER.encode(body)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"the request cannot be written as JSON: {error}; check the schema"
        raise BadRequest(msg) from error
    return text.encode("utf-8", errors="replace")


def _as_dict(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    msg = f"{type(value).__name__} is not JSON"
    raise TypeError(msg)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_dict)
"""Made once, as the decoder below is."""


def decode(raw: bytes) -> Any:
    """Parse a reply. NaN, infinities, endless integers and endless nesting are refused.

    Raises:
        BadReply: it is not JSON. No cause is chained: the parser's exceptions carry the whole reply,
            which may echo a key.
    """
    try:
        text = raw.decode()
        value, end = _scanned(text)
        # The decoder itself is slower and says what is wrong; blanks and byte order marks are left to it.
        return value if end == len(text) else _DECODER.decode(text.removeprefix("\ufeff"))
    except UnicodeDecodeError:
        fault = "it is not UTF-8 text"
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError:
        fault = "it is not valid JSON" if raw.strip() else "it is empty"
    raise BadReply(fault)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(digits)
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
"""Made once: `json.loads` with these options makes a new one for every text."""

_SCAN: Callable[[str, int], tuple[Any, int]] = _DECODER.scan_once  # type: ignore[attr-defined]  # not in typeshed


def _scanned(text: str) -> tuple[Any, int]:
    """The value at the beginning of a text, and where it ends; nothing if it does not begin with one."""
    try:
        found: tuple[Any, int] = _SCAN(text, 0)
    except StopIteration:
        return None, -1
    return found


def as_object(value: Any, what: str) -> Mapping[str, Any]:
    """`value` if it is a JSON object.

    Raises:
        BadReply: it is something else; names `what`.
    """
    if not isinstance(value, dict):
        msg = f"the reply's {what} must be an object, not {_kind(value)}"
        raise BadReply(msg)
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """`value` if it is a JSON array; BadReply naming `what` otherwise."""
    if not isinstance(value, list):
        msg = f"the reply's {what} must be a list, not {_kind(value)}"
        raise BadReply(msg)
    return value


def as_text(value: Any, what: str) -> str:
    """`value`, cleaned, if it is a string; BadReply naming `what` otherwise."""
    if not isinstance(value, str):
        msg = f"the reply's {what} must be text, not {_kind(value)}"
        raise BadReply(msg)
    return clean(value)


def count(counters: Mapping[str, Any], key: str) -> int:
    """A token counter; absent or null is 0, because Ollama leaves zeros out and gateways send null.

    Raises:
        BadReply: it is no whole number from 0 to `MOST_TOKENS`.
    """
    value = counters.get(key)
    if value is None:
        return 0
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    if not whole or not 0 <= value <= MOST_TOKENS:
        msg = f"the reply's {key} is no count of tokens"
        raise BadReply(msg)
    return int(value)


def model_name(reply: Mapping[str, Any], otherwise: str) -> str:
    """The model that the server says answered, the one asked for if it does not say."""
    name = reply.get("model")
    return clean(name)[:_LONGEST_NAME] if isinstance(name, str) and name else otherwise


def no_answer(request: LLMRequest, *, thinking: bool) -> BadReply:
    """The error for a reply without any text in it."""
    if thinking:
        msg = (
            f"{request.model} used up its {request.max_tokens} tokens before it answered (it thinks first); "
            "raise LLM_MAX_TOKENS or use a model that does not think"
        )
        return BadReply(msg)
    return BadReply(f"{request.model} answered without any text")


def unfenced(text: str) -> str:
    """The inside of a reply that is one ```json fenced block, else the reply as it is.

    Models that are told a schema, and not held to it by the server, like to fence their JSON.
    """
    found = _FENCE.match(text)
    return found["inside"] if found else text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "missing or null" if value is None else names.get(type(value), "a number")
