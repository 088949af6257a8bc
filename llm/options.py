"""The options of a call, the same for every kind of call, and how they meet the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from llm.errors import ConfigurationError
from llm.types import CACHE_MODES, CacheMode, Think, Tool

if TYPE_CHECKING:
    from llm.structured import Schema


class CallOptions(TypedDict, total=False):
    """The options that every kind of call takes; what is left out, or None, keeps the configuration's value.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: most tokens to generate.
        top_p: nucleus threshold.
        seed: of the sampler.
        stop: texts at which the model stops.
        think: whether, and how hard, the model thinks before it answers.
        tools: what the model may ask to have called; the reply's `tool_calls` say what it wants.
        cache: True or False, or a mode: "on", "off", "read" (keeps nothing new), "write" (asks anew, and
            keeps the answer).
        max_age: seconds; an older kept reply does not count.
        timeout: total seconds of the call.
        task: what the call is for, such as "title": in the ledger, and routes may be named for it.
        template: name and version of the prompt template that the prompt was made from.
    """

    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    seed: int | None
    stop: Sequence[str]
    think: Think | None
    tools: Sequence[Tool]
    cache: bool | CacheMode
    max_age: float | None
    timeout: float | None
    task: str
    template: str


class ReplyOptions(CallOptions, total=False):
    """The options of a call whose reply may be held to a schema.

    Attributes:
        schema: pydantic model class or JSON schema that the reply is constrained to.
    """

    schema: Schema | None


NAMES = frozenset({*CallOptions.__annotations__, "schema"})
"""Every option there is."""

SETTINGS: Mapping[str, str] = {
    "temperature": "temperature",
    "max_tokens": "max_tokens",
    "top_p": "top_p",
    "seed": "seed",
    "think": "think",
    "timeout": "timeout",
    "max_age": "cache_max_age",
}
"""Options that are settings too, by the name of the setting."""


def refuse_unknown(given: Iterable[str]) -> None:
    """A misspelt option is a TypeError that lists the known ones."""
    unknown = set(given) - NAMES
    if unknown:
        msg = f"no such option: {', '.join(sorted(unknown))}; a call takes {', '.join(sorted(NAMES))}"
        raise TypeError(msg)


def cache_mode(wanted: bool | str, configured: CacheMode) -> CacheMode:  # noqa: FBT001 - as the caller writes it
    """The mode that a call's `cache` option means.

    Raises:
        ConfigurationError: it is none.
    """
    if wanted is True:
        return configured
    if wanted is False:
        return "off"
    if wanted not in CACHE_MODES:
        msg = f"cache must be true, false or one of {', '.join(CACHE_MODES)}, not {wanted!r}"
        raise ConfigurationError(msg)
    return wanted  # type: ignore[return-value]  # just looked up in the names of the type
