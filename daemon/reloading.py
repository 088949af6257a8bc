"""What a new configuration needs before it takes the old one's place: all of it is built first, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr

from agents.base import BaseAgent
from agents.errors import AgentError, AgentSettingsError
from agents.registry import AgentRegistry
from daemon.errors import SettingsError, SettingsProblem
from daemon.roster import Entry, entry_of
from daemon.runtime import Runtime, agents_of, assemble, select
from daemon.selection import open_client
from daemon.settings import Settings
from daemon.settings.explain import HIDDEN, NOT_SET, explain
from llm import LLMConfig, LLMError, Routes

_RESTART = (
    "daemon.control_group",
    "daemon.data_dir",
    "daemon.log_format",
    "metrics.max_series",
    "traces.",
    "web.",
)
"""Settings that are read once, at the start."""

_TABLES = ("agents", "llm.backends")
"""Tables of tables: a new one is told as a whole, not by each of its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A configuration that is ready to be used.

    Attributes:
        runtime: what is above the database, made by it.
        entries: how each of its agents is run and when it is due.
        differences: what is different from the old one, a sentence each.
    """

    runtime: Runtime
    entries: Mapping[str, Entry]
    differences: tuple[str, ...]


async def prepare(
    old: Runtime,
    settings: Settings,
    *,
    llm_config: LLMConfig | Routes | None,
    agents: Sequence[str | type[BaseAgent]] | None,
) -> Prepared:
    """Check a new configuration and build everything above the database of the old one.

    The model stays open if its settings are the same, so that none is loaded anew.

    Raises:
        SettingsError: it cannot work, or changes what needs a restart. Nothing was opened, nothing changed.
    """
    registry = AgentRegistry(settings.daemon.plugin_dir, apart=True)
    names = agents_of(settings, registry, agents)
    classes, entries = await asyncio.to_thread(_check_agents, settings, registry, names)
    told = await asyncio.to_thread(_differences, old, settings, classes)
    _refuse_restart(settings, told)
    try:
        selection = await select(settings, llm_config)
        same = (selection.config, selection.routes) == (old.selection.config, old.selection.routes)
        llm = old.llm if same else open_client(selection, observers=old.llm_observers)
    except LLMError as error:
        problem = SettingsProblem(
            key="llm", message=str(error), source=str(settings.config_file or "default")
        )
        raise SettingsError([problem]) from error
    runtime = assemble(
        settings,
        old.db,
        registry=registry,
        names=names,
        selection=selection,
        llm=llm,
        events=old.events,
        llm_observers=old.llm_observers,
    )
    return Prepared(runtime=runtime, entries=entries, differences=tuple(text for _, text in told))


def _check_agents(
    settings: Settings, registry: AgentRegistry, names: Iterable[str]
) -> tuple[dict[str, type[BaseAgent]], dict[str, Entry]]:
    classes: dict[str, type[BaseAgent]] = {}
    entries: dict[str, Entry] = {}
    problems: list[SettingsProblem] = []
    for name in names:
        try:
            classes[name] = registry.get(name)
            entries[name] = entry_of(settings, name, classes[name])
        except AgentSettingsError as error:
            for key, text in error.problems:
                problems.append(settings.sources.problem(("agents", name, *key.split(".")), text))
        except AgentError as error:
            problems.append(settings.sources.problem(("agents", name), str(error)))
    if problems:
        raise SettingsError(problems)
    return classes, entries


def _differences(
    old: Runtime, settings: Settings, classes: Mapping[str, type[BaseAgent]]
) -> list[tuple[str, str]]:
    """Each setting that is different, and a sentence about it."""
    before = _values(old.settings, {name: _class_of(old.registry, name) for name in old.settings.agents})
    after = _values(settings, classes)
    told: list[tuple[str, str]] = []
    for table in _TABLES:
        here, there = _names(old.settings, table), _names(settings, table)
        told += [(f"{table}.{name}", f"{table}.{name}: added") for name in there if name not in here]
        told += [(f"{table}.{name}", f"{table}.{name}: removed") for name in here if name not in there]
    whole = {key for key, _ in told}
    for key in dict.fromkeys((*after, *before)):
        was, now = before.get(key, (NOT_SET, None)), after.get(key, (NOT_SET, None))
        if was == now or any(key == table or key.startswith(f"{table}.") for table in whole):
            continue
        if was[0] == now[0]:
            told.append((key, f"{key}: changed (hidden)"))
        else:
            told.append((key, f"{key}: {was[0]} -> {now[0]}"))
    return told


def _class_of(registry: AgentRegistry, name: str) -> Any:
    try:
        return registry.get(name)
    except AgentError:
        return None


def _names(settings: Settings, table: str) -> tuple[str, ...]:
    return tuple(settings.agents if table == "agents" else settings.llm.backends)


def _values(settings: Settings, classes: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Each setting's value as text, and a secret itself beside it, to be compared and not shown."""
    known = {name: kind for name, kind in classes.items() if kind is not None}
    texts = {each.key: each.value for each in explain(settings, classes=known)}
    secrets = dict(_secrets("", settings.model_dump(exclude={"sources", "warnings"})))
    return {key: (text, secrets.get(key) if text == HIDDEN else None) for key, text in texts.items()}


def _secrets(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Every single value by its key; only those that are shown as hidden are looked at."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _secrets(f"{prefix}.{key}" if prefix else str(key), each)
    elif isinstance(value, SecretStr):
        yield prefix, value.get_secret_value()
    else:
        yield prefix, value


def _refuse_restart(settings: Settings, told: Iterable[tuple[str, str]]) -> None:
    problems = []
    for key, text in told:
        if key.startswith(_RESTART):
            message = f"{text.removeprefix(f'{key}: ')} needs a restart of the program"
            problems.append(settings.sources.problem(tuple(key.split(".")), message))
    if problems:
        raise SettingsError(problems)
