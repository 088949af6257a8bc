"""Embeddings: vectors out of a reply, one for each text, all of one size and of length 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llm.errors import BadReply
from llm.types import EmbedRequest
from llm.wire.common import as_list, as_object, count

BATCH = 32
"""Texts of one request: their vectors, written as JSON, stay within the byte cap of a reply."""

Vectors = tuple[tuple[float, ...], ...]


def batches(request: EmbedRequest) -> Iterator[EmbedRequest]:
    """The request in parts of at most `BATCH` texts, in their order."""
    for start in range(0, len(request.texts), BATCH):
        yield replace(request, texts=request.texts[start : start + BATCH])


def unit_vectors(rows: Sequence[Any], texts: int) -> Vectors:
    """The rows as vectors of length 1; some servers normalise them, some do not.

    Raises:
        BadReply: not as many as texts, not of one size, or with something else than numbers in them.
    """
    if len(rows) != texts:
        msg = f"the reply has {len(rows)} vectors for {texts} texts"
        raise BadReply(msg)
    vectors = tuple(_unit(as_list(row, "embedding")) for row in rows)
    check_sizes(vectors)
    return vectors


def check_sizes(vectors: Vectors) -> None:
    """All vectors of one call are of one size.

    Raises:
        BadReply: they are not.
    """
    if len({len(vector) for vector in vectors}) > 1:
        msg = "the vectors of one call are not of one size"
        raise BadReply(msg)


def _unit(row: list[Any]) -> tuple[float, ...]:
    if not all(type(number) is float or type(number) is int for number in row):
        msg = "the reply's vectors hold something else than numbers"
        raise BadReply(msg)
    length = math.hypot(*row)
    if not length or not math.isfinite(length):
        msg = "the reply has a vector without a direction"
        raise BadReply(msg)
    return tuple(number / length for number in row)


def openai_body(request: EmbedRequest) -> dict[str, Any]:
    """The body of POST {base}/embeddings."""
    return {"model": request.model, "input": list(request.texts)}


def read_openai(payload: Any, request: EmbedRequest) -> tuple[Vectors, int]:
    """The vectors of a reply of /v1/embeddings in the order of the texts, and the tokens of these.

    Raises:
        BadReply: the reply has another shape, or not one vector for each text.
    """
    reply = as_object(payload, "body")
    entries = [as_object(entry, "data[]") for entry in as_list(reply.get("data"), "data")]
    usage = as_object(reply.get("usage") or {}, "usage")
    rows = [entry.get("embedding") for entry in _in_order(entries)]
    return unit_vectors(rows, len(request.texts)), count(usage, "prompt_tokens")


def _in_order(entries: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By their `index`, which some servers leave out; what it says must make sense."""
    places = [entry.get("index") for entry in entries]
    if all(place is None for place in places):
        return entries
    numbers = [place for place in places if type(place) is int]
    if sorted(numbers) != list(range(len(entries))):
        msg = "the reply's vectors are not numbered as the texts are"
        raise BadReply(msg)
    return [entry for _, entry in sorted(zip(numbers, entries, strict=True), key=lambda pair: pair[0])]
