"""Metrics: model calls, runs and proposals as Prometheus text. The only package that knows prometheus_client.

Everything hangs on one `Metrics` object, so several may live in one process. Label values come from closed
sets only, and `Room` gives out the places for series: no input, and no proposal text, can grow their number.
"""

from __future__ import annotations

from daemon.observability.catalogue import OTHER
from daemon.observability.metrics.families import Exemplar, Reading
from daemon.observability.metrics.registry import MAX_SERIES, Metrics, ProposalCounts
from daemon.observability.metrics.room import FEWEST_SERIES, Labels

__all__ = [
    "FEWEST_SERIES",
    "MAX_SERIES",
    "OTHER",
    "Exemplar",
    "Labels",
    "Metrics",
    "ProposalCounts",
    "Reading",
]
