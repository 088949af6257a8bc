"""A Prometheus that holds hours of every metric of the catalogue, as a busy daemon would have given them."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from daemon.observability.catalogue import METRICS, Metric
from tests.support.monitoring import JOB, Prometheus, prometheus
from tests.support.prometheus import tool

STEP = 60
"""Seconds from one sample to the next."""

TARGET = {"job": JOB, "instance": "127.0.0.1:8484"}

VALUES = {
    "agent": ("matchmaker", "perishables", "digest"),
    "outcome": ("succeeded", "failed", "timed_out"),
    "status": ("pending", "snoozed", "applied", "rejected", "undone", "expired", "needs_attention"),
    "action": ("approve", "edit", "reject", "snooze", "undo"),
    "backend": ("ollama", "remote"),
    "model": ("qwen2.5:1.5b", "gpt-4o-mini"),
    "code": ("timeout", "connection"),
    "budget": ("100000 tokens/day", "2 usd/month"),
    "queue": ("runs", "log"),
    "task": ("backup", "retention"),
    "version": ("1.0.0",),
    "python": ("3.11.2",),
    "gen_ai_provider_name": ("ollama", "remote"),
    "gen_ai_request_model": ("qwen2.5:1.5b", "gpt-4o-mini"),
    "gen_ai_operation_name": ("chat", "embeddings"),
    "gen_ai_token_type": ("input", "output"),
}
"""Some values of each label, as Prometheus keeps it; a backend has one model."""

TOGETHER = (("backend", "model"), ("gen_ai_provider_name", "gen_ai_request_model"))

FLAGS = ("_open", "_quarantined", "_full", "_failing")
"""Names of what is 0 or 1 end so."""

SIZES = {
    "askfirst_disk_size_bytes": 32e9,
    "askfirst_disk_free_bytes": 19e9,
    "process_resident_memory_bytes": 58e6,
    "askfirst_database_size_bytes": 4e6,
    "askfirst_llm_cache_size_bytes": 9e6,
    "askfirst_loop_lag_seconds": 0.02,
    "askfirst_agent_last_run_duration_seconds": 14.0,
    "askfirst_proposal_oldest_pending_age_seconds": 30000.0,
    "askfirst_agent_intervals_since_success": 1.2,
}
"""About how large a gauge is, where that is not a handful."""


def open_metrics(start: int, end: int) -> str:
    """Every metric with a sample each minute, in the text that promtool takes."""
    lines: list[str] = []
    for metric in METRICS.values():
        family = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        lines.append(f"# TYPE {family} {metric.kind}")
        for number, labels in enumerate(_label_sets(metric)):
            for moment in range(start, end + 1, STEP):
                lines += [
                    f"{name}{_written(labels | more)} {value:.12g} {moment}"
                    for name, more, value in _samples(metric, number, moment, start)
                ]
    for name, labels in (
        ("up", {}),
        ("ALERTS", {"alertname": "AskfirstDown", "alertstate": "firing", "severity": "critical"}),
        ("ALERTS", {"alertname": "AskfirstDiskLow", "alertstate": "pending", "severity": "warning"}),
    ):
        lines += [f"{name}{_written(labels)} 1 {moment}" for moment in range(start, end + 1, STEP)]
    return "\n".join([*lines, "# EOF", ""])


def _label_sets(metric: Metric) -> Iterator[dict[str, str]]:
    labels = list(metric.labels)
    for values in product(*(VALUES[label] for label in labels)):
        made = dict(zip(labels, values, strict=True))
        pairs = (
            (VALUES[a].index(made[a]), VALUES[b].index(made[b])) for a, b in TOGETHER if {a, b} <= made.keys()
        )
        if all(a == b for a, b in pairs):
            yield made


def _samples(
    metric: Metric, number: int, moment: int, start: int
) -> Iterator[tuple[str, dict[str, str], float]]:
    """The series of one set of label values at one moment; what is counted grows in steps, as work does."""
    minutes = (moment - start) // STEP
    grown = float(minutes // (3 + number % 5) + 1)
    if metric.kind == "counter":
        yield metric.name, {}, grown
    elif metric.kind == "gauge":
        yield metric.name, {}, _gauge(metric.name, number, minutes, moment, start)
    else:
        bounds = (*metric.buckets, math.inf)
        for place, bound in enumerate(bounds, start=1):
            share = (place / len(bounds)) ** 0.5  # the same at all times: a bucket only ever grows
            counted = grown if bound == math.inf else math.floor(grown * share)
            yield f"{metric.name}_bucket", {"le": "+Inf" if bound == math.inf else f"{bound}"}, counted
        yield f"{metric.name}_sum", {}, grown * metric.buckets[len(metric.buckets) // 2]
        yield f"{metric.name}_count", {}, grown


def _gauge(name: str, number: int, minutes: int, moment: int, start: int) -> float:
    if name.endswith("_timestamp_seconds"):
        return moment + (600 if "next" in name else -900)
    if name == "process_start_time_seconds":
        return start
    if name.endswith("_info"):
        return 1
    wave = math.sin(minutes / 40 + number)
    if name.endswith(FLAGS):
        return float(wave > 0.95)
    return SIZES.get(name, 4.0) * (1 + 0.4 * wave)


def _written(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in {**TARGET, **labels}.items()) + "}"


@contextmanager
def filled_prometheus(folder: Path, *, hours: float) -> Iterator[Prometheus]:
    """A real Prometheus that holds so many hours of everything, up to now.

    Args:
        folder: an empty folder.
        hours: how many.
    """
    now = int(time.time())
    text = folder / "metrics.txt"
    text.write_text(open_metrics(now - int(hours * 3600), now), encoding="utf-8")
    command = [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", "--quiet"]
    done = subprocess.run(
        [*command, str(text), str(folder / "data")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with prometheus(folder) as filled:
        yield filled
