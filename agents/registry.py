"""Agent name -> class: the built-in table, then entry points, then the plugin folder; loaded on first use."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agents.base import NAME_PATTERN, BaseAgent
from agents.errors import AgentLoadError, AgentNotFound

if TYPE_CHECKING:
    from agents.plugins import Plugin

ENTRY_POINTS = "askfirst.agents"
"""Entry-point group: `name = "package.module:Class"`, the class being a `BaseAgent` of that name."""

Origin = Literal["code", "built-in", "entry point", "plugin"]

_BUILT_IN: Mapping[str, str] = {"matchmaker": "agents.builtin.matchmaker.agent:Matchmaker"}


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """Where an agent comes from.

    Attributes:
        name: the agent's name.
        origin: "built-in", "entry point", "plugin", or "code" for a class handed over by the caller.
        location: `module:Class`, or the plugin's file.
    """

    name: str
    origin: Origin
    location: str


class AgentRegistry:
    """Every agent there is. A name that is taken twice belongs to the first one; `problems` says so.

    Classes handed over in code come first, because who hands one over means that one.

    Args:
        plugin_dir: folder of the user's own agents; None, or a folder that does not exist, has none.
        apart: let no line of the plugins run in this process: they are looked at in another one, and their
            classes are stand-ins that say what is known of them (`agents.standins`).
    """

    def __init__(self, plugin_dir: Path | None = None, *, apart: bool = False) -> None:
        self._plugin_dir = plugin_dir
        self._apart = apart
        self._here: dict[str, type[BaseAgent]] = {}
        self._added: dict[str, type[BaseAgent]] = {}

    def add(self, agent: type[BaseAgent]) -> None:
        """Register a class given in code.

        Raises:
            AgentLoadError: it is no agent, or another class of that name was added before.
        """
        _check(agent, getattr(agent, "__qualname__", repr(agent)))
        if self._added.setdefault(agent.name, agent) is not agent:
            other = self._added[agent.name]
            msg = f"{_path(agent)} and {_path(other)} are both called {agent.name!r}; give one another name"
            raise AgentLoadError(msg)

    def entries(self) -> tuple[AgentEntry, ...]:
        """Every agent, sorted by name. Plugins are imported, because only they know their names."""
        found = {**self._plugins.entries, **self._installed.entries, **self._in_code()}
        return tuple(found[name] for name in sorted(found))

    def names(self) -> tuple[str, ...]:
        """Every agent's name, sorted."""
        return tuple(entry.name for entry in self.entries())

    def get(self, name: str) -> type[BaseAgent]:
        """The class of the agent `name`; plugins are imported only if nothing before them has the name.

        Raises:
            AgentNotFound: there is none; the message names the nearest one, or those there are.
            AgentLoadError: there is one, but it cannot be loaded.
        """
        if name in self._added:
            return self._added[name]
        if name in self._installed.entries:
            return load_entry(self._installed.entries[name])
        if name in self._plugins.classes:
            return self._plugins.classes[name]
        raise AgentNotFound(self._not_found(name))

    def load(self, name: str) -> type[BaseAgent]:
        """As `get`, but never a stand-in: the plugin is imported in this process.

        Raises:
            AgentNotFound: there is none.
            AgentLoadError: there is one, but it cannot be loaded.
        """
        kind = self.get(name)
        if not self._apart or self.entry(name).origin != "plugin":
            return kind
        if name not in self._here:
            from agents.plugins import load_plugin  # noqa: PLC0415 - only for plugins that run here

            found = load_plugin(Path(self.entry(name).location)).agents
            self._here.update({agent.name: agent for agent in found})
        return self._here.get(name, kind)

    def entry(self, name: str) -> AgentEntry:
        """Where the agent `name` comes from.

        Raises:
            AgentNotFound: there is none.
        """
        if name in self._added:
            return AgentEntry(name, "code", _path(self._added[name]))
        found = self._installed.entries.get(name) or self._plugins.entries.get(name)
        if found is None:
            raise AgentNotFound(self._not_found(name))
        return found

    @property
    def problems(self) -> tuple[str, ...]:
        """What is left out and why: names taken twice, plugins that cannot be used. Imports the plugins."""
        hidden = tuple(
            f"the agent {name!r} given in code stands in for the {entry.origin} at {entry.location}"
            for name, entry in {**self._plugins.entries, **self._installed.entries}.items()
            if name in self._added
        )
        return (*hidden, *self._installed.problems, *self._plugins.problems)

    def _in_code(self) -> dict[str, AgentEntry]:
        return {name: AgentEntry(name, "code", _path(agent)) for name, agent in self._added.items()}

    @cached_property
    def _installed(self) -> _Found:
        found = _Found()
        for name, path in _BUILT_IN.items():
            found.take(AgentEntry(name, "built-in", path))
        for point in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
            if NAME_PATTERN.fullmatch(point.name):
                location = point.value.partition("[")[0].strip()  # "module:Class [extra]" is allowed
                found.take(AgentEntry(point.name, "entry point", location))
            else:
                found.problems.append(
                    f"the entry point {point.name!r} ({point.value}) is left out: "
                    "an agent's name is 1 to 64 of a-z, 0-9, _ and -"
                )
        return found

    @cached_property
    def _plugins(self) -> _Found:
        found = _Found(taken=self._installed.entries)
        if self._plugin_dir is None:
            return found
        plugins, problems = self._look(self._plugin_dir)
        found.problems += problems
        for plugin in plugins:
            for agent in plugin.agents:
                found.take(AgentEntry(agent.name, "plugin", str(plugin.path)), agent)
        return found

    def _look(self, folder: Path) -> tuple[list[Plugin], list[str]]:
        if self._apart:
            from agents.standins import look_at_plugins  # noqa: PLC0415 - only where there is a plugin folder

            return look_at_plugins(folder)
        from agents.plugins import load_plugins  # noqa: PLC0415 - as above

        return load_plugins(folder)

    def _not_found(self, name: str) -> str:
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        way = f"did you mean {near[0]!r}?" if near else f"the agents are {', '.join(names)}"
        broken = "".join(f"; {problem}" for problem in self._plugins.problems)
        return f"there is no agent {name!r}; {way}{broken}"


class _Found:
    """The agents of one kind of place, the first one of each name."""

    def __init__(self, taken: Mapping[str, AgentEntry] | None = None) -> None:
        self.entries: dict[str, AgentEntry] = {}
        self.classes: dict[str, type[BaseAgent]] = {}
        self.problems: list[str] = []
        self._taken = taken or {}

    def take(self, entry: AgentEntry, agent: type[BaseAgent] | None = None) -> None:
        first = self._taken.get(entry.name) or self.entries.setdefault(entry.name, entry)
        if first is not entry:
            self.problems.append(
                f"the agent {entry.name!r} of the {entry.origin} {entry.location} is left out: "
                f"the {first.origin} {first.location} has that name"
            )
        elif agent is not None:
            self.classes[entry.name] = agent


def _path(agent: type[BaseAgent]) -> str:
    return f"{agent.__module__}:{agent.__qualname__}"


def load_entry(entry: AgentEntry) -> type[BaseAgent]:
    """The class at `module:Class`, imported in this process.

    Raises:
        AgentLoadError: it cannot be imported, or is no agent of that name.
    """
    module, _, attribute = entry.location.partition(":")
    what = f"the agent {entry.name!r} at {entry.location}"
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # it may be anybody's code, and raise anything while imported
        msg = f"{what} cannot be loaded: {type(error).__name__}: {error}"
        raise AgentLoadError(msg) from error
    agent = _check(found, what)
    if agent.name != entry.name:
        msg = f"{what} calls itself {agent.name!r}; set name = {entry.name!r} in the class"
        raise AgentLoadError(msg)
    return agent


def _check(found: object, what: str) -> type[BaseAgent]:
    if not (isinstance(found, type) and issubclass(found, BaseAgent)) or inspect.isabstract(found):
        msg = f"{what} is no agent: it must be a class derived from agents.BaseAgent that has analyze()"
        raise AgentLoadError(msg)
    return found
