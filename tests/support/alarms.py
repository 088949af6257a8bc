"""The rules of config/prometheus as Prometheus reads them, and copies of them for tests that cannot wait."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from daemon.observability.catalogue import METRICS

FOLDER = Path(__file__).parents[2] / "config" / "prometheus"
RULES = FOLDER / "askfirst.rules.yml"
CASES = (FOLDER / "askfirst.rules.test.yml", FOLDER / "askfirst.days.test.yml")
RUNBOOKS = "docs/operations.md"
"""Where all runbook links lead: a path in the repository, since the project has no web address."""

FACTOR = 400.0
"""So much faster is time in the copies: what is an hour in the rules is nine seconds."""

OWN = frozenset({"up"})
"""Metrics that Prometheus makes itself."""

TARGET_LABELS = frozenset({"job", "instance", "le"})
"""Labels that scraping adds."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_WORDS = {"and", "or", "unless", "offset", "by", "on", "ignoring", "without", "group_left", "bool"}
_LISTS = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([^()]*)\)")
_MATCHERS = re.compile(r"\{([^{}]*)\}")
_LABELS = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGES = re.compile(r"\[[^\]]*\]")
_NAMES = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\b(?!\s*\()")
_SELECTORS = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)((?:\{[^{}]*\})?)(?!\s*\()")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        name: the alarm's, or that of the figure which is recorded.
        expr: PromQL.
        is_alarm: whether it is an alarm.
        severity: an alarm's.
        annotations: an alarm's texts.
    """

    name: str
    expr: str
    is_alarm: bool
    severity: str
    annotations: Mapping[str, str]

    @property
    def metrics(self) -> set[str]:
        """The metrics that it asks for, a histogram's by its own name."""
        found = set(_NAMES.findall(_RANGES.sub("", _MATCHERS.sub("", _LISTS.sub("", self._without_strings)))))
        return {_family(name) for name in found - _WORDS}

    @property
    def labels(self) -> set[str]:
        """The labels that it selects by or groups by."""
        text = self._without_strings
        matched = {label for found in _MATCHERS.findall(text) for label in _LABELS.findall(found)}
        listed = {part.strip() for found in _LISTS.findall(text) for part in found.split(",")}
        return (matched | listed) - {""}

    @property
    def selectors(self) -> set[str]:
        """What it asks for, with matchers and without ranges: 'up{job="askfirst"}'."""
        text = _RANGES.sub("", _LISTS.sub("", self.expr))
        text = re.sub(r',\s*"[^"]*"', ",", text)  # what label_replace is told
        found = {(name, matchers) for name, matchers in _SELECTORS.findall(text) if name not in _WORDS}
        return {
            name + matchers
            for name, matchers in found
            if _family(name) in METRICS or name in OWN or ":" in name
        }

    @property
    def _without_strings(self) -> str:
        return _STRINGS.sub('""', self.expr)


def _family(name: str) -> str:
    base = re.sub(r"_(?:bucket|count|sum)$", "", name)
    return base if base in METRICS else name


@cache
def rules(path: Path = RULES) -> dict[str, Rule]:
    """All rules by name."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    found = [
        Rule(
            name=rule.get("alert") or rule["record"],
            expr=rule["expr"],
            is_alarm="alert" in rule,
            severity=rule.get("labels", {}).get("severity", ""),
            annotations=rule.get("annotations", {}),
        )
        for group in groups
        for rule in group["rules"]
    ]
    return {rule.name: rule for rule in found}


def alarms() -> dict[str, Rule]:
    """All alarms by name."""
    return {name: rule for name, rule in rules().items() if rule.is_alarm}


@cache
def cases() -> list[dict[str, Any]]:
    """The cases that promtool tries."""
    return [case for path in CASES for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]]


def quickened(path: Path, *, factor: float = FACTOR, keep: Collection[str] = ()) -> str:
    """A copy of the rules in which every duration (`for`, ranges, offsets) is divided by `factor`.

    Thresholds, counts and ratios stay: a test has to cause them.

    Args:
        path: the rules.
        factor: how much faster time is.
        keep: rules that stay as they are, since what they look for cannot be hurried.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        if rule.get("alert") in keep:
            continue
        rule["expr"] = re.sub(
            r"(\[|offset )(\d+)([smhdw])", lambda m: m[1] + _short(int(m[2]), m[3], factor), rule["expr"]
        )
        if found := re.fullmatch(r"(\d+)([smhdw])", rule.get("for", "")):
            rule["for"] = _short(int(found[1]), found[2], factor)
    return str(yaml.safe_dump(document, sort_keys=False, width=1000))


def quickened_receiver(path: Path, url: str, *, factor: float = FACTOR) -> str:
    """A copy of the Alertmanager's configuration, as fast, that tells `url` whatever it has to tell.

    Args:
        path: the configuration.
        url: where every webhook goes.
        factor: how much faster time is.
    """
    text = re.sub(r'url: "http://[^"]*"', f'url: "{url}"', path.read_text(encoding="utf-8"))
    return re.sub(
        r"(?m)(_(?:wait|interval): )(\d+)([smhdw])\b", lambda m: m[1] + _short(int(m[2]), m[3], factor), text
    )


def _short(count: int, unit: str, factor: float) -> str:
    return f"{round(count * _UNITS[unit] * 1000 / factor)}ms"


@cache
def headings(path: Path) -> dict[str, str]:
    """Each section of a document by its anchor."""
    text = path.read_text(encoding="utf-8")
    parts = re.split(r"(?m)^#+ (.+)$", text)[1:]
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-"): body
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }
