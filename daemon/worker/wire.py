"""What goes over the wire between a worker and its parent beside the plain values: errors and vectors."""

from __future__ import annotations

import base64
import contextlib
from array import array
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from agents import errors as agent_errors
from agents.errors import AgentError
from daemon.intake import storable
from llm import Embeddings, LLMError
from llm import errors as llm_errors

MAX_LINE = 2 * 1024 * 1024
"""Most bytes of one message from a worker: more than any proposal or undo data that would be kept."""

MAX_TRACE = 8_000
"""Characters of a traceback that a worker hands over."""

_MAX_MESSAGE = 4_000


def _tree(root: type[BaseException], module: object) -> dict[str, type[BaseException]]:
    found = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, root)]
    return {kind.__name__: kind for kind in found}


_KINDS: Mapping[str, type[BaseException]] = MappingProxyType(
    {
        **_tree(LLMError, llm_errors),
        **_tree(AgentError, agent_errors),
        "ValueError": ValueError,
        "TypeError": TypeError,
    }
)
"""The errors that come out at the other end as what they are."""


def spoken(error: BaseException) -> dict[str, Any]:
    """An error as plain data: the nearest of its kinds that both ends know, its words and its attributes."""
    names = (kind.__name__ for kind in type(error).__mro__ if _KINDS.get(kind.__name__) is kind)
    known = {key: value for key, value in vars(error).items() if isinstance(value, bool | int | float | str)}
    return {"kind": next(names, ""), "words": _words(error), "name": type(error).__name__, "values": known}


def heard(error: Mapping[str, Any]) -> BaseException:
    """The error that `spoken` made plain; one of a kind that is not known here is an `AgentError`.

    Raises:
        ValueError: it is none.
    """
    try:
        words, values = str(error["words"]), dict(error["values"])
        kind = _KINDS.get(error["kind"])
        if kind is None:
            return AgentError(f"{error['name']}: {words}".removesuffix(": "))
    except (KeyError, TypeError) as fault:
        msg = "an error without words"
        raise ValueError(msg) from fault
    found = kind.__new__(kind, words)
    found.args = (words,)
    for name, value in values.items():
        with contextlib.suppress(AttributeError):
            setattr(found, name, value)
    return found


def _words(error: BaseException) -> str:
    try:
        return storable(str(error), _MAX_MESSAGE)
    except Exception:  # noqa: BLE001 - its __str__ is anybody's code too
        return ""


def packed(found: Embeddings) -> dict[str, Any]:
    """Vectors as plain data: written out as numbers, a thousand of them would keep the loop for a second."""
    numbers = array("d", (number for vector in found.vectors for number in vector))
    values = {name: getattr(found, name) for name in ("model", "backend", "prompt_tokens")}
    return {
        **values,
        "dimensions": found.dimensions,
        "numbers": base64.b64encode(numbers.tobytes()).decode("ascii"),
    }


def unpacked(data: Mapping[str, Any]) -> Embeddings:
    """The vectors that `packed` made plain."""
    numbers = array("d", base64.b64decode(data["numbers"]))
    size = max(1, int(data["dimensions"]))
    vectors = tuple(tuple(numbers[start : start + size]) for start in range(0, len(numbers), size))
    return Embeddings(
        vectors=vectors,
        model=data["model"],
        backend=data["backend"],
        prompt_tokens=data["prompt_tokens"],
    )
