"""Queries in PromQL, made from the catalogue: a metric or a label that is not in it raises.

An expression knows the labels of its series, so that grouping by a label that is not there, dividing series
that cannot match, the rate of a gauge and a legend that would stay empty are found here and not by a person
in front of an empty panel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from daemon.observability.catalogue import METRICS, Metric

Part = Literal["", "bucket", "sum", "count"]

WINDOW = "$__rate_interval"
"""Grafana's window for rates: at least four scrapes, and all of the time that one point stands for."""

RANGE = "$__range"
"""All the time that the dashboard shows."""

TARGET = ("job", "instance")
"""What Prometheus adds to each series: which target it was scraped from."""

SCOPE = 'job="$job",instance="$instance"'
"""One daemon: the one that the variables choose."""

ALERTNAMES = "Askfirst.+"
"""The names of our alerts begin so."""


class NoSuchSeries(LookupError):
    """A query asks for a metric or a label that is not in daemon/observability/catalogue.py."""


@dataclass(frozen=True, slots=True)
class Expr:
    """An expression: its text, the labels that its series have, and what they are.

    Attributes:
        text: PromQL, with Grafana's variables in it.
        labels: of the series, beside those of the target.
        counts: whether they only ever grow, so that a rate makes sense.
        operator: whether the text needs parentheses beside another operator.
    """

    text: str
    labels: frozenset[str] = frozenset()
    counts: bool = False
    operator: bool = False

    def __truediv__(self, other: Expr | float) -> Expr:
        return self._with("/", other)

    def __mul__(self, other: Expr | float) -> Expr:
        return self._with("*", other)

    def __add__(self, other: Expr | float) -> Expr:
        return self._with("+", other)

    def or_zero(self) -> Expr:
        """0 where there is nothing, as long as the daemon is reached: of one that is down nothing is known.

        Raises:
            ValueError: there may be several series; 0 would stand beside them.
        """
        if self.labels:
            raise ValueError(f"0 would stand beside the series of each {sorted(self.labels)}: {self.text}")
        return Expr(f"{self.operand} or max({up().text} > 0) * 0", operator=True)

    def or_else(self, other: Expr) -> Expr:
        """The series of `other` where there are none with the same labels."""
        self._match(other)
        return Expr(f"{self.operand} or {other.operand}", self.labels, operator=True)

    def above(self, limit: float, *, as_bool: bool = False) -> Expr:
        """The series above `limit`; as a yes or no, all of them as 1 or 0."""
        word = "bool " if as_bool else ""
        return Expr(f"{self.operand} > {word}{limit:g}", self.labels, operator=True)

    @property
    def operand(self) -> str:
        """The text as it stands beside an operator."""
        return f"({self.text})" if self.operator else self.text

    def _match(self, other: Expr) -> None:
        if self.labels != other.labels:
            raise ValueError(
                f"these never match: {self.text} has {sorted(self.labels)}, "
                f"{other.text} has {sorted(other.labels)}"
            )

    def _with(self, sign: str, other: Expr | float) -> Expr:
        if isinstance(other, Expr):
            self._match(other)
        right = other.operand if isinstance(other, Expr) else f"{other:g}"
        return Expr(f"{self.operand} {sign} {right}", self.labels, operator=True)


class Source:
    """Where a dashboard's series come from: the daemon of its variables, narrowed by its other variables.

    Args:
        narrowed: the variables by which series are chosen, each with the labels that it is about.
    """

    def __init__(self, narrowed: Mapping[str, tuple[str, ...]] = MappingProxyType({})) -> None:
        self._variables = {label: name for name, labels in narrowed.items() for label in labels}

    def __call__(self, name: str, part: Part = "", **matchers: str) -> Expr:
        """The series of a metric.

        Args:
            name: as the catalogue has it.
            part: of a histogram: its buckets, sum or count.
            matchers: labels and the regular expressions that their values match.

        Raises:
            NoSuchSeries: the catalogue has no such metric, or the metric no such label or part.
        """
        metric = METRICS.get(name)
        if metric is None:
            raise NoSuchSeries(f"the catalogue has no metric {name}; see askfirst metrics list")
        if (metric.kind == "histogram") is not bool(part):
            raise NoSuchSeries(f"{name} is a {metric.kind}: it has no part {part!r}")
        labels = labels_of(metric)
        unknown = matchers.keys() - labels
        if unknown:
            raise NoSuchSeries(f"{name} has no label {', '.join(sorted(unknown))}, only {sorted(labels)}")
        chosen = {label: f"${self._variables[label]}" for label in labels & self._variables.keys()}
        terms = [f'{label}=~"{value}"' for label, value in sorted({**chosen, **matchers}.items())]
        text = f"{name}{f'_{part}' if part else ''}{{{','.join((SCOPE, *terms))}}}"
        if part == "bucket":
            labels |= {"le"}
        return Expr(text, labels, counts=metric.kind != "gauge")


def labels_of(metric: Metric) -> frozenset[str]:
    """The labels of the metric's series as Prometheus keeps them.

    Raises:
        ValueError: one is the target's too; Prometheus would rename ours.
    """
    if taken := set(metric.labels) & set(TARGET):
        msg = f"{metric.name} has a label of the target's: {', '.join(sorted(taken))}"
        raise ValueError(msg)
    return frozenset(metric.labels)


def up() -> Expr:
    """Whether Prometheus reaches the daemon; Prometheus makes this series itself."""
    return Expr(f"up{{{SCOPE}}}")


def alerts(**matchers: str) -> Expr:
    """Our alerts that are pending or fire, of any instance; Prometheus makes these series itself."""
    terms = [f'{label}=~"{value}"' for label, value in {"alertname": ALERTNAMES, **matchers}.items()]
    return Expr(f"ALERTS{{{','.join(terms)}}}", frozenset({"alertname", "alertstate", "severity"}))


def number_of_alerts(**matchers: str) -> Expr:
    """How many of our alerts there are: 0 if there is none, the daemon being up or not."""
    return Expr(f"{number(alerts(**matchers)).text} or vector(0)", operator=True)


def rate(expr: Expr, window: str = WINDOW) -> Expr:
    """Growth for each second."""
    return _growth("rate", expr, window)


def increase(expr: Expr, window: str = WINDOW) -> Expr:
    """Growth within the window."""
    return _growth("increase", expr, window)


def _growth(function: str, expr: Expr, window: str) -> Expr:
    if not expr.counts:
        raise ValueError(f"{function}() is for what only grows, not for {expr.text}")
    return Expr(f"{function}({expr.text}[{window}])", expr.labels)


def whole(expr: Expr) -> Expr:
    """Rounded: Prometheus reckons what a window missed at its ends, so that one event is 1.03 of them."""
    return Expr(f"round({expr.text})", expr.labels)


def total(expr: Expr, *by: str) -> Expr:
    """The sum over all other labels."""
    return _over("sum", expr, by)


def largest(expr: Expr, *by: str) -> Expr:
    """The largest over all other labels: for what cannot be added, and to drop the target's labels."""
    return _over("max", expr, by)


def number(expr: Expr, *by: str) -> Expr:
    """How many series there are."""
    return _over("count", expr, by)


def _over(function: str, expr: Expr, by: tuple[str, ...]) -> Expr:
    unknown = set(by) - expr.labels
    if unknown:
        raise NoSuchSeries(f"{expr.text} has no label {', '.join(sorted(unknown))}")
    grouping = f" by ({', '.join(by)})" if by else ""
    return Expr(f"{function}{grouping} ({expr.text})", frozenset(by))


def quantile(share: float, buckets: Expr, *by: str, window: str = WINDOW) -> Expr:
    """The value below which `share` of what a histogram saw in the window lies.

    Args:
        share: above 0, below 1.
        buckets: of a histogram.
        by: which labels stay apart.
        window: over which time.
    """
    summed = total(rate(buckets, window), *by, "le")
    # Where nothing was seen it is "not a number", which a panel would show as it is; no number is at least 0.
    return Expr(f"histogram_quantile({share:g}, {summed.text}) >= 0", frozenset(by), operator=True)


def ratio(part: Expr, whole: Expr) -> Expr:
    """A share; nothing, and not "not a number", where the whole is 0."""
    return part / whole.above(0)


def names_in(text: str) -> set[str]:
    """The names in a template such as "{{agent}} {{outcome}}"."""
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text))
