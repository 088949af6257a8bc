"""The vocabulary: what words mean which thing, what a thing is a kind of, and what it contains.

The words are data, in `vocabulary.toml`, with their meaning explained at the top of that file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from itertools import product
from typing import Any, Literal

from agents.builtin.matchmaker.text import listed, plain_words, plurals

Language = Literal["en", "es"]
LANGUAGES: tuple[Language, ...] = ("en", "es")
LONGEST = 6
"""Most words of one term."""
NEAR = 2
"""Most steps up to what two things that can stand in for one another are both kinds of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """One thing that people offer or need.

    Attributes:
        name: its key in the vocabulary.
        parents: what it is a kind of, nearest only.
        lineage: itself and everything it is a kind of, with the number of steps up.
        roots: its top categories.
        has: what it contains by nature, inherited contents included.
        plain: whether it contains nothing else.
        alike: whether its kinds can stand in for one another.
        act: whether it is something that people do.
        where: whether it goes somewhere, so that two destinations are two things.
    """

    name: str
    parents: tuple[str, ...]
    lineage: Mapping[str, int]
    roots: frozenset[str]
    has: frozenset[str]
    plain: bool
    alike: bool
    act: bool
    where: bool


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a phrase may mean: a concept, in one of the languages."""

    concept: str
    language: Language


@dataclass(frozen=True)
class Vocabulary:
    """Everything of the data file, ready for look-up.

    Attributes:
        concepts: by name.
        phrases: plain phrase, singular or plural, to its meanings.
        marks: plain phrase to (kind, name), where the kind is "state" or "audience".
        states_are: state to the concept that a thing in that state also is.
        contents: plain phrase to content.
        parts: those phrases of `contents` that name only a part of the content ("wheat" of gluten).
        limits: name of a limit to what it leaves out.
        limit_phrases: plain phrase to limit.
        implied: content to what must be left out with it.
        headings: plain heading of a column to its field.
        words: class of words ("articles", "details", ...) to its members.
    """

    concepts: Mapping[str, Concept]
    phrases: Mapping[str, tuple[Meaning, ...]]
    marks: Mapping[str, tuple[str, str]]
    states_are: Mapping[str, str]
    contents: Mapping[str, str]
    parts: frozenset[str]
    limits: Mapping[str, tuple[str, ...]]
    limit_phrases: Mapping[str, str]
    implied: Mapping[str, tuple[str, ...]]
    headings: Mapping[str, str]
    words: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def meanings(self, tokens: Sequence[str], at: int) -> tuple[int, tuple[Meaning, ...]]:
        """Length and meanings of the longest phrase at `at`; (0, ()) if there is none."""
        for length in range(min(LONGEST, len(tokens) - at), 0, -1):
            found = self.phrases.get(" ".join(tokens[at : at + length]))
            if found:
                return length, found
        return 0, ()

    def mark(self, tokens: Sequence[str], at: int) -> tuple[int, str, str]:
        """Length, kind and name of the longest state or audience at `at`; (0, "", "") if there is none."""
        for length in range(min(3, len(tokens) - at), 0, -1):
            found = self.marks.get(" ".join(tokens[at : at + length]))
            if found:
                return length, *found
        return 0, "", ""

    def diet_phrase(
        self, tokens: Sequence[str], at: int, *, limits_only: bool = False
    ) -> tuple[int, Literal["limit", "content", "part", ""], str]:
        """Length, kind and name of the longest dietary phrase at `at`; (0, "", "") if there is none."""
        for length in range(min(LONGEST, len(tokens) - at), 0, -1):
            phrase = " ".join(tokens[at : at + length])
            if phrase in self.limit_phrases:
                return length, "limit", self.limit_phrases[phrase]
            if phrase in self.contents and not limits_only:
                return length, "part" if phrase in self.parts else "content", self.contents[phrase]
        return 0, "", ""

    def left_out(self, limit: str) -> tuple[str, ...]:
        """The contents that a limit leaves out; "no sesame" is one as well."""
        if limit in self.limits:
            return self.limits[limit]
        content = limit.removeprefix("no ")
        return self.implied.get(content, (content,))

    def steps_up(self, concept: str, ancestor: str) -> int | None:
        """How many steps `ancestor` is above `concept`; None when it is not."""
        return self.concepts[concept].lineage.get(ancestor)

    def alike(self, one: str, other: str) -> bool:
        """Whether both are kinds, at most `NEAR` steps down, of something whose kinds are much alike."""
        up, over = self.concepts[one].lineage, self.concepts[other].lineage
        shared = (name for name in up.keys() & over.keys() if max(up[name], over[name]) <= NEAR)
        return any(self.concepts[name].alike for name in shared)

    @cached_property
    def single_words(self) -> frozenset[str]:
        """Every phrase of one word, for finding typing errors."""
        return frozenset(phrase for phrase in self.phrases if " " not in phrase)


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """The vocabulary that comes with the agent, read once."""
    text = resources.files(__package__).joinpath("vocabulary.toml").read_text(encoding="utf-8")
    return vocabulary_of(tomllib.loads(text))


def vocabulary_of(data: Mapping[str, Any]) -> Vocabulary:
    """A vocabulary from the tables of its file.

    Raises:
        ValueError: a name that is referred to does not exist.
    """
    table: Mapping[str, Mapping[str, Any]] = data["concepts"]
    words = {
        name: frozenset(w for part in listed(text) for w in plain_words(part))
        for name, text in data["words"].items()
    }
    articles, nothing = words["articles"], frozenset[str]()
    parts = {phrase: name for name, phrase in _terms(_with_parts(data["contents"]), nothing)}
    marks = {phrase: ("state", name) for name, phrase in _terms(data["states"], articles)}
    marks |= {phrase: ("audience", name) for name, phrase in _terms(data["audiences"], articles)}
    return Vocabulary(
        concepts={name: _concept(name, table) for name in table},
        phrases=_phrases(table, articles),
        marks=marks,
        states_are={name: spec["is"] for name, spec in data["states"].items() if "is" in spec},
        contents=parts | {phrase: name for name, phrase in _terms(data["contents"], nothing)},
        parts=frozenset(parts),
        limits={name: tuple(listed(spec["without"])) for name, spec in data["limits"].items()},
        limit_phrases={phrase: name for name, phrase in _terms(data["limits"], nothing)},
        implied={name: tuple(listed(text)) for name, text in data["implies"].items()},
        headings={
            " ".join(plain_words(text)): name
            for name, all_ in data["headings"].items()
            for text in listed(all_)
        },
        words=words,
    )


def _with_parts(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each content with the words for its parts, which may be of either language."""
    return {name: dict.fromkeys(LANGUAGES, spec.get("some", "")) for name, spec in contents.items()}


def _phrases(
    table: Mapping[str, Mapping[str, Any]], articles: frozenset[str]
) -> dict[str, tuple[Meaning, ...]]:
    found: dict[str, set[Meaning]] = {}
    for language in LANGUAGES:
        for name, phrase in _terms(table, articles, (language,)):
            found.setdefault(phrase, set()).add(Meaning(name, language))
    return {
        phrase: tuple(sorted(group, key=lambda m: (m.concept, m.language))) for phrase, group in found.items()
    }


def _terms(
    table: Mapping[str, Mapping[str, Any]],
    articles: frozenset[str],
    languages: Iterable[Language] = LANGUAGES,
) -> Iterator[tuple[str, str]]:
    """Each name with each of its plain phrases, plurals included."""
    for name, spec in table.items():
        for language, term in ((one, term) for one in languages for term in listed(spec.get(one, ""))):
            words = [word for word in plain_words(term) if word not in articles] or plain_words(term)
            for forms in product(*(sorted(plurals(word, language)) for word in words)):
                yield name, " ".join(forms)


def _concept(name: str, table: Mapping[str, Mapping[str, Any]]) -> Concept:
    lineage = _lineage(name, table)
    spec = table[name]
    plain = next((table[one]["plain"] for one in lineage if "plain" in table[one]), False)
    return Concept(
        name=name,
        parents=tuple(listed(spec.get("in", ""))),
        lineage=lineage,
        roots=frozenset(one for one in lineage if "in" not in table[one]),
        has=frozenset(content for one in lineage for content in listed(table[one].get("has", ""))),
        plain=plain,
        alike=spec.get("alike", False),
        act=any(table[one].get("act", False) for one in lineage),
        where=any(table[one].get("where", False) for one in lineage),
    )


def _lineage(name: str, table: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """`name` and everything above it, nearest first, with the number of steps."""
    steps, level = {name: 0}, [name]
    while level:
        above = [
            parent for one in level for parent in listed(table[one].get("in", "")) if parent not in steps
        ]
        for parent in above:
            if parent not in table:
                msg = f"vocabulary.toml: {name!r} is under {parent!r}, which is not there"
                raise ValueError(msg)
            steps[parent] = 1 + min(steps[one] for one in level if parent in listed(table[one].get("in", "")))
        level = list(dict.fromkeys(above))
    return steps
