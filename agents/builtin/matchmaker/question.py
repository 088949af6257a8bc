"""The one small question that a model is asked about an unclear pair, and when to stop asking.

Only the two item texts and their units go to the model. Names of persons, places and notes do not.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from agents.builtin.matchmaker.records import Record
from agents.builtin.matchmaker.rules import Pair
from agents.builtin.matchmaker.text import plain
from agents.builtin.matchmaker.vocabulary import vocabulary
from agents.fence import clean
from llm import LLMError, LLMResponse

TEMPLATE = "pair"
"""The question, in `prompts/pair.j2`."""
MAX_TOKENS = 60
SEED = 7
MAX_ITEM_CHARACTERS = 160
FAILURES_IN_A_ROW = 2
"""So many failed calls one after the other, and no more questions are asked in this run."""


class Answer(BaseModel):
    """What the model answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    why: str = Field(max_length=80, description="the reason, at most ten words")
    answer: Literal["yes", "partly", "no", "unsure"] = Field(description="whether the item serves the need")


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a model said about a pair."""

    answer: Literal["yes", "partly", "no", "unsure"]
    why: str
    model: str
    call_id: str

    @property
    def favours(self) -> bool:
        """Whether it speaks for the pair."""
        return self.answer in {"yes", "partly"}


class AskModel(Protocol):
    """`BaseAgent.use_llm`, as far as it is used here."""

    def __call__(
        self,
        *,
        template: str,
        context: dict[str, str],
        schema: type[BaseModel],
        temperature: float,
        max_tokens: int,
        seed: int,
        timeout: float,
    ) -> Awaitable[LLMResponse]:
        """Ask."""


class Questions:
    """Asks about pairs one after the other, within the limits of one run.

    Args:
        ask: `BaseAgent.use_llm`, None when no model may decide.
        persons: names that must not reach the model.
        most: most questions of the run; cached answers do not count.
        seconds: most seconds of the run that go into them.
        call_seconds: most seconds of one question.
        clock: seconds that only go forward.

    Attributes:
        unasked: why a pair was not put to the model, for the last pair that was not; empty when all were.
        declined: pairs that the model did not speak for.
        skipped: pairs that were not put to the model because of a limit.
        failure: the error that made it stop, or that cost an answer.
    """

    def __init__(
        self,
        ask: AskModel | None,
        *,
        persons: Iterable[str] = (),
        most: int = 12,
        seconds: float = 120.0,
        call_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._names = _names(persons)
        self._most = most
        self._call_seconds = call_seconds
        self._clock = clock
        self._until = clock() + seconds
        self._asked = self._failed = 0
        self.unasked = "" if ask else "no model was asked"
        self.declined = self.skipped = 0
        self.failure: LLMError | None = None

    async def opinion(self, pair: Pair) -> Opinion | None:
        """What the model says about a pair; None when it was not asked or gave no answer, see `unasked`."""
        if self._ask is None or self._limit():
            return None
        timeout = min(self._call_seconds, max(self._until - self._clock(), 1.0))
        try:
            response = await self._ask(
                template=TEMPLATE,
                context={"offer": self._shown(pair.offer), "need": self._shown(pair.need)},
                schema=Answer,
                temperature=0.0,
                max_tokens=MAX_TOKENS,
                seed=SEED,
                timeout=timeout,
            )
        except LLMError as error:
            self._failed += 1
            self.failure, self.unasked = error, "the model gave no usable answer"
            return None
        self._failed = 0
        self._asked += not response.cached
        found = Answer.model_validate_json(response.content)
        opinion = Opinion(found.answer, " ".join(clean(found.why).split()), response.model, response.call_id)
        self.declined += not opinion.favours
        return opinion

    def _limit(self) -> bool:
        """Whether a limit of the run is reached; says so in `unasked` and counts the pair."""
        if self._failed >= FAILURES_IN_A_ROW:
            self.unasked = "the model did not answer"
            return True
        if self._asked >= self._most or self._clock() >= self._until:
            self.unasked = "the model was not asked about it in this run"
            self.skipped += 1
            return True
        return False

    def _shown(self, record: Record) -> str:
        """An item as the model sees it: cut, and without names of persons."""
        words = record.item[:MAX_ITEM_CHARACTERS].split()
        shown = ("somebody" if _word(word) in self._names else word for word in words)
        return f"{' '.join(shown)} (in {record.unit.plural})"


def _names(persons: Iterable[str]) -> frozenset[str]:
    """The words of names, without those that the vocabulary knows ("kitchen" of "Casa Luz kitchen")."""
    words = vocabulary()
    common = words.words["modifiers"] | words.single_words
    return frozenset(
        word
        for person in persons
        for part in person.split()
        if len(word := _word(part)) > 2 and word not in common
    )


def _word(text: str) -> str:
    """A word of a text for comparison: plain, without punctuation and possessive."""
    found = plain(text).strip(".,;:!?()\"'’")
    return found.removesuffix("'s").removesuffix("’s")
