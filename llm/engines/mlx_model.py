"""A loaded model and its tokenizer: prompts in tokens, and what its template can do."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm.engines.mlx_prefixes import common_length
from llm.engines.mlx_protocol import Message, Refused, first_line
from llm.engines.mlx_reply import Form, Reply
from llm.engines.mlx_sample import Samplers
from llm.engines.mlx_schema import NOWHERE, Grammars
from llm.engines.mlx_text import ENDED, TEXT, THINKING, TOOL, fold_system, transcript

_PROBES = ("a", "0")
"""Two questions that differ from the first character on: what their prompts share is in every prompt."""

_MOST_STARTS = 64
_TAIL_TOKENS = 32


class Model:
    """One model for the life of the process.

    Args:
        mx: mlx.core.
        mlx_lm: the package.
        folder: where the model is.
        settings: the worker's settings line.

    Raises:
        Refused: model or adapter cannot be loaded.
    """

    def __init__(self, mx: Any, mlx_lm: Any, folder: Path, settings: Message) -> None:
        self._mx, self._lm = mx, mlx_lm
        self._context: int = settings["context_length"]
        self._most_bytes: int = settings["max_reply_bytes"]
        self._way_out: str = settings["way_out"]
        self.network, self._tokenizer = self._load(folder, settings)
        self._grammars = Grammars(mx, self._tokenizer, settings["install"])
        self._samplers = Samplers(mx)
        self._starts: OrderedDict[str, list[int]] = OrderedDict()

    @property
    def abilities(self) -> Message:
        """What the model can do beyond answering."""
        tokenizer = self._tokenizer
        return {
            "chat": True,
            "tools": bool(tokenizer.has_tool_calling),
            "thinking": bool(tokenizer.has_thinking),
            "embedding": False,
        }

    @property
    def stop_tokens(self) -> list[list[int]]:
        """The tokens that end a reply, as mlx-lm wants them."""
        return [[token] for token in sorted(self._tokenizer.eos_token_ids)]

    def prompt(self, request: Message) -> list[int]:
        """The request in tokens.

        Raises:
            Refused: it is too long, or the template cannot put it so.
        """
        if request["tools"] and not self._tokenizer.has_tool_calling:
            raise Refused("not_supported", "this model's chat template has no tools; use a model that has")
        tokens = self._rendered(request["messages"], request["tools"], think=bool(request["think"]))
        if len(tokens) >= self._context:
            text = (
                f"the prompt has {len(tokens)} tokens and the context {self._context}; shorten the prompt or "
                "raise LLM_CONTEXT_LENGTH (up to what the model was trained with)"
            )
            raise Refused("bad_request", text)
        return tokens

    def room(self, prompt: list[int], request: Message) -> int:
        """How many tokens the reply may have."""
        return int(min(request["max_tokens"], self._context - len(prompt)))

    def start(self, prompt: list[int], request: Message) -> int:
        """How many of the prompt's tokens are there whatever is asked: system turn, tools and headers."""
        messages, tools, think = request["messages"], request["tools"], bool(request["think"])
        system = [turn for turn in messages[:1] if turn["role"] == "system"]
        key = json.dumps([system, tools, think])
        shared = self._starts.pop(key, None)
        if shared is None:
            one, other = (
                self._rendered([*system, {"role": "user", "content": probe}], tools, think=think)
                for probe in _PROBES
            )
            shared = one[: common_length(one, other)]
        self._starts[key] = shared
        while len(self._starts) > _MOST_STARTS:
            self._starts.popitem(last=False)
        return common_length(shared, prompt)

    def sampler(self, request: Message) -> Any:
        """How the request's tokens are chosen."""
        return self._samplers.sampler(
            temperature=request["temperature"], top_p=request["top_p"], seed=request["seed"]
        )

    def mask(self, prompt: list[int], request: Message) -> Any:
        """What holds the reply to the request's schema, None without one.

        Raises:
            Refused: the schema cannot be followed, or not beside tools.
        """
        if request["schema"] is None:
            return None
        tokenizer = self._tokenizer
        detours, inside = {}, NOWHERE
        if request["tools"]:
            start = _single(tokenizer.tool_call_start_tokens)
            if start is None:
                raise Refused("not_supported", "this model takes tools or a schema, but not both in one call")
            detours[start] = NOWHERE
        if request["think"] and tokenizer.has_thinking:
            start, end = _single(tokenizer.think_start_tokens), _single(tokenizer.think_end_tokens)
            if start is not None and end is not None:
                detours[start] = end
                inside = end if self._thinks_already(prompt) else NOWHERE
        return self._grammars.mask(request["schema"], detours, inside)

    def reply(self, prompt: list[int], request: Message) -> Reply:
        """An empty reply to the request."""
        tokenizer = self._tokenizer
        markers: dict[str, dict[str, str]] = {TEXT: dict.fromkeys(request["stop"], ENDED)}
        kind, read_call = TEXT, None
        if tokenizer.has_thinking and (request["think"] or request["schema"] is None):
            markers[TEXT][tokenizer.think_start] = THINKING
            markers[THINKING] = {tokenizer.think_end: TEXT}
            kind = THINKING if self._thinks_already(prompt) else TEXT
        if request["tools"]:
            markers[TEXT][tokenizer.tool_call_start] = TOOL
            markers[TOOL] = {tokenizer.tool_call_end: TEXT} if tokenizer.tool_call_end else {}

            def read_call(text: str) -> Any:
                return tokenizer.tool_parser(text, request["tools"])

        form = Form(
            markers=markers,
            kind=kind,
            streamed=request["stream"],
            most_bytes=self._most_bytes,
            read_call=read_call,
        )
        return Reply(tokenizer.detokenizer, form)

    def _thinks_already(self, prompt: list[int]) -> bool:
        """Whether the template itself opened the thinking, as some do."""
        tail = self._tokenizer.decode(prompt[-_TAIL_TOKENS:])
        return bool(tail.rfind(self._tokenizer.think_start) > tail.rfind(self._tokenizer.think_end))

    def _load(self, folder: Path, settings: Message) -> tuple[Any, Any]:
        name, adapter = settings["model"], settings.get("adapter")
        try:
            network, tokenizer = self._lm.load(str(folder))
        except Exception as error:  # damaged weights, an unknown architecture, ...
            text = f"mlx-lm cannot load {name} ({first_line(error)}); {self._way_out}"
            raise Refused("model_not_found", text) from error
        if adapter is not None:
            network = self._adapted(network, adapter, name)
        if self._mx.default_device() == self._mx.cpu:
            # Without Metal, 16-bit floats are 20 and more times slower than 32-bit ones.
            network.set_dtype(self._mx.float32)
            self._mx.eval(network.parameters())
        return network, tokenizer

    def _adapted(self, network: Any, adapter: str, name: str) -> Any:
        try:
            network = importlib.import_module("mlx_lm.utils").load_adapters(network, adapter)
        except Exception as error:  # damaged files, or tensors of another model
            text = (
                f"the adapter {adapter} cannot be used with {name} ({first_line(error)}); set "
                "LLM_ADAPTER_PATH to an adapter that was trained on this model, or leave it unset"
            )
            raise Refused("model_not_found", text) from error
        network.eval()
        return network

    def _rendered(self, messages: list[Message], tools: list[Message], *, think: bool) -> list[int]:
        if not self._tokenizer.has_chat_template:
            return list(self._tokenizer.encode(transcript(messages)))
        jinja = importlib.import_module("jinja2")
        for turns in (messages, fold_system(messages)):
            with suppress(jinja.TemplateError):  # some templates know no system turn
                return list(
                    self._tokenizer.apply_chat_template(
                        turns, tools=tools or None, add_generation_prompt=True, enable_thinking=think
                    )
                )
        raise Refused("bad_request", "the model's chat template does not take this order of turns")


def _single(tokens: Sequence[int] | None) -> int | None:
    """The one token that a marker is, None if it is several."""
    return tokens[0] if tokens is not None and len(tokens) == 1 else None
