"""Tells a person about the configuration: what a value is, where it came from, what settings there are."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from agents.config import AgentConfig
from agents.durations import format_duration
from agents.errors import AgentSettingsError
from agents.schedule import BeforeEvent, QuietWindow
from agents.words import nearest
from daemon.errors import SettingsError, SettingsProblem
from daemon.settings.backends import is_taken, values_of
from daemon.settings.environment import SECTIONS, known_keys, variable_of
from daemon.settings.model import BackendSettings, RouteSettings, Settings, texts_of
from daemon.settings.sources import dotted, value_at
from daemon.settings.toml_lines import KeyPath
from llm.config import LLMConfig

if TYPE_CHECKING:
    from agents.base import BaseAgent

HIDDEN = "set (hidden)"
NOT_SET = "not set"

# Who knows the address of a check can pretend that all is well; that of a Pushgateway can hold a password.
_SECRET = frozenset({"api_key", "headers", "ping_url", "pushgateway"})
_OF_DAEMON: Mapping[str, KeyPath] = {
    "quiet": ("daemon", "quiet"),
    "backoff": ("daemon", "backoff"),
    "quarantine_after": ("daemon", "quarantine_after"),
    "schedule_timezone": ("daemon", "timezone"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One setting as it stands.

    Attributes:
        key: the dotted key.
        value: what holds, as text; a secret is only said to be set.
        origin: where that came from: "default", a file and line, or a variable.
        variable: the environment variable that could set it.
        description: what it is for.
        overridden: what other places say that does not count, each as place and value.
    """

    key: str
    value: str
    origin: str
    variable: str
    description: str
    overridden: tuple[tuple[str, str], ...] = ()


def explain(
    settings: Settings, key: str = "", classes: Mapping[str, type[BaseAgent]] | None = None
) -> tuple[Explanation, ...]:
    """Every setting at or below `key` (all of them when it is empty), agents included.

    Args:
        settings: the configuration.
        key: a dotted key such as "web.port", or a table such as "web" or "agents.matchmaker".
        classes: the agents' classes, so that settings of their own which are left out are explained too.

    Raises:
        SettingsError: there is no such key.
    """
    everything = (*_fixed(settings), *_of_backends(settings), *_of_agents(settings, classes or {}))
    found = tuple(one for one in everything if _at_or_below(one.key, key))
    if not found:
        names = {part for one in everything for part in (one.key, one.key.rpartition(".")[0])}
        problem = SettingsProblem(
            key=key, message=f"no such setting; {_way(key, names)}", source="askfirst config"
        )
        raise SettingsError([problem])
    return found


def _way(key: str, names: Iterable[str]) -> str:
    way = nearest(key, names)
    return way if way.startswith("did") else "`askfirst config explain` lists them all"


def _at_or_below(key: str, wanted: str) -> bool:
    return not wanted or key == wanted or key.startswith((f"{wanted}.", f"{wanted}["))


def _fixed(settings: Settings) -> Iterable[Explanation]:
    for path, field in known_keys().items():
        value: Any = settings
        for part in path:
            value = getattr(value, str(part))
        yield _explained(settings, path, _effective(settings, path, value), field.description or "")


def _effective(settings: Settings, path: KeyPath, value: Any) -> Any:
    """What holds for a setting of [llm] that was left out: the client's own default."""
    section, name = path[0], str(path[1])
    if section != "llm" or value not in (None, ""):
        return value
    if name == "cache_dir":
        return settings.daemon.data_dir / "llm_cache"
    defaults = {field.name: field.default for field in fields(LLMConfig)}
    return None if name in {"model", "backend"} else defaults.get(name)


def _of_backends(settings: Settings) -> Iterable[Explanation]:
    """The named backends, with what they take from [llm], and the routes."""
    llm = settings.llm
    shared = texts_of(llm)
    for name, table in llm.backends.items():
        holds = values_of(table, shared)
        for field_name, field in BackendSettings.model_fields.items():
            path: KeyPath = ("llm", "backends", name, field_name)
            value = getattr(table, field_name)
            if value in (None, "") and field_name in holds:
                value = holds[field_name]
            elif value in (None, ""):
                value = _effective(settings, ("llm", field_name), value)
            shared_path = ("llm", field_name) if is_taken(field_name, table, llm.backend) else path
            yield _explained(settings, path, value, field.description or "", shared_path)
    if llm.backends:
        yield from _of_routes(settings)


def _of_routes(settings: Settings) -> Iterable[Explanation]:
    routes, fields_of = settings.llm.routes, RouteSettings.model_fields
    default = routes.default or tuple(settings.llm.backends)
    chains: dict[tuple[str, ...], tuple[str, ...]] = {("default",): default}
    chains |= {("agents", name): chain for name, chain in routes.agents.items()}
    chains |= {("tasks", name): chain for name, chain in routes.tasks.items()}
    for path, chain in chains.items():
        description = fields_of[path[0]].description or ""
        yield _explained(settings, ("llm", "routes", *path), chain, description)


def _of_agents(settings: Settings, classes: Mapping[str, type[BaseAgent]]) -> Iterable[Explanation]:
    for name in settings.agents:
        kind = classes.get(name)
        try:
            config = settings.agent_config(name, kind)
        except AgentSettingsError:
            config = settings.agent_config(name)
        for path, value, description in _agent_values(name, config, kind):
            yield _explained(settings, path, value, description)


def _agent_values(
    name: str, config: AgentConfig, kind: type[BaseAgent] | None
) -> Iterable[tuple[KeyPath, Any, str]]:
    for field in fields(AgentConfig):
        if field.name in {"name", "settings"}:
            continue
        value = getattr(config, field.name)
        if field.name == "approvers":
            told = _attributes(type(value))
            for part in fields(value):
                yield ("agents", name, "approvers", part.name), getattr(value, part.name), told[part.name]
        else:
            yield ("agents", name, field.name), value, _attributes(AgentConfig)[field.name]
    own = {} if kind is None or kind.Settings is None else kind.Settings.model_fields
    for key in dict.fromkeys((*own, *config.settings)):
        given = config.settings.get(key, _default(own[key]) if key in own else None)
        yield ("agents", name, key), given, (own[key].description or "") if key in own else ""


def _attributes(kind: type) -> Mapping[str, str]:
    """What the docstring of a value says about each of its attributes; empty texts under `python -OO`."""
    found = re.findall(r"^ +(\w+): (.+)$", kind.__doc__ or "", re.MULTILINE)
    return defaultdict(str, {name: text.rstrip(".") for name, text in found})


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    return None if value is PydanticUndefined else value


def _explained(
    settings: Settings, path: KeyPath, value: Any, description: str, shared: KeyPath = ()
) -> Explanation:
    """A setting; `shared` is where the value may come from if nothing is said at `path` itself."""
    said = tuple(_said(settings, path)) or tuple(_said(settings, shared or _shared(path)))
    origin = said[0][0] if said else "default"
    return Explanation(
        key=dotted(path),
        value=as_text(path, value),
        origin=origin,
        variable=variable_of(path).replace("-", "_"),
        description=description,
        overridden=said[1:],
    )


def _shared(path: KeyPath) -> KeyPath:
    """Where [proposals] or [daemon] says for all agents what the one at `path` leaves out."""
    if path[0] != "agents" or len(path) < 3:
        return path
    return _OF_DAEMON.get(str(path[2]), ("proposals", *path[2:]))


def _said(settings: Settings, path: KeyPath) -> Iterable[tuple[str, str]]:
    """What environment and file say about a setting, the one that counts first."""
    sources = settings.sources
    if path in sources.variables:
        variable = sources.variables[path]
        yield variable.name, as_text(path, variable.value)
    try:
        value = value_at(sources.table, path)
    except KeyError:
        return
    yield f"{sources.file}:{sources.lines[path]}", as_text(path, value)


def as_text(path: KeyPath, value: Any) -> str:
    """A value as a person would write it; never a secret."""
    if path[-1] in _SECRET or isinstance(value, SecretStr):
        return HIDDEN if value else NOT_SET
    if value is None or value == "":
        return NOT_SET
    value = _written(value)
    return str(value) if isinstance(value, str | Path) else json.dumps(value, ensure_ascii=False, default=str)


def _written(value: Any) -> Any:
    """A value, and what is in it, as the file has it."""
    if isinstance(value, tuple | list):
        return [_written(each) for each in value]
    return next((write(value) for kind, write in _WRITERS if isinstance(value, kind)), value)


def _written_time(value: time) -> str:
    return value.isoformat("auto" if value.second or value.microsecond else "minutes")


def _written_before(value: BeforeEvent) -> Mapping[str, str]:
    parts = {"calendar": value.calendar, "lead": format_duration(value.lead)}
    return {**parts, "title": value.title} if value.title else parts


_WRITERS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (timedelta, format_duration),
    (datetime, lambda value: value.isoformat(" ")),
    (time, _written_time),
    (tzinfo | QuietWindow, str),
    (BeforeEvent, _written_before),
    (BaseModel, lambda value: value.model_dump(mode="json")),
)


def schema() -> dict[str, Any]:
    """The JSON schema of the configuration file, for editors that check TOML against one."""
    whole = Settings.model_json_schema(mode="validation")
    properties = whole["properties"]
    whole["title"], whole["description"] = "Askfirst", "The configuration of Askfirst."
    whole["properties"] = {name: properties[name] for name in (*SECTIONS, "agents")}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def markdown() -> str:
    """The table of settings in docs/configuration.md."""
    rows = ["| key | default | variable | what it is |", "|---|---|---|---|"]
    for path, field in known_keys().items():
        what, _, unset = (field.description or "").partition("; unset: ")
        default = unset or _default_in_words(path, field)
        rows.append(f"| `{dotted(path)}` | {default} | `{variable_of(path)}` | {what} |")
    return "\n".join(rows) + "\n"


def _default_in_words(path: KeyPath, field: FieldInfo) -> str:
    if field.default is PydanticUndefined or field.default in (None, "", ()):
        return ""
    return f"`{as_text(path, field.default)}`"
