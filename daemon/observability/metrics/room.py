"""The room for series: which label values have a name of their own, so that there are never too many.

Every set of label values needs a place, and a place costs as many series as its metric makes of it. There is
room for a given number. What must always be there is paid first: every metric without names, and one place
for all names that are not shown (`other`). What is left is given to agents, models and budgets as they are
expected, each as a whole or not at all, and what is left then to what seldom happens. Histograms are large:
of the models only the first one gets its own beforehand, the others with their first call, if there is room.

Pure: no I/O, and nothing of prometheus_client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType

from daemon.observability.catalogue import METRICS, NAMES, OTHER, VALUES, Metric

Labels = tuple[str, ...]
"""The values of a metric's labels, in the catalogue's order."""

Kind = tuple[str, ...]
"""What a metric tells about: ("agent",), ("backend", "model"), ... or nothing in particular."""

HISTOGRAM = "histogram"
"""Behind the names of a kind: its histograms, which are admitted apart from the rest."""

AGENT: Kind = ("agent",)

FAIR = 3
"""Of the free room each kind but agents takes this part at most, if it has more than one name."""

FEWEST_SERIES = 120
"""With less there would be no room for anything with a name of its own."""

MOST_CHARACTERS = 120
"""A label value is cut here."""

EXPECTED: Mapping[str, Labels] = MappingProxyType(
    {
        "outcome": ("succeeded", "failed", OTHER),
        "status": ("pending", OTHER),
        "code": (OTHER,),
        "gen_ai_operation_name": ("chat",),
        "gen_ai_token_type": ("input", "output"),
    }
)
"""For which values of a label an agent or model gets places at once; others get one while there is room."""

EXPECTED_OF_OTHERS: Mapping[str, Labels] = MappingProxyType(
    {"outcome": ("succeeded", OTHER), "status": ("pending", OTHER)}
)
"""The same for all agents and models together that are not shown by name: only `other` if not told here."""


@dataclass(slots=True)
class _Form:
    """How the labels of one metric are handled.

    Attributes:
        metric: the metric.
        kind: what its names name.
        names: where the names stand among its labels.
        closed: the labels with a closed set of values, by where they stand.
        paid: the sets of label values that have a place.
    """

    metric: Metric
    kind: Kind = ()
    names: tuple[int, ...] = ()
    closed: dict[int, Labels] = field(default_factory=dict)
    paid: set[Labels] = field(default_factory=set)

    @classmethod
    def of(cls, metric: Metric) -> _Form:
        labels = metric.labels
        names = tuple(at for at, label in enumerate(labels) if label in NAMES)
        closed = {at: VALUES[label] for at, label in enumerate(labels) if label in VALUES}
        kind = tuple(NAMES[labels[at]] for at in names)
        return cls(metric, (*kind, HISTOGRAM) if kind and metric.kind == HISTOGRAM else kind, names, closed)

    def sets(self, unit: Labels, expected: Mapping[str, Labels]) -> Iterator[Labels]:
        """The sets of label values of `unit` for the `expected` values of the other labels."""
        choices = [expected.get(label, (OTHER,)) for label in self.metric.labels]
        for at, name in zip(self.names, unit, strict=True):
            choices[at] = (name,)
        yield from product(*choices)

    def of_others(self) -> Iterator[Labels]:
        """The sets of label values for all names together that are not shown."""
        return self.sets((OTHER,) * len(self.names), EXPECTED_OF_OTHERS)

    def unit(self, labels: Labels) -> Labels:
        return tuple(labels[at] for at in self.names)

    def named(self, labels: Labels, unit: Labels) -> Labels:
        """`labels` with other names."""
        parts = list(labels)
        for at, name in zip(self.names, unit, strict=True):
            parts[at] = name
        return tuple(parts)

    def blurred(self, labels: Labels) -> Labels:
        """`labels` with `other` for all that is no name."""
        return tuple(value if at in self.names else OTHER for at, value in enumerate(labels))


class Room:
    """Gives out places for at most `limit` series.

    Args:
        limit: how many series there may be, at least `FEWEST_SERIES`.

    Raises:
        ValueError: `limit` is too small.
    """

    def __init__(self, limit: int) -> None:
        if limit < FEWEST_SERIES:
            msg = f"{limit} series are too few: at least {FEWEST_SERIES} are needed"
            raise ValueError(msg)
        self.limit = limit
        self._used = 0
        self._forms = {name: _Form.of(metric) for name, metric in METRICS.items()}
        self._expected: dict[Kind, dict[Labels, None]] = {}
        self._shown: dict[Kind, dict[Labels, Labels]] = {}
        self._found: dict[tuple[str, Labels], tuple[Labels, Labels] | None] = {}
        for form in self._forms.values():
            if form.kind:
                self._shown.setdefault(form.kind, {})
            self._pay_what_must_be(form)

    @property
    def free(self) -> int:
        """How many series there is room for besides those that have a place."""
        return self.limit - self._used

    def _pay_what_must_be(self, form: _Form) -> None:
        if form.kind:
            if form.metric.together == "sum":  # unknown names may come at any time; for the rest see `expect`
                for labels in form.of_others():
                    self._pay(form, labels)
        elif form.closed:
            for labels in product(*form.closed.values()):
                self._pay(form, labels)
        else:  # one set of values: those of the build, or none at all
            self._used += form.metric.series

    def _pay(self, form: _Form, labels: Labels) -> None:
        self._found = {}
        form.paid.add(labels)
        self._used += form.metric.series

    def _give_back(self, form: _Form, places: set[Labels]) -> None:
        self._found = {}
        form.paid = form.paid - places  # not in place: another thread reads it
        self._used -= len(places) * form.metric.series

    def expect(self, kind: Kind, units: Iterable[Labels]) -> tuple[Labels, ...]:
        """Show these by name as far as there is room, the first ones first, and no others any more.

        Args:
            kind: what they are.
            units: the names of each, for example a backend and a model.

        Returns:
            those that are not shown by name.
        """
        wanted = tuple(dict.fromkeys(units))
        self._found = {}
        histograms = (*kind, HISTOGRAM)
        for each in (kind, histograms):
            if each in self._shown:
                self._expected[each] = dict.fromkeys(wanted)
                for unit in set(self._shown[each]) - set(wanted):
                    self._forget(each, unit)
        self._admit_all(kind, wanted)
        if self._shown.get(histograms) == {}:
            self._admit_all(histograms, wanted[:1])
        return tuple(unit for unit in wanted if unit not in self._shown[kind])

    def expected(self, kind: Kind) -> tuple[Labels, ...]:
        """The names that were expected last, those included that are not shown."""
        return tuple(self._expected.get(kind, ()))

    def _admit_all(self, kind: Kind, units: tuple[Labels, ...]) -> None:
        """Admit as many as there is room for; the others get places for their gauges together."""
        for form, labels in self._gauges_of_others(kind):
            if labels in form.paid:
                self._give_back(form, {labels})
        fair, before = self._free_beside(kind) // FAIR, self._used
        for unit in units:
            if kind != AGENT and self._shown[kind] and self._used - before >= fair:
                break  # so that dozens of backends leave room for agents, which are expected last
            self._admit(kind, unit)
        if set(units) <= set(self._shown[kind]):
            return
        places = self._gauges_of_others(kind)
        while len(places) > self._free_beside(kind):
            self._forget(kind, next(reversed(self._shown[kind])))
        for form, labels in places:
            self._pay(form, labels)

    def _gauges_of_others(self, kind: Kind) -> list[tuple[_Form, Labels]]:
        """Places that are needed only if expected names are not shown: unknown ones have none there."""
        forms = [form for form in self._forms.values() if form.kind == kind]
        gauges = [form for form in forms if form.metric.together in ("largest", "smallest")]
        return [(form, labels) for form in gauges for labels in form.of_others()]

    def _free_beside(self, kind: Kind | None) -> int:
        """The free room without what other kinds than this one may need for the gauges of others."""
        others = [each for each in self._shown if each != kind]
        places = [place for each in others for place in self._gauges_of_others(each)]
        return self.free - sum(labels not in form.paid for form, labels in places)

    def _admit(self, kind: Kind, unit: Labels) -> None:
        shown = tuple(map(presentable, unit))
        known = self._shown[kind]
        if unit in known or OTHER in shown or shown in known.values():
            return
        forms = [form for form in self._forms.values() if form.kind == kind]
        places = [(form, labels) for form in forms for labels in form.sets(shown, EXPECTED)]
        if sum(form.metric.series for form, _ in places) > self._free_beside(kind):
            return
        self._shown = {**self._shown, kind: {**known, unit: shown}}  # another thread reads it
        for form, labels in places:
            if labels not in form.paid:
                self._pay(form, labels)

    def _forget(self, kind: Kind, unit: Labels) -> None:
        shown = self._shown[kind][unit]
        self._shown = {**self._shown, kind: {k: v for k, v in self._shown[kind].items() if k != unit}}
        for form in self._forms.values():
            if form.kind == kind:
                self._give_back(form, {labels for labels in form.paid if form.unit(labels) == shown})

    def about(self, kind: Kind) -> tuple[str, ...]:
        """The metrics that tell about names of this kind."""
        return tuple(name for name, form in self._forms.items() if form.kind in (kind, (*kind, HISTOGRAM)))

    def from_zero(self, name: str) -> tuple[Labels, ...]:
        """The places of a counter that begin at 0: of what is expected, and worth a look."""
        form = self._forms[name]
        units = self._shown[form.kind]
        told = [labels for unit in units.values() for labels in form.sets(unit, EXPECTED)]
        hidden = set(self.expected(form.kind)) - set(units)
        return (*(each for each in told if OTHER not in each), *(form.of_others() if hidden else ()))

    def is_expected(self, name: str, labels: Labels) -> bool:
        """Whether all names in `labels` are expected ones; yes, if there is no name among them."""
        form = self._form(name, labels)
        return not form.kind or form.unit(labels) in self._expected.get(form.kind, ())

    def is_single(self, name: str) -> bool:
        """Whether only one set of label values makes sense: that of the running program."""
        form = self._forms[name]
        return not form.kind and not form.closed

    def has(self, name: str, labels: Labels) -> bool:
        """Whether these label values, as `place` returns them, have a place."""
        form = self._forms[name]
        return labels in form.paid or not (form.kind or form.closed)

    def place(self, name: str, labels: Labels) -> Labels | None:
        """The place where a value is kept that stays: of these label values, or of `other`.

        Args:
            name: a metric of the catalogue.
            labels: the values of its labels, whatever they are.

        Returns:
            None if it shall not be kept.

        Raises:
            ValueError: there is no such metric or label value.
        """
        form = self._form(name, labels)
        if form.kind and form.metric.kind == HISTOGRAM and self.is_expected(name, labels):
            self._admit(form.kind, form.unit(labels))
        for choice in self._choices(form, labels):
            if self.has(name, choice):
                return choice
            if form.metric.series <= self._free_for(form, choice):
                self._pay(form, choice)
                return choice
        return None

    def _free_for(self, form: _Form, labels: Labels) -> int:
        """What others need of the room is no histogram: that would take what many counters could have."""
        of_others = form.metric.series > 1 and OTHER in form.unit(labels)
        return 0 if of_others else self._free_beside(None)

    def lookup(self, name: str, labels: Labels) -> tuple[Labels, Labels] | None:
        """Where a value is shown that comes anew with each scrape: (at best, if there is no room for that).

        It takes no place for good. None if it is not shown.
        """
        known = self._found
        if (name, labels) in known:
            return known[name, labels]
        form = self._form(name, labels)
        choices = list(self._choices(form, labels))
        found = next(((choices[0], choice) for choice in choices if self.has(name, choice)), None)
        if self.is_expected(name, labels) and not any(self._strange(form, labels)):
            known[name, labels] = found  # nobody can make up such ones: they are not too many
        return found

    def _form(self, name: str, labels: Labels) -> _Form:
        form = self._forms.get(name)
        if form is None:
            msg = f"{name!r} is not in the catalogue of metrics: see askfirst metrics list"
            raise ValueError(msg)
        if len(labels) != len(form.metric.labels):
            msg = f"{name} has the labels {form.metric.labels}, not {len(labels)} of them"
            raise ValueError(msg)
        return form

    def _choices(self, form: _Form, labels: Labels) -> Iterator[Labels]:
        """Where a value can be put, the most telling place first."""
        if not form.kind:
            yield self._ours(form, labels)
            return
        unit = form.unit(labels)
        shown = self._shown[form.kind].get(unit)
        strange = self._strange(form, labels)
        known = tuple(OTHER if new else value for new, value in zip(strange, labels, strict=True))
        if shown is not None:
            yield form.named(known, shown)
            yield form.blurred(form.named(known, shown))
        elif form.metric.together == "left out":
            return
        elif form.metric.together != "sum" and unit not in self._expected.get(form.kind, ()):
            return  # the oldest success of agents that are gone says nothing
        others = form.named(known, (OTHER,) * len(unit))
        yield others
        yield form.blurred(others)

    @staticmethod
    def _strange(form: _Form, labels: Labels) -> list[bool]:
        """Which of the label values should be of a closed set and are not."""
        closed = form.closed
        return [at in closed and value not in closed[at] for at, value in enumerate(labels)]

    @staticmethod
    def _ours(form: _Form, labels: Labels) -> Labels:
        for at, values in form.closed.items():
            if labels[at] not in values:
                msg = f"{form.metric.name}: {form.metric.labels[at]} is one of {', '.join(values)}"
                raise ValueError(msg)
        return labels if form.closed else tuple(map(presentable, labels))


def presentable(value: str) -> str:
    """`value` as a label value: of a bounded length, and nothing in it that cannot be sent or seen."""
    short = value[:MOST_CHARACTERS]
    if short.isprintable():
        return short
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in short)
