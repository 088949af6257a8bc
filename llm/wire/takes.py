"""What a model takes, as data; and what it is found to refuse, when its server says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llm.types import LLMRequest

Thinking = Literal["", "budget", "adaptive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """Which optional parameters may be sent for a model, and what they are called there.

    Attributes:
        temperature: the sampling temperature.
        top_p: the nucleus threshold.
        both: temperature and top_p in one request.
        seed: the sampler's seed.
        schema: a JSON schema that the server holds the reply to; without, the model is told it in words.
        limits: limits on numbers and lengths inside such a schema.
        cap: the name of the parameter that limits the generated tokens.
        usage: being asked for the token counts of a stream (`stream_options`).
        stop: texts at which the model stops.
        effort: how hard it shall think (`reasoning_effort`, `output_config.effort`).
        least: the effort that is sent when it shall not think; empty means that nothing is sent.
        switch: `chat_template_kwargs.enable_thinking`, by which open models behind servers of one's own
            are told not to think.
        thinking: the kind of Anthropic's `thinking` parameter that it takes, empty for none.
        seed_name: the name of the seed.
    """

    temperature: bool = True
    top_p: bool = True
    both: bool = True
    seed: bool = True
    schema: bool = True
    limits: bool = True
    cap: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    usage: bool = True
    stop: bool = True
    effort: bool = True
    least: str = ""
    switch: bool = False
    thinking: Thinking = ""
    seed_name: str = "seed"

    @property
    def can_think(self) -> bool:
        """Whether there is any way to ask for thinking."""
        return self.effort or self.switch or bool(self.thinking)

    def without(self, request: LLMRequest) -> Iterator[str]:
        """The parameters that are asked for and cannot be sent."""
        if request.temperature is not None and not self.temperature:
            yield "temperature"
        if request.top_p is not None and not (self.top_p and (self.both or request.temperature is None)):
            yield "top_p"
        if request.seed is not None and not self.seed:
            yield "seed"
        if request.stop and not self.stop:
            yield "stop"
        if request.think and not self.can_think:
            yield "think"

    def after(self, complaint: str) -> Takes | None:
        """What is left after a server refused a request with `complaint`; None if it is not about these."""
        if not re.search(_REFUSES, complaint) or re.search(_BAD_SCHEMA, complaint):
            return None
        for pattern, narrower in _narrowings(self):
            if narrower != self and re.search(pattern, complaint):
                return narrower
        return None


EVERYTHING = Takes()


def sampling_of(takes: Takes) -> frozenset[str]:
    """The sampling parameters among them, by the names that `Capabilities` has for them."""
    found = {"temperature": takes.temperature, "top_p": takes.top_p, "seed": takes.seed}
    return frozenset(name for name, taken in found.items() if taken)


# Patterns as texts: they are compiled, and kept by `re`, when a server first refuses something.
_REFUSES = (
    r"(?i)unsupported|not supported|not support|not permitted|not allowed|unrecogni[sz]ed|unknown|unexpected|"
    r"cannot both|not compatible|deprecated"
)
_BAD_SCHEMA = "(?i)invalid schema|schema conversion"
"""One schema is wrong, which says nothing about the next; its author has to hear of it."""

_CAP = r"max_tokens|max_completion_tokens"
_BOTH = r"(?i)temperature.{0,20}top_p.{0,40}both|both.{0,40}temperature.{0,20}top_p"
_SCHEMA = r"response_format|output_config(?!.{0,3}effort)|json_schema|output_format"
_EFFORT = r"reasoning_effort|output_config.{0,3}effort|\beffort\b|does not support thinking"
_THINKING = r"\bthinking\b"


def _narrowings(takes: Takes) -> list[tuple[str, Takes]]:
    """Each parameter by which a complaint may call it, and what to do without it."""
    other: Literal["max_tokens", "max_completion_tokens"] = (
        "max_completion_tokens" if takes.cap == "max_tokens" else "max_tokens"
    )
    return [
        (_BOTH, replace(takes, both=False)),
        (_CAP, replace(takes, cap=other)),
        ("temperature", replace(takes, temperature=False)),
        ("top_p", replace(takes, top_p=False)),
        (r"\b(random_)?seed\b", replace(takes, seed=False)),
        ("stream_options|include_usage", replace(takes, usage=False)),
        ("chat_template|enable_thinking", replace(takes, switch=False)),
        (_EFFORT, replace(takes, effort=False, least="")),
        (_THINKING, replace(takes, thinking="")),
        (r"['\"`]stop['\"`]|\bstop_sequences\b|parameter:? stop\b", replace(takes, stop=False)),
        (_SCHEMA, replace(takes, schema=False)),
    ]
