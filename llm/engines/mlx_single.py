"""For the few models whose key-value caches cannot be batched (Llama 4, AFM): each row in turn."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One new token of one row, as mlx-lm's batches tell it; what the row has read is not given out."""

    uid: int
    token: int
    finish_reason: str | None
    prompt_cache: None = None
    all_tokens: None = None


@dataclass(slots=True)
class _Row:
    tokens: Generator[tuple[int, Any]]
    left: int


class OneByOne:
    """Takes the part of mlx-lm's `BatchGenerator` where that cannot be used.

    Args:
        mx: mlx.core.
        network: the model.
        stop_tokens: the tokens that end a reply.
    """

    def __init__(self, mx: Any, network: Any, *, stop_tokens: Sequence[Sequence[int]]) -> None:
        self._mx = mx
        self._network = network
        self._stops = {token for tokens in stop_tokens for token in tokens}
        self._generate: Any = importlib.import_module("mlx_lm.generate").generate_step
        self._rows: dict[int, _Row] = {}
        self._count = 0

    def insert(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
        caches: Sequence[Any],
        samplers: Sequence[Any],
        logits_processors: Sequence[Any],
        all_tokens: Sequence[Sequence[int]],  # noqa: ARG002 - the other one needs to know what was read
    ) -> list[int]:
        """Begin a reply for each prompt; their numbers."""
        uids = []
        for prompt, most, cache, sampler, processors in zip(
            prompts, max_tokens, caches, samplers, logits_processors, strict=True
        ):
            tokens = self._generate(
                self._mx.array(list(prompt)),
                self._network,
                self._mx.default_stream(self._mx.default_device()),
                max_tokens=most,
                sampler=sampler,
                logits_processors=processors,
                prompt_cache=cache,
            )
            self._count += 1
            self._rows[self._count] = _Row(tokens, most)
            uids.append(self._count)
        return uids

    def next(self) -> tuple[list[Any], list[Step]]:
        """The next token of each row; first, as there, what is told of prompts, which is nothing here."""
        return [], [self._step(uid, row) for uid, row in list(self._rows.items())]

    def _step(self, uid: int, row: _Row) -> Step:
        token, _ = next(row.tokens)
        row.left -= 1
        finish = "stop" if token in self._stops else "length" if row.left == 0 else None
        if finish is not None:
            self.remove([uid])
        return Step(uid, token, finish)

    def remove(self, uids: Sequence[int]) -> None:
        """Let rows go."""
        for uid in uids:
            self._rows.pop(uid).tokens.close()  # here, because no other thread may end it
