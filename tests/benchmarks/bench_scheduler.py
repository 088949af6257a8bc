"""How late agents start, what a start costs, and what waiting costs, beside a bare heap and bare APScheduler.

Each contender has a process of its own; they take turns, and the medians over the rounds are compared,
because other programs on the machine disturb all of them alike.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable

import pytest

from tests.benchmarks.schedulers import CONTENDERS
from tests.support.stores import ROOT

pytestmark = pytest.mark.timeout(1800)

ROUNDS = 3
FLOOR = "bare heap"
OURS = "Askfirst"

Figures = dict[str, dict[str, float]]


def one(contender: str, mode: str, agents: int, seconds: float) -> dict[str, float]:
    """What one contender measured in a process of its own."""
    module = "tests.benchmarks.schedulers"
    command = [sys.executable, "-m", module, contender, mode, str(agents), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def medians(mode: str, agents: int, seconds: float, rounds: int = ROUNDS) -> Figures:
    """The medians of all contenders, in turn; `x NAME` are the medians of the ratios to the floor."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, known in samples.items():
            known.append(one(name, mode, agents, seconds))
    found: Figures = {}
    for name, known in samples.items():
        found[name] = {key: statistics.median(each[key] for each in known) for key in known[0]}
        for key in known[0]:
            ratios = [a[key] / max(b[key], 1e-9) for a, b in zip(known, samples[FLOOR], strict=True)]
            found[name][f"x {key}"] = statistics.median(ratios)
    return found


def show(title: str, figures: Figures, columns: Iterable[str]) -> None:
    """Print one table; beside each figure how many times the floor's it is."""
    print(f"\n{title}")
    for name, row in figures.items():
        cells = "".join(f"{key:>12} {row[key]:8.2f} ({row['x ' + key]:5.2f}x)" for key in columns)
        print(f"  {name:14}{cells}")


def test_agents_start_as_punctually_as_a_bare_heap_calls() -> None:
    for agents in (10, 100, 1_000, 10_000):
        figures = medians("rate", agents, 4.0)
        show(f"{agents:,} agents, 50 starts a second", figures, ("p50_ms", "p99_ms", "cpu_us"))
        print(f"  goal: p99 at most 1.3x the heap's; ours {figures[OURS]['x p99_ms']:.2f}x")
        assert figures[OURS]["x cpu_us"] < 4


def test_a_thousand_that_are_due_at_once_do_not_stop_the_loop() -> None:
    figures = medians("herd", 1_000, 5.0)
    show("1,000 agents due at the same moment", figures, ("stall_ms", "last_ms"))
    print(f"  goal: the loop stands still for at most 10 ms; ours {figures[OURS]['stall_ms']:.1f} ms")
    assert figures[OURS]["stall_ms"] < figures["APScheduler"]["stall_ms"]


def test_waiting_costs_nothing() -> None:
    figures = medians("idle", 1_000, 30.0, rounds=1)
    show("1,000 agents of which none is due", figures, ("cpu_percent", "wake_ups"))
    print(f"  goal: at most 0.2 wake-ups a second; ours {figures[OURS]['wake_ups']:.2f}")
    assert figures[OURS]["wake_ups"] <= 0.2
