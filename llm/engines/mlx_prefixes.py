"""What the model has read before: key-value caches of prompt beginnings, bounded in bytes."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_LEAST = 16
"""A shorter common beginning is read again sooner than a cache is copied."""


@dataclass(slots=True)
class _Entry:
    tokens: list[int]
    cache: list[Any]
    size: int


class Prefixes:
    """Least recently used out first.

    Args:
        mx: mlx.core.
        most_bytes: of all caches together; a single larger one is not kept.
    """

    def __init__(self, mx: Any, most_bytes: int) -> None:
        self._mx = mx
        self._most = most_bytes
        self._entries: list[_Entry] = []  # the one used last is last
        self._tools: Any = importlib.import_module("mlx_lm.models.cache")

    @property
    def size(self) -> int:
        """Bytes of all caches together."""
        return sum(entry.size for entry in self._entries)

    def fetch(self, tokens: Sequence[int]) -> tuple[list[Any] | None, int]:
        """A cache of the longest known beginning of `tokens` for the caller to fill on, and its length.

        The last token is never part of it: the model has to read one to go on.
        """
        wanted = list(tokens[:-1])
        best, length = None, _LEAST - 1
        for entry in self._entries:
            common = common_length(entry.tokens, wanted)
            usable = common == len(entry.tokens) or self._tools.can_trim_prompt_cache(entry.cache)
            if common > length and usable:
                best, length = entry, common
        if best is None:
            return None, 0
        self._entries.remove(best)
        self._entries.append(best)
        taken = copy.deepcopy(best.cache)
        if length < len(best.tokens):
            self._tools.trim_prompt_cache(taken, len(best.tokens) - length)
        return taken, length

    def keep(self, tokens: Sequence[int], cache: list[Any]) -> None:
        """Keep a copy of `cache`, which holds exactly `tokens`."""
        known = list(tokens)
        size = sum(layer.nbytes for layer in cache)
        if size > self._most or len(known) < _LEAST:
            return
        kept = copy.deepcopy(cache)
        self._mx.eval([layer.state for layer in kept])  # else it holds on to what it was taken from
        self._entries = [entry for entry in self._entries if entry.tokens != known]
        self._entries.append(_Entry(known, kept, size))
        while self.size > self._most:
            del self._entries[0]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices are compared in C, tokens one by one are not
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
