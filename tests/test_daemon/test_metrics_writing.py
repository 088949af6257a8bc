"""The text of a scrape is what prometheus_client would write, to the byte."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from daemon.observability.metrics.writing import as_openmetrics, as_text

TEXTS = st.text('ab"\\\n{}=, #\u00e9\U0001f600', max_size=8)
NUMBERS = st.floats() | st.integers(-(2**60), 2**60).map(float)


@pytest.fixture(autouse=True, scope="module")
def without_times_of_creation() -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]


def assert_the_same(registry: CollectorRegistry) -> None:
    assert as_text(registry.collect()) == generate_latest(registry)
    assert as_openmetrics(registry.collect()) == openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]


@given(
    st.lists(st.tuples(TEXTS, TEXTS, NUMBERS), max_size=5),
    st.lists(st.tuples(TEXTS, TEXTS), max_size=3),
    TEXTS,
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_names_values_and_exemplars_there_are(
    gauges: list[tuple[str, str, float]], counts: list[tuple[str, str]], told: str
) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("a_gauge", told, ["zebra", "ant"], registry=registry)
    for zebra, ant, value in gauges:
        gauge.labels(zebra, ant).set(value)
    counter = Counter("a_counter", told, ["model"], registry=registry)
    histogram = Histogram("a_histogram", "h", ["model"], buckets=(0.5, 2.0), registry=registry)
    for model, run in counts:
        counter.labels(model).inc(1, {"run_id": run, "call_id": "c"})
        histogram.labels(model).observe(len(run), {"run_id": run})
    assert_the_same(registry)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6, 1.5e9, 1e21, -2.5, float("inf"), float("nan")])
def test_a_metric_without_labels(value: float) -> None:
    registry = CollectorRegistry()
    Gauge("a_gauge", "g", registry=registry).set(value)
    Counter("a_counter", "c", registry=registry)
    Histogram("a_histogram", "h", registry=registry).observe(3.0)
    assert_the_same(registry)
