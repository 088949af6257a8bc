"""MLXBackend: mlx-lm in a child process; made for Apple silicon, runs on Linux too."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import sys
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from llm.backends import mlx_files
from llm.backends.child import EngineProcess, Launch, engine_environment
from llm.backends.host import EngineHost
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import BadRequest, ModelNotFound
from llm.events import Observer, ParameterDropped
from llm.middleware.base import Middleware
from llm.overflow import ROUNDS, TooLong, shortened
from llm.types import (
    Capabilities,
    Chunk,
    Embeddings,
    EmbedRequest,
    FinishReason,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    StreamEnd,
    TextChunk,
    ThinkingChunk,
    ToolCall,
)
from llm.wire.common import as_text, clean, no_answer
from llm.wire.common import count as counted

_SCRIPT = Path(__file__).parent.parent / "engines" / "mlx_worker.py"

_ROWS = 8
"""Most calls that are answered at once unless LLM_MAX_CONCURRENCY says otherwise; each has a key-value cache
of its own, the others wait in order."""

_PREFIX_BYTES = 256 * 1024 * 1024
"""Most memory for what the model has read before: system turns, conversations that go on."""


_TOO_LONG = re.compile(r"the prompt has (\d+) tokens and the context (\d+)")


class MLXBackend(LLMClient):
    """mlx-lm in a child process that owns the model; it starts at the first call and ends when idle.

    Calls that come together are answered together, in one batch, and what their prompts share at the
    beginning is read once. Replies to a schema are held to it token by token. Vectors come from a process of
    their own, so that each of the two is there only while it is used.

    Args:
        config: `model` is the folder of an MLX model or an id of the Hugging Face hub, which is downloaded
            at the first call unless `HF_HUB_OFFLINE` is set; `embed_model` the same for a BERT encoder.
        middleware: as in `LLMClient`.
        observers: as in `LLMClient`.
        name: as in `LLMClient`.
    """

    backend: ClassVar[str] = "mlx"

    def __init__(
        self,
        config: LLMConfig,
        *,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
        name: str = "",
    ) -> None:
        super().__init__(config, middleware=middleware, observers=observers, name=name)
        self._host = self._host_of(config.model, adapter=config.adapter_path)
        encoder = config.embed_model or config.model
        self._encoder = self._host if encoder == config.model else self._host_of(encoder)
        self._said_it_cannot_think = False

    def _host_of(self, model: str, *, adapter: str | None = None) -> EngineHost:
        return EngineHost(
            self.backend,
            _SCRIPT,
            lambda: self._launch(model, adapter),
            idle_seconds=self.config.idle_seconds,
        )

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Answer one request.

        Raises:
            ModelNotFound: the model is not here and cannot be had, or it or its adapter cannot be loaded.
            ConnectionFailed: mlx-lm is not installed.
            BadRequest: the prompt is longer than the context, or the schema cannot be followed.
            NotSupported: the model has no tools, or makes only vectors.
            BadReply: the reply is too large, has no text, or asks for a tool in words nobody can read.
            ServerError: the process died.
        """
        process = await self._host.running()
        sent = request
        for round_ in count():
            try:
                answer = await process.call(await self._asked(sent, process))
                break
            except BadRequest as error:
                sent = self._shorter(sent, error, round_)
        return self._read(answer, request)

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """The same in pieces of whole characters, as the model makes them."""
        process = await self._host.running()
        sent = request
        for round_ in count():
            asked = await self._asked(sent, process, stream=True)
            try:
                async with aclosing(process.stream(asked)) as messages:
                    async for message in messages:
                        yield self._chunk(message, request)
            except BadRequest as error:  # what is too long is refused before anything came
                sent = self._shorter(sent, error, round_)
            else:
                return

    def _chunk(self, message: Mapping[str, Any], request: LLMRequest) -> Chunk:
        if "done" in message:
            return StreamEnd(self._read(message, request))
        if "text" in message:
            return TextChunk(clean(message["text"]))
        return ThinkingChunk(clean(message["thinking"]))

    def _shorter(self, request: LLMRequest, error: BadRequest, round_: int) -> LLMRequest:
        """A prompt that was too long with its oldest turns left out, if LLM_OVERFLOW is "trim".

        Raises:
            BadRequest: `error`, when it is about something else, or there is nothing to leave out.
        """
        found = _TOO_LONG.search(str(error))
        if found is None or self.config.overflow != "trim" or round_ >= ROUNDS:
            raise error
        shorter = shortened(request, TooLong(prompt=int(found[1]), context=int(found[2])))
        if shorter is None:
            raise error
        return shorter

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        """Turn texts into vectors with a BERT encoder such as all-MiniLM-L6-v2.

        Raises:
            NotSupported: the model is no encoder.
            ModelNotFound: the model is not here and cannot be had, or cannot be loaded.
            ServerError: the process died.
        """
        process = await self._encoder.running()
        vectors: list[tuple[float, ...]] = [()] * len(request.texts)
        tokens = 0
        async with aclosing(process.stream({"embed": list(request.texts)})) as messages:
            async for message in messages:
                if "done" in message:
                    tokens = message["prompt_tokens"]
                else:
                    places = message["places"]
                    for place, vector in zip(places, _unpacked(message["vectors"], len(places)), strict=True):
                        vectors[place] = vector
        return Embeddings(
            vectors=tuple(vectors), model=request.model, backend=self.backend, prompt_tokens=tokens
        )

    async def health_check(self) -> bool:
        """Whether mlx-lm is installed and the model's files are on this machine; loads nothing."""
        return await asyncio.to_thread(self._can_run)

    async def capabilities(self) -> Capabilities:
        """What the model can do: what the engine says if it runs, else what the model's files say."""
        found = await asyncio.to_thread(mlx_files.capabilities, self.config.model)
        process = self._host.current
        if process is None or not process.is_ready:
            return found
        said = await process.ready()
        return replace(found, **said, schema=found.schema and said["chat"])

    def _can_run(self) -> bool:
        try:
            mlx_files.adapter_folder(self.config.adapter_path)
        except ModelNotFound:
            return False
        model = self.config.model
        return mlx_files.unavailable_reason(model) is None and mlx_files.is_local(model)

    def _read(self, answer: Mapping[str, Any], request: LLMRequest) -> LLMResponse:
        content = as_text(answer.get("text"), "text")
        calls = tuple(
            ToolCall(id=f"call_{secrets.token_hex(8)}", name=call["name"], arguments=call["arguments"])
            for call in answer["tool_calls"]
        )
        finish: FinishReason = "length" if answer.get("finish") == "length" else "stop"
        if not content and finish == "length" and not calls:
            raise no_answer(request, thinking=True)
        return LLMResponse(
            content=content,
            model=request.model,
            backend=self.backend,
            finish_reason="tool_calls" if calls else finish,
            prompt_tokens=counted(answer, "prompt_tokens"),
            completion_tokens=counted(answer, "completion_tokens"),
            cached_tokens=counted(answer, "prompt_cached"),
            thinking_tokens=counted(answer, "thinking_tokens"),
            thinking=as_text(answer.get("thinking"), "thinking"),
            tool_calls=calls,
        )

    async def _asked(
        self, request: LLMRequest, process: EngineProcess, *, stream: bool = False
    ) -> dict[str, Any]:
        if request.think and not (await process.ready())["thinking"] and not self._said_it_cannot_think:
            self._said_it_cannot_think = True
            self.emit(
                ParameterDropped(
                    backend=self.name, model=request.model, caller=request.caller, parameter="think"
                )
            )
        return asked(request, stream=stream)

    async def _release(self) -> None:
        await self._host.aclose()
        await self._encoder.aclose()

    def _launch(self, model: str, adapter: str | None) -> Launch:
        """What the child is started with."""
        mlx_files.require_engine()
        config = self.config
        private = mlx_files.private_environment()
        settings = {
            "model": mlx_files.source(model),
            "adapter": mlx_files.adapter_folder(adapter),
            "context_length": config.context_length,
            "max_reply_bytes": config.max_reply_bytes,
            "rows": config.max_concurrency or _ROWS,
            "prefix_bytes": _PREFIX_BYTES,
            "environ": private,
            "scratch": str(mlx_files.private_folder(Path(config.cache_dir) / "mlx")),
            "install": mlx_files.INSTALL,
            "way_out": mlx_files.way_out(model),
        }
        return Launch(
            settings=settings,
            environ=engine_environment("HF_", "HUGGINGFACE_"),
            secrets=tuple(private.values()),
            reply_bytes=config.max_reply_bytes,
        )


def asked(request: LLMRequest, *, stream: bool) -> dict[str, Any]:
    """A request as the worker takes it; turns and tools in the form that chat templates know."""
    names = {call.id: call.name for turn in request.messages for call in turn.tool_calls}
    return {
        "messages": [_turn(turn, names) for turn in request.messages],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            }
            for tool in request.tools
        ],
        "think": bool(request.think),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "schema": None if request.schema is None else dict(request.schema),
        "stop": [text for text in request.stop if text],
        "stream": stream,
    }


def _turn(turn: LLMMessage, names: Mapping[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    if turn.tool_call_id is not None:
        made |= {"tool_call_id": turn.tool_call_id, "name": names.get(turn.tool_call_id, "")}
    return made


def _unpacked(packed: str, rows: int) -> list[tuple[float, ...]]:
    """The worker's numbers as one tuple for each text."""
    numbers = array("f", base64.b64decode(packed))
    if sys.byteorder == "big":
        numbers.byteswap()
    width = len(numbers) // rows
    return [tuple(numbers[place : place + width]) for place in range(0, len(numbers), width)]
