"""Many requests at once: prompts are read piece by piece, replies are generated in one batch.

A request waits in order until there is a row for it. Then its prompt is read in pieces, between which the
replies that are already under way get their next token: first as much as its beginning shares with others,
which is kept and never read twice, then the rest. Requests are read one after the other, so whoever shares
a beginning with one that is just being read finds it kept when its own turn comes.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llm.engines.mlx_prefixes import Prefixes, common_length
from llm.engines.mlx_protocol import Message, Refused, failure
from llm.engines.mlx_reply import Reply
from llm.engines.mlx_single import OneByOne

_PIECES = (64, 256)
"""Fewest and most prompt tokens that are read at once, while the other replies wait for their next token."""

_PIECE_SECONDS = (0.15, 0.5)
"""A piece that is read faster than the first may be twice as long, one slower than the second half."""

_LOOKS = 6
"""How often, while one piece is read, it is looked whether its caller is gone."""


@dataclass(slots=True, kw_only=True)
class Job:
    """One request on its way.

    Attributes:
        number: the request's id.
        prompt: its tokens.
        shared: how many tokens at the beginning other requests are likely to have too.
        most: most tokens of the reply.
        sampler: how they are chosen.
        mask: holds the reply to a schema, None for free text.
        reply: what came so far.
        lasting: whether a later request is likely to go on from this one.
        cache: what the model has read.
        read: how many tokens of the prompt that are.
        cached: how many of them had been read for another request.
    """

    number: int
    prompt: list[int]
    shared: int
    most: int
    sampler: Any
    mask: Any
    reply: Reply
    lasting: bool
    cache: list[Any] = field(default_factory=list)
    read: int = 0
    cached: int = -1

    @property
    def stop(self) -> int:
        """Up to where the prompt is read next: the end of what is shared, or its last token but one."""
        return self.shared if self.read < self.shared else len(self.prompt) - 1

    @property
    def left(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return len(self.prompt) - self.read

    def take(self, token: int, finish: str | None) -> str | None:
        """Take one more token; why the reply ends with it, None when it goes on.

        Raises:
            Refused: the reply cannot go on.
        """
        if self.mask is not None and self.mask.fault:
            raise Refused("bad_request", f"the schema cannot be followed: {self.mask.fault}")
        if finish != "stop":  # else it is the end-of-text token, which is no text
            self.reply.add(token)
        if self.reply.stopped or finish is not None:
            self.reply.end(counted=finish == "stop")
        return "stop" if self.reply.stopped else finish

    def whole(self, finish: str) -> Message:
        """The last message about this request."""
        return {
            "id": self.number,
            "done": True,
            "finish": finish,
            "prompt_tokens": len(self.prompt),
            "prompt_cached": self.cached,
            **self.reply.whole(),
        }


class Batch:
    """Everything that is being answered.

    Args:
        mx: mlx.core.
        network: the model.
        stop_tokens: the tokens that end a reply.
        rows: most requests at once; each has a key-value cache of its own.
        prefix_bytes: most memory for beginnings of prompts.
        wanted: whether somebody still waits for that request.
    """

    def __init__(
        self,
        mx: Any,
        network: Any,
        *,
        stop_tokens: list[list[int]],
        rows: int,
        prefix_bytes: int,
        wanted: Callable[[int], bool],
    ) -> None:
        self._mx = mx
        self._network = network
        self._stop_tokens = stop_tokens
        self._rows = rows
        self._wanted = wanted
        self._engine: Any = importlib.import_module("mlx_lm.generate")
        self._caches: Any = importlib.import_module("mlx_lm.models.cache")
        self._prefixes = Prefixes(mx, prefix_bytes)
        self._piece = _PIECES[0]
        self._waiting: deque[Job] = deque()
        self._reading: deque[Job] = deque()
        self._answering: dict[int, Job] = {}
        self._generator = self._new_generator()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._reading or self._answering)

    def add(self, job: Job) -> None:
        """Put one more request at the end of the line."""
        self._waiting.append(job)

    def advance(self) -> list[Message]:
        """Read a piece of a prompt, generate a token for each row, and say what is to be told."""
        self._drop_unwanted()
        said: list[Message] = []
        try:
            self._read()
            self._generate(said)
        except Exception as error:  # noqa: BLE001 - the engine itself failed, nobody knows for which row
            said += self._give_up(error)
        return said

    def _drop_unwanted(self) -> None:
        for line in (self._waiting, self._reading):
            for job in [job for job in line if not self._wanted(job.number)]:
                line.remove(job)
        gone = [uid for uid, job in self._answering.items() if not self._wanted(job.number)]
        self._remove(gone)

    def _remove(self, uids: list[int]) -> None:
        if uids:
            self._generator.remove(uids)
        for uid in uids:
            del self._answering[uid]

    def _read(self) -> None:
        """Let requests in and read of their prompts as much as one piece."""
        while self._waiting and len(self._reading) + len(self._answering) < self._rows:
            self._reading.append(self._waiting.popleft())
        ends = self._ends()
        if len(ends) > 1 or (ends and ends[0].left == 1):
            for job in ends:
                self._hand_over(job)
                self._reading.popleft()
        elif self._reading:
            self._read_piece(self._reading[0])

    def _ends(self) -> list[Job]:
        """The requests at the head of the line whose last bits of prompt can be read together.

        The engine does that in one go, each as wide as the widest. Nobody can be let go in the midst of it,
        so one alone is better read by ourselves.
        """
        most = self._piece if self._answering else _PIECES[1]
        ends: list[Job] = []
        widest = 0
        for job in self._reading:
            if job.cached < 0:
                self._begin(job)
            widest = max(widest, job.left)
            if job.stop < len(job.prompt) - 1 or (len(ends) + 1) * widest > most:
                break
            ends.append(job)
        return ends

    def _begin(self, job: Job) -> None:
        """Find what is known of the prompt already, and what others are waiting for it to be known."""
        cache, job.cached = self._prefixes.fetch(job.prompt)
        job.cache = cache if cache is not None else self._caches.make_prompt_cache(self._network)
        job.read = job.cached
        common = 0
        if self._caches.can_trim_prompt_cache(job.cache):  # else only whole kept beginnings are of use
            others = (other for other in (*self._reading, *self._waiting) if other is not job)
            common = max((common_length(job.prompt, other.prompt) for other in others), default=0)
        job.shared = min(max(job.shared, common), len(job.prompt) - 1)

    def _read_piece(self, job: Job) -> None:
        begun = time.perf_counter()
        size = min(job.stop - job.read, self._piece)
        mx = self._mx
        tokens = mx.array(job.prompt[job.read : job.read + size])[None]
        self._network(tokens, cache=job.cache)
        stride = -(-len(job.cache) // _LOOKS)
        for first in range(0, len(job.cache), stride):  # nothing was computed yet: now layer after layer
            mx.eval([layer.state for layer in job.cache[first : first + stride]])
            if not self._wanted(job.number):
                self._reading.remove(job)
                return
        job.read += size
        if job.read == job.shared:
            self._prefixes.keep(job.prompt[: job.read], job.cache)
        if size == self._piece:
            self._adapt(time.perf_counter() - begun)

    def _adapt(self, seconds: float) -> None:
        fast, slow = _PIECE_SECONDS
        least, most = _PIECES
        if seconds < fast:
            self._piece = min(most, self._piece * 2)
        elif seconds > slow:
            self._piece = max(least, self._piece // 2)

    def _hand_over(self, job: Job) -> None:
        (uid,) = self._generator.insert(
            [job.prompt[job.read :]],
            max_tokens=[job.most],
            caches=[job.cache],
            all_tokens=[job.prompt[: job.read]],
            samplers=[job.sampler],
            logits_processors=[[] if job.mask is None else [job.mask]],
        )
        job.cache = []  # the engine's from now on
        self._answering[uid] = job

    def _generate(self, said: list[Message]) -> None:
        if not self._answering:
            return
        _, steps = self._generator.next()
        for step in steps:
            job = self._answering[step.uid]
            try:
                finish = job.take(step.token, step.finish_reason)
            except Exception as error:  # noqa: BLE001 - of this row alone
                said.append({"id": job.number, "error": failure(error), "done": True})
                self._leave(step)
                continue
            said += [{"id": job.number, **news} for news in job.reply.news()]
            if finish is not None:
                said.append(job.whole(finish))
                self._leave(step)
                self._remember(job, step)

    def _leave(self, step: Any) -> None:
        if step.finish_reason is None:
            self._generator.remove([step.uid])
        del self._answering[step.uid]

    def _remember(self, job: Job, step: Any) -> None:
        """Keep a conversation that is likely to go on."""
        if job.lasting and step.prompt_cache is not None:
            self._prefixes.keep(step.all_tokens, step.prompt_cache)

    def _give_up(self, error: Exception) -> list[Message]:
        """Fail what is under way and begin anew; what waits is still served."""
        lost = [*self._reading, *self._answering.values()]
        self._reading.clear()
        self._answering.clear()
        self._generator = self._new_generator()
        return [{"id": job.number, "error": failure(error), "done": True} for job in lost]

    def _new_generator(self) -> Any:
        if not all(hasattr(cache, "merge") for cache in self._caches.make_prompt_cache(self._network)):
            return OneByOne(self._mx, self._network, stop_tokens=self._stop_tokens)
        return self._engine.BatchGenerator(
            self._network,
            stop_tokens=self._stop_tokens,
            completion_batch_size=self._rows,
            prefill_batch_size=self._rows,
            prefill_step_size=_PIECES[1],
            stream=self._mx.default_stream(self._mx.default_device()),
        )
