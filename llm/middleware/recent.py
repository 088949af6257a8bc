"""The memory before the store: the replies used last, found by what was asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from sys import getsizeof

from llm.types import LLMRequest, LLMResponse

RECENT_BYTES = 1_000_000
"""Memory that they take at most."""


class Entry:
    """One reply in memory."""

    __slots__ = ("created", "kept", "key", "response", "shape", "size")

    def __init__(
        self, *, key: bytes, shape: Hashable | None, response: LLMResponse, created: float, size: int
    ) -> None:
        self.key, self.shape, self.response = key, shape, response
        self.created, self.size = created, size
        self.kept = (
            0.0  # when the backend answered, on the clock of latencies; 0 when it was read from the store
        )


class Recent:
    """The replies used last, bounded by the memory that they take."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._by_shape: dict[Hashable, Entry] = {}

    def find(self, shape: Hashable) -> Entry | None:
        """The reply to what has this shape."""
        found = self._by_shape.get(shape)
        if found is not None:
            self._entries.move_to_end(found.key)
        return found

    def by_key(self, key: bytes) -> Entry | None:
        """The reply to what has this key."""
        return self._entries.get(key)

    def put(self, entry: Entry) -> None:
        """Hold `entry`; those that were not used for longest make room for it."""
        self._drop(self._entries.pop(entry.key, None))
        if entry.size > self._limit // 2:
            return
        self._entries[entry.key] = entry
        self.held += entry.size
        if entry.shape is not None:
            self._by_shape[entry.shape] = entry
        while self.held > self._limit:
            self._drop(self._entries.popitem(last=False)[1])

    def clear(self) -> None:
        """Hold nothing."""
        self._entries.clear()
        self._by_shape.clear()
        self.held = 0

    def _drop(self, entry: Entry | None) -> None:
        if entry is None:
            return
        self.held -= entry.size
        if self._by_shape.get(entry.shape) is entry:
            del self._by_shape[entry.shape]


_FRAME = 1500  # bytes that an entry takes beside its texts: measured with tracemalloc, and rounded up


def size_of(request: LLMRequest, reply: str) -> int:
    """Bytes that a reply takes in memory, with the question that it is found by."""
    return _FRAME + getsizeof(reply) + sum(getsizeof(message.content) for message in request.messages)
