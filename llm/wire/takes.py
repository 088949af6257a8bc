"""What a model takes, as data; and what it is found to refuse, when its server says so."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """Which optional parameters may be sent for a model.

    Attributes:
        temperature: the sampling temperature.
        top_p: the nucleus threshold.
        both: temperature and top_p in one request.
        seed: the sampler's seed.
        schema: a JSON schema that the server holds the reply to; without, the model is told it in words.
        limits: limits on numbers and lengths inside such a schema.
        cap: the name of the parameter that limits the generated tokens.
        usage: being asked for the token counts of a stream (`stream_options`).
    """

    temperature: bool = True
    top_p: bool = True
    both: bool = True
    seed: bool = True
    schema: bool = True
    limits: bool = True
    cap: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    usage: bool = True

    def after(self, complaint: str) -> Takes | None:
        """What is left after a server refused a request with `complaint`; None if it is not about these."""
        if not _REFUSES.search(complaint) or _BAD_SCHEMA.search(complaint):
            return None
        for pattern, narrower in _narrowings(self):
            if narrower != self and pattern.search(complaint):
                return narrower
        return None


_REFUSES = re.compile(
    r"unsupported|not supported|not support|not permitted|not allowed|unrecogni[sz]ed|unknown|unexpected|"
    r"cannot both|not compatible|deprecated",
    re.IGNORECASE,
)
_BAD_SCHEMA = re.compile("invalid schema|schema conversion", re.IGNORECASE)
"""One schema is wrong, which says nothing about the next; its author has to hear of it."""

_CAP = re.compile(r"max_tokens|max_completion_tokens")
_BOTH = re.compile(r"temperature.{0,20}top_p.{0,40}both|both.{0,40}temperature.{0,20}top_p", re.IGNORECASE)
_SCHEMA = re.compile(r"response_format|output_config|json_schema|output_format")


def _narrowings(takes: Takes) -> list[tuple[re.Pattern[str], Takes]]:
    """Each parameter by which a complaint may call it, and what to do without it."""
    other: Literal["max_tokens", "max_completion_tokens"] = (
        "max_completion_tokens" if takes.cap == "max_tokens" else "max_tokens"
    )
    return [
        (_BOTH, replace(takes, both=False)),
        (_CAP, replace(takes, cap=other)),
        (re.compile("temperature"), replace(takes, temperature=False)),
        (re.compile("top_p"), replace(takes, top_p=False)),
        (re.compile(r"\bseed\b"), replace(takes, seed=False)),
        (_SCHEMA, replace(takes, schema=False)),
        (re.compile("stream_options|include_usage"), replace(takes, usage=False)),
    ]
