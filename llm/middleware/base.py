"""The seam of the wrappers: a middleware sees every request and may answer it, change it or pass it on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial, reduce

from llm.events import CallEvent, Observer
from llm.types import LLMRequest, LLMResponse

Handler = Callable[[LLMRequest], Awaitable[LLMResponse]]


def _unheard(event: CallEvent) -> None:
    """Where events go until a client is connected."""


class Middleware(ABC):
    """One wrapper round a backend.

    Attributes:
        backend: name of the backend that it stands before.
        emit: where its events go.
    """

    backend: str = ""
    emit: Observer = staticmethod(_unheard)

    def connect(self, backend: str, emit: Observer) -> None:
        """Told once by the client which backend it stands before and where events go."""
        self.backend = backend
        self.emit = emit

    @abstractmethod
    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Answer `request`, usually by awaiting `call_next(request)`."""

    async def aclose(self) -> None:
        """Give back what the middleware holds open."""
        return


def chain(middleware: Sequence[Middleware], innermost: Handler) -> Handler:
    """Put the middleware round `innermost`, the first one outermost."""

    def wrap(inner: Handler, outer: Middleware) -> Handler:
        return partial(outer.complete, call_next=inner)

    return reduce(wrap, reversed(middleware), innermost)
