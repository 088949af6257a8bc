"""What calls used over time: sums and percentiles of stretches, beside the same in plain Python."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from llm.stores.ledger import UsageLedger
from llm.stores.usage_tables import CallRecord
from llm.usage import Series, Slice, read_series

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
EDGES = tuple(START + timedelta(hours=hour) for hour in (0, 1, 2, 4))


def slice_of(calls: Sequence[CallRecord]) -> Slice:
    """The same sums, by hand."""
    answered = sorted(call.seconds for call in calls if not call.error and call.operation == "chat")

    def within(share: float) -> float | None:
        return answered[math.ceil(share * len(answered)) - 1] if answered else None

    return Slice(
        calls=len(calls),
        failed=sum(bool(call.error) for call in calls),
        tokens_in=sum(call.tokens_in for call in calls),
        tokens_out=sum(call.tokens_out for call in calls),
        cost=sum(call.cost or 0 for call in calls),
        unpriced=sum(call.cost is None for call in calls),
        median=within(0.5),
        slow=within(0.95),
    )


def calls_of(count: int) -> list[CallRecord]:
    chance = random.Random(count)
    return [
        CallRecord(
            at=int((START + timedelta(minutes=chance.uniform(-30, 270))).timestamp() * 1000),
            backend=chance.choice(["ollama", "large"]),
            model=chance.choice(["a\0b", "small", "ü"]),
            operation=chance.choice(["chat", "chat", "embed"]),
            tokens_in=chance.randint(0, 500),
            tokens_out=chance.randint(0, 90),
            seconds=chance.lognormvariate(0, 1),
            cost=chance.choice([None, 0, 1200]),
            error=chance.choice(["", "", "", "timeout"]),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 400])
async def test_sums_and_percentiles_are_those_of_the_calls(tmp_path: Path, count: int) -> None:
    calls = calls_of(count)
    ledger = UsageLedger(tmp_path / "usage.sqlite3", gather=0.0)
    for call in calls:
        ledger.add(call)
    await ledger.aclose()
    series = await asyncio.to_thread(read_series, tmp_path / "usage.sqlite3", EDGES)
    moments = [int(edge.timestamp() * 1000) for edge in EDGES]
    inside = [call for call in calls if moments[0] <= call.at < moments[-1]]
    expected = [
        slice_of([call for call in calls if since <= call.at < until]) for since, until in pairwise(moments)
    ]
    assert list(series.slices) == expected
    assert series.whole == slice_of(inside)
    pairs = {(call.backend, call.model) for call in inside}
    assert series.models == {
        pair: slice_of([call for call in inside if (call.backend, call.model) == pair]) for pair in pairs
    }
    tokens = [used.tokens_in + used.tokens_out for used in series.models.values()]
    assert tokens == sorted(tokens, reverse=True)


def test_without_a_ledger_nothing_was_used(tmp_path: Path) -> None:
    empty = Series(slices=(Slice(), Slice(), Slice()), models={}, whole=Slice())
    assert read_series(tmp_path / "usage.sqlite3", EDGES) == empty


def test_a_file_that_is_no_ledger_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "usage.sqlite3").write_bytes(b"garbage" * 1000)
    with pytest.raises(OSError, match=r"usage\.sqlite3 cannot be read"):
        read_series(tmp_path / "usage.sqlite3", EDGES)
