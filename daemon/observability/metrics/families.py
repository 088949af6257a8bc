"""The values of all metrics, and how they become the families that prometheus_client writes as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from daemon.observability.catalogue import METRICS, Metric
from daemon.observability.metrics.room import Kind, Labels, Room, presentable

Exemplar = Mapping[str, str]
"""Labels of an exemplar, such as `run_id`, the most important one first."""

Reading = Mapping[str, float | Mapping[Labels, float]]
"""Values by the name of their metric: one, or one for each set of label values (in the catalogue's order)."""

EXEMPLAR_CHARACTERS = 128
"""OpenMetrics allows no more in the names and values of an exemplar's labels together."""

Values = dict[str, dict[Labels, float]]
"""Values by metric and label values, as they were given: `Room` has not looked at them."""


class Families:
    """Counts and observes what happens, and keeps values that were set; all of it within `room`."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._counted: dict[str, Counter | Histogram] = {}
        self._places: dict[str, set[Labels]] = {}
        self._set: Values = {}

    def expect(self, kind: Kind, units: Iterable[Labels]) -> tuple[Labels, ...]:
        """Show these by name as far as there is room; the counters of those that are shown begin at 0.

        What was known of others is forgotten. Returns those that are not shown by name.
        """
        hidden = self.room.expect(kind, units)
        for name in self.room.about(kind):
            self._forget_what_has_no_place(name)
            if METRICS[name].kind == "counter":
                for labels in self.room.from_zero(name):
                    self.count(name, labels, 0.0)
        return hidden

    def _forget_what_has_no_place(self, name: str) -> None:
        for labels in [each for each in self._places.get(name, ()) if not self.room.has(name, each)]:
            self._places[name].discard(labels)
            self._counted[name].remove(*labels)
        known = self._set.get(name, {})
        self._set[name] = {key: value for key, value in known.items() if self.room.is_expected(name, key)}

    def count(
        self, name: str, labels: Labels = (), amount: float = 1.0, exemplar: Exemplar | None = None
    ) -> None:
        """Add to a counter; by 0 it begins, so that its first step is seen. See `Metrics.count`."""
        place = self._place(name, "counter", labels, amount)
        if place is not None:
            counter = self._child(name, place)
            assert isinstance(counter, Counter)  # noqa: S101 - by the metric's kind
            counter.inc(amount, fitting(exemplar))

    def observe(self, name: str, labels: Labels, value: float, exemplar: Exemplar | None = None) -> None:
        """Put a value into a histogram. See `Metrics.observe`."""
        place = self._place(name, "histogram", labels, value)
        if place is not None:
            histogram = self._child(name, place)
            assert isinstance(histogram, Histogram)  # noqa: S101 - by the metric's kind
            histogram.observe(value, fitting(exemplar))

    def set(self, name: str, labels: Labels, value: float) -> None:
        """Give a gauge a value. See `Metrics.set`."""
        _check_kind(name, "gauge")
        if self.room.is_expected(name, labels):  # what comes from outside is not kept
            others = {} if self.room.is_single(name) else self._set.get(name, {})
            self._set[name] = {**others, labels: value}

    def _place(self, name: str, kind: str, labels: Labels, value: float) -> Labels | None:
        _check_kind(name, kind)
        return self.room.place(name, labels) if math.isfinite(value) else None

    def _child(self, name: str, labels: Labels) -> Counter | Histogram:
        family = self._counted.get(name)
        if family is None:
            family = self._counted[name] = _made(METRICS[name])
        self._places.setdefault(name, set()).add(labels)
        return family.labels(*labels) if labels else family

    def snapshot(self, readings: Iterable[Reading], last: Callable[[], Reading]) -> Snapshot:
        """All values as they are now, for `Snapshot.collect` in another thread.

        Args:
            readings: values that were read elsewhere; of the same value the last one counts.
            last: read by `collect`, in its thread.
        """
        values = {name: dict(each) for name, each in self._set.items()}
        for reading in readings:
            _merge(values, reading)
        return Snapshot(self.room, dict(self._counted), values, last)


@dataclass(frozen=True, slots=True)
class Snapshot(Collector):
    """What one scrape shows: counters and histograms as they are, and the values that were read for it."""

    room: Room
    counted: Mapping[str, Counter | Histogram]
    values: Values
    last: Callable[[], Reading]

    def collect(self) -> Iterator[Family]:
        """All families in the catalogue's order, never of more series than there is room for."""
        _merge(self.values, self.last())
        counted = {name: family for name, each in self.counted.items() for family in each.collect()}
        room = self.room.limit - sum(len(family.samples) for family in counted.values())
        shown = _shown(self.room, self.values, room)
        for name, metric in METRICS.items():
            if name in shown:
                yield _family(metric, shown[name])
            elif name in counted:
                yield counted[name]


def fitting(exemplar: Exemplar | None) -> dict[str, str] | None:
    """As much of an exemplar as OpenMetrics allows, None if that is nothing."""
    kept: dict[str, str] = {}
    left = EXEMPLAR_CHARACTERS
    for name, value in (exemplar or {}).items():
        shown = presentable(value)
        left -= len(name) + len(shown)
        if shown and left >= 0:
            kept[name] = shown
    return kept or None


def _check_kind(name: str, kind: str) -> None:
    metric = METRICS.get(name)
    if metric is None or metric.kind != kind:
        msg = f"{name!r} is no {kind} of the catalogue of metrics: see askfirst metrics list"
        raise ValueError(msg)


def _made(metric: Metric) -> Counter | Histogram:
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, metric.labels, registry=None)
    return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=None)


def _merge(values: Values, reading: Reading) -> None:
    for name, given in reading.items():
        values.setdefault(name, {}).update(given if isinstance(given, Mapping) else {(): given})


def _shown(room: Room, values: Values, series: int) -> Values:
    """The values by what is shown of their labels, at most `series` of them in all."""
    found = [
        (name, *places, value)
        for name, each in values.items()
        for labels, value in sorted(each.items())
        if math.isfinite(value) and (places := room.lookup(name, labels)) is not None
    ]
    sure = {(name, place) for name, _, place, _ in found}
    extra: dict[tuple[str, Labels], None] = {}
    for name, best, place, _ in found:
        if best != place and len(sure) + len(extra) < series:
            extra[name, best] = None
    shown: Values = {}
    for name, best, place, value in found:
        target = best if (name, best) in extra else place
        known = shown.setdefault(name, {})
        if target in known:
            known[target] = _together(METRICS[name], known[target], value)
        elif series > 0:
            known[target], series = value, series - 1
    return shown


def _together(metric: Metric, one: float, another: float) -> float:
    if metric.together == "largest":
        return max(one, another)
    return min(one, another) if metric.together == "smallest" else one + another


def _family(metric: Metric, values: Mapping[Labels, float]) -> Family:
    if metric.kind == "histogram":
        msg = f"{metric.name} is a histogram, which cannot be read: observe it"
        raise ValueError(msg)
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
