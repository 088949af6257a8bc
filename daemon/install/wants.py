"""What the configuration needs beyond the sandbox of the system service, and why."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from daemon.errors import SettingsError
from daemon.install.grants import Grants, WrongGrant

if TYPE_CHECKING:
    from daemon.settings import Settings
    from llm import LLMConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Something that the configuration needs.

    Attributes:
        grant: what would let it have it.
        why: what needs it.
    """

    grant: Grants
    why: str

    def __str__(self) -> str:
        return f"{' '.join(self.grant.words())}, because {self.why}"


def wants(settings: Settings, environ: Mapping[str, str], granted: Grants) -> list[Want]:
    """What the configuration needs and `granted` does not give."""
    found = [*_folders(settings), *_agents(settings), *_models(settings, environ), *_pings(settings)]
    found += _traces(settings)
    return [want for want in found if not _is_given(want.grant, granted)]


def _is_given(wanted: Grants, granted: Grants) -> bool:
    if not all(any(_contains(given, path) for given in granted.paths) for path in wanted.paths):
        return False
    reachable = granted.network or all(
        any(_contains_address(given, text) for given in granted.addresses) for text in wanted.addresses
    )
    return reachable and (granted.network or not wanted.network)


def _contains(folder: str, path: str) -> bool:
    return Path(path).is_relative_to(folder)


def _contains_address(network: str, text: str) -> bool:
    outer, inner = ipaddress.ip_network(network), ipaddress.ip_network(text)
    return outer.version == inner.version and int(outer[0]) <= int(inner[0]) <= int(inner[-1]) <= int(
        outer[-1]
    )


def _folders(settings: Settings) -> Iterator[Want]:
    """The program's own folders that are not in its data folder."""
    keys = {
        "backup.dir": settings.backup.dir,
        "llm.cache_dir": settings.llm.cache_dir,
        "llm.model_dir": settings.llm.model_dir,
        "llm.usage_file": settings.llm.usage_file and settings.llm.usage_file.parent,
    }
    for key, path in keys.items():
        yield from _path(path, settings, f"{key} is {path}")


def _agents(settings: Settings) -> Iterator[Want]:
    """The folders and files that agents are told of: by their settings' types, or by looking like paths."""
    for name in settings.enabled_agents:
        table = settings.agents.get(name, {})
        for key in sorted(_path_keys(name) | _looks_like_a_path(table)):
            if isinstance(table.get(key), str):
                path = _resolved(str(table[key]), settings)
                yield from _path(path, settings, f"agents.{name}.{key} is {path}")


def _path_keys(name: str) -> set[str]:
    """The settings of an agent that are paths.

    An agent of the plugin folder is not loaded for that: whoever may write there would run code as root.
    """
    from pydantic import BaseModel  # noqa: PLC0415 - loaded by the settings already

    from agents.errors import AgentError  # noqa: PLC0415 - beside what it is needed for
    from agents.registry import AgentRegistry  # noqa: PLC0415 - loads the agents

    try:
        model = AgentRegistry(None).get(name).Settings
    except AgentError:
        return set()
    if model is None or not issubclass(model, BaseModel):
        return set()
    return {key for key, field in model.model_fields.items() if "Path" in str(field.annotation)}


def _looks_like_a_path(table: Mapping[str, Any]) -> set[str]:
    return {key for key, value in table.items() if isinstance(value, str) and value.startswith("/")}


def _resolved(text: str, settings: Settings) -> Path:
    return Path(os.path.normpath(settings.base_dir / Path(text).expanduser()))


def _path(path: Path | None, settings: Settings, why: str) -> Iterator[Want]:
    """A folder that is written; of a file the folder around it, where its journal and its new version are."""
    if path is None or path.is_relative_to(settings.daemon.data_dir):
        return
    folder = path.parent if path.is_file() or (path.suffix and not path.is_dir()) else path
    try:
        yield Want(grant=Grants.of(paths=(str(folder),)), why=why)
    except WrongGrant:
        return


def _models(settings: Settings, environ: Mapping[str, str]) -> Iterator[Want]:
    from llm.errors import ConfigurationError  # noqa: PLC0415 - beside what it is needed for

    try:
        configs = dict(_configs(settings, environ))
    except (SettingsError, ConfigurationError):  # said elsewhere: the configuration is checked first
        return
    for key, config in configs.items():
        if config.backend == "remote" and not config.api_base:
            yield Want(grant=Grants(network=True), why=f"{key} is a remote service")
        elif config.api_base and config.backend in {"remote", "ollama"}:
            yield from _address(config.api_base, f"{key} is at {_host(config.api_base)}")


def _configs(settings: Settings, environ: Mapping[str, str]) -> Iterator[tuple[str, LLMConfig]]:
    from daemon.settings.backends import routes_of  # noqa: PLC0415 - loads pydantic
    from llm.config import LLMConfig  # noqa: PLC0415 - beside what it is needed for

    routes = routes_of(settings, environ)
    if routes is not None:
        yield from ((f"llm.backends.{name}", config) for name, config in routes.backends.items())
        return
    variables = settings.llm_environ(environ)
    yield "llm", LLMConfig.from_env({"LLM_BACKEND": "ollama", **variables})


def _pings(settings: Settings) -> Iterator[Want]:
    own = settings.daemon.ping_url
    if own is not None:
        yield from _address(own.get_secret_value(), "daemon.ping_url is on another machine")
    for name in settings.enabled_agents:
        address = settings.agents.get(name, {}).get("ping_url")
        if isinstance(address, str):
            yield from _address(address, f"agents.{name}.ping_url is on another machine")


def _traces(settings: Settings) -> Iterator[Want]:
    if settings.traces.endpoint is not None:
        yield from _address(settings.traces.endpoint, "traces.endpoint is on another machine")


def _address(url: str, why: str) -> Iterator[Want]:
    host = _host(url)
    if host in {"", "localhost"}:
        return
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        yield Want(grant=Grants(network=True), why=f"{why}, a name whose addresses may change")
        return
    if not ip.is_loopback:
        yield Want(grant=Grants.of(addresses=(str(ip),)), why=why)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
