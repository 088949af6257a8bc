"""Reads the text of an item: which things it names, in what state, for whom, in what size.

The head of a text is what it is about: the first thing in Spanish ("sopa de tomate"), the last one in English
("tomato soup"), always the activity where one is named ("guitar lessons"), and never what follows "for".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from agents.builtin.matchmaker.diet import take_diet_words
from agents.builtin.matchmaker.reading import Joined, Part, Reading
from agents.builtin.matchmaker.text import plain_pieces, singular
from agents.builtin.matchmaker.typos import meant
from agents.builtin.matchmaker.units import UNIT_WORDS
from agents.builtin.matchmaker.vocabulary import Concept, Language, Meaning, Vocabulary, vocabulary

_SIZE = re.compile(r"\b(?:size|talla|tallas|sizes|numero|num|nº)\s+([0-9]{1,3}|x{0,3}[sml])\b")
_LIST_MARKS = frozenset(",;/+&.:")
_NUMBER = re.compile(r"[0-9]+[a-z]{0,2}")
_SMALL_WORDS: dict[str, Language] = {
    **dict.fromkeys(("de", "del", "con", "para", "y", "sin", "el", "la", "los", "las", "en"), "es"),
    **dict.fromkeys(("of", "for", "with", "and", "without", "the", "from", "to"), "en"),
}
"""Words that show the language of a text without naming a thing."""
MAX_WORDS = 40
"""Words of an item that are read; nobody needs more to say what a thing is."""


@dataclass(frozen=True, slots=True)
class Element:
    """A piece of a text: a known thing (with every meaning it may have) or a word that nobody knows."""

    text: str
    meanings: tuple[Meaning, ...] = ()
    guessed: bool = False

    @property
    def concepts(self) -> frozenset[str]:
        """The concepts that it may mean."""
        return frozenset(meaning.concept for meaning in self.meanings)


@lru_cache(maxsize=4096)
def read_item(text: str) -> Reading:
    """Read the text of an item. Never fails: what it does not know it names as unknown."""
    cleaned, size = _take_size(" ".join(plain_pieces(text)))
    articles = vocabulary().words["articles"]
    words = cleaned.split()[:MAX_WORDS]
    tokens, limits = take_diet_words([word for word in words if word not in articles])
    scan = _Scan(vocabulary(), tokens)
    scan.run()
    language = _language([*scan.languages, *(_SMALL_WORDS[word] for word in words if word in _SMALL_WORDS)])
    return scan.reading(language, size, limits)


def _language(votes: Sequence[Language]) -> Language | None:
    """The language that most words are of; None when it is a tie."""
    english, spanish = votes.count("en"), votes.count("es")
    return None if english == spanish else "en" if english > spanish else "es"


def _take_size(text: str) -> tuple[str, str | None]:
    found = _SIZE.search(text)
    return (text, None) if found is None else (text[: found.start()] + text[found.end() :], found[1])


@dataclass
class _Segment:
    """Elements up to the next connecting word: the head of a part, its details, or its purpose."""

    role: Literal["head", "detail", "purpose"]
    elements: list[Element] = field(default_factory=list)
    modifiers: list[Element] = field(default_factory=list)


class _Scan:
    """Goes through the words once and sorts them into parts and segments."""

    def __init__(self, words: Vocabulary, tokens: list[str]) -> None:
        self._words = words
        self._tokens = tokens
        self._parts: list[list[_Segment]] = [[_Segment("head")]]
        self._joined: Joined = "one"
        self._states: set[str] = set()
        self._audiences: set[str] = set()
        self.languages: list[Language] = []  # of each word that belongs to one language only
        self._skip = False  # the word before was "without"

    def run(self) -> None:
        """Read every word."""
        at = 0
        while at < len(self._tokens):
            at += self._take(at)

    def _take(self, at: int) -> int:
        """Read the phrase at `at` and return its length."""
        token = self._tokens[at]
        length, meanings = self._words.meanings(self._tokens, at)
        marked, kind, name = self._words.mark(self._tokens, at)
        if marked > length or (marked and not length):
            (self._states if kind == "state" else self._audiences).add(name)
            return marked
        if length:
            self._known(" ".join(self._tokens[at : at + length]), meanings, alone=length == 1)
            return length
        if not self._connects(token) and not self._measures(token, at) and not _NUMBER.fullmatch(token):
            self._other(token)
        return 1

    def _connects(self, piece: str) -> bool:
        """Whether `piece` only connects; it opens a new segment or a new part then."""
        words = self._words.words
        segments = self._parts[-1]
        inside = segments[-1].role != "head"
        if piece in words["details"] or piece == "(":
            segments.append(_Segment("detail"))
        elif piece in words["purposes"]:
            segments.append(_Segment("purpose"))
        elif piece in words["without"]:
            self._skip = True
        elif piece in _LIST_MARKS or piece == ")":
            self._next_part()
        elif piece in words["either"] or piece in words["both"]:
            if not inside:
                self._next_part()
                self._join("either" if piece in words["either"] else "both")
        else:
            return False
        return True

    def _next_part(self) -> None:
        self._parts.append([_Segment("head")])
        self._join("both")

    def _join(self, how: Joined) -> None:
        if self._joined != "either":
            self._joined = how

    def _measures(self, token: str, at: int) -> bool:
        """Whether `token` only says in what the thing comes: "a bag of", "una docena"."""
        following = self._tokens[at + 1 : at + 2]
        return (
            token in UNIT_WORDS
            and bool(following)
            and (following[0] in {"of", "de"} or token in {"dozen", "docena"})
        )

    def _known(self, text: str, meanings: tuple[Meaning, ...], *, alone: bool) -> None:
        languages = {meaning.language for meaning in meanings}
        self.languages += languages if len(languages) == 1 else ()
        element = Element(text, meanings)
        modifier = alone and text in self._words.words["modifiers"]
        segment = self._parts[-1][-1]
        self._add(segment.modifiers if modifier else segment.elements, element)

    def _other(self, token: str) -> None:
        if token in self._words.words["modifiers"] or len(token) == 1:
            return
        guess = meant(token)
        meanings = self._words.phrases[guess] if guess else ()
        self._add(self._parts[-1][-1].elements, Element(token, meanings, guessed=bool(guess)))

    def _add(self, group: list[Element], element: Element) -> None:
        if self._skip:
            self._skip = False  # "without sugar": what is not there says nothing about what it is
        else:
            group.append(element)

    def reading(self, language: Language | None, size: str | None, limits: frozenset[str]) -> Reading:
        """Everything that was read."""
        for segment in (segment for segments in self._parts for segment in segments):
            segment.elements = [self._clearer(e, language, food=bool(limits)) for e in segment.elements]
        built = [part for segments in self._parts if (part := self._part(segments, language))]
        concepts = [self._words.concepts[name] for part in built for name in part.concepts | part.qualifiers]
        return Reading(
            parts=tuple(built),
            joined=self._joined if len(built) > 1 else "one",
            states=frozenset(self._states),
            audiences=frozenset(self._audiences),
            size=size,
            destinations=self._destinations(),
            limits=limits,
            contains=frozenset(content for concept in concepts for content in concept.has),
            plain=self._is_plain(built, concepts),
            food=any("food" in concept.roots for concept in concepts)
            or any(not part.concepts for part in built),
            act=any(self._words.concepts[name].act for part in built for name in part.concepts),
        )

    def _clearer(self, element: Element, language: Language | None, *, food: bool) -> Element:
        """The element without meanings that the other words rule out: "pan sin gluten" is no frying pan."""
        meanings = [m for m in element.meanings if m.language == language] or list(element.meanings)
        if food:
            meanings = [m for m in meanings if "food" in self._words.concepts[m.concept].roots] or meanings
        return replace(element, meanings=tuple(meanings))

    def _part(self, segments: list[_Segment], language: Language | None) -> Part | None:
        head = self._head_segment(segments)
        if head is None:
            return None
        main = self._main(head.elements, language)
        details = [
            e for segment in segments if segment.role != "purpose" for e in segment.elements if e is not main
        ]
        known = [e for e in details if e.meanings]
        return Part(
            concepts=main.concepts,
            head=main.text,
            also=self._also(main.concepts),
            qualifiers=frozenset(name for e in known for name in e.concepts),
            unknown=frozenset(singular(e.text) for e in details if not e.meanings),
            words=frozenset(singular(word) for e in (main, *details) for word in e.text.split()),
            guessed=main.guessed or any(e.guessed for e in known),
        )

    def _head_segment(self, segments: Iterable[_Segment]) -> _Segment | None:
        """The first segment that names something; modifiers count where nothing else does."""
        candidates = [segment for segment in segments if segment.role != "purpose"]
        for segment in candidates:
            if segment.elements:
                return segment
        for segment in candidates:
            if segment.modifiers:
                segment.elements = segment.modifiers
                return segment
        return None

    def _main(self, elements: list[Element], language: Language | None) -> Element:
        acts = [e for e in elements if any(self._words.concepts[name].act for name in e.concepts)]
        return acts[0] if acts else elements[0 if language == "es" else -1]

    def _is_plain(self, parts: list[Part], concepts: list[Concept]) -> bool:
        """Whether the things contain nothing but what they contain by nature."""
        understood = all(part.concepts and not part.unknown for part in parts)
        changed = self._states & {"cooked", "tinned", "powdered"}
        return bool(parts) and understood and not changed and all(concept.plain for concept in concepts)

    def _also(self, concepts: frozenset[str]) -> frozenset[str]:
        if not any("food" in self._words.concepts[name].roots for name in concepts):
            return frozenset()
        return frozenset(
            self._words.states_are[state] for state in self._states if state in self._words.states_are
        )

    def _destinations(self) -> frozenset[str]:
        named = (e for segments in self._parts for s in segments for e in (*s.elements, *s.modifiers))
        return frozenset(
            name for e in named for name in e.concepts if "destination" in self._words.concepts[name].roots
        )
