"""Words of a text, so that case, accents and punctuation make no difference."""

from __future__ import annotations

import re
import unicodedata

_POSSESSIVE = re.compile(r"['’]s\b|(?<=s)['’]")
_PIECES = re.compile(r"[a-z0-9]+|[,;/+&().:]")
_WORDS = re.compile(r"[a-z0-9]+")


def plain(text: str) -> str:
    """`text` in lower case without accents: "Jamón" and "jamon" are the same word."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def plain_words(text: str) -> list[str]:
    """The words of `text`, plain, without possessives and punctuation."""
    return _WORDS.findall(_POSSESSIVE.sub("", plain(text)))


def plain_pieces(text: str) -> list[str]:
    """The words of `text` and the punctuation that separates things, plain."""
    return _PIECES.findall(_POSSESSIVE.sub("", plain(text)))


def listed(text: str) -> list[str]:
    """The comma-separated members of `text`, without the empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def plurals(word: str, language: str) -> set[str]:
    """`word` and how several of it are written, in English ("en") or Spanish ("es")."""
    if language == "es":
        ending = "s" if word.endswith(tuple("aeiou")) else "es"
        several = f"{word[:-1]}ces" if word.endswith("z") else word + ending
    elif word.endswith(("s", "x", "z", "ch", "sh", "o")):
        return {word, f"{word}s", f"{word}es"}
    elif word.endswith("y") and not word.endswith(("ay", "ey", "oy", "uy")):
        several = f"{word[:-1]}ies"
    elif word.endswith(("f", "fe")):
        return {word, f"{word}s", f"{word.rstrip('fe')}ves"}
    else:
        several = f"{word}s"
    return {word, several}


def singular(word: str) -> str:
    """A rough singular, only to compare words that nobody knows with one another."""
    for ending, instead in (("ies", "y"), ("oes", "o"), ("ces", "z"), ("sses", "ss")):
        if len(word) > 4 and word.endswith(ending):
            return word.removesuffix(ending) + instead
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
