"""How good the matchmaker is on its labelled set: the rules, and what a model adds where they are unclear.

Asks the model that `LLM_BACKEND` and `LLM_MODEL` name, the embedded one without them.
"""

from __future__ import annotations

import os
from collections import Counter
from datetime import UTC
from pathlib import Path

from agents.base import BaseAgent
from agents.builtin.matchmaker.agent import Matchmaker
from agents.builtin.matchmaker.question import Questions
from agents.builtin.matchmaker.rules import Pair, judge
from agents.context import AgentContext
from agents.prompts import templates_of
from agents.proposal import Proposal
from agents.testing import NOON
from llm import LLMConfig, get_llm_client
from tests.support.engines import requires_llamacpp
from tests.support.matchmaker_data import LabelledPair, labelled_pairs, quality

# As the developer set it, before the tests hide it.
BACKEND, MODEL = os.environ.get("LLM_BACKEND", "llamacpp"), os.environ.get("LLM_MODEL", "")


class Asker(BaseAgent):
    """Has `use_llm`, and nothing to propose."""

    async def analyze(self) -> list[Proposal]:
        return []


def unclear_pairs() -> list[tuple[LabelledPair, Pair]]:
    judged = [(each, judge(each.offer, each.need, NOON, UTC)) for each in labelled_pairs()]
    return [
        (each, found) for each, found in judged if isinstance(found, Pair) and found.likeness.answer != "yes"
    ]


def test_the_rules_on_the_labelled_set() -> None:
    pairs = list(labelled_pairs())
    print(f"\nThe matchmaker's rules on {len(pairs)} labelled pairs")
    for part in sorted({each.part for each in pairs}):
        found = quality(each for each in pairs if each.part == part)
        print(f"  {part:8} precision {found.precision:.3f}  recall {found.recall:.3f}")
        assert found.precision >= 0.95
        assert found.recall >= 0.8


@requires_llamacpp
async def test_what_a_model_says_about_the_unclear_pairs(tmp_path: Path) -> None:
    config = LLMConfig(backend=BACKEND, model=MODEL, cache_dir=str(tmp_path), timeout=120)
    pairs = unclear_pairs()
    said: Counter[tuple[str, str]] = Counter()
    async with get_llm_client(config) as client:
        context = AgentContext(llm=client, templates=templates_of(Matchmaker))
        questions = Questions(Asker(context).use_llm, most=len(pairs), seconds=3600)
        for each, pair in pairs:
            opinion = await questions.opinion(pair)
            said[each.label, opinion.answer if opinion else "nothing"] += 1
    print(f"\n{config.model} on the {len(pairs)} pairs that the rules leave unclear")
    for (label, answer), count in sorted(said.items()):
        print(f"  labelled {label:7} answered {answer:7} {count:4}")
    assert sum(said.values()) == len(pairs)
