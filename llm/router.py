"""RoutedClient: several backends behind one client; a call goes through a chain of them until one answers.

    caller -> total deadline -> route -> small ... -> (it fails) -> big ...
                                           `-> (it is unsure, or its reply does not fit) -> big ...

Each backend is a whole client with a cache, a breaker, retries and limits of its own. All of them share the
one deadline of the call: every backend but the last gets a part of what is left, so that one that hangs
leaves time for the next.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llm.caller import current_caller
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.deadline import deadline, seconds_left
from llm.errors import (
    BadReply,
    BadRequest,
    CallCancelled,
    ConfigurationError,
    DeadlineExceeded,
    LLMError,
    ModelNotFound,
    NotSupported,
    SchemaMismatch,
    ToolLoopExceeded,
)
from llm.events import Escalated, FellBack, Observer
from llm.options import ReplyOptions
from llm.routes import MOCK, Routes
from llm.structured import repair, validate
from llm.types import (
    Capabilities,
    Chunk,
    Embeddings,
    EmbedRequest,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    StreamEnd,
)
from llm.unsure import says_unsure

if TYPE_CHECKING:
    from llm.middleware.accountant import BudgetStatus
    from llm.stores.base import StoreStats

USUAL_SHARE = 0.5
"""Part of the time left that a backend gets while another one stands behind it."""

LARGEST_SHARE = 0.75
"""The same for a backend whose own timeout is shorter than that of another one in its chain."""

MARGIN = 0.25
"""Seconds by which the last backend's deadline comes before the call's, so that the lateness is its own."""

_CONTEXT = re.compile(r"context|(?:prompt|input) is too long|too many (?:input )?tokens", re.IGNORECASE)
_FINAL = (CallCancelled, SchemaMismatch, ToolLoopExceeded)

Make = Callable[[str, LLMConfig], LLMClient]
"""Makes the client of a named backend."""

Why = Literal["unsure", "invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedRequest(LLMRequest):
    """A request with the options that it was made from: each backend fills in defaults of its own.

    Attributes:
        options: what the caller chose.
    """

    options: ReplyOptions = field(default_factory=ReplyOptions)


class RoutedClient(LLMClient):
    """Several backends as one client.

    The response says in `backend` which of them answered, by its name. The total deadline of a call is its
    `timeout` option, else the longest timeout of the backends in its chain.

    Args:
        routes: which backend is asked for what.
        clients: a whole client for each name in `routes.backends`; closed with this one.
        observers: called with every event of `llm.events`; those of the clients are their own.
    """

    backend: ClassVar[str] = "router"

    def __init__(
        self, routes: Routes, clients: Mapping[str, LLMClient], *, observers: Sequence[Observer] = ()
    ) -> None:
        super().__init__(clients[routes.default[0]].config, observers=observers)
        self.routes = routes
        self.targets = dict(clients)
        self._fallbacks = self._escalations = 0

    def _chain(self, request: LLMRequest | EmbedRequest) -> list[LLMClient]:
        return [self.targets[name] for name in self.routes.chain(request.caller)]

    # Chat.

    def _request(self, messages: Sequence[LLMMessage], options: ReplyOptions) -> tuple[RoutedRequest, float]:
        caller = current_caller(options.get("task", ""))
        chain = [self.targets[name] for name in self.routes.chain(caller)]
        request, seconds = chain[0]._request(messages, options)  # noqa: SLF001 - a client like this one
        if options.get("timeout") is None:
            seconds = max(target.config.timeout for target in chain)
        values = {each.name: getattr(request, each.name) for each in fields(request)}
        return RoutedRequest(**values, options=options), seconds

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Ask one backend after the other until one answers.

        Raises:
            LLMError: none did; the message says what each one said.
        """
        chain = self._chain(request)
        failures = _Failures()
        for target, after in _with_next(chain):
            try:
                return await self._answer(target, request, last=after is None)
            except LLMError as error:
                failures.add(target, error)
                if after is None or not _another_may_help(error):
                    raise failures.as_one() from error
            self._fall_back(target, request, after, error=failures.last)
        raise failures.as_one()

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """The same for streams: once a piece was handed out, a failure is final.

        Raises:
            LLMError: none did; the message says what each one said.
        """
        chain = self._chain(request)
        failures, ours = _Failures(), deadline.get()
        for target, after in _with_next(chain):
            begun = False
            deadline.set(ours)  # the stream of the one before has left its own there
            try:
                async with aclosing(self._pieces(target, request, last=after is None)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
            except LLMError as error:
                failures.add(target, error)
                if begun or after is None or not _another_may_help(error):
                    raise failures.as_one() from error
            else:
                return
            self._fall_back(target, request, after, error=failures.last)

    async def _pieces(
        self, target: LLMClient, request: LLMRequest, *, last: bool
    ) -> AsyncGenerator[Chunk, None]:
        """The pieces of one backend; while another stands behind it, its first one must come in time."""
        whole, share = self._seconds(target, request, last=True), self._seconds(target, request, last=last)
        stream = target.complete_stream(self._as_its_own(target, request), timeout=whole)
        fault = DeadlineExceeded(f"{target.name} began no answer within {share:.1f} s")
        loop = asyncio.get_running_loop()
        timer = loop.call_later(share, partial(stream.interrupt, fault, late=True)) if share < whole else None
        try:
            async with stream:
                async for chunk in stream:
                    if timer is not None:
                        timer.cancel()
                        timer = None
                    yield StreamEnd(_named(chunk.response, target)) if type(chunk) is StreamEnd else chunk
        finally:
            if timer is not None:
                timer.cancel()

    async def _ask(self, target: LLMClient, request: LLMRequest, *, last: bool) -> LLMResponse:
        seconds = self._seconds(target, request, last=last)
        return _named(await target.complete(self._as_its_own(target, request), timeout=seconds), target)

    def _as_its_own(self, target: LLMClient, request: LLMRequest) -> LLMRequest:
        """The request as this backend's own client would have made it."""
        if not isinstance(request, RoutedRequest):
            return replace(request, model=target.config.model)
        made, _ = target._request(request.messages, request.options)  # noqa: SLF001 - a client like this one
        return made if made.caller == request.caller else replace(made, caller=request.caller)

    def _seconds(self, target: LLMClient, request: LLMRequest | EmbedRequest, *, last: bool) -> float:
        """How much of the time left a backend gets."""
        left, own = seconds_left(), target.config.timeout
        if math.isinf(left):
            return own
        if last:
            asked = isinstance(request, RoutedRequest) and request.options.get("timeout") is not None
            most = left - min(MARGIN, left / 10)
            return most if asked else min(own, most)
        shorter = own < max(other.config.timeout for other in self._chain(request))
        return min(own, left * (LARGEST_SHARE if shorter else USUAL_SHARE))

    def _fall_back(
        self, target: LLMClient, request: LLMRequest | EmbedRequest, after: LLMClient, *, error: LLMError
    ) -> None:
        self._fallbacks += 1
        self.emit(
            FellBack(
                backend=target.name,
                model=target.config.model,
                caller=request.caller,
                to=after.name,
                code=error.code,
                call_id=error.call_id,
            )
        )

    # Escalation.

    async def _answer(self, target: LLMClient, request: LLMRequest, *, last: bool) -> LLMResponse:
        """The answer of one backend, or of the larger one that it escalates to."""
        if request.schema is None or target.name not in self.routes.escalate:
            return await self._ask(target, request, last=last)
        return await self._judged(target, request, last=last)

    async def _judged(self, target: LLMClient, request: LLMRequest, *, last: bool) -> LLMResponse:
        """A structured answer that fits, and is sure as far as there is a larger model to ask.

        Raises:
            SchemaMismatch: no model on the way gave one that fits.
        """
        larger = self.targets.get(self.routes.escalate.get(target.name, ""))
        response, fault = await self._repaired(target, request, last=last and larger is None)
        why = _why(response, request, fault)
        if larger is None or why is None:
            if fault is not None:
                raise _mismatch(f"{target.name}: {fault}") from fault
            return response
        self._escalate(target, request, larger, why)
        try:
            return await self._judged(larger, request, last=True)
        except LLMError as error:
            if fault is None:
                return response  # unsure as it is, it is better than none
            raise _mismatch(f"{target.name}: {fault}; {larger.name}: {error}") from error

    async def _repaired(
        self, target: LLMClient, request: LLMRequest, *, last: bool
    ) -> tuple[LLMResponse, BadReply | None]:
        """The reply of one backend, asked again once if it does not fit; and what is wrong with it still."""
        response = await self._ask(target, request, last=last)
        fault = _fault(response, request)
        if fault is None:
            return response, None
        again = replace(request, messages=(*request.messages, *repair(response, fault)))
        response = await self._ask(target, again, last=last)
        return response, _fault(response, request)

    def _escalate(self, target: LLMClient, request: LLMRequest, larger: LLMClient, why: Why) -> None:
        self._escalations += 1
        self.emit(
            Escalated(
                backend=target.name,
                model=target.config.model,
                caller=request.caller,
                to=larger.name,
                why=why,
            )
        )

    # Vectors.

    async def embed(
        self,
        texts: Sequence[str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the total deadline is part of the contract
        task: str = "",
    ) -> Embeddings:
        """Turn texts into vectors; the arguments are those of `LLMClient.embed`.

        The first backend of the chain that makes embeddings at all. Another one stands in for it only if it
        has the same model: vectors of two models cannot be compared.

        Raises:
            NotSupported: none of them makes embeddings.
            LLMError: see `llm.errors`.
        """
        if timeout is None:
            chain = self.routes.chain(current_caller(task))
            timeout = max(self.targets[name].config.timeout for name in chain)
        return await super().embed(texts, timeout=timeout, task=task)

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        """Ask the first backend that can; see `embed`."""
        chain = self._chain(request)
        failures = _Failures()
        failed: LLMClient | None = None
        for target, after in _with_next(chain):
            if failed is not None:
                if _embed_model(target) != _embed_model(failed):
                    continue
                self._fall_back(failed, request, target, error=failures.last)
            try:
                seconds = self._seconds(target, request, last=after is None)
                found = await target.embed(request.texts, timeout=seconds, task=request.caller.task)
            except LLMError as error:
                failures.add(target, error)
                if not _another_may_help(error):
                    break
                if not isinstance(error, NotSupported):
                    failed = target
            else:
                return replace(found, backend=target.name)
        raise failures.as_one()

    # What is the same for any client.

    async def health(self) -> dict[str, bool]:
        """Whether each backend answers and has its model, by name. Never raises, loads no model."""
        found = await asyncio.gather(*(target.health_check() for target in self.targets.values()))
        return dict(zip(self.targets, found, strict=True))

    async def health_check(self) -> bool:
        """Whether any backend answers and has its model. Never raises, loads no model."""
        return any((await self.health()).values())

    async def capabilities(self) -> Capabilities:
        """What the first backend of the default route can do.

        Raises:
            LLMError: it had to be asked, and did not answer.
        """
        return await self.targets[self.routes.default[0]].capabilities()

    async def budgets(self) -> tuple[BudgetStatus, ...]:
        """How far the budgets of all backends are used; one that they share is told once."""
        found = [status for target in self.targets.values() for status in await target.budgets()]
        return tuple({status.budget: status for status in found}.values())

    async def cache_stats(self) -> StoreStats | None:
        """The response caches of all backends together; a file that they share counts once."""
        each = [await target.cache_stats() for target in self.targets.values()]
        found = [stats for stats in each if stats is not None]
        files = {stats.path: stats for stats in found}.values()
        if not found:
            return None
        return replace(
            found[0],
            entries=sum(stats.entries for stats in files),
            bytes=sum(stats.bytes for stats in files),
            evicted=sum(stats.evicted for stats in found),
        )

    async def flush(self) -> None:
        """Write the ledgers of all backends."""
        for target in self.targets.values():
            await target.flush()

    def get_stats(self) -> dict[str, Any]:
        """The totals of all backends together, and those of each one in "backends"."""
        each = {name: target.get_stats() for name, target in self.targets.items()}
        sums: dict[str, Any] = {"backend": self.backend, "model": self.config.model}
        for stats in each.values():
            for name, value in stats.items():
                if isinstance(value, int | float):
                    sums[name] = sums.get(name, 0) + value
        own = {"fallbacks": self._fallbacks, "escalations": self._escalations}
        return {**sums, **own, "backends": each}

    async def _observed_send(self, request: LLMRequest) -> LLMResponse:
        return await self.send(request)  # what reaches a backend is observed there, and counted once

    def _observed_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        return self.send_stream(request)

    async def _observed_embed(self, request: EmbedRequest) -> Embeddings:
        return await self.send_embed(request)

    async def _release(self) -> None:
        async with AsyncExitStack() as stack:  # one that fails to close does not keep the others open
            for target in self.targets.values():
                stack.push_async_callback(target.aclose)


class CannedClient(RoutedClient):
    """Several mock backends: whoever asks whether answers are canned is told so."""

    backend: ClassVar[str] = MOCK


def routed(routes: Routes, make: Make, observers: Sequence[Observer]) -> RoutedClient:
    """The client for `routes`, its backends made by `make`.

    Raises:
        ConfigurationError: one of them cannot work; the message names it.
    """
    clients: dict[str, LLMClient] = {}
    for name, config in routes.backends.items():
        try:
            clients[name] = make(name, config)
        except ConfigurationError as error:
            msg = f"the backend {name!r} cannot work: {error}"
            raise ConfigurationError(msg) from error
        clients[name].rename(name)
    canned = [name for name, client in clients.items() if client.backend == MOCK]
    if not canned:
        return RoutedClient(routes, clients, observers=observers)
    if len(canned) < len(clients):  # an unknown backend's name, which gives the mock
        msg = f"{', '.join(canned)} would give canned answers beside real ones; name a real backend"
        raise ConfigurationError(msg)
    return CannedClient(routes, clients, observers=observers)


class _Failures:
    """What the backends of one call said, one after the other."""

    def __init__(self) -> None:
        self._all: list[tuple[str, LLMError]] = []

    def add(self, target: LLMClient, error: LLMError) -> None:
        self._all.append((target.name, error))

    @property
    def last(self) -> LLMError:
        return self._all[-1][1]

    def as_one(self) -> LLMError:
        """The error to raise: of the last one's class, with what each one said.

        Its `retry_after` is the soonest moment at which one of those that may be back by themselves may be;
        None if one of them did not say.
        """
        if len(self._all) == 1:
            return self.last
        coming = [error for _, error in self._all if error.retryable and not getattr(error, "quota", False)]
        chosen = copy.copy(coming[-1] if coming else self.last)
        waits = [error.retry_after for error in coming]
        chosen.retry_after = None if None in waits else min((w for w in waits if w is not None), default=None)
        said = "; ".join(f"{name}: {error}" for name, error in self._all)
        chosen.args = (f"no backend answered. {said}",)
        return chosen


def _with_next(chain: Sequence[LLMClient]) -> list[tuple[LLMClient, LLMClient | None]]:
    return list(zip(chain, [*chain[1:], None], strict=True))


def _another_may_help(error: LLMError) -> bool:
    """Whether asking another backend may end otherwise."""
    if isinstance(error, ModelNotFound | NotSupported):
        return True
    if isinstance(
        error, BadRequest
    ):  # about the request itself, unless it is too long for this one's context
        return _CONTEXT.search(str(error)) is not None
    return not isinstance(error, _FINAL)


def _named(response: LLMResponse, target: LLMClient) -> LLMResponse:
    return response if response.backend == target.name else replace(response, backend=target.name)


def _embed_model(target: LLMClient) -> str:
    return target.config.embed_model or target.config.model


def _fault(response: LLMResponse, request: LLMRequest) -> BadReply | None:
    """Why a structured reply does not fit; a wish to have tools called is no reply yet."""
    if request.schema is None or response.tool_calls:
        return None
    try:
        validate(request.schema, response.content)
    except BadReply as fault:
        return fault
    return None


def _why(response: LLMResponse, request: LLMRequest, fault: BadReply | None) -> Why | None:
    """Why a larger model should be asked, None if it need not."""
    if fault is not None:
        return "invalid"
    if request.schema is None or response.tool_calls:
        return None
    return "unsure" if says_unsure(json.loads(response.content), request.schema) else None


def _mismatch(said: str) -> SchemaMismatch:
    return SchemaMismatch(f"no reply fits the schema. {said}")
