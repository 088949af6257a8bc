"""How well one item can stand for another, from 0 to 1, and why. Pure: two readings in, a likeness out.

From 0.7 on the rules say yes, below 0.3 they say no; in the grey band between a model may be asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from agents.builtin.matchmaker.reading import Part, Reading
from agents.builtin.matchmaker.vocabulary import Vocabulary, vocabulary

SURE = 0.7
"""From here on the rules say yes."""
GREY = 0.3
"""From here on the pair is unclear; below, the rules say no."""

Answer = Literal["yes", "grey", "no"]

_SAME = 0.95
_KIND_OF = 0.9
_STEP_UP = 0.03
_SAME_WORDS = 0.8
_BROADER = (0.5, 0.35)
_ALIKE = 0.4
_NOTHING = 0.0


@dataclass(frozen=True, slots=True)
class Likeness:
    """How well an offered item serves a needed one.

    Attributes:
        score: 0 to 1.
        reasons: why, one sentence each.
        refused: the rule that says no whatever a model would say, None when none does.
    """

    score: float
    reasons: tuple[str, ...] = ()
    refused: str | None = None

    @property
    def answer(self) -> Answer:
        """What the rules say."""
        if self.refused is not None or self.score < GREY:
            return "no"
        return "yes" if self.score >= SURE else "grey"


@dataclass(frozen=True, slots=True)
class _Cap:
    """A reason why the likeness is at most so much."""

    limit: float
    reason: str


def likeness(offer: Reading, need: Reading) -> Likeness:
    """How well what is offered serves what is needed."""
    if not (offer.parts and need.parts):
        return Likeness(_NOTHING, refused="one of the two does not say what it is")
    if refused := _categories(offer, need) or _people(offer, need) or _sizes(offer, need):
        return Likeness(_NOTHING, refused=refused)
    base = _best(offer, need)
    caps = list(_caps(offer, need))
    score = min([base.score, *(cap.limit for cap in caps)])
    reasons = (*base.reasons, *(cap.reason for cap in caps if cap.limit < base.score))
    return Likeness(round(score, 2), reasons)


def _categories(offer: Reading, need: Reading) -> str | None:
    """Two known things without a common top category never match."""
    one, other = offer.roots, need.roots
    known = all(part.concepts for part in (*offer.parts, *need.parts))
    if known and not one & other:
        return f"{offer.parts[0].head} is {_names(one)}, {need.parts[0].head} is {_names(other)}"
    return None


def _people(offer: Reading, need: Reading) -> str | None:
    """Things for different people: a child's bicycle for an adult."""
    one, other = offer.audiences, need.audiences
    if not one or not other or one & other:
        return None
    adults = {"adult", "men", "women"}
    if "adult" in one | other and one | other <= adults:
        return None
    return f"it is for {_names(one)}, needed for {_names(other)}"


def _sizes(offer: Reading, need: Reading) -> str | None:
    if offer.size and need.size and offer.size != need.size:
        return f"it is size {offer.size}, needed is size {need.size}"
    return None


def _names(names: frozenset[str]) -> str:
    return " and ".join(sorted(name.replace("_", " ") for name in names))


def _best(offer: Reading, need: Reading) -> Likeness:
    """The best of what is offered against the best of what is needed; where several are given, all count."""
    matched = [max((_parts(o, n) for n in need.parts), key=lambda one: one.score) for o in offer.parts]
    best = max(matched, key=lambda one: one.score)
    if len(offer.parts) > 1 and offer.joined == "both" and any(one.score < SURE for one in matched):
        return Likeness(
            min(best.score, 0.6), (*best.reasons, "only a part of what is offered is what is needed")
        )
    return best


def _parts(offer: Part, need: Part) -> Likeness:
    """One offered thing against one needed thing."""
    if not (offer.concepts and need.concepts):
        return _by_words(offer, need)
    words = vocabulary()
    found = {(o, n): _concepts(words, o, n) for o in offer.concepts for n in need.concepts}
    best = max(found.values(), key=lambda one: one.score)
    doubtful = len(found) > 1 and any(one.score < SURE for one in found.values())
    if doubtful and best.score >= SURE:
        best = Likeness(0.6, (*best.reasons, "the words can also mean something else"))
    also = max(
        (_concepts(words, o, n) for o in offer.also for n in need.concepts),
        key=lambda one: one.score,
        default=best,
    )
    return _detailed(words, offer, need, max(best, also, key=lambda one: one.score))


def _concepts(words: Vocabulary, offer: str, need: str) -> Likeness:
    """One concept against another, by the tree of the vocabulary."""
    if offer == need:
        return Likeness(_SAME, ("it is the same thing",))
    up = words.steps_up(offer, need)
    if up is not None:
        score = round(_KIND_OF - _STEP_UP * (up - 1), 2)
        return Likeness(score, (f"{_name(offer)} is a kind of {_name(need)}",))
    down = words.steps_up(need, offer)
    if down is not None:
        score = _BROADER[down - 1] if down <= len(_BROADER) else _NOTHING
        return Likeness(score, (f"{_name(offer)} may or may not include {_name(need)}",))
    if words.alike(offer, need):
        return Likeness(_ALIKE, (f"{_name(offer)} can sometimes stand in for {_name(need)}",))
    return Likeness(_NOTHING, (f"{_name(offer)} is not {_name(need)}",))


def _name(concept: str) -> str:
    return concept.replace("_", " ")


def _detailed(words: Vocabulary, offer: Part, need: Part, base: Likeness) -> Likeness:
    """The likeness of two known things, after what else the texts say about them."""
    caps = [*_qualifier_caps(words, offer, need), *_word_caps(offer, need)]
    score = min([base.score, *(cap.limit for cap in caps)])
    return Likeness(score, (*base.reasons, *(cap.reason for cap in caps if cap.limit < base.score)))


def _qualifier_caps(words: Vocabulary, offer: Part, need: Part) -> Iterator[_Cap]:
    """Tomato soup is soup, but no chicken soup, and a bed of a dog is no bed."""
    offered = {name for name in offer.qualifiers if name not in need.concepts}
    needed = {name for name in need.qualifiers if name not in offer.concepts}
    served = {n for n in needed if any(words.steps_up(o, n) is not None for o in offered | offer.concepts)}
    if needed - served:
        what = _names(frozenset(needed - served))
        yield _Cap(0.35 if offered else 0.5, f"{what} is asked for, which the offer does not mention")
    if offered and not needed and _foreign(words, offer, offered):
        yield _Cap(0.45, f"{_names(frozenset(offered))} may make it something else")


def _foreign(words: Vocabulary, part: Part, qualifiers: set[str]) -> bool:
    """Whether something of another top category qualifies the thing."""
    roots = {root for name in part.concepts for root in words.concepts[name].roots}
    activity = any(words.concepts[name].act for name in part.concepts)
    return not activity and any(not words.concepts[name].roots & roots for name in qualifiers)


def _word_caps(offer: Part, need: Part) -> Iterator[_Cap]:
    """Words that nobody knows: the more of them, the less is clear."""
    missing = need.unknown - offer.words
    extra = offer.unknown - need.words
    if missing and extra:
        yield _Cap(0.4, f"not clear: {', '.join(sorted(extra))} against {', '.join(sorted(missing))}")
    elif missing:
        yield _Cap(0.55, f"not clear: {', '.join(sorted(missing))}, which the offer does not mention")
    elif extra:
        yield _Cap(0.8 if len(extra) == 1 else 0.6, f"not known: {', '.join(sorted(extra))}")
    if offer.guessed or need.guessed:
        yield _Cap(0.5, "a word was read as a typing error of another")


def _by_words(offer: Part, need: Part) -> Likeness:
    """At least one of the two is nothing that the vocabulary knows: compare the words themselves."""
    common = offer.words & need.words
    if offer.words == need.words:
        return Likeness(_SAME_WORDS, ("both use the same words",))
    if common and not offer.concepts and not need.concepts and offer.head == need.head:
        wider = need.words < offer.words
        return Likeness(0.75 if wider else 0.5, (f"both are {offer.head}",))
    if common:
        return Likeness(GREY, (f"both mention {', '.join(sorted(common))}",))
    return Likeness(_NOTHING, ("nothing in the two texts belongs together",))


def _caps(offer: Reading, need: Reading) -> Iterator[_Cap]:
    """What the texts as a whole say: states, people, sizes, destinations."""
    yield from _state_caps(offer.states, need.states)
    if need.audiences - offer.audiences:
        yield _Cap(0.55, f"it is needed for {_names(need.audiences)}, the offer does not say for whom")
    elif offer.audiences - need.audiences:
        for_children = offer.audiences & {"baby", "child"}
        yield _Cap(0.5 if for_children else 0.75, f"it is for {_names(offer.audiences)}")
    if need.size and not offer.size:
        yield _Cap(0.55, f"size {need.size} is needed, the offer does not say its size")
    if (
        _is_a_ride(offer)
        and offer.destinations
        and need.destinations
        and not offer.destinations & need.destinations
    ):
        yield _Cap(0.2, f"it goes to {_names(offer.destinations)}, needed is {_names(need.destinations)}")


def _is_a_ride(reading: Reading) -> bool:
    known = vocabulary().concepts
    return any(known[name].where for part in reading.parts for name in part.concepts)


def _state_caps(offered: frozenset[str], needed: frozenset[str]) -> Iterator[_Cap]:
    if offered and needed and not offered & needed:
        yield _Cap(0.4, f"it is {_names(offered)}, needed is {_names(needed)}")
    elif offered - needed - {"fresh"}:
        yield _Cap(0.75, f"it is {_names(offered)}")
    elif needed - offered - {"fresh"}:
        yield _Cap(0.5, f"needed is {_names(needed)}, the offer does not say")
