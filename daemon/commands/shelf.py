"""The prompt templates of all agents and the owner's versions of them: what counts, and what cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.errors import AgentError
from agents.prompts import templates_of
from agents.registry import AgentRegistry
from daemon.errors import DaemonError, SettingsProblem
from llm import PromptTemplate, TemplateError, Templates

if TYPE_CHECKING:
    from daemon.settings import Settings

_SUFFIX = ".j2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One template of an agent.

    Attributes:
        agent: the agent.
        name: the template's name with the agent's: "matchmaker/pair".
        path: the file that counts.
        shipped: the file that came with the agent, None when only the owner has one.
        found: the template, None when it cannot be read.
        problem: why it cannot be used, empty when it can.
    """

    agent: str
    name: str
    path: Path
    shipped: Path | None
    found: PromptTemplate | None
    problem: str

    @property
    def overridden(self) -> bool:
        """Whether the owner's own version counts."""
        return self.path != self.shipped


class Shelf:
    """The templates of every agent there is.

    Args:
        settings: the configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.prompts_dir
        self._enabled = settings.enabled_agents
        self._registry = AgentRegistry(settings.daemon.plugin_dir, apart=True)

    def entries(self) -> list[Entry]:
        """Every template, by agent and name."""
        found = [self._entry(agent, name) for agent in self._agents() for name in self._names(agent)]
        return sorted(found, key=lambda entry: entry.name)

    def entry(self, full_name: str) -> Entry:
        """The template or part "agent/name".

        Raises:
            DaemonError: there is none.
        """
        agent, _, name = full_name.partition("/")
        if not name or agent not in self._agents():
            names = ", ".join(entry.name for entry in self.entries()) or "none"
            msg = f"there is no prompt template {full_name!r}; there are: {names}"
            raise DaemonError(msg)
        try:
            return self._entry(agent, name)
        except TemplateError as error:
            raise DaemonError(str(error)) from error

    def templates(self, agent: str) -> Templates:
        """The templates of an agent, the owner's own first."""
        return templates_of(self._registry.get(agent), self.folder)

    def shipped(self, agent: str) -> Templates:
        """The templates that came with an agent."""
        return templates_of(self._registry.get(agent))

    def problems(self) -> list[SettingsProblem]:
        """Which templates cannot be used, and which files in the owner's folder are none.

        What came with an agent that is not enabled is no problem of this configuration.
        """
        told = [
            (entry.path, entry.problem)
            for entry in self.entries()
            if entry.problem and (entry.overridden or entry.agent in self._enabled)
        ]
        return [
            SettingsProblem(key="", message=text, source=str(path))
            for path, text in sorted([*told, *self._strays()])
        ]

    def _agents(self) -> dict[str, Templates]:
        found: dict[str, Templates] = {}
        for name in self._registry.names():
            try:
                found[name] = self.templates(name)
            except AgentError:  # `askfirst agents list` and `doctor` tell what is wrong with it
                continue
        return found

    def _names(self, agent: str) -> tuple[str, ...]:
        return self.templates(agent).names()

    def _entry(self, agent: str, name: str) -> Entry:
        templates = self.templates(agent)
        path = templates.path(name)
        try:
            shipped = self.shipped(agent).path(name)
        except TemplateError:
            shipped = None
        found, problem = None, ""
        try:
            found = templates.get(name)
            problem = self._misfit(agent, name, found)
        except TemplateError as error:
            problem = str(error).removeprefix(f"{path}, ").removeprefix(f"{path}: ")
        return Entry(
            agent=agent, name=f"{agent}/{name}", path=path, shipped=shipped, found=found, problem=problem
        )

    def _misfit(self, agent: str, name: str, own: PromptTemplate) -> str:
        """Why a template, or a part that it includes, does not fit the agent; empty when all does."""
        if name.startswith("_"):
            return ""  # a part is judged in the template that includes it
        if name not in self.shipped(agent).names():
            return (
                f"the agent {agent!r} asks no question {name!r}; remove the file, or give it the right name"
            )
        known = self.shipped(agent).get(name).variables
        given = known.required | known.optional
        unknown = own.variables.required - given
        if unknown:
            gives = ", ".join(sorted(given)) or "nothing"
            return f"it needs {', '.join(sorted(unknown))}, and the agent gives it {gives}"
        bare = own.variables.bare & given - known.bare
        if bare:
            ways = ", ".join(f"{{{{ {each} | untrusted }}}}" for each in sorted(bare))
            return f"it prints data without the filter; write {ways}"
        return ""

    def _strays(self) -> Iterator[tuple[Path, str]]:
        """Files in the owner's folder that belong to no agent."""
        agents = self._agents()
        for path in sorted(self.folder.rglob(f"*{_SUFFIX}")):
            where = path.relative_to(self.folder).parts
            if len(where) != 2:
                yield path, f"it is not looked for here; templates stand in {self.folder / 'AGENT'}"
            elif where[0] not in agents:
                yield path, f"there is no agent {where[0]!r}; the agents are {', '.join(agents)}"
            elif not (path.stem.startswith("_") or path.stem in agents[where[0]].names()):
                yield path, f"{path.stem!r} cannot be the name of a prompt template; use a-z, 0-9, _ and -"
