"""Reading: what the text of an item says, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.builtin.matchmaker.vocabulary import vocabulary

Joined = Literal["one", "both", "either"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing of a text that may list several.

    Attributes:
        concepts: what it may be; empty when nobody knows the word.
        also: what it is besides, because of its state: a tinned soup is tinned food.
        head: its main word or words.
        qualifiers: known things that say more about it ("tomato" of "tomato soup").
        unknown: words about it that nobody knows, singular.
        words: every word about it that means something, singular.
        guessed: whether a word was read as a typing error of another.
    """

    concepts: frozenset[str]
    head: str
    also: frozenset[str] = frozenset()
    qualifiers: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    guessed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the text of an item says.

    Attributes:
        parts: the things it names.
        joined: whether it names one thing, several together, or several of which one is enough.
        states: such as "tinned" or "dried".
        audiences: for whom, such as "baby" or "men".
        size: a size that it states, None without one.
        destinations: known places that it goes to.
        limits: dietary limits that it names ("gluten-free bread").
        contains: what such things contain by nature.
        plain: whether they contain nothing else.
        food: whether it is food, or may be because nobody knows the word.
        act: whether it is something that people do.
    """

    parts: tuple[Part, ...]
    joined: Joined = "one"
    states: frozenset[str] = frozenset()
    audiences: frozenset[str] = frozenset()
    size: str | None = None
    destinations: frozenset[str] = frozenset()
    limits: frozenset[str] = frozenset()
    contains: frozenset[str] = frozenset()
    plain: bool = False
    food: bool = False
    act: bool = False

    @property
    def roots(self) -> frozenset[str]:
        """The top categories of everything that it may be."""
        known = vocabulary().concepts
        return frozenset(root for part in self.parts for name in part.concepts for root in known[name].roots)
