"""How one agent is run: its table of the configuration as a frozen value, checked where it enters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Literal, Self

from agents.base import NAME_PATTERN, BaseAgent, validated_settings
from agents.durations import FORMS, format_duration, parse_duration
from agents.errors import AgentSettingsError, InvalidProposal
from agents.proposal import DEFAULT_EXPIRY, Approvers
from agents.schedule import (
    BeforeEvent,
    CatchUp,
    Cron,
    Every,
    QuietWindow,
    Schedule,
    at_moments,
    is_never_loud,
    local_zone,
    parse_cron,
    parse_quiet,
    parse_zone,
)
from agents.words import aliases_of

if TYPE_CHECKING:
    from pydantic import BaseModel

SHORTEST_INTERVAL = timedelta(seconds=1)
"""An agent is run at most once a second."""

BACKOFF = tuple(timedelta(seconds=seconds) for seconds in (30, 60, 300, 900, 3600))
"""How long an agent is left alone after one failure, two in a row and so on; the last one from then on."""

Isolation = Literal["process", "none"]

_CLOCK_TRIGGERS = ("every", "cron", "at")
_TRIGGERS = (*_CLOCK_TRIGGERS, "after", "watch", "webhook", "before")

_MODES = ("any", "all", "quorum")
_HIGHEST_RANK = 1000
_YEARS = range(1970, 9999)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """How one agent is run.

    Attributes:
        name: the agent's name.
        enabled: whether it is run at all.
        every: the time from one run to the next; None when something else makes it due.
        cron: the five fields of crontab(5), None without.
        at: moments, or times of day for every day; those without time zone are meant in `schedule_timezone`.
        schedule_timezone: of `cron`, `at` and `quiet`; None for that of this machine.
        after: the agents after whose successful runs it is run.
        watch: files, folders or patterns such as "/srv/*.csv"; a change of one of them makes it run.
        webhook: whether it is run when an authorised request asks for it.
        before: so long before the events of a calendar it is run.
        jitter: the longest random delay of a due time.
        quiet: spans of the day in which it is not run on schedule.
        catch_up: after a time in which it could not run: one run, "all" of them, or "skip".
        max_lateness: a due time that is later than this is not run any more; None for any lateness.
        priority: of agents that wait for a free place the higher one goes first.
        backoff: how long it is left alone after one failure, two in a row, and so on; empty: not at all.
        quarantine_after: after so many failures of its own in a row it is not run on schedule any more.
        ping_url: told when a run begins, succeeds and fails, as Healthchecks understands it.
        isolation: "process" runs its code in a process of its own, "none" in this one; None: plugins run
            in a process of their own, others in this one.
        max_memory_mb: most memory of such a process, in MB of address space.
        max_cpu: most CPU time of such a process; None for as long as `timeout`.
        max_bytes: most bytes that such a process may hand over in one run.
        timeout: the longest that one run may take.
        max_proposals: most new proposals of one run; the rest is counted and said.
        max_open: most of its proposals that may wait at the same time.
        expires_after: how long its proposals wait for a decision; expiry never approves.
        approvers: who must approve its proposals.
        settings: the agent's own settings as they were written; the agent's `Settings` model reads them.
    """

    name: str
    enabled: bool = True
    every: timedelta | None = timedelta(hours=1)
    cron: str | None = None
    at: tuple[datetime | time, ...] = ()
    schedule_timezone: tzinfo | None = None
    after: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    webhook: bool = False
    before: BeforeEvent | None = None
    jitter: timedelta = timedelta()
    quiet: tuple[QuietWindow, ...] = ()
    catch_up: CatchUp = "once"
    max_lateness: timedelta | None = None
    priority: int = 0
    backoff: tuple[timedelta, ...] = BACKOFF
    quarantine_after: int = 10
    ping_url: str | None = None
    isolation: Isolation | None = None
    max_memory_mb: int = 1024
    max_cpu: timedelta | None = None
    max_bytes: int = 8 * 1024 * 1024
    timeout: timedelta = timedelta(minutes=5)
    max_proposals: int = 100
    max_open: int = 200
    expires_after: timedelta = DEFAULT_EXPIRY
    approvers: Approvers = field(default_factory=Approvers)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_table(
        cls, name: str, table: Mapping[str, Any], agent_cls: type[BaseAgent] | None = None
    ) -> Self:
        """Read the table [agents.NAME]: the keys that every agent has, and the agent's own beside them.

        Args:
            name: the agent's name.
            table: keys and values as TOML gives them; durations may be `timedelta` already.
            agent_cls: the agent, which gives `every` its default and checks its own settings; without it
                they are kept unchecked.

        Raises:
            AgentSettingsError: one or more values cannot work; all of them are named.
        """
        reader = _Reader()
        known = {key: reader.read(key, table[key], parse) for key, parse in _PARSERS.items() if key in table}
        own = {key: value for key, value in table.items() if key not in _PARSERS}
        if not any(table.get(key) for key in _TRIGGERS):
            if agent_cls is not None:
                known["every"] = reader.read("every", agent_cls.every, _interval)
        elif "every" not in table:
            known["every"] = None
        reader.problems += [*_conflicts(table), *_senseless(known)]
        if agent_cls is not None:
            reader.problems += _own_problems(agent_cls, own)
        if reader.problems:
            raise AgentSettingsError(name, tuple(reader.problems))
        return cls(name=name, settings=own, **known)

    @property
    def schedule(self) -> Schedule:
        """When it is run, put together from the keys above."""
        zone = self.schedule_timezone or local_zone()
        return Schedule(
            timed=(
                *([Every(self.every)] if self.every is not None else []),
                *([Cron(self.cron, zone)] if self.cron is not None else []),
                *at_moments(self.at, zone),
            ),
            after=self.after,
            watch=self.watch,
            webhook=self.webhook,
            before=self.before,
            quiet=self.quiet,
            zone=zone,
            jitter=self.jitter,
            catch_up=self.catch_up,
            max_lateness=self.max_lateness,
            priority=self.priority,
        )


def _conflicts(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = [key for key in _CLOCK_TRIGGERS if table.get(key)]
    return [(given[1], f"{given[0]} and {given[1]} are both set; keep one of them")] if len(given) > 1 else []


def _senseless(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What cannot work together although each value can; only values that could be read are looked at."""
    problems: list[tuple[str, str]] = []
    every, jitter, quiet = known.get("every"), known.get("jitter"), known.get("quiet")
    if every is not None and jitter is not None and jitter > every:
        problems.append(("jitter", f"must not be longer than every, {format_duration(every)}"))
    if quiet and is_never_loud(quiet):
        problems.append(("quiet", "leaves no minute of the week in which it would be run"))
    return problems


class _Reader:
    """Reads values and keeps what is wrong with them, so that all of it can be said at once."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def read(self, key: str, value: Any, parse: Callable[[Any], Any]) -> Any:
        try:
            return parse(value)
        except _Wrong as wrong:
            self.problems += [(".".join((key, *rest)), text) for rest, text in wrong.problems]
        return None


class _Wrong(ValueError):
    """A value that cannot work: where inside the key (mostly nowhere), and why."""

    def __init__(self, *problems: tuple[tuple[str, ...], str]) -> None:
        super().__init__(*problems)
        self.problems = problems


def _not(wanted: str, value: Any) -> _Wrong:
    return _Wrong(((), f"must be {wanted}, not {_shown(value)}"))


def _shown(value: Any) -> str:
    return "a table" if isinstance(value, Mapping) else repr(value)[:60]


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _not("true or false", value)
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _not("a whole number of 1 or more", value)
    return value


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _not(FORMS, value)
    try:
        return parse_duration(value)
    except ValueError as error:
        raise _Wrong(((), str(error))) from error


def _some_time(value: Any) -> timedelta:
    duration = _duration(value)
    if duration <= timedelta():
        raise _not("longer than 0", value)
    return duration


def _interval(value: Any) -> timedelta:
    duration = _duration(value)
    if duration < SHORTEST_INTERVAL:
        raise _not(f"at least {format_duration(SHORTEST_INTERVAL)}", value)
    return duration


def _some_time_or_none(value: Any) -> timedelta:
    duration = _duration(value)
    if duration < timedelta():
        raise _not("0 or longer", value)
    return duration


def _rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _HIGHEST_RANK:
        raise _not(f"a whole number from -{_HIGHEST_RANK} to {_HIGHEST_RANK}", value)
    return value


def _by(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A text, or what was read from one already, by a function that raises ValueError."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            raise _not("a text", value)
        try:
            return parse(value)
        except ValueError as error:
            raise _Wrong(((), str(error))) from error

    return read


def _zone(value: Any) -> tzinfo:
    zone: tzinfo = value if isinstance(value, tzinfo) else _by(parse_zone)(value)
    return zone


def _each(parse: Callable[[Any], Any], wanted: str) -> Callable[[Any], tuple[Any, ...]]:
    """One value or a list of them."""

    def read(value: Any) -> tuple[Any, ...]:
        if isinstance(value, Mapping):
            raise _not(wanted, value)
        return tuple(parse(each) for each in (value if isinstance(value, list | tuple) else [value]))

    return read


def _moment(value: Any) -> datetime | time:
    found = _read_moment(value)
    if found is None:
        raise _not('a moment such as "2026-12-24 18:00", or a time of day such as "07:30"', value)
    if isinstance(found, datetime):
        if found.year not in _YEARS:
            raise _not(f"in the years {_YEARS.start} to {_YEARS.stop - 1}", value)
    elif found.second or found.microsecond:
        raise _not("to the minute: a time of day has no seconds", value)
    return found


def _read_moment(value: Any) -> datetime | time | None:
    if isinstance(value, datetime | time):
        return value
    if isinstance(value, date):
        return datetime.combine(value, time())
    if not isinstance(value, str):
        return None
    text = value.strip()
    kind: type[datetime | time] = datetime
    if re.match(r"[0-9]{1,2}:", text):
        kind, text = time, text.zfill(len(text) + (text[1] == ":"))
    try:
        return kind.fromisoformat(text)
    except ValueError:
        return None


def _agent_name(value: Any) -> str:
    if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value):
        raise _not("the name of an agent", value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _not("a text", value)
    return value.strip()


def _quiet(value: Any) -> QuietWindow:
    window: QuietWindow = value if isinstance(value, QuietWindow) else _by(parse_quiet)(value)
    return window


def _choice(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise _not(f"one of {', '.join(choices)}", value)
        return str(value)

    return read


def _url(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        raise _Wrong(((), "must be an address that begins with http:// or https://"))  # it may hold a secret
    return value


def _before(value: Any) -> BeforeEvent:
    if not isinstance(value, Mapping):
        raise _not('a table such as { calendar = "events.ics", lead = "2h" }', value)
    reader = _Reader()
    parsers: Mapping[str, Callable[[Any], Any]] = {
        "calendar": _text,
        "lead": _some_time_or_none,
        "title": _text,
    }
    for key in value.keys() - parsers.keys():
        reader.problems.append((str(key), _unknown(str(key), parsers)))
    parts = {key: reader.read(key, value[key], parse) for key, parse in parsers.items() if key in value}
    for key in ("calendar", "lead"):
        if key not in value:
            reader.problems.append((key, "is missing"))
    if reader.problems:
        raise _Wrong(*(((key,), text) for key, text in sorted(reader.problems)))
    return BeforeEvent(**parts)


def _approvers(value: Any) -> Approvers:
    if isinstance(value, Approvers):
        return value
    if not isinstance(value, Mapping):
        raise _not('a table such as { mode = "any", people = ["ana"] }', value)
    reader = _Reader()
    parsers = {"mode": _choice(*_MODES), "people": _people, "quorum": _count}
    for key in value.keys() - parsers.keys():
        reader.problems.append((str(key), _unknown(str(key), parsers)))
    parts = {key: reader.read(key, value[key], parse) for key, parse in parsers.items() if key in value}
    if reader.problems:
        raise _Wrong(*(((key,), text) for key, text in sorted(reader.problems)))
    try:
        return Approvers(**parts)
    except InvalidProposal as error:
        raise _Wrong(((), str(error).removeprefix("approvers: "))) from error


def _people(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(each, str) and each.strip() for each in value
    ):
        raise _not('a list of names such as ["ana", "luis"]', value)
    return tuple(value)


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "enabled": _switch,
    "every": _interval,
    "cron": _by(parse_cron),
    "at": _each(_moment, "a moment or a list of them"),
    "schedule_timezone": _zone,
    "after": _each(_agent_name, "the name of an agent or a list of them"),
    "watch": _each(_text, "a path or a list of them"),
    "webhook": _switch,
    "before": _before,
    "jitter": _some_time_or_none,
    "quiet": _each(_quiet, "a time span or a list of them"),
    "catch_up": _choice("once", "all", "skip"),
    "max_lateness": _some_time,
    "priority": _rank,
    "backoff": _each(_some_time, "a duration or a list of them"),
    "quarantine_after": _count,
    "ping_url": _url,
    "isolation": _choice("process", "none"),
    "max_memory_mb": _count,
    "max_cpu": _some_time,
    "max_bytes": _count,
    "timeout": _some_time,
    "max_proposals": _count,
    "max_open": _count,
    "expires_after": _some_time,
    "approvers": _approvers,
}


def _own_problems(agent: type[BaseAgent], own: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with the agent's own settings: those it does not know, and what its model says."""
    names = set() if agent.Settings is None else _names(agent.Settings)
    problems = [
        (key, f"every agent has this setting: rename it in {agent.__qualname__}.Settings")
        for key in sorted(names & _PARSERS.keys())
    ]
    open_ended = agent.Settings is not None and agent.Settings.model_config.get("extra") == "allow"
    unknown = [] if open_ended else sorted(own.keys() - names)
    problems += [(key, _unknown(key, (*_PARSERS, *sorted(names)))) for key in unknown]
    try:
        validated_settings(agent, {key: value for key, value in own.items() if key not in unknown})
    except AgentSettingsError as error:
        problems += error.problems
    return problems


def _names(model: type[BaseModel]) -> set[str]:
    """Every key of the table that the model reads: each field's alias, or its name without one."""
    names: set[str] = set()
    by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    for name, spec in model.model_fields.items():
        if spec.validation_alias is None or by_name:
            names.add(name)
        names.update(aliases_of(spec))
    return names


def _unknown(key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    way = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    return f"unknown setting; {way}"
