"""What food contains, and what a person must not be given. Unknown is never taken for safe."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agents.builtin.matchmaker.text import plain, plain_words
from agents.builtin.matchmaker.vocabulary import Vocabulary, vocabulary


class UnknownLimit(ValueError):
    """A dietary limit that is not understood, so that nothing can be said to be safe."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What is known of what an item contains.

    Attributes:
        present: contents that are in it.
        absent: contents that somebody said are not in it.
        complete: nothing else is in it than `present` says.
    """

    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    complete: bool = False

    def with_nature(self, natural: frozenset[str], *, plain_food: bool) -> Contents:
        """Together with what such an item contains by nature; what its giver says of it wins."""
        return Contents(self.present | (natural - self.absent), self.absent, self.complete or plain_food)

    def lacks(self, content: str) -> bool | None:
        """Whether `content` is not in it; None when nobody knows."""
        if content in self.present:
            return False
        return True if self.complete or content in self.absent else None


@dataclass(frozen=True, slots=True)
class DietCheck:
    """What became of one comparison of contents with limits.

    Attributes:
        broken: limits that the item breaks.
        unknown: contents that nobody has said anything about.
    """

    broken: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the item is known to keep every limit."""
        return not (self.broken or self.unknown)


def check(contents: Contents, limits: frozenset[str], words: Vocabulary | None = None) -> DietCheck:
    """Compare what an item contains with what must not be in it."""
    known = words or vocabulary()
    broken, unknown = [], []
    for limit in sorted(limits):
        answers = {content: contents.lacks(content) for content in known.left_out(limit)}
        if False in answers.values():
            broken.append(limit)
        unknown += [content for content, lacks in answers.items() if lacks is None]
    return DietCheck(tuple(broken), tuple(dict.fromkeys(unknown)))


def parse_limits(text: str) -> frozenset[str]:
    """The limits that a need states: "vegan, nut allergy", "sin gluten".

    Raises:
        UnknownLimit: a part of it is not understood.
    """
    limits: set[str] = set()
    for part in _parts(text):
        reading = _read(part)
        found = reading.labels | {
            f"no {content}" for content in reading.contents | reading.negated | reading.partly
        }
        if not found or reading.doubtful:
            known = ", ".join(sorted(vocabulary().limits))
            msg = (
                f"the limit {part.strip()!r} is not understood; known are {known}, or the name of an "
                "allergen such as sesame"
            )
            raise UnknownLimit(msg)
        limits |= found
    return frozenset(limits)


def parse_contents(text: str) -> Contents:
    """What an offer states about itself: "vegan, contains nuts", "sin gluten", "none".

    What is not understood is passed over, and so is every "without" beside it ("not sure about nuts"): that
    can only make the offer fit less, never more.
    """
    words = vocabulary()
    present: set[str] = set()
    absent: set[str] = set()
    complete = False
    for part in _parts(text):
        reading = _read(part)
        complete = complete or " ".join(plain_words(part)) in words.words["diet_nothing"]
        present |= reading.contents
        if not reading.doubtful:
            absent |= reading.negated
            absent |= {content for label in reading.labels for content in words.left_out(label)}
    return Contents(frozenset(present), frozenset(absent) - present, complete and not present)


@dataclass(frozen=True, slots=True)
class _Part:
    labels: frozenset[str]
    contents: frozenset[str]
    negated: frozenset[str]
    partly: frozenset[str]  # a part of it is negated: "no wheat" says nothing about other gluten
    doubtful: bool  # there are words in it that nobody understands, or a label is denied


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[,;|/+\n]", text) if plain(part).strip(" .-")]


def _read(part: str) -> _Part:
    """Labels and contents of one part."""
    words, tokens = vocabulary(), plain_words(part)
    known = words.words
    labels, contents, negated, partly = set[str](), set[str](), set[str](), set[str]()
    denied = doubtful = False
    at = 0
    while at < len(tokens):
        length, kind, name = words.diet_phrase(tokens, at)
        after = tokens[at + length : at + length + 1]
        if kind == "limit":
            labels.add(name)
            doubtful = doubtful or denied
        elif kind:
            absent = negated if kind == "content" else partly
            (absent if denied or after == ["free"] else contents).add(name)
        elif tokens[at] in known["diet_negations"] | known["diet_negation_ends"]:
            denied = tokens[at] in known["diet_negations"]
        elif tokens[at] != "free" and tokens[at] not in known["diet_fillers"]:
            doubtful = True
        at += max(length, 1)
    return _Part(frozenset(labels), frozenset(contents), frozenset(negated), frozenset(partly), doubtful)


def take_diet_words(tokens: list[str]) -> tuple[list[str], frozenset[str]]:
    """The words of an item without those that name a limit ("gluten-free bread"), and these limits."""
    words = vocabulary()
    kept: list[str] = []
    limits: set[str] = set()
    at = 0
    while at < len(tokens):
        length, kind, name = words.diet_phrase(tokens, at, limits_only=True)
        if kind == "limit":
            if kept and kept[-1] in {"not", "non", "no"}:
                kept.pop()  # "not vegan" is no label
            else:
                limits.add(name)
        else:
            length, content = _negated_content(words, tokens, at)
            if content:
                limits.add(f"no {content}")
            else:
                kept.append(tokens[at])
        at += max(length, 1)
    return kept, frozenset(limits)


def _negated_content(words: Vocabulary, tokens: list[str], at: int) -> tuple[int, str]:
    """Length and content of "no nuts", "sin huevo" or "egg free" at `at`; (0, "") if there is none."""
    if tokens[at] in {"no", "sin", "without"}:
        length, kind, name = words.diet_phrase(tokens, at + 1)
        return (length + 1, name) if kind == "content" else (0, "")  # "without walnuts" is no label
    length, kind, name = words.diet_phrase(tokens, at)
    if kind == "content" and tokens[at + length : at + length + 1] == ["free"]:
        return length + 1, name
    return 0, ""
