"""What the environment sets: `LLM_*` for the table [llm], `ASKFIRST_<TABLE>__<KEY>` for everything else."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from daemon.errors import SettingsProblem
from daemon.settings.model import API_KEY_FILE_VARIABLE, Settings
from daemon.settings.sources import Variable
from daemon.settings.toml_lines import KeyPath
from llm.config import ENVIRONMENT, parse_field
from llm.errors import ConfigurationError

PREFIX = "ASKFIRST_"
BETWEEN = "__"
SECTIONS = ("llm", "daemon", "backup", "retention", "web", "metrics", "traces", "proposals")
"""The tables with a fixed set of keys; [agents.NAME] is each agent's own."""

NAMED = frozenset({("llm", "backends"), ("llm", "routes")})
"""Tables whose keys are names that the owner gives: no variable sets what is in them."""

LLM_VARIABLES: Mapping[str, str] = {**ENVIRONMENT, "api_key_file": API_KEY_FILE_VARIABLE}
"""Each key of [llm] and its variable."""

Found = tuple[dict[KeyPath, Variable], list[SettingsProblem]]


def leaves(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, FieldInfo]]:
    """Every key of a table and of the tables inside it, those of `NAMED` left out."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if (*prefix, name) in NAMED:
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, (*prefix, name))
        else:
            yield (*prefix, name), field


def known_keys() -> dict[KeyPath, FieldInfo]:
    """Every key of the tables with a fixed set of keys."""
    found: dict[KeyPath, FieldInfo] = {}
    for section in SECTIONS:
        kind = Settings.model_fields[section].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.update(leaves(kind, (section,)))
    return found


def variable_of(path: KeyPath) -> str:
    """The variable that sets the key at `path`, empty for one that none sets."""
    if path[:2] in NAMED:
        return ""
    if path[0] == "llm":
        # LLM_BUDGET can hold those of single agents too: "agent matchmaker: 20000 tokens/day".
        return LLM_VARIABLES["budget" if path[1] == "budgets" else str(path[1])]
    return PREFIX + BETWEEN.join(str(part) for part in path).upper()


def read_environment(environ: Mapping[str, str], agents: Mapping[str, Any]) -> Found:
    """What the environment sets, and what is wrong with it; empty variables count as unset.

    Args:
        environ: the environment.
        agents: the agents' tables of the file, so that `MY_AGENT` finds an agent called `my-agent`.
    """
    given, problems = _llm_variables(environ)
    known = {variable_of(path): (path, field) for path, field in known_keys().items() if path[0] != "llm"}
    for name in sorted(environ):
        text = environ[name].strip()
        if not text or not name.startswith(PREFIX) or BETWEEN not in name:
            continue
        if name in known:
            path, field = known[name]
            given[path] = Variable(name=name, value=from_text(text, field))
        elif agent_path := _agent_path(name, agents):
            given[agent_path] = Variable(name=name, value=_toml_or_text(text))
        else:
            problems.append(_unknown(name, list(known)))
    return given, problems


def _llm_variables(environ: Mapping[str, str]) -> Found:
    given: dict[KeyPath, Variable] = {}
    problems: list[SettingsProblem] = []
    for field, name in LLM_VARIABLES.items():
        text = environ.get(name, "").strip()
        if not text:
            continue
        try:
            value = text if field == "api_key_file" else parse_field(field, text)
        except ConfigurationError as error:
            message = str(error).removeprefix(f"{name} ({field}) ")
            problems.append(
                SettingsProblem(key=f"llm.{field}", message=message, source="environment", variable=name)
            )
        else:
            given["llm", field] = Variable(name=name, value=value)
    return given, problems


def _agent_path(name: str, agents: Mapping[str, Any]) -> KeyPath | None:
    """`ASKFIRST_AGENTS__MY_AGENT__EVERY` -> ("agents", "my-agent", "every")."""
    table, *parts = name.removeprefix(PREFIX).lower().split(BETWEEN)
    if table != "agents" or len(parts) < 2 or not all(parts):
        return None
    agent = next((known for known in agents if known.replace("-", "_") == parts[0]), parts[0])
    return ("agents", agent, *parts[1:])


def _unknown(name: str, known: list[str]) -> SettingsProblem:
    if name.startswith(f"{PREFIX}LLM{BETWEEN}"):
        wanted = name.removeprefix(f"{PREFIX}LLM{BETWEEN}").lower()
        variable = LLM_VARIABLES.get(wanted, "LLM_MODEL and others")
        way = f"the table [llm] has variables of its own: {variable}"
    else:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        way = f"did you mean {near[0]}?" if near else "`askfirst config schema` lists the settings"
    return SettingsProblem(key="", message=f"unknown setting; {way}", source="environment", variable=name)


def from_text(text: str, field: FieldInfo) -> Any:
    """A text as the kind of value that `field` holds; the text itself when it is none, to be refused."""
    kind = _plain_kind(field.annotation)
    if kind is bool:
        return {"true": True, "1": True, "yes": True, "on": True}.get(
            text.lower(), False if text.lower() in {"false", "0", "no", "off"} else text
        )
    if kind is int:
        return int(text) if text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() else text
    if kind is float:
        return _number(text)
    if get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _plain_kind(annotation: Any) -> Any:
    """`int` of `Annotated[int, ...] | None`."""
    while get_origin(annotation) in {Annotated, Union, UnionType}:
        annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
    return annotation


def _toml_or_text(text: str) -> Any:
    """An agent's settings are its own: what reads as a TOML number, switch or list is one."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError, RecursionError):
        return text


def misspelt(environ: Mapping[str, str]) -> list[SettingsProblem]:
    """`LLM_*` variables that nothing reads but that look like one that is read."""
    known = list(LLM_VARIABLES.values())
    found: list[SettingsProblem] = []
    for name in sorted(environ):
        if name.startswith("LLM_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if near:
                message = f"nothing reads this variable; did you mean {near[0]}?"
                found.append(SettingsProblem(key="", message=message, source="environment", variable=name))
    return found
