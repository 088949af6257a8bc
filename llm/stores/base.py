"""The seam of the reply stores: what the response cache needs from whatever keeps its replies."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReply:
    """One kept reply.

    Attributes:
        key: SHA-256 of everything that shapes the answer.
        label: what was asked, readable, for lists.
        reply: the reply as JSON text.
        created: when it was answered, in seconds since 1970.
    """

    key: bytes
    label: str
    reply: str
    created: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """How full a store is.

    Attributes:
        path: where the replies are kept.
        entries: how many replies are kept.
        bytes: how much room they take.
        limit: most bytes they may take; the oldest go first.
        oldest: when the oldest reply was answered, in seconds since 1970, None without one.
        newest: the same of the newest one.
        evicted: how many replies this store has removed to make room since it was made.
    """

    path: str
    entries: int
    bytes: int
    limit: int
    oldest: float | None = None
    newest: float | None = None
    evicted: int = 0


class ResponseStore(Protocol):
    """Keeps replies by key. A store that cannot read or write loses caching and raises nothing."""

    @property
    def ready(self) -> bool:
        """Whether `get` would look anywhere."""

    @property
    def trouble(self) -> str:
        """Why the store does not work, empty while it does."""

    async def open(self) -> None:
        """Get ready to answer `get`; free when it is ready already."""

    def get(self, key: bytes) -> tuple[str, float] | None:
        """The reply kept under `key` and when it was answered, at once and on the event loop; or None."""

    def put(self, reply: StoredReply) -> None:
        """Keep `reply`, later and elsewhere: the caller does not wait for a disk."""

    def generation(self) -> str | None:
        """Another text since the store was cleared, by whichever program; None while it cannot be read."""

    def recall(self, name: str) -> str | None:
        """What was last remembered under `name`."""

    def remember(self, name: str, value: str) -> None:
        """Keep a short text beside the replies, later and elsewhere; clearing the store keeps it."""

    async def stats(self) -> StoreStats:
        """How full the store is, replies under way included; makes no file for it."""

    def entries(self, limit: int | None = None) -> AsyncGenerator[StoredReply, None]:
        """The kept replies, the newest first."""

    async def clear(self, older_than: float | None = None) -> int:
        """Forget every reply, or those answered more than `older_than` seconds ago; how many there were."""

    async def aclose(self) -> None:
        """Write what is under way and give back files."""
