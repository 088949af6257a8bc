"""The response cache: the same question, asked the same way, is answered from what was kept.

Two levels: the replies used last in memory, found in a dict by what was asked; and the store behind them,
found by the SHA-256 of it. Both are read at once, before a call has begun to wait for anything. Only whole,
valid replies are kept, and one that is read from the store is checked again; whatever is wrong with it, the
call goes on to the backend.

Modes of a call: "on"; "read" answers from the cache and keeps nothing new; "write" asks anew and keeps the
answer; "off" does neither. How old a kept reply may be is for the reader to say.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType

from llm.caller import new_call_id
from llm.events import CacheHit, CacheMiss, Observer
from llm.middleware.base import Handler, Middleware, StreamHandler
from llm.middleware.fingerprints import Ask, Fingerprints
from llm.middleware.keys import Keys, Namespace, label_of, shape_of
from llm.middleware.recent import RECENT_BYTES, Entry, Recent, size_of
from llm.middleware.replies import apart, is_whole, read_reply, written_reply
from llm.stores.base import ResponseStore, StoredReply, StoreStats
from llm.types import Chunk, LLMRequest, LLMResponse, StreamEnd, TextChunk, ThinkingChunk

_NOTHING: Namespace = MappingProxyType({})
_READS = frozenset({"on", "read"})
_KEEPS = frozenset({"on", "write"})
_LOOK_AGAIN = 1.0  # seconds after which it is noticed that another program cleared the store


class ResponseCache(Middleware):
    """Answers from kept replies, and keeps new ones.

    Args:
        store: where replies are kept; closed with the cache.
        namespace: what shapes the answer beside the request and the backend's name, such as its address.
        clock: seconds since 1970, for the age of replies.
    """

    def __init__(
        self,
        store: ResponseStore,
        *,
        namespace: Namespace = _NOTHING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._namespace = dict(namespace)
        self._clock = clock
        self._keys = Keys(self.backend, self._namespace)
        self._prints = Fingerprints(store, place=str(namespace.get("api_base") or ""))
        self._recent = Recent(RECENT_BYTES)
        self._generation: str | None = None
        self._look_again = 0.0
        self._asked: _Asked | None = None

    def connect(self, backend: str, emit: Observer) -> None:
        """The backend's name is part of every key."""
        super().connect(backend, emit)
        self._keys = Keys(backend, self._namespace)

    def ask_for_fingerprints(self, ask: Ask) -> None:
        """Tell apart models of one name by what `ask` says; see `LLMClient.fingerprint`."""
        self._prints.ask_for(ask)

    def at_once(self, request: LLMRequest) -> LLMResponse | None:
        """The kept reply, if it can be told without waiting."""
        if request.cache not in _READS:
            return None
        asked = _Asked(request)
        kept = self._look(asked)
        if kept is None:
            self._asked = asked  # `complete` goes on from here
            return None
        return self._hit(asked, kept)

    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Answer from the cache, else ask on and keep the answer."""
        if request.cache == "off":
            return await call_next(request)
        asked, kept = await self._find(request)
        if kept is not None:
            return self._hit(asked, kept)
        response = await call_next(asked.keyed())
        self._keep(asked, response)
        return response

    def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        """The same in pieces; what was kept comes as one."""
        return call_next(request) if request.cache == "off" else self._stream(request, call_next)

    async def _stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        asked, kept = await self._find(request)
        if kept is not None:
            response = self._hit(asked, kept, streamed=True)
            if response.thinking:
                yield ThinkingChunk(response.thinking)
            if response.content:
                yield TextChunk(response.content)
            yield StreamEnd(response)
            return
        async with aclosing(call_next(asked.keyed())) as source:
            async for chunk in source:
                if type(chunk) is StreamEnd:
                    self._keep(asked, chunk.response)  # before the end is told: the reader may stop there
                yield chunk

    async def stats(self) -> StoreStats:
        """How full the store is; what is in memory is there, too."""
        return await self._store.stats()

    async def clear(self) -> int:
        """Forget every reply; how many the store had."""
        self._recent.clear()
        return await self._store.clear()

    async def aclose(self) -> None:
        """Close the store."""
        await self._store.aclose()

    async def _find(self, request: LLMRequest) -> tuple[_Asked, LLMResponse | None]:
        """The kept reply, told as a miss where there is none; nothing is looked up twice."""
        asked, self._asked = self._asked, None
        if asked is None or asked.request is not request:
            asked = _Asked(request)
        reads = request.cache in _READS
        kept = None if asked.looked or not reads else self._look(asked)
        if kept is None and not asked.looked:
            await self._store.open()
            await self._prints.refresh(request.model)
            kept = self._look(asked) if reads else None
        if kept is None and await self._prints.refresh(request.model):
            self._recent.clear()
            asked.key = None
            kept = self._look(asked) if reads else None
        if asked.key is None:
            asked.key = self._key(asked)
        if kept is None and reads and asked.key is not None:
            self.emit(CacheMiss(backend=self.backend, model=request.model, caller=request.caller))
        return asked, kept

    def _look(self, asked: _Asked) -> LLMResponse | None:
        request, now = asked.request, asked.started
        if now >= self._look_again:
            self._notice_clearing(now)
        shape = asked.shape
        if shape is not None:
            recent = self._recent.find(shape)
            if recent is not None and self._is_fresh(request, recent.created):
                return recent.response
        asked.looked = self._store.ready and self._prints.known(request.model) is not None
        if not asked.looked:
            return None
        key = asked.key = self._key(asked)
        return None if key is None else self._from_store(asked, key)

    def _from_store(self, asked: _Asked, key: bytes) -> LLMResponse | None:
        recent = self._recent.by_key(key)  # asked before with the words of its schema in another order
        if recent is not None and self._is_fresh(asked.request, recent.created):
            return recent.response
        found = self._store.get(key)
        if found is None or not self._is_fresh(asked.request, found[1]):
            return None
        kept = read_reply(found[0])
        if kept is None or not is_whole(kept, asked.request):
            return None
        size = size_of(asked.request, found[0])
        self._recent.put(Entry(key=key, shape=asked.shape, response=kept, created=found[1], size=size))
        return kept

    def _key(self, asked: _Asked) -> bytes | None:
        return self._keys.key(asked.request, self._prints.known(asked.request.model) or "")

    def _is_fresh(self, request: LLMRequest, created: float) -> bool:
        """Whether a reply is new enough; one from the future was written by a clock that was wrong."""
        return request.max_age is None or abs(self._clock() - created) <= request.max_age

    def _notice_clearing(self, now: float) -> None:
        """Forget the replies in memory when the store was cleared or replaced, by whichever program."""
        found = self._store.generation()
        if found is None:  # the store is not open yet, or does not work
            return
        self._look_again = now + _LOOK_AGAIN
        if self._generation not in {None, found}:
            self._recent.clear()
        self._generation = found

    def _hit(self, asked: _Asked, kept: LLMResponse, *, streamed: bool = False) -> LLMResponse:
        request = asked.request
        if kept.tool_calls:
            kept = apart(kept)
        call_id = new_call_id()
        self.emit(
            CacheHit(
                backend=self.backend,
                model=request.model,
                caller=request.caller,
                call_id=call_id,
                request=request,
                response=kept,
            )
        )
        latency = time.perf_counter() - asked.started
        return kept.stamped(
            call_id=call_id, latency=latency, first_token=latency if streamed else None, cached=True
        )

    def _keep(self, asked: _Asked, response: LLMResponse) -> None:
        request, key = asked.request, asked.key
        if key is None or request.cache not in _KEEPS or not is_whole(response, request):
            return
        recent = self._recent.by_key(key)
        if recent is not None and recent.kept >= asked.started:
            return  # an identical call was under way, and its answer is kept already
        text, created = written_reply(response), self._clock()
        if text is None:
            return
        kept = apart(response) if response.tool_calls else response
        entry = Entry(key=key, shape=asked.shape, response=kept, created=created, size=size_of(request, text))
        entry.kept = time.perf_counter()
        self._recent.put(entry)
        self._store.put(StoredReply(key=key, label=label_of(request), reply=text, created=created))


class _Asked:
    """One question to the cache: what is known about it so far."""

    __slots__ = ("key", "looked", "request", "shape", "started")

    def __init__(self, request: LLMRequest) -> None:
        self.started = time.perf_counter()
        self.request = request
        self.shape = shape_of(request)
        self.key: bytes | None = None
        self.looked = False  # in the store, which has nothing

    def keyed(self) -> LLMRequest:
        """The request with its key, so that identical ones under way can be told."""
        return self.request if self.key is None else replace(self.request, key=self.key)
