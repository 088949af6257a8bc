"""MockBackend: canned answers without a model and without a network, the same for the same request."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import AsyncGenerator
from typing import ClassVar

from llm.client import LLMClient
from llm.errors import BadReply, BadRequest
from llm.types import (
    Capabilities,
    Chunk,
    Embeddings,
    EmbedRequest,
    LLMRequest,
    LLMResponse,
    StreamEnd,
    TextChunk,
)

_DIMENSIONS = 64


class MockBackend(LLMClient):
    """Answers at once with a text that says it is canned; with a schema, with the smallest JSON that fits it.

    A word counts as a token. For tests and for trying things out: it never decides about real data.
    """

    backend: ClassVar[str] = "mock"

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Make the answer.

        Raises:
            BadRequest: no answer that fits the schema can be made.
        """
        await asyncio.sleep(0)  # like any backend: a call lets others run, and can be cancelled
        text = _canned(request) if request.schema is None else _fitting(request)
        for stop in request.stop:
            text = text.partition(stop)[0]
        words = text.split()
        cut = len(words) > request.max_tokens
        return LLMResponse(
            content=" ".join(words[: request.max_tokens]) if cut else text,
            model=request.model,
            backend=self.backend,
            finish_reason="length" if cut else "stop",
            prompt_tokens=sum(len(message.content.split()) for message in request.messages),
            completion_tokens=min(len(words), request.max_tokens),
        )

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """The same answer word by word.

        Raises:
            BadRequest: no answer that fits the schema can be made.
        """
        response = await self.send(request)
        for word in re.findall(r"\s*\S+|\s+\Z", response.content):
            yield TextChunk(word)
            await asyncio.sleep(0)
        yield StreamEnd(response)

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of the words: the same for the same text, near for texts that share words.

        Each word is hashed to one of 64 dimensions: enough to try a search out, and no meaning is in it.
        """
        return Embeddings(
            vectors=tuple(_hashed(text) for text in request.texts),
            model=request.model,
            backend=self.backend,
            prompt_tokens=sum(len(text.split()) for text in request.texts),
        )

    async def capabilities(self) -> Capabilities:
        """Schemas and vectors; no tools, no thinking."""
        return Capabilities(model=self.config.model, schema=True, embedding=True)

    async def health_check(self) -> bool:
        """True: there is nothing that could be missing."""
        return True


def _hashed(text: str) -> tuple[float, ...]:
    counts = [0.0] * _DIMENSIONS
    for word in text.casefold().split() or [text]:
        digest = hashlib.sha256(word.encode(errors="replace")).digest()
        counts[digest[0] % _DIMENSIONS] += 1.0
    length = math.sqrt(sum(count * count for count in counts))
    return tuple(count / length for count in counts)


def _canned(request: LLMRequest) -> str:
    turns = json.dumps([[message.role, message.content] for message in request.messages])
    fingerprint = hashlib.sha256(turns.encode()).hexdigest()[:12]
    words = len(request.prompt.split())
    return (
        "This is a canned answer of the mock backend; no model was asked. "
        f"The prompt has {words} words and the fingerprint {fingerprint}."
    )


def _fitting(request: LLMRequest) -> str:
    from llm.sample import smallest  # noqa: PLC0415 - only structured calls need it
    from llm.structured import validate  # noqa: PLC0415

    schema = request.schema or {}
    text = json.dumps(smallest(schema), ensure_ascii=False)
    try:
        validate(schema, text)
    except BadReply as error:
        msg = f"the mock backend cannot make an answer that fits the schema: {error}"
        raise BadRequest(msg) from error
    return text
