"""Reads the configuration: defaults, then the file, then the environment; every problem at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from agents.base import NAME_PATTERN, BaseAgent
from agents.config import AgentConfig
from agents.errors import AgentError, AgentNotFound, AgentSettingsError
from agents.words import nearest, plain_words, shown
from daemon.errors import SettingsError, SettingsProblem
from daemon.parts import is_module
from daemon.settings.backends import backend_problems, backend_warnings, key_paths, resolved
from daemon.settings.environment import SECTIONS, misspelt, read_environment
from daemon.settings.model import (
    TRACE_ENDPOINT_VARIABLES,
    DaemonSettings,
    LLMSettings,
    Settings,
    TraceSettings,
)
from daemon.settings.places import default_data_dir, find_config
from daemon.settings.sources import Sources, dotted, read_file
from daemon.settings.toml_lines import KeyPath

if TYPE_CHECKING:
    from agents.registry import AgentRegistry

_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "daemon": ("data_dir", "plugin_dir", "prompts_dir"),
    "llm": ("cache_dir", "model_dir", "adapter_path", "usage_file", "api_key_file"),
    "traces": ("headers_file",),
}
_CALENDAR_PACKAGES = ("icalendar", "recurring_ical_events")
_NO_CALENDARS = "calendars need packages that are not installed: pip install 'askfirst[agents]'"
_TRACE_PACKAGE = "opentelemetry.exporter.otlp.proto.http"
_NO_TRACES = "traces need packages that are not installed: pip install 'askfirst[otel]'"
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


def load_settings(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    check_agents: bool = False,
) -> Settings:
    """Read the configuration.

    Args:
        path: the file; None looks at `ASKFIRST_CONFIG`, `./config/askfirst.toml`, the user's and the
            system's configuration folders, and goes on with defaults when there is none.
        environ: the environment, `os.environ` if None.
        check_agents: also check the settings that are each enabled agent's own, which loads their modules.

    Raises:
        SettingsError: the configuration cannot work; every problem with its file, line and key.
    """
    environment = os.environ if environ is None else environ
    file = find_config(path, environment)
    read = Sources() if file is None else read_file(file)
    in_file = read.table.get("agents")
    variables, problems = read_environment(environment, in_file if isinstance(in_file, Mapping) else {})
    sources = Sources(file=file, table=read.table, lines=read.lines, variables=variables)
    base = file.parent if file else Path.cwd()
    merged = _merged(sources, base)
    _with_defaults(merged, environment)
    values, faults = _checked(merged, sources, environment)
    problems += faults
    problems += _agent_problems(merged, sources, _registry(values) if check_agents else None)
    if problems:
        raise SettingsError(_in_order(problems, file))
    settings = Settings(**values, config_file=file, base_dir=base, sources=sources)
    return settings.model_copy(update={"warnings": tuple(_warnings(settings, environment))})


def _merged(sources: Sources, base: Path) -> dict[str, Any]:
    """File and environment as one table; the file's relative paths start at its folder."""
    merged: dict[str, Any] = _copy(sources.table)
    for section, keys in _FOLDERS.items():
        resolved(merged.get(section), base, keys)
    for table in _backend_tables(merged):
        resolved(table, base, _FOLDERS["llm"])
    for path, variable in sources.variables.items():
        _put(merged, path, variable.value)
    _keep_one_key(merged, sources)
    return merged


def _backend_tables(merged: Mapping[str, Any]) -> list[Any]:
    llm = merged.get("llm")
    backends = llm.get("backends") if isinstance(llm, Mapping) else None
    return list(backends.values()) if isinstance(backends, Mapping) else []


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return value


def _put(table: dict[str, Any], path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        inner = table.setdefault(str(part), {})
        if not isinstance(inner, dict):
            return  # the file has no table there, which is reported as the file's own problem
        table = inner
    table[str(path[-1])] = value


def _keep_one_key(merged: dict[str, Any], sources: Sources) -> None:
    """A key that the environment gives replaces the file's, whichever of the two ways each one chose."""
    table = merged.get("llm")
    if not isinstance(table, dict):
        return
    for given, other in (("api_key", "api_key_file"), ("api_key_file", "api_key")):
        if ("llm", given) in sources.variables and ("llm", other) not in sources.variables:
            table.pop(other, None)


def _with_defaults(merged: dict[str, Any], environ: Mapping[str, str]) -> None:
    """The one default that depends on the environment that was handed in."""
    table = merged.setdefault("daemon", {})
    if isinstance(table, dict):
        table.setdefault("data_dir", str(default_data_dir(environ)))


def _checked(
    merged: Mapping[str, Any], sources: Sources, environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[SettingsProblem]]:
    """The tables as their models, those that can work, and what is wrong with the others."""
    problems: list[SettingsProblem] = []
    values: dict[str, Any] = {}
    for name, table in merged.items():
        if name in SECTIONS:
            values[name] = _section(name, table, sources, problems)
        elif name == "agents":
            values[name] = table
        else:
            way = nearest(name, (*SECTIONS, "agents"))
            problems.append(sources.problem((name,), f"unknown table; {way}"))
    llm = values.get("llm")
    if isinstance(llm, LLMSettings):
        problems += _key_file_problems(llm, sources)
        problems += backend_problems(llm, sources, environ)
    traces = values.get("traces")
    if isinstance(traces, TraceSettings):
        problems += _trace_problems(traces, sources, environ)
    return values, problems


def can_trace() -> bool:
    """Whether the extra `otel` is installed; nothing of it is loaded."""
    try:
        return find_spec(_TRACE_PACKAGE) is not None and find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:  # a package on the way there
        return False


def _trace_problems(
    traces: TraceSettings, sources: Sources, environ: Mapping[str, str]
) -> list[SettingsProblem]:
    problems: list[SettingsProblem] = []
    file = traces.headers_file
    if file is not None and not file.is_file():
        problems.append(sources.problem(("traces", "headers_file"), f"there is no file {file}"))
    if traces.endpoint and traces.wanted(environ) and not can_trace():
        problems.append(sources.problem(("traces", "endpoint"), _NO_TRACES))
    return problems


def _section(name: str, table: Any, sources: Sources, problems: list[SettingsProblem]) -> BaseModel | None:
    kind = Settings.model_fields[name].annotation
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        msg = f"Settings.{name} is no table"
        raise TypeError(msg)
    if not isinstance(table, Mapping):
        problems.append(sources.problem((name,), f"must be a table: [{name}], not {shown(table)}"))
        return None
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        problems += [
            _problem(name, kind, dict(fault), sources) for fault in faults if _is_real(fault["type"])
        ]
        return None


def _is_real(kind: str) -> bool:
    # A default that is made from another value cannot be made when that one is wrong; that one is told.
    return kind != "default_factory_not_called"


def _problem(section: str, kind: type[BaseModel], fault: dict[str, Any], sources: Sources) -> SettingsProblem:
    path: KeyPath = (section, *fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _fields_at(kind, path[1:-1])
        return sources.problem(path, f"unknown setting; {nearest(str(path[-1]), known)}")
    secret = (section, path[-1]) in {("llm", "api_key"), ("traces", "headers")}
    return sources.problem(path, plain_words(fault, secret=secret))


def _fields_at(kind: type[BaseModel], path: KeyPath) -> Iterable[str]:
    parts = iter(path)
    for part in parts:
        inner = kind.model_fields[str(part)].annotation
        choices = (inner, *get_args(inner))
        kind = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
        if get_origin(inner) is Mapping:
            next(parts, None)  # a name that the owner gave
    return kind.model_fields


def _registry(values: Mapping[str, Any]) -> AgentRegistry:
    from agents.registry import AgentRegistry  # noqa: PLC0415 - needed by few commands

    daemon = values.get("daemon")
    return AgentRegistry(daemon.plugin_dir if isinstance(daemon, DaemonSettings) else None, apart=True)


def _agent_problems(
    merged: Mapping[str, Any], sources: Sources, registry: AgentRegistry | None
) -> list[SettingsProblem]:
    """What is wrong with the agents' tables; with a registry, with the settings of their own too."""
    tables = merged.get("agents", {})
    if not isinstance(tables, Mapping):
        return [sources.problem(("agents",), f"must be a table: [agents.NAME], not {shown(tables)}")]
    problems: list[SettingsProblem] = []
    for name, table in tables.items():
        path: KeyPath = ("agents", name)
        if not isinstance(table, Mapping):
            problems.append(sources.problem(path, f"must be a table: [{dotted(path)}], not {shown(table)}"))
        elif not NAME_PATTERN.fullmatch(name):
            text = "this cannot be an agent's name; names are 1 to 64 of a-z, 0-9, _ and -"
            problems.append(sources.problem(path, text))
        else:
            problems += _problems_of_agent(name, table, sources, registry)
    return problems + _order_problems(tables, sources)


def _order_problems(tables: Mapping[str, Any], sources: Sources) -> list[SettingsProblem]:
    """What is wrong with `after`: agents that are not there, and agents in a circle."""
    before = {name: _names_before(table) for name, table in tables.items() if isinstance(table, Mapping)}
    problems = [
        sources.problem(
            ("agents", name, "after"),
            f"there is no table [agents.{other}], so {other!r} never runs; {nearest(other, before)}",
        )
        for name, others in before.items()
        for other in others
        if other not in tables
    ]
    told: set[str] = set()
    for name in before:
        circle = _circle(name, before)
        if circle and told.isdisjoint(circle):
            told.update(circle)
            text = f"a circle, in which each run would bring the next for ever: {' after '.join(circle)}"
            problems.append(sources.problem(("agents", name, "after"), text))
    return problems


def _names_before(table: Mapping[str, Any]) -> tuple[str, ...]:
    given = table.get("after", ())
    names = given if isinstance(given, list | tuple) else (given,)
    return tuple(name for name in names if isinstance(name, str) and NAME_PATTERN.fullmatch(name))


def _circle(name: str, before: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The way from an agent back to itself, with its name at both ends; empty if there is none."""
    ways: list[tuple[str, ...]] = [(name,)]
    visited: set[str] = set()
    for way in ways:  # grows meanwhile
        for other in before.get(way[-1], ()):
            if other == name:
                return (*way, name)
            if other not in visited:
                visited.add(other)
                ways.append((*way, other))
    return ()


def _problems_of_agent(
    name: str, table: Mapping[str, Any], sources: Sources, registry: AgentRegistry | None
) -> list[SettingsProblem]:
    path: KeyPath = ("agents", name)
    kind: type[BaseAgent] | None = None
    if registry is not None and table.get("enabled", True) is not False:
        try:
            kind = registry.get(name)
        except AgentNotFound:
            return [sources.problem(path, f"there is no such agent; {nearest(name, registry.names())}")]
        except AgentError as error:
            return [sources.problem(path, str(error))]
    try:
        config = AgentConfig.from_table(name, table, kind)
    except AgentSettingsError as error:
        return [sources.problem((*path, *_parts(key)), message) for key, message in error.problems]
    if kind is not None and config.before is not None and not all(map(find_spec, _CALENDAR_PACKAGES)):
        return [sources.problem((*path, "before"), _NO_CALENDARS)]
    return []


def _parts(key: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in key.split(".") if part)


def _key_file_problems(llm: LLMSettings, sources: Sources) -> list[SettingsProblem]:
    file = llm.api_key_file
    if file is None or file.is_file():
        return []
    return [sources.problem(("llm", "api_key_file"), f"there is no file {file}")]


def _in_order(problems: list[SettingsProblem], file: Path | None) -> list[SettingsProblem]:
    """The file's problems by line, then the environment's by name."""
    return sorted(problems, key=lambda p: (p.source != str(file), p.line or 0, p.variable or "", p.key))


def _warnings(settings: Settings, environ: Mapping[str, str]) -> list[SettingsProblem]:
    return [
        *_open_key(settings),
        *_open_address(settings),
        *_untraced(settings, environ),
        *_silent_parts(settings),
        *backend_warnings(settings, environ),
        *misspelt(environ),
    ]


def _open_key(settings: Settings) -> list[SettingsProblem]:
    path = next((path for path in key_paths(settings.llm) if path in settings.sources.lines), None)
    file = settings.config_file
    if file is None or path is None:
        return []
    mode = file.stat().st_mode & 0o777
    if not mode & 0o077:
        return []
    message = (
        f"others on this machine can read the key (mode {mode:o}); use api_key_file, or: chmod 600 {file}"
    )
    return [settings.sources.problem_in_file(path, message)]


def _untraced(settings: Settings, environ: Mapping[str, str]) -> list[SettingsProblem]:
    """OpenTelemetry's own variables may be there for other programs, so they are no mistake."""
    if not settings.traces.wanted(environ) or can_trace():
        return []
    name = next(name for name in TRACE_ENDPOINT_VARIABLES if environ.get(name))
    return [SettingsProblem(key="", message=_NO_TRACES, source="environment", variable=name)]


def _open_address(settings: Settings) -> list[SettingsProblem]:
    host = settings.web.host
    if not settings.web.enabled or _LOOPBACK.fullmatch(host):
        return []
    message = f"{host} can be reached by others, who can then read /metrics; 127.0.0.1 is this machine only"
    return [settings.sources.problem(("web", "host"), message)]


def _silent_parts(settings: Settings) -> list[SettingsProblem]:
    """Levels of agents that there are not: nothing is wrong with them, and nothing will come of them."""
    path: KeyPath = ("daemon", "log_levels")
    parts = [part for part in settings.daemon.log_levels if part.startswith("agents.")]
    return [
        settings.sources.problem(path, f"{part} logs nothing: there is no table [{part}] that enables it")
        for part in parts
        if not is_module(part) and part.removeprefix("agents.") not in settings.agents
    ]
