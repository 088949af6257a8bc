"""The facts in the words and the order of the status page, for who runs it and did not write it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from agents.proposal import ProposalStatus
from daemon.events import AgentState, RunOutcome
from daemon.observability.health import Answer
from daemon.web.facts import PERIODS, Activity, AgentFacts, Facts, Part
from daemon.web.words import counted, money, number, seconds

if TYPE_CHECKING:
    from daemon.store.history import RunSums
    from llm.usage import BudgetStatus, Series, Slice

PERIOD_NAMES = MappingProxyType({1: "24 hours", 7: "7 days", 30: "30 days"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A short word, with a colour that says the same: "good", "warn", "bad" or "calm"."""

    text: str
    tone: str


_OUTCOMES = MappingProxyType(
    {
        RunOutcome.SUCCEEDED: ("went well", "good"),
        RunOutcome.FAILED: ("failed", "bad"),
        RunOutcome.TIMED_OUT: ("took too long", "bad"),
        RunOutcome.CANCELLED: ("was stopped", "calm"),
        RunOutcome.INTERRUPTED: ("was cut off", "warn"),
    }
)

_STATES = MappingProxyType(
    {
        AgentState.PAUSED: Mark(text="paused", tone="calm"),
        AgentState.QUARANTINED: Mark(text="stopped after failures", tone="bad"),
    }
)

_CHECKS = MappingProxyType(
    {
        "database": (
            "Records",
            "keep what agents found and what people decided",
            "See what is wrong: `askfirst doctor`. A copy can be put back: `askfirst restore latest`.",
        ),
        "scheduler": (
            "Schedule",
            "starts each agent at its time",
            "Restart the program, for example: `sudo systemctl restart askfirst`. Nothing is lost by that.",
        ),
        "storage": (
            "Disk",
            "has room to write things down",
            "Delete or move something large. Agents go on by themselves as soon as there is room.",
        ),
        "model": (
            "Language model",
            "helps agents with unclear cases",
            "Agents go on without it where rules are enough. See why: `askfirst llm health`.",
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why somebody should look, and the part of the page that says more."""

    text: str
    section: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """A part of the program: what it is, what it answered, and what to do when it fails."""

    name: str
    purpose: str
    mark: Mark
    detail: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """An agent: how it stands, and what there is to say about it."""

    facts: AgentFacts
    mark: Mark
    outcome: Mark | None
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A number for a chart, None for a gap, and how people read it."""

    value: float | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartRow:
    """One stretch of time."""

    at: datetime
    label: str
    short: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A table over time that a chart can be drawn of.

    Attributes:
        id: in the page.
        title: what it shows.
        explains: one sentence for who reads such a thing for the first time.
        kind: "bars", stacked, or "lines".
        unit: "count", "seconds" or "usd".
        columns: what the numbers are, each with the name of its colour.
        rows: the numbers.
        summary: all of it in one sentence.
        empty: shown instead when there is nothing to show; empty when there is.
        trouble: why it cannot be shown, empty when it can.
    """

    id: str
    title: str
    explains: str
    kind: str
    unit: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[ChartRow, ...] = ()
    summary: str = ""
    empty: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """A limit and how far it is used."""

    name: str
    share: float
    used: str
    left: str
    resets: datetime
    mark: Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the template is given.

    Attributes:
        facts: what was gathered.
        mark: how everything is.
        headline: the same as a sentence.
        reasons: why somebody should look.
        checks: the parts of the program.
        agents: the agents.
        next_agent: which agent runs next, None when that is not known.
        charts: what happened over time.
        quiet: whether nothing happened at all in that time.
        models: what each model used: backend and model, and the sums.
        budgets: the limits.
        period: the name of the days shown.
        zone: the time zone of all moments.
    """

    facts: Facts
    mark: Mark
    headline: str
    reasons: tuple[Reason, ...]
    checks: tuple[CheckRow, ...]
    agents: tuple[AgentRow, ...]
    next_agent: AgentFacts | None
    charts: tuple[Chart, ...]
    quiet: bool
    models: tuple[tuple[str, str, Slice], ...]
    budgets: tuple[BudgetRow, ...]
    period: str
    zone: str


def view_of(facts: Facts, clean: Callable[[str], str]) -> View:
    """Put the facts into words.

    Args:
        facts: what was gathered.
        clean: makes a name that comes from outside fit to be shown.
    """
    checks = tuple(map(_check, facts.checks))
    agents = tuple(map(_agent, facts.agents))
    budgets = tuple(map(_budget, facts.activity.budgets.value or ()))
    reasons = tuple(_reasons(facts, checks, agents, budgets))
    mark, headline = _overall(facts, reasons)
    series = facts.activity.usage.value
    models = {} if series is None else series.models
    charts = tuple(_charts(facts))
    return View(
        facts=facts,
        mark=mark,
        headline=headline,
        reasons=reasons,
        checks=checks,
        agents=agents,
        next_agent=min(_to_run(facts.agents), key=_next_run, default=None),
        charts=charts,
        quiet=all(chart.empty for chart in charts) and not models,
        models=tuple((clean(backend), clean(model), used) for (backend, model), used in models.items()),
        budgets=budgets,
        period=PERIOD_NAMES[facts.days],
        zone=facts.at.tzname() or "",
    )


def _overall(facts: Facts, reasons: Sequence[Reason]) -> tuple[Mark, str]:
    if not facts.healthy:
        return Mark(text="Not working", tone="bad"), "Something that Askfirst needs does not work."
    if facts.stopping or not facts.started:
        word = "stopping" if facts.stopping else "starting"
        return Mark(text=word.title(), tone="calm"), f"Askfirst is {word}."
    if reasons:
        return Mark(text="Needs a look", tone="warn"), "Askfirst works, and something needs a look."
    if not facts.agents:
        return Mark(text="No agent yet", tone="calm"), "Everything works, and no agent is switched on yet."
    return Mark(text="All is well", tone="good"), "Everything works."


def _reasons(
    facts: Facts, checks: Iterable[CheckRow], agents: Iterable[AgentRow], budgets: Iterable[BudgetRow]
) -> Iterable[Reason]:
    yield from (Reason(text=f"{c.name}: {c.detail}", section="health") for c in checks if c.advice)
    for agent in agents:
        if agent.mark.tone in {"bad", "warn"}:
            yield Reason(text=f"{agent.facts.name}: {agent.mark.text}", section="agents")
        elif agent.outcome is not None and agent.outcome.tone == "bad":
            yield Reason(text=f"{agent.facts.name}: the last run {agent.outcome.text}", section="agents")
    for proposal in () if facts.waiting.value is None else facts.waiting.value.oldest:
        if proposal.status is not ProposalStatus.PENDING:
            yield Reason(
                text=f"the approved change {proposal.id} could not be carried out", section="waiting"
            )
    for budget in budgets:
        if budget.mark.tone != "good":
            yield Reason(text=f"the limit {budget.name} is {budget.mark.text}", section="limits")
    if facts.healthy:  # else what fails says more
        yield from _troubles(facts)


def _troubles(facts: Facts) -> Iterable[Reason]:
    activity = facts.activity
    parts: tuple[tuple[str, str, Part[Any]], ...] = (
        ("what waits for you", "waiting", facts.waiting),
        ("the agents' runs", "activity", activity.runs),
        ("what models used", "activity", activity.usage),
        ("the limits for models", "limits", activity.budgets),
        ("the disk", "about", facts.disk),
    )
    for what, section, part in parts:
        if part.trouble:
            yield Reason(text=f"this page cannot show {what}", section=section)


def _check(answer: Answer) -> CheckRow:
    name, purpose, advice = _CHECKS.get(
        answer.name, (answer.name, "", "See what is wrong: `askfirst doctor`.")
    )
    mark = Mark(text="works", tone="good")
    if answer.ok is None:
        mark = Mark(text="being asked", tone="calm")
    elif not answer.ok:
        mark = Mark(text="fails", tone="bad" if answer.required else "warn")
    return CheckRow(
        name=name,
        purpose=purpose,
        mark=mark,
        detail=answer.detail,
        advice=advice if answer.ok is False else "",
    )


def _agent(facts: AgentFacts) -> AgentRow:
    outcome = None
    if facts.last is not None:
        text, tone = _OUTCOMES[facts.last.outcome]
        outcome = Mark(text=text, tone=tone)
    error = facts.last.error if facts.last is not None else None
    return AgentRow(facts=facts, mark=_standing(facts), outcome=outcome, error=error or "")


def _standing(facts: AgentFacts) -> Mark:
    if facts.running_since is not None:
        return Mark(text="running now", tone="good")
    if facts.broken:
        return Mark(text="cannot be run", tone="bad")
    if facts.state is None:
        return Mark(text="not known", tone="warn")
    if facts.state is AgentState.ACTIVE:
        return Mark(text="held back", tone="calm") if facts.holds else Mark(text="ready", tone="good")
    return _STATES[facts.state]


def _to_run(agents: Iterable[AgentFacts]) -> Iterable[AgentFacts]:
    return (agent for agent in agents if agent.next_run is not None and agent.running_since is None)


def _next_run(agent: AgentFacts) -> datetime:
    assert agent.next_run is not None  # noqa: S101 - only agents that have one are compared
    return agent.next_run


def _budget(status: BudgetStatus) -> BudgetRow:
    budget, limit = status.budget, float(status.budget.limit)
    share = status.used / limit
    mark = Mark(text="in order", tone="good")
    if share >= 1:
        mark = Mark(text="used up", tone="bad")
    elif share >= 0.8:
        mark = Mark(text="nearly used up", tone="warn")
    amount = {"usd": lambda value: money(round(value * 1_000_000)), "seconds": seconds}.get(
        budget.unit, lambda value: f"{number(value)} tokens"
    )
    return BudgetRow(
        name=str(budget),
        share=share,
        used=f"{amount(status.used)} of {amount(limit)}",
        left=amount(status.left),
        resets=datetime.fromtimestamp(status.resets).astimezone(),
        mark=mark,
    )


# charts


def _charts(facts: Facts) -> Iterable[Chart]:
    activity, period = facts.activity, PERIOD_NAMES[facts.days]
    stretches = _stretches(activity, hourly=PERIODS[facts.days] < timedelta(days=1))
    yield _runs_chart(activity.runs, stretches, period)
    yield _questions_chart(activity.runs, stretches, period)
    yield _tokens_chart(activity.usage, stretches, period)
    yield _seconds_chart(activity.usage, stretches, period)
    yield _cost_chart(activity.usage, stretches, period)


Stretches = Sequence[tuple[datetime, str, str]]
"""When each one begins, its name, and a short one for an axis."""


def _stretches(activity: Activity, *, hourly: bool) -> Stretches:
    if hourly:
        return [(at, f"{at:%a} {at.day} {at:%b}, {at:%H:%M}", f"{at:%H:%M}") for at in activity.edges[:-1]]
    return [(at, f"{at:%a} {at.day} {at:%b}", f"{at.day} {at:%b}") for at in activity.edges[:-1]]


def _rows(stretches: Stretches, cells: Iterable[tuple[Cell, ...]]) -> tuple[ChartRow, ...]:
    return tuple(
        ChartRow(at=at, label=label, short=short, cells=each)
        for (at, label, short), each in zip(stretches, cells, strict=True)
    )


def _counts(*values: int) -> tuple[Cell, ...]:
    return tuple(Cell(value=value, text=number(value)) for value in values)


def _runs_chart(part: Part[tuple[RunSums, ...]], stretches: Stretches, period: str) -> Chart:
    chart = Chart(
        id="runs",
        title="Runs of agents",
        explains="Each time an agent looks at its data is a run.",
        kind="bars",
        unit="count",
        columns=(("went well", "good"), ("failed", "bad"), ("cut short", "calm")),
    )
    if part.value is None:
        return _troubled(chart, part.trouble)
    counts = [_by_end(sums) for sums in part.value]
    well, failed, cut = (sum(each[i] for each in counts) for i in range(3))
    summary = f"{counted(well + failed + cut, 'run')} in the last {period}: {number(well)} went well, "
    summary += f"{number(failed)} failed, {number(cut)} cut short."
    empty = "" if well + failed + cut else f"No agent ran in the last {period}."
    return _filled(chart, _rows(stretches, (_counts(*each) for each in counts)), summary, empty)


def _by_end(sums: RunSums) -> tuple[int, int, int]:
    tones = {outcome: tone for outcome, (_, tone) in _OUTCOMES.items()}
    ends = [0, 0, 0]
    for outcome, count in sums.outcomes.items():
        ends[{"good": 0, "bad": 1}.get(tones[outcome], 2)] += count
    return ends[0], ends[1], ends[2]


def _questions_chart(part: Part[tuple[RunSums, ...]], stretches: Stretches, period: str) -> Chart:
    chart = Chart(
        id="questions",
        title="Questions to the model",
        explains="A question that was asked before is answered from memory: at once and for nothing.",
        kind="bars",
        unit="count",
        columns=(("asked the model", "one"), ("from memory", "two")),
    )
    if part.value is None:
        return _troubled(chart, part.trouble)
    hits = sum(sums.cached_calls for sums in part.value)
    asked = sum(sums.calls for sums in part.value) - hits
    share = f" ({hits / (asked + hits):.0%})" if hits else ""
    summary = f"{counted(asked + hits, 'question')} in the last {period}, {number(hits)}{share} from memory."
    empty = "" if asked + hits else "No agent asked a model. That is normal where rules decide everything."
    cells = (_counts(sums.calls - sums.cached_calls, sums.cached_calls) for sums in part.value)
    return _filled(chart, _rows(stretches, cells), summary, empty)


def _tokens_chart(part: Part[Series], stretches: Stretches, period: str) -> Chart:
    chart = Chart(
        id="tokens",
        title="Text read and written by models",
        explains="Counted in tokens; one is about three quarters of a word.",
        kind="bars",
        unit="count",
        columns=(("read", "one"), ("written", "two")),
    )
    if part.value is None:
        return _troubled(chart, part.trouble)
    whole = part.value.whole
    summary = f"In the last {period} models read {counted(whole.tokens_in, 'token')} and wrote "
    summary += f"{number(whole.tokens_out)}."
    empty = "" if whole.tokens_in + whole.tokens_out else f"No model read or wrote in the last {period}."
    cells = (_counts(each.tokens_in, each.tokens_out) for each in part.value.slices)
    return _filled(chart, _rows(stretches, cells), summary, empty)


def _seconds_chart(part: Part[Series], stretches: Stretches, period: str) -> Chart:
    chart = Chart(
        id="seconds",
        title="How long answers take",
        explains="Half of the answers come within the usual time, 19 of 20 within the longer one.",
        kind="lines",
        unit="seconds",
        columns=(("usual", "one"), ("slow", "two")),
    )
    if part.value is None:
        return _troubled(chart, part.trouble)
    whole = part.value.whole
    if whole.median is None or whole.slow is None:
        return _filled(chart, (), "", f"No model answered in the last {period}.")
    summary = f"In the last {period} an answer usually took {seconds(whole.median)}, a slow one "
    summary += f"{seconds(whole.slow)}."
    cells = (tuple(map(_time, (each.median, each.slow))) for each in part.value.slices)
    return _filled(chart, _rows(stretches, cells), summary, "")


def _time(value: float | None) -> Cell:
    return Cell(value=value, text="" if value is None else seconds(value))


def _cost_chart(part: Part[Series], stretches: Stretches, period: str) -> Chart:
    chart = Chart(
        id="cost",
        title="Money paid for models",
        explains="In US dollars, by the prices in the configuration or the vendors' lists.",
        kind="bars",
        unit="usd",
        columns=(("cost", "one"),),
    )
    if part.value is None:
        return _troubled(chart, part.trouble)
    whole = part.value.whole
    summary = f"{money(whole.cost)} in the last {period}."
    if whole.unpriced:
        unknown = counted(whole.unpriced, "call")
        summary += f" The price of {unknown} is not known: name it in [llm.prices] of the configuration."
    empty = ""
    if not whole.cost:
        empty = f"Nothing was paid in the last {period}." if not whole.unpriced else summary
    cells = ((Cell(value=each.cost / 1_000_000, text=money(each.cost)),) for each in part.value.slices)
    return _filled(chart, _rows(stretches, cells), summary, empty)


def _filled(chart: Chart, rows: tuple[ChartRow, ...], summary: str, empty: str) -> Chart:
    return replace(chart, rows=() if empty else rows, summary=summary, empty=empty)


def _troubled(chart: Chart, trouble: str) -> Chart:
    return replace(chart, trouble=trouble)
