"""The response cache: the same question, asked the same way, is answered from what was kept.

A small memory of recent replies stands before the store. Only whole, valid replies are kept, and one that is
read from the store is checked again; whatever is wrong with it, the call goes on to the backend.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llm.caller import new_call_id
from llm.errors import LLMError
from llm.events import CacheHit, CacheMiss
from llm.middleware.base import Handler, Middleware
from llm.stores.base import ResponseStore, StoredReply, StoreStats
from llm.structured import validate
from llm.types import LLMRequest, LLMResponse

KEY_FORMAT = 1
"""Part of every key: raised when keys or kept replies change their meaning; old ones are then not found."""

RECENT_CHARACTERS = 2_000_000
"""Text that the memory before the store holds at most."""

_NOTHING: Mapping[str, str | int | None] = MappingProxyType({})
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_LABEL = 1000  # characters of a question that are kept for lists
_WHOLE = frozenset({"stop", "length"})
_KEPT = ("content", "model", "backend", "finish_reason", "prompt_tokens", "completion_tokens")


class ResponseCache(Middleware):
    """Answers from kept replies, and keeps new ones.

    The key is the prompt and the system prompt, `f"{prompt}::{system_prompt}"`, within a namespace of
    everything else that shapes the answer.

    Args:
        store: where replies are kept; closed with the cache.
        namespace: what shapes the answer beside the request and the backend's name, such as its address.
    """

    def __init__(self, store: ResponseStore, *, namespace: Mapping[str, str | int | None] = _NOTHING) -> None:
        self._store = store
        self._namespace = dict(namespace)
        self._recent = _Recent(RECENT_CHARACTERS)

    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Answer from the cache, else ask on and keep the answer."""
        key = self._key(request) if request.cache != "off" else None
        if key is None:
            return await call_next(request)
        started = time.perf_counter()
        kept = await self._find(key, request)
        if kept is not None:
            self.emit(CacheHit(backend=self.backend, model=request.model))
            return kept.stamped(call_id=new_call_id(), latency=time.perf_counter() - started, cached=True)
        self.emit(CacheMiss(backend=self.backend, model=request.model))
        response = await call_next(request)
        if is_whole(response, request):
            self._recent.put(key, response)
            label = readable_key(request)[:_LABEL].encode(errors="replace").decode()
            self._store.put(StoredReply(key=key, label=label, reply=_written(response)))
        return response

    async def stats(self) -> StoreStats:
        """How full the store is."""
        return await self._store.stats()

    async def clear(self) -> int:
        """Forget every reply; how many the store had."""
        self._recent.clear()
        return await self._store.clear()

    async def aclose(self) -> None:
        """Close the store."""
        await self._store.aclose()

    async def _find(self, key: bytes, request: LLMRequest) -> LLMResponse | None:
        recent = self._recent.get(key)
        if recent is not None:
            return recent
        await self._store.open()
        text = self._store.get(key)
        kept = None if text is None else _read(text)
        if kept is None or not is_whole(kept, request):
            return None
        self._recent.put(key, kept)
        return kept

    def _key(self, request: LLMRequest) -> bytes | None:
        """SHA-256 of all that shapes the answer; None when it cannot be written down, and so not compared."""
        shape = {
            "format": KEY_FORMAT,
            "namespace": self._namespace,
            "backend": self.backend,
            # These hold both halves of the readable key, and the turns between them.
            "messages": [[message.role, message.content] for message in request.messages],
            "model": request.model,
            "temperature": _number(request.temperature),
            "max_tokens": request.max_tokens,
            "top_p": _number(request.top_p),
            "seed": request.seed,
        }
        try:
            if request.schema is not None:
                shape["schema"] = _canonical(request.schema)
            text = _CANONICAL.encode(shape)
        except (TypeError, ValueError, RecursionError):
            return None
        return hashlib.sha256(text.encode("ascii")).digest()


def readable_key(request: LLMRequest) -> str:
    """What was asked, as a person knows it: `f"{prompt}::{system_prompt}"`."""
    return f"{request.prompt}::{request.system_prompt}"


def is_whole(response: LLMResponse, request: LLMRequest) -> bool:
    """Whether a reply is worth keeping: ended or cut as asked, not empty, and fitting the schema if any."""
    if response.finish_reason not in _WHOLE or not response.content.strip():
        return False
    if request.schema is None:
        return True
    try:
        validate(request.schema, response.content)
    except LLMError:
        return False
    return True


def _number(value: float | None) -> float | None:
    """0, 0.0 and -0.0 mean the same and are written the same."""
    return None if value is None else float(value) + 0.0


def _canonical(schema: Any) -> Any:
    """The schema with its properties as lists: their order shapes a constrained reply, no other does."""
    if isinstance(schema, Mapping):
        return {
            key: [[name, _canonical(spec)] for name, spec in value.items()]
            if key == "properties" and isinstance(value, Mapping)
            else _canonical(value)
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return [_canonical(each) for each in schema]
    return schema


def _written(response: LLMResponse) -> str:
    return json.dumps({name: getattr(response, name) for name in _KEPT})


def _read(text: str) -> LLMResponse | None:
    """A kept reply, None if it is none."""
    try:
        response = LLMResponse(**json.loads(text))
        texts = (response.content, response.model, response.backend, response.finish_reason)
        counts = (response.prompt_tokens, response.completion_tokens)
    except (TypeError, ValueError, RecursionError):
        return None
    fine = all(isinstance(each, str) for each in texts) and all(isinstance(each, int) for each in counts)
    return response if fine else None


class _Recent:
    """The replies used last, bounded by the characters of their text."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._replies: OrderedDict[bytes, LLMResponse] = OrderedDict()

    def get(self, key: bytes) -> LLMResponse | None:
        found = self._replies.get(key)
        if found is not None:
            self._replies.move_to_end(key)
        return found

    def put(self, key: bytes, response: LLMResponse) -> None:
        old = self._replies.pop(key, None)
        self._held += len(response.content) - (0 if old is None else len(old.content))
        self._replies[key] = response
        while self._held > self._limit:
            _, gone = self._replies.popitem(last=False)
            self._held -= len(gone.content)

    def clear(self) -> None:
        self._replies.clear()
        self._held = 0
