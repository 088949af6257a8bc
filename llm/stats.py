"""Running totals of one client: an observer like any other."""

from __future__ import annotations

from typing import Any

from llm.events import (
    CacheHit,
    CacheMiss,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    Coalesced,
    Retried,
)


class Stats:
    """Counts what happened since the client was made."""

    def __init__(self) -> None:
        self.calls = self.errors = self.retries = 0
        self.cache_hits = self.cache_misses = self.coalesced = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.seconds = 0.0

    def __call__(self, event: CallEvent) -> None:
        """Count one event."""
        match event:
            case CallStarted():
                self.calls += 1
            case CallFinished():
                self.prompt_tokens += event.prompt_tokens
                self.completion_tokens += event.completion_tokens
                self.seconds += event.latency
            case CallFailed():
                self.errors += 1
            case CacheHit():
                self.cache_hits += 1
            case CacheMiss():
                self.cache_misses += 1
            case Coalesced():
                self.coalesced += 1
            case Retried():
                self.retries += 1

    def totals(self) -> dict[str, Any]:
        """All of them by name, and the tokens together."""
        return {**vars(self), "tokens_used": self.prompt_tokens + self.completion_tokens}
