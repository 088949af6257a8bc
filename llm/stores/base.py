"""The seam of the reply stores: what the response cache needs from whatever keeps its replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReply:
    """One kept reply.

    Attributes:
        key: SHA-256 of everything that shapes the answer.
        label: what was asked, readable, for lists.
        reply: the reply as JSON text.
    """

    key: bytes
    label: str
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """How full a store is.

    Attributes:
        path: where the replies are kept.
        entries: how many replies are kept.
        bytes: how much room they take.
        limit: most bytes they may take; the oldest go first.
    """

    path: str
    entries: int
    bytes: int
    limit: int


class ResponseStore(Protocol):
    """Keeps replies by key. A store that cannot read or write loses caching and raises nothing."""

    async def open(self) -> None:
        """Get ready to answer `get`; free when it is ready already."""

    def get(self, key: bytes) -> str | None:
        """The reply kept under `key`, at once and on the event loop; None if there is none."""

    def put(self, reply: StoredReply) -> None:
        """Keep `reply`, later and elsewhere: the caller does not wait for a disk."""

    async def stats(self) -> StoreStats:
        """How full the store is, replies under way included."""

    async def clear(self) -> int:
        """Forget every reply; how many there were."""

    async def aclose(self) -> None:
        """Write what is under way and give back files."""
