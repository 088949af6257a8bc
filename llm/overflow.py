"""Prompts longer than the context: how one is recognised, and how a conversation is made shorter.

Pure. How many tokens a prompt has, only the server knows exactly, so that is what counts; characters are
only used to decide how much to leave out, and whether an old server should be asked at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from llm.types import LLMMessage, LLMRequest

ROUNDS = 4
"""How often a prompt is made shorter before the refusal stands."""

_MARGIN = 0.95  # tokens are not spread evenly over a text
_ANSWER_SHARE = 4  # at most this part of the context is kept free for the answer
_SHORTEST = 200  # characters; a text is not cut below this
_MOST_CHARACTERS = 8  # a token of natural text has no more on average
_FEWEST_CHARACTERS = 2  # and with numbers and code not fewer

# Patterns as texts: they are compiled, and kept by `re`, when a server first refuses something.
_TOLD = (
    # llama.cpp and Ollama; vLLM and OpenAI, twice; Anthropic
    r"\((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<context>\d+) tokens\)",
    (
        r"(?s)maximum context length is (?P<context>\d+) tokens.{0,200}?"
        r"(?:resulted in|requested|contains|prompt has) (?:about )?(?P<prompt>\d+)( input)? tokens"
    ),
    r"input tokens? exceeds? the .{0,40}limit of (?P<context>\d+)",
    r"prompt is too long: (?P<prompt>\d+) tokens > (?P<context>\d+)",
)
_SAID = r"(?i)context[ _](length|size|window)|prompt is too long|too many tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLong:
    """What a server says of a prompt that it refuses.

    Attributes:
        prompt: its tokens, None when they are not told.
        context: tokens that there is room for, None when that is not told.
    """

    prompt: int | None = None
    context: int | None = None


def too_long(complaint: str) -> TooLong | None:
    """What a refusal says about the prompt's length; None when it is about something else."""
    for pattern in _TOLD:
        found = re.search(pattern, complaint)
        if found is not None:
            numbers = {name: int(digits) for name, digits in found.groupdict().items()}
            return TooLong(**numbers)
    return TooLong() if re.search(_SAID, complaint) else None


def characters(messages: Sequence[LLMMessage]) -> int:
    """Characters of all turns together."""
    return sum(len(message.content) for message in messages)


def may_be_too_long(messages: Sequence[LLMMessage], context: int) -> bool:
    """Whether a prompt could exceed `context` tokens; False is certain for all but texts of odd symbols."""
    return characters(messages) > context * _FEWEST_CHARACTERS


def is_surely_too_long(messages: Sequence[LLMMessage], context: int) -> bool:
    """Whether no natural text of that length fits into `context` tokens."""
    return characters(messages) > context * _MOST_CHARACTERS


def shortened(request: LLMRequest, told: TooLong, *, context: int | None = None) -> LLMRequest | None:
    """The request with a conversation that should fit, room for the answer included.

    The oldest turns go first, each question together with what followed it. System turns stay, and so do
    the last question and all after it; if that is still too much, the longest text is cut in its middle,
    with a mark that says so.

    Args:
        request: the call that was refused.
        told: what the server said about it.
        context: tokens of context, where the server did not say.

    Returns:
        None when there is nothing more to leave out.
    """
    room = told.context or context
    size = characters(request.messages)
    if room is None or told.prompt is None:
        allowed = int(size * 0.7)
        if room is not None:
            allowed = min(allowed, _free(room, request) * _FEWEST_CHARACTERS)
    else:
        allowed = int(size * min(1.0, _free(room, request) / told.prompt) * _MARGIN)
    messages = _cut(_without_oldest(list(request.messages), allowed), allowed)
    if characters(messages) >= size:
        return None
    return replace(request, messages=tuple(messages))


def _free(room: int, request: LLMRequest) -> int:
    return room - min(request.max_tokens, room // _ANSWER_SHARE)


def _without_oldest(messages: Sequence[LLMMessage], allowed: int) -> list[LLMMessage]:
    """Without as many of the oldest questions, and all that followed each, as it takes."""
    size = characters(messages)
    starts = [place for place, message in enumerate(messages) if message.role == "user"]
    first = starts[0] if starts else 0
    kept_from = first
    for start, end in pairwise(starts):
        if size <= allowed:
            break
        size -= characters([m for m in messages[start:end] if m.role != "system"])
        kept_from = end
    return [
        m for place, m in enumerate(messages) if m.role == "system" or place < first or place >= kept_from
    ]


def _cut(messages: list[LLMMessage], allowed: int) -> list[LLMMessage]:
    """The longest texts cut in their middles until all fit, those of the system last."""
    for system in (False, True):
        places = [n for n, message in enumerate(messages) if (message.role == "system") is system]
        for place in sorted(places, key=lambda n: -len(messages[n].content)):
            excess = characters(messages) - allowed
            if excess <= 0:
                return messages
            text = _without_middle(messages[place].content, excess)
            messages[place] = replace(messages[place], content=text)
    return messages


def _without_middle(text: str, excess: int) -> str:
    """`text` shorter by about `excess` characters, and not below `_SHORTEST`."""
    keep = max(_SHORTEST, len(text) - excess - len(_mark(excess)))
    left_out = len(text) - keep
    if left_out <= len(_mark(left_out)):
        return text
    head = keep // 2
    return text[:head] + _mark(left_out) + text[len(text) - (keep - head) :]


def _mark(left_out: int) -> str:
    return f"\n[... {left_out:,} characters left out ...]\n"
