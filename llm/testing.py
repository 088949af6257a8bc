"""For tests of programs that use a model, and of backends.

`ScriptedBackend` is a client whose answers the test writes. `LLMContract` is what every backend must do; a
backend of your own runs it by subclassing (pytest with pytest-asyncio in auto mode):

    from llm import LLMConfig
    from llm.testing import LLMContract

    class TestMyBackend(LLMContract):
        @pytest.fixture
        def llm_config(self) -> LLMConfig:  # a backend that works
            return LLMConfig(backend="mine", enable_cache=False)

        @pytest.fixture
        def unavailable_config(self) -> LLMConfig:  # the same one with nothing behind it
            return LLMConfig(backend="mine", api_base="http://127.0.0.1:1", enable_cache=False)
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from llm.client import LLMClient
from llm.config import LLMConfig
from llm.contract import Failure, LLMContract, Recorder
from llm.errors import ServerError
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.types import Chunk, LLMRequest, LLMResponse, StreamEnd, TextChunk, ThinkingChunk

__all__ = ["Failure", "LLMContract", "Piece", "Recorder", "Reply", "Script", "ScriptedBackend"]

Piece = str | ThinkingChunk | LLMResponse | Exception
"""One piece of a stream: text, thinking, an error that breaks it off, or the response that it ends with."""

Reply = str | LLMResponse | Exception | Sequence[Piece]
Script = Reply | Callable[[LLMRequest], Reply | Awaitable[Reply]]


class ScriptedBackend(LLMClient):
    """A client whose answers are written beforehand.

    Args:
        replies: what to answer, one per call and in order: a text, a whole response, an exception to raise,
            a list of pieces (see `Piece`), or a function of the request, async or not, that returns one of
            these. A function is not used up: it answers every call from then on. A list is given piece by
            piece to a stream, and as the whole that the pieces make to any other call; without a response
            at its end one is made from its texts.
        config: None gives one without a response cache.
        healthy: what `health_check` says.
        middleware: as for any client.
        observers: as for any client.

    Attributes:
        requests: every request that reached the backend, the first one first.
        abandoned: how many streams were closed before their end.
    """

    backend: ClassVar[str] = "scripted"

    def __init__(
        self,
        *replies: Script,
        config: LLMConfig | None = None,
        healthy: bool = True,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        chosen = config or LLMConfig(backend="scripted", model="scripted", enable_cache=False)
        super().__init__(chosen, middleware=middleware, observers=observers)
        self.requests: list[LLMRequest] = []
        self.abandoned = 0
        self._script = list(replies)
        self._healthy = healthy

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Answer with what the script says next.

        Raises:
            ServerError: the script is at its end.
        """
        response: LLMResponse | None = None
        async for chunk in self._chunks(request):
            if isinstance(chunk, StreamEnd):
                response = chunk.response
        if response is None:
            msg = "the script's pieces ended without a response"
            raise ServerError(msg)
        return response

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """The same piece by piece.

        Raises:
            ServerError: the script is at its end.
        """
        ended = False
        try:
            async for chunk in self._chunks(request):
                ended = isinstance(chunk, StreamEnd)
                yield chunk
        except GeneratorExit:
            self.abandoned += not ended
            raise

    async def health_check(self) -> bool:
        """What the test said it should say."""
        return self._healthy

    async def _chunks(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        await asyncio.sleep(0)  # like any backend: a call lets others run, and can be cancelled
        texts: list[str] = []
        thoughts: list[str] = []
        for piece in _pieces(await self._next(request)):
            match piece:
                case Exception():
                    raise piece
                case LLMResponse():
                    if piece.content and not texts:
                        yield TextChunk(piece.content)
                    yield StreamEnd(piece)
                    return
                case ThinkingChunk():
                    thoughts.append(piece.text)
                    yield piece
                case _:
                    texts.append(piece)
                    yield TextChunk(piece)
            await asyncio.sleep(0)
        made = self._response(request, "".join(texts))
        yield StreamEnd(replace(made, thinking="".join(thoughts)))

    async def _next(self, request: LLMRequest) -> Reply:
        if not self._script:
            msg = f"the script has no reply for call {len(self.requests)}: {request.prompt[:200]!r}"
            raise ServerError(msg)
        script = self._script[0]
        if not callable(script):
            del self._script[0]
            return script
        reply = script(request)
        return await reply if inspect.isawaitable(reply) else reply

    def _response(self, request: LLMRequest, text: str) -> LLMResponse:
        return LLMResponse(
            content=text,
            model=request.model,
            backend=self.backend,
            prompt_tokens=sum(len(message.content.split()) for message in request.messages),
            completion_tokens=len(text.split()),
        )


def _pieces(reply: Reply) -> Sequence[Piece]:
    if isinstance(reply, str | LLMResponse | Exception):
        return (reply,)
    return reply
