"""What tells apart two models of one name: asked of the backend, and never in the way of a call.

`ollama pull` may bring other weights under the same name. Replies of the old ones are then not found any
more, because the fingerprint is part of their key.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

from llm.errors import LLMError
from llm.stores.base import ResponseStore

Ask = Callable[[str], Awaitable[str]]

REFRESH = 60.0
"""Seconds for which an answer is good enough."""

PATIENCE = 2.0
"""Seconds to wait for an answer; without one, the last known one counts, also that of an earlier process."""


class Fingerprints:
    """The fingerprint of each model that one client asks for.

    Args:
        store: where the last known ones outlive the process.
        place: names the server; its hash does so in the store, because an address may hold a password.
        clock: seconds, as `time.monotonic` counts them.
    """

    def __init__(
        self, store: ResponseStore, *, place: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._place = place
        self._clock = clock
        self._ask: Ask | None = None
        self._known: dict[str, str] = {}
        self._asked: dict[str, float] = {}
        self._asking = asyncio.Lock()

    def ask_for(self, ask: Ask) -> None:
        """Use `ask` from now on, which gives a model's fingerprint or an empty text."""
        self._ask = ask

    def known(self, model: str) -> str | None:
        """The model's fingerprint, None while nobody has been asked."""
        return "" if self._ask is None else self._known.get(model)

    async def refresh(self, model: str) -> bool:
        """Ask anew unless that was done a short while ago; whether the answer is another one than before."""
        if self._ask is None:
            return False
        before = self._known.get(model)
        async with self._asking:  # identical calls at once are one question
            asked = self._asked.get(model)
            if asked is None or self._clock() - asked >= REFRESH:
                self._asked[model] = self._clock()
                self._known[model] = await self._answer(self._ask, model)
        return before is not None and before != self._known[model]

    async def _answer(self, ask: Ask, model: str) -> str:
        name = hashlib.sha256(f"{self._place}\n{model}".encode(errors="replace")).hexdigest()
        try:
            async with asyncio.timeout(PATIENCE):
                found = await ask(model)
        except (LLMError, TimeoutError):
            found = ""
        last = self._known.get(model) or self._store.recall(name) or ""
        if found and found != last:
            self._store.remember(name, found)
        return found or last
