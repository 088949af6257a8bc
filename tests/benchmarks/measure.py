"""How the benchmarks measure: CPU seconds of this process, several rounds in turn, the median ratio.

Wall time on a shared machine says little; two contenders measured in turn in one run say how they compare.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Work = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Row:
    """One contender: microseconds of CPU per operation, and how many times the first contender's that is."""

    name: str
    micros: float
    ratio: float


async def compare(contenders: dict[str, Work], *, operations: int, rounds: int = 7) -> list[Row]:
    """Run each contender's work `rounds` times in turn; the first one is the floor.

    `ratio` is the median over the rounds of the contender's time divided by the floor's in the same round.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        await work()
    for _ in range(rounds):
        for name, work in contenders.items():
            started = time.process_time()
            await work()
            samples[name].append((time.process_time() - started) / operations * 1e6)
    floor = next(iter(samples.values()))
    return [
        Row(
            name,
            statistics.median(values),
            statistics.median(a / b for a, b in zip(values, floor, strict=True)),
        )
        for name, values in samples.items()
    ]


def show(title: str, rows: list[Row]) -> None:
    """Print one table."""
    print(f"\n{title}")
    print(f"  {'':44}{'CPU us':>10}{'ratio':>9}")
    for row in rows:
        print(f"  {row.name:44}{row.micros:>10.1f}{row.ratio:>8.2f}x")
