"""Which known word a misspelt one is meant to be: a letter missing, too many, or swapped with the next."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from agents.builtin.matchmaker.vocabulary import vocabulary

SHORTEST = 6
"""Shorter words are too often another word with one letter changed: "pear" and "bear"."""


@lru_cache(maxsize=1024)
def meant(word: str) -> str | None:
    """The known word that `word` is a typing error of; None if there is none, or several of other meaning."""
    if len(word) < SHORTEST or not word.isalpha():
        return None
    index = _index()
    near = {
        known
        for key in _shortened(word)
        for known in index.get(key, ())
        if known[0] == word[0] and _one_apart(word, known)
    }
    meanings = {frozenset(m.concept for m in vocabulary().phrases[known]) for known in near}
    return min(near) if len(meanings) == 1 else None


@lru_cache(maxsize=1)
def _index() -> dict[str, set[str]]:
    """Every known word under itself and under each form of it with one letter left out."""
    found: dict[str, set[str]] = {}
    for known in vocabulary().single_words:
        if len(known) >= SHORTEST:
            for key in _shortened(known):
                found.setdefault(key, set()).add(known)
    return found


def _shortened(word: str) -> Iterator[str]:
    yield word
    for at in range(len(word)):
        yield word[:at] + word[at + 1 :]


def _one_apart(one: str, other: str) -> bool:
    """Whether one letter added, left out, or swapped with its neighbour leads from `one` to `other`.

    A changed letter does not count: it makes too many words into others ("packing", "parking").
    """
    short, long = sorted((one, other), key=len)
    start = next((n for n, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    rest_short, rest_long = short[start:], long[start:]
    if len(long) > len(short):
        return rest_long[1:] == rest_short
    return rest_short[:2] == rest_long[:2][::-1] and rest_short[2:] == rest_long[2:]
