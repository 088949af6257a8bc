"""Several backends in one configuration: [llm.backends.NAME] and [llm.routes], made into `Routes`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agents.words import nearest
from daemon.errors import SettingsError, SettingsProblem
from daemon.settings.model import (
    BackendSettings,
    LLMSettings,
    Settings,
    credential_file,
    read_key,
    texts_of,
)
from daemon.settings.sources import Sources
from daemon.settings.toml_lines import KeyPath
from llm.budgets import Budget, parse_budgets
from llm.config import AUTO, ENVIRONMENT, LLMConfig
from llm.errors import ConfigurationError
from llm.routes import Routes, route_problems

NOT_SHARED = frozenset(
    {"backend", "model", "api_base", "api_key", "embed_model", "adapter_path", "api_version"}
)
"""What one kind of backend has and another one cannot use: taken from [llm] only by backends of its kind."""

TOGETHER = frozenset({"budget"})
"""What [llm] says about all of its backends together; one of them has its own beside it."""

_KINDS = '"ollama", "llamacpp", "mlx", "remote" or "mock"'


def routes_of(settings: Settings, environ: Mapping[str, str] | None = None) -> Routes | None:
    """The named backends and their routes; None when there are none, or LLM_BACKEND chooses one alone.

    Raises:
        SettingsError: a file that holds a key cannot be read, or the values cannot work together.
    """
    source = os.environ if environ is None else environ
    if not settings.llm.backends or chosen_alone(source):
        return None
    variables = settings.llm_environ(source)
    shared = {name: variables[variable] for name, variable in ENVIRONMENT.items() if variable in variables}
    backends: dict[str, LLMConfig] = {}
    for name, table in settings.llm.backends.items():
        values = values_of(table, shared) | _own_key(name, table, settings.sources)
        try:
            backends[name] = LLMConfig.from_mapping(values)
        except ConfigurationError as error:
            problem = settings.sources.problem(("llm", "backends", name), str(error))
            raise SettingsError([problem]) from error
    routes = settings.llm.routes
    return Routes(
        backends=backends,
        default=routes.default,
        agents=routes.agents,
        tasks=routes.tasks,
        escalate=_escalations(settings.llm),
        budget=shared.get("budget"),
    )


def chosen_alone(environ: Mapping[str, str]) -> bool:
    """Whether the environment chooses one backend, which is then used alone."""
    return environ.get("LLM_BACKEND", "").strip().lower() not in {"", AUTO}


def values_of(table: BackendSettings, shared: Mapping[str, str]) -> dict[str, str]:
    """What holds for a named backend: its own values over those that it takes from [llm], as texts.

    Args:
        table: its table.
        shared: what [llm] and the environment say.
    """
    backend = shared.get("backend", "")
    taken = {name: text for name, text in shared.items() if is_taken(name, table, backend)}
    return {**taken, **texts_of(table), "backend": kind_of(table, backend)}


def is_taken(name: str, table: BackendSettings, shared: str) -> bool:
    """Whether a named backend takes a setting that it leaves out from [llm], whose kind is `shared`."""
    kind = kind_of(table, shared)
    if name == "api_key":
        own = table.api_key is not None or table.api_key_file is not None
        return not own and (kind == "remote" or _same(kind, shared))
    return name not in TOGETHER and (name not in NOT_SHARED or _same(kind, shared))


def _same(kind: str, shared: str) -> bool:
    return kind == shared.strip().lower()


def kind_of(table: BackendSettings, shared: str) -> str:
    """Which backend a name stands for, empty when nobody says."""
    kind = (table.backend or shared).strip().lower()
    return "" if kind == AUTO else kind


def budgets_of(settings: Settings, environ: Mapping[str, str] | None = None) -> tuple[Budget, ...]:
    """The budgets that all calls and single agents share, and those of each named backend.

    Raises:
        SettingsError: a file that holds a key cannot be read, or the values cannot work together.
    """
    routes = routes_of(settings, environ)
    texts = {"": settings.llm_environ(environ).get("LLM_BUDGET")}
    texts |= {} if routes is None else {name: each.budget for name, each in routes.backends.items()}
    return tuple(
        budget for name, text in texts.items() if text for budget in parse_budgets(text, backend=name)
    )


def all_keys(settings: Settings, environ: Mapping[str, str] | None = None) -> list[str]:
    """Every key that the settings and the environment hold, to be kept out of logs, and addresses of checks.

    Raises:
        SettingsError: a file that holds one cannot be read.
    """
    tables = settings.llm.backends.items()
    own = [_own_key(name, table, settings.sources).get("api_key") for name, table in tables]
    direct = [table.api_key.get_secret_value() for _, table in tables if table.api_key is not None]
    shared = settings.llm_environ(environ).get("LLM_API_KEY")
    headers = settings.trace_secrets(os.environ if environ is None else environ)
    return [key for key in (shared, *own, *direct, *headers, *_check_addresses(settings)) if key]


def _check_addresses(settings: Settings) -> Iterator[str]:
    """Who knows the address of a check can pretend that all is well; its last part is the secret."""
    found = [settings.daemon.ping_url.get_secret_value()] if settings.daemon.ping_url else []
    found += [str(table["ping_url"]) for table in settings.agents.values() if table.get("ping_url")]
    for address in found:
        yield address
        yield address.rstrip("/").rpartition("/")[2]
    if settings.metrics.pushgateway is not None:
        gateway = settings.metrics.pushgateway.get_secret_value()
        yield gateway
        yield from filter(None, _credentials(gateway))


def _credentials(address: str) -> tuple[str, ...]:
    """Name and password in an address, as they are written there, and the password itself."""
    before, at, _ = address.partition("://")[2].partition("/")[0].rpartition("@")
    return (before, unquote(before.partition(":")[2])) if at else ()


def _own_key(name: str, table: BackendSettings, sources: Sources) -> dict[str, str]:
    if table.api_key_file is None:
        return {}
    key = read_key(table.api_key_file, ("llm", "backends", name, "api_key_file"), sources)
    return {"api_key": key} if key else {}


def _escalations(llm: LLMSettings) -> dict[str, str]:
    return {name: table.escalate for name, table in llm.backends.items() if table.escalate}


def backend_problems(llm: LLMSettings, sources: Sources, environ: Mapping[str, str]) -> list[SettingsProblem]:
    """Everything in [llm.backends] and [llm.routes] that cannot work."""
    found = [*_kind_problems(llm), *_file_problems(llm), *_key_problems(llm, environ), *_route_problems(llm)]
    return [sources.problem(path, message) for path, message in found]


Found = Iterator[tuple[KeyPath, str]]


def _kind_problems(llm: LLMSettings) -> Found:
    for name, table in llm.backends.items():
        if table.backend.strip().lower() == AUTO:
            yield ("llm", "backends", name, "backend"), f"a named backend must be one: {_KINDS}, not {AUTO!r}"
        elif not kind_of(table, llm.backend):
            yield ("llm", "backends", name), f"backend is needed: {_KINDS}"


def _file_problems(llm: LLMSettings) -> Found:
    for name, table in llm.backends.items():
        file = table.api_key_file
        if file is not None and not file.is_file():
            yield ("llm", "backends", name, "api_key_file"), f"there is no file {file}"


def _key_problems(llm: LLMSettings, environ: Mapping[str, str]) -> Found:
    """One key never goes to two services: the second one would learn the first one's."""
    if llm.api_key is None and llm.api_key_file is None and credential_file(environ) is None:
        return
    first = ""
    for name, table in llm.backends.items():
        keyless = table.api_key is None and table.api_key_file is None
        if not keyless or kind_of(table, llm.backend) != "remote":
            continue
        service = _service(table, llm)
        first = first or service
        if service != first:
            text = f"the key of [llm] goes to {first} already; give this backend an api_key_file of its own"
            yield ("llm", "backends", name), text


def _service(table: BackendSettings, llm: LLMSettings) -> str:
    """The host that a remote backend's key goes to."""
    taken = is_taken("api_base", table, llm.backend)
    base = table.api_base or (llm.api_base if taken else None)
    if base is not None:
        return urlsplit(base).hostname or base
    model = table.model or (llm.model if taken else "")
    return "anthropic.com" if model.removeprefix("anthropic/").startswith("claude") else "openai.com"


def _route_problems(llm: LLMSettings) -> Found:
    routes = llm.routes
    if not llm.backends:
        if routes.default or routes.agents or routes.tasks:
            yield ("llm", "routes"), "there are no backends to route to: add [llm.backends.NAME] tables"
        return
    kinds = {name: kind_of(table, llm.backend) for name, table in llm.backends.items()}
    for path, message in route_problems(
        kinds,
        default=routes.default or tuple(kinds),
        agents=routes.agents,
        tasks=routes.tasks,
        escalate=_escalations(llm),
    ):
        yield ("llm", *path), message


def backend_warnings(settings: Settings, environ: Mapping[str, str]) -> list[SettingsProblem]:
    """What works, but not as it may be meant."""
    llm, sources = settings.llm, settings.sources
    if not llm.backends or chosen_alone(environ):
        return []
    found: list[SettingsProblem] = []
    for agent in llm.routes.agents:
        if agent not in settings.agents:
            way = nearest(agent, settings.agents)
            text = f"there is no table [agents.{agent}], so this route is never taken; {way}"
            found.append(sources.problem(("llm", "routes", "agents", agent), text))
    for key in ("model", "api_base"):
        path: KeyPath = ("llm", key)
        taken = any(is_taken(key, table, llm.backend) for table in llm.backends.values())
        if path in sources.variables and not taken:
            text = "no backend of [llm.backends] takes it; set LLM_BACKEND too, to use that one alone"
            found.append(sources.problem(path, text))
    return found


def key_paths(llm: LLMSettings) -> list[KeyPath]:
    """Where the file may hold a key in the open."""
    return [("llm", "api_key"), *(("llm", "backends", name, "api_key") for name in llm.backends)]


def resolved(table: object, base: Path, keys: tuple[str, ...]) -> None:
    """Let the relative paths of a table of the file start at the file's folder; changes `table`."""
    if not isinstance(table, dict):
        return
    for key in keys:
        if isinstance(table.get(key), str):
            table[key] = str(base / Path(table[key]).expanduser())
