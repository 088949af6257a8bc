"""The seam of the wrappers: a middleware sees every request and may answer it, change it or pass it on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llm.events import CallEvent, Observer
from llm.types import Chunk, Embeddings, EmbedRequest, LLMRequest, LLMResponse

if TYPE_CHECKING:
    from llm.middleware.accountant import BudgetStatus
    from llm.stores.base import StoreStats

Handler = Callable[[LLMRequest], Awaitable[LLMResponse]]
StreamHandler = Callable[[LLMRequest], AsyncGenerator[Chunk, None]]
EmbedHandler = Callable[[EmbedRequest], Awaitable[Embeddings]]
AnyHandler = TypeVar("AnyHandler", Handler, StreamHandler, EmbedHandler)


NEVER_SENT = "The call was still waiting for its turn: nothing was sent to the backend."
"""Note on the exception that ends such a call, so that it is not held against the backend."""


def never_sent(error: BaseException) -> bool:
    """Whether `error` ended a call that never reached its backend."""
    return NEVER_SENT in getattr(error, "__notes__", ())


def unheard(event: CallEvent) -> None:
    """Where events go until a client is connected."""


class Middleware:
    """One wrapper round a backend. What a subclass does not override passes through untouched.

    A stream is an async generator that ends with one `StreamEnd`. Whoever wraps one closes the inner one
    when it is closed itself (`contextlib.aclosing`), so that the connection behind it is given back at once.

    Attributes:
        backend: name of the backend that it stands before.
        emit: where its events go.
    """

    backend: str = ""
    emit: Observer = staticmethod(unheard)

    def connect(self, backend: str, emit: Observer) -> None:
        """Told once by the client which backend it stands before and where events go."""
        self.backend = backend
        self.emit = emit

    def at_once(self, request: LLMRequest) -> LLMResponse | None:  # noqa: ARG002 - for those that override it
        """The answer if it is here already: no waiting, no disk but a page of the cache; else None."""
        return None

    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Answer `request`, usually by awaiting `call_next(request)`."""
        return await call_next(request)

    def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        """Answer `request` in pieces, usually those of `call_next(request)`."""
        return call_next(request)

    async def embed(self, request: EmbedRequest, call_next: EmbedHandler) -> Embeddings:
        """Turn texts into vectors, usually by awaiting `call_next(request)`."""
        return await call_next(request)

    def revived(self) -> None:
        """Told when a health check found the backend well."""
        return

    async def budgets(self) -> tuple[BudgetStatus, ...]:
        """How far the budgets are used that it keeps."""
        return ()

    async def stats(self) -> StoreStats | None:
        """How full the store of replies is that it keeps, None if it keeps none."""
        return None

    async def flush(self) -> None:
        """Write down what waits for it."""
        return

    async def aclose(self) -> None:
        """Give back what the middleware holds open."""
        return


def chain(middleware: Sequence[Middleware], innermost: Handler) -> Handler:
    """Put the middleware round `innermost`, the first one outermost; those that only pass on are left out."""
    return _chained("complete", middleware, innermost)


def chain_streams(middleware: Sequence[Middleware], innermost: StreamHandler) -> StreamHandler:
    """The same for streams."""
    return _chained("stream", middleware, innermost)


def chain_embeds(middleware: Sequence[Middleware], innermost: EmbedHandler) -> EmbedHandler:
    """The same for texts that become vectors."""
    return _chained("embed", middleware, innermost)


def _chained(kind: str, middleware: Sequence[Middleware], innermost: AnyHandler) -> AnyHandler:
    made: Any = innermost
    for outer in reversed(middleware):
        if getattr(type(outer), kind) is not getattr(Middleware, kind):
            made = partial(getattr(outer, kind), call_next=made)
    return cast("AnyHandler", made)
