"""Where an answer may say "unsure", and where the word is just a word."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from llm.unsure import says_unsure


class Part(BaseModel):
    fits: Literal["yes", "no", "unsure"]


class Verdict(BaseModel):
    answer: Literal["yes", "no", "unsure"]
    why: str
    part: Part | None = None
    parts: list[Part] = []


SURE: dict[str, Any] = {"answer": "yes", "why": "unsure about the weather, but it fits"}


@pytest.mark.parametrize(
    ("answer", "unsure"),
    [
        (SURE, False),
        ({**SURE, "answer": "unsure"}, True),
        ({**SURE, "why": "unsure"}, False),  # free text may say anything
        ({**SURE, "part": {"fits": "unsure"}}, True),
        ({**SURE, "part": {"fits": "yes"}}, False),
        ({**SURE, "parts": [{"fits": "yes"}, {"fits": "unsure"}]}, True),
        ({**SURE, "unknown": "unsure"}, False),
        ("unsure", False),
        (None, False),
    ],
)
def test_a_field_that_may_say_unsure_and_does(answer: Any, unsure: bool) -> None:
    assert says_unsure(answer, Verdict.model_json_schema()) is unsure


def test_a_bare_value_and_a_constant_may_say_it_too() -> None:
    assert says_unsure("unsure", {"enum": ["yes", "unsure"]})
    assert says_unsure("unsure", {"anyOf": [{"type": "number"}, {"const": "unsure"}]})
