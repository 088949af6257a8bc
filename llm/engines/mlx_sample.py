"""How the next token is chosen: one sampler for all who ask alike, one of its own for each seed."""

from __future__ import annotations

import importlib
import secrets
from functools import lru_cache
from typing import Any


class Samplers:
    """Gives each request its sampler.

    mlx's own random state belongs to the whole batch. A seeded sampler carries a key of its own instead, so
    that a seed means the same alone and beside others.

    Args:
        mx: mlx.core.
    """

    def __init__(self, mx: Any) -> None:
        self._mx = mx
        self._parts: Any = importlib.import_module("mlx_lm.sample_utils")
        mx.random.seed(secrets.randbits(63))
        # Alike requests get the same object: mlx-lm then samples their rows in one go.
        self._shared = lru_cache(maxsize=64)(self._parts.make_sampler)

    def sampler(self, *, temperature: float | None, top_p: float | None, seed: int | None) -> Any:
        """A sampler; None leaves it to the engine, and mlx-lm's own default is greedy."""
        if not temperature:
            return self._shared(0.0, 0.0)
        if seed is None:
            return self._shared(temperature, top_p or 0.0)
        return self._seeded(temperature, top_p, self._mx.random.key(seed % 2**64))

    def _seeded(self, temperature: float, top_p: float | None, key: Any) -> Any:
        mx, parts = self._mx, self._parts

        def sample(logprobs: Any) -> Any:
            nonlocal key
            key, now = mx.random.split(key)
            if top_p is not None and 0 < top_p < 1:
                logprobs = parts.apply_top_p(logprobs, top_p)
            return mx.random.categorical(logprobs * (1 / temperature), key=now)

        return sample
