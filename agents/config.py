"""How one agent is run: its table of the configuration as a frozen value, checked where it enters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from agents.base import BaseAgent, validated_settings
from agents.errors import AgentSettingsError, InvalidProposal
from agents.proposal import DEFAULT_EXPIRY, Approvers
from agents.schedule import FORMS, format_duration, parse_duration

if TYPE_CHECKING:
    from pydantic import BaseModel

SHORTEST_INTERVAL = timedelta(seconds=1)
"""An agent is run at most once a second."""

_MODES = ("any", "all", "quorum")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """How one agent is run.

    Attributes:
        name: the agent's name.
        enabled: whether it is run at all.
        every: the time from one run to the next.
        timeout: the longest that one run may take.
        max_proposals: most new proposals of one run; the rest is counted and said.
        max_open: most of its proposals that may wait at the same time.
        expires_after: how long its proposals wait for a decision; expiry never approves.
        approvers: who must approve its proposals.
        settings: the agent's own settings as they were written; the agent's `Settings` model reads them.
    """

    name: str
    enabled: bool = True
    every: timedelta = timedelta(hours=1)
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
        if agent_cls is not None:
            if "every" not in table:
                known["every"] = reader.read("every", agent_cls.every, _interval)
            reader.problems += _own_problems(agent_cls, own)
        if reader.problems:
            raise AgentSettingsError(name, tuple(reader.problems))
        return cls(name=name, settings=own, **known)


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


def _approvers(value: Any) -> Approvers:
    if isinstance(value, Approvers):
        return value
    if not isinstance(value, Mapping):
        raise _not('a table such as { mode = "any", people = ["ana"] }', value)
    reader = _Reader()
    parsers = {"mode": _mode, "people": _people, "quorum": _count}
    for key in value.keys() - parsers.keys():
        reader.problems.append((str(key), _unknown(str(key), parsers)))
    parts = {key: reader.read(key, value[key], parse) for key, parse in parsers.items() if key in value}
    if reader.problems:
        raise _Wrong(*(((key,), text) for key, text in sorted(reader.problems)))
    try:
        return Approvers(**parts)
    except InvalidProposal as error:
        raise _Wrong(((), str(error).removeprefix("approvers: "))) from error


def _mode(value: Any) -> str:
    if value not in _MODES:
        raise _not(f"one of {', '.join(_MODES)}", value)
    return str(value)


def _people(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(each, str) and each.strip() for each in value
    ):
        raise _not('a list of names such as ["ana", "luis"]', value)
    return tuple(value)


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "enabled": _switch,
    "every": _interval,
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
        alias = spec.validation_alias
        if alias is None or by_name:
            names.add(name)
        if isinstance(alias, str):
            names.add(alias)
        elif alias is not None:
            places = alias.convert_to_aliases()
            tops = [place[0] for place in places if isinstance(place, list)] or places[:1]
            names.update(str(top) for top in tops)
    return names


def _unknown(key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    way = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    return f"unknown setting; {way}"
