"""Replies that fit a schema: llguidance says which tokens may come next, plain mlx rules out the others."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from llm.engines.mlx_protocol import Message, Refused, first_line

NOWHERE = -1
"""No token."""

_MOST_GRAMMARS = 64
"""Compiled schemas that are kept: compiling costs 4 to 9 ms, copying a compiled one next to nothing."""


class Grammars:
    """Compiled schemas of one model.

    Args:
        mx: mlx.core.
        tokenizer: the model's.
        install: how to get llguidance.
    """

    def __init__(self, mx: Any, tokenizer: Any, install: str) -> None:
        self._mx = mx
        self._tokenizer = tokenizer
        self._install = install
        self._vocabulary: Any = None
        self._in_numpy: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def mask(self, schema: Message, detours: Mapping[int, int], inside: int = NOWHERE) -> SchemaMask:
        """A mask for one reply.

        Args:
            schema: what the reply must fit.
            detours: see `SchemaMask`.
            inside: see `SchemaMask`.

        Raises:
            Refused: the schema cannot be followed, or llguidance is not there.
        """
        matcher_class = self._load()
        key = json.dumps(schema)
        compiled = self._compiled.pop(key, None)
        if compiled is None:
            compiled = self._compile(matcher_class, schema)
        self._compiled[key] = compiled
        while len(self._compiled) > _MOST_GRAMMARS:
            self._compiled.popitem(last=False)
        return SchemaMask(
            self._mx, compiled.deep_copy(), self._in_numpy, self._vocabulary, detours=detours, inside=inside
        )

    def _compile(self, matcher_class: Any, schema: Message) -> Any:
        # Flexible white space is an endless supply of valid tokens; `lenient` leaves what a grammar cannot
        # say (uniqueItems, unknown formats) to the check of the whole reply.
        grammar = matcher_class.grammar_from_json_schema(
            schema, overrides={"whitespace_flexible": False, "lenient": True}
        )
        matcher = matcher_class(self._vocabulary, grammar)
        if matcher.is_error():
            raise Refused("bad_request", f"the schema cannot be followed: {matcher.get_error()}")
        return matcher

    def _load(self) -> Any:
        try:
            guidance = importlib.import_module("llguidance")
            self._in_numpy = importlib.import_module("llguidance.numpy")
            if self._vocabulary is None:
                self._vocabulary = importlib.import_module("llguidance.hf").from_tokenizer(
                    self._tokenizer._tokenizer,  # noqa: SLF001 - the wrapper forwards calls, not its type
                    eos_token=sorted(self._tokenizer.eos_token_ids),
                )
        except ImportError as error:
            text = f"replies that fit a schema need llguidance ({error}); {self._install}"
            raise Refused("connection", text) from error
        except TypeError as error:
            text = f"this model's tokenizer cannot be held to a schema: {first_line(error)}"
            raise Refused("bad_request", text) from error
        return guidance.LLMatcher


class SchemaMask:
    """Lets only tokens through that keep the reply on the way to valid JSON of one schema.

    A logits processor of mlx-lm, one for each reply. llguidance's own mlx kernel needs Metal; this mask is
    plain mlx. It never raises, because that would cost the other replies of the batch: `fault` says what
    went wrong.

    Before its JSON a reply may go another way: the model thinks, or asks for a tool instead.

    Args:
        mx: mlx.core.
        matcher: llguidance's, of the schema.
        in_numpy: llguidance.numpy.
        vocabulary: llguidance's, of the model.
        detours: tokens that may come before the JSON, each with the token that leads back to it, `NOWHERE`
            for none. What comes between is free.
        inside: the token that leads back from a detour that the prompt itself has begun.
    """

    def __init__(
        self,
        mx: Any,
        matcher: Any,
        in_numpy: Any,
        vocabulary: Any,
        *,
        detours: Mapping[int, int],
        inside: int = NOWHERE,
    ) -> None:
        self._mx = mx
        self._numpy: Any = importlib.import_module("numpy")
        self._matcher = matcher
        self._fill = in_numpy.fill_next_token_bitmask
        self._mask = in_numpy.allocate_token_bitmask(1, vocabulary.vocab_size)
        self._eos = vocabulary.eos_token
        self._detours = dict(detours)
        self._free = inside != NOWHERE
        self._back = inside
        self._started = self._begun = False

    @property
    def fault(self) -> str:
        """Why the reply cannot be held to the schema any longer, empty while it can."""
        return str(self._matcher.get_error()) if self._matcher.is_error() else ""

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """The logits with every token ruled out that must not come next."""
        if self._started:
            self._follow(tokens[-1].item())
        self._started = True  # the first call carries the prompt, which is not part of the reply
        if self._free or self._matcher.is_error():
            return logits
        mx = self._mx
        if self._matcher.is_stopped():  # it stops before the end-of-text token, which must still come
            allowed = mx.arange(logits.shape[-1]) == self._eos
        else:
            self._fill(self._matcher, self._mask, 0)
            allowed = mx.array(self._unpacked(logits.shape[-1]))
        return mx.where(allowed, logits, -mx.inf)

    def _follow(self, token: int) -> None:
        """Take note of the token that came."""
        if self._free:
            self._free = token != self._back
        elif not self._begun and token in self._detours:
            self._free, self._back = True, self._detours[token]
        elif not self._matcher.is_stopped():
            self._begun = True
            self._matcher.consume_token(token)

    def _unpacked(self, size: int) -> Any:
        """The bit mask as one boolean for each logit; a model may have more logits than tokens."""
        bits = self._numpy.unpackbits(self._mask[0].view("uint8"), count=size, bitorder="little").view("bool")
        if not self._begun and self._detours:
            bits[list(self._detours)] = True
        return bits
