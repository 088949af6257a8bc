"""One call to a backend as its observers see it: from its start to its end, with what it cost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm.caller import new_call_id
from llm.deadline import was_late
from llm.errors import CallCancelled, DeadlineExceeded, LLMError, ServerError
from llm.events import CallFailed, CallFinished, CallStarted, FirstToken, Operation
from llm.types import Embeddings, EmbedRequest, LLMRequest, LLMResponse

if TYPE_CHECKING:
    from llm.client import LLMClient


class Watch:
    """One call to a backend, told to the observers from its start to its end."""

    __slots__ = ("_client", "_operation", "_request", "_started", "call_id", "done", "first")

    def __init__(self, client: LLMClient, request: LLMRequest | EmbedRequest, operation: Operation) -> None:
        self._client, self._request, self._operation = client, request, operation
        self.call_id = new_call_id()
        self._started = time.perf_counter()
        self.first: float | None = None
        self.done = False
        client.emit(
            CallStarted(
                backend=client.name,
                model=request.model,
                caller=request.caller,
                operation=operation,
                call_id=self.call_id,
                provider=client.provider_name or client.backend,
                server=client.server_address,
                request=request,
            )
        )

    def _place(self) -> dict[str, Any]:
        return {"backend": self._client.name, "model": self._request.model, "caller": self._request.caller}

    def begun(self) -> None:
        """The first chunk is here."""
        self.first = time.perf_counter() - self._started
        self._client.emit(FirstToken(seconds=self.first, **self._place()))

    def finished(self, response: LLMResponse) -> LLMResponse:
        """The answer, with its id and how long it took."""
        self.done = True
        latency = time.perf_counter() - self._started
        request = self._request
        self._client.emit(
            CallFinished(
                backend=self._client.name,
                model=request.model,
                caller=request.caller,
                latency=latency,
                prompt_tokens=response.prompt_tokens,
                completion_tokens=response.completion_tokens,
                cached_tokens=response.cached_tokens,
                thinking_tokens=response.thinking_tokens,
                call_id=self.call_id,
                template=request.template if isinstance(request, LLMRequest) else "",
                first_token=self.first,
                response=response,
            )
        )
        return response.stamped(
            call_id=self.call_id, latency=latency, first_token=self.first, cached=response.cached
        )

    def embedded(self, found: Embeddings) -> Embeddings:
        """The vectors, with their id and how long they took."""
        self.done = True
        latency = time.perf_counter() - self._started
        self._client.emit(
            CallFinished(
                operation="embed",
                latency=latency,
                prompt_tokens=found.prompt_tokens,
                completion_tokens=0,
                call_id=self.call_id,
                **self._place(),
            )
        )
        return replace(found, latency=latency, call_id=self.call_id)

    def failed(self, error: BaseException) -> BaseException:
        """What to raise in its stead; whatever a backend or its library throws, callers see LLMError."""
        self.done = True
        raised = (
            error if isinstance(error, LLMError) or not isinstance(error, Exception) else self._foreign(error)
        )
        if isinstance(raised, LLMError | asyncio.CancelledError):
            vars(raised)["call_id"] = self.call_id  # so that whoever made the call can say which one it was
        code = raised.code if isinstance(raised, LLMError) else self._cut_code()
        latency = time.perf_counter() - self._started
        self._client.emit(
            CallFailed(
                operation=self._operation,
                latency=latency,
                code=code,
                call_id=self.call_id,
                template=getattr(self._request, "template", ""),
                first_token=self.first,
                **self._place(),
            )
        )
        return raised

    def cause(self, error: BaseException) -> BaseException | None:
        """What the raised error is chained to: a foreign one stands behind ours, ours behind what it has."""
        return error.__cause__ if isinstance(error, LLMError) or not isinstance(error, Exception) else error

    def _foreign(self, error: BaseException) -> ServerError:
        return ServerError(f"the {self._client.name} backend failed unexpectedly ({type(error).__name__})")

    def _cut_code(self) -> str:
        return DeadlineExceeded.code if was_late() and not self._client.is_closed else CallCancelled.code
