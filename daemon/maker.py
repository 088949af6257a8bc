"""AgentMaker: an agent, its settings read and its context filled, for one run or one decision.

It is made here, or stands for one in a process of its own (`isolation`); `lent` and `ended` end that process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from agents.base import BaseAgent
from agents.config import AgentConfig
from agents.context import AgentContext, utc_now
from agents.errors import AgentError
from agents.prompts import templates_of
from agents.registry import AgentEntry, AgentRegistry
from daemon.settings import Settings
from daemon.worker.agent import IsolatedAgent, ended
from daemon.worker.host import Launch
from daemon.worker.limits import Limits
from llm import LLMClient, Templates


class AgentMaker:
    """Makes agents.

    Args:
        settings: the configuration, with the agents' tables.
        registry: the agents there are.
        llm: the model, None for rules only.
        now: the clock that agents are handed.
    """

    def __init__(
        self,
        settings: Settings,
        registry: AgentRegistry,
        llm: LLMClient | None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._llm = llm
        self._now = now
        self._templates: dict[type[BaseAgent], Templates] = {}  # kept, since they hold what they have read

    async def config(self, name: str) -> AgentConfig:
        """How the agent is run.

        Raises:
            AgentError: there is no such agent, it cannot be loaded, or its table cannot work.
        """
        return (await self._load(name))[1]

    @asynccontextmanager
    async def lent(self, name: str, **context: Any) -> AsyncIterator[BaseAgent]:
        """A new instance of the agent for as long as this lasts; nothing that it started goes on after it.

        The arguments and errors are those of `make`.
        """
        async with ended(await self.make(name, **context)) as agent:
            yield agent

    async def make(self, name: str, **context: Any) -> BaseAgent:
        """A new instance of the agent; `daemon.worker.agent.ended` must be round whatever uses it.

        Args:
            name: the agent's name.
            context: further fields of its `AgentContext`, such as `run_id`.

        Raises:
            AgentError: it cannot be made; the message says why.
        """
        agent, config, entry = await asyncio.to_thread(_to_make, self._registry, self._settings, name)
        isolated = is_isolated(config, entry)
        filled = AgentContext(
            llm=self._llm,
            templates=None if isolated else self._templates_of(agent),
            settings=config.settings,
            base_dir=self._settings.base_dir,
            data_dir=self._settings.daemon.data_dir / "agents" / name,
            now=self._now,
            log=_log_of(name, str(context.get("run_id", ""))),
            **context,
        )
        if isolated:
            launch = Launch(entry=entry, limits=limits_of(config), prompts_dir=self._settings.prompts_dir)
            return IsolatedAgent.of(agent, filled, launch)
        try:
            return agent(filled)
        except AgentError:
            raise
        except Exception as error:  # an agent's constructor is code of its own and may raise anything
            msg = f"the agent {name!r} cannot be made: {type(error).__name__}: {error}"
            raise AgentError(msg) from error

    def _templates_of(self, agent: type[BaseAgent]) -> Templates:
        if agent not in self._templates:
            self._templates[agent] = templates_of(agent, self._settings.prompts_dir)
        return self._templates[agent]

    async def _load(self, name: str) -> tuple[type[BaseAgent], AgentConfig]:
        # In a thread: the first time, modules and the rules of a time zone are read from the disk.
        return await asyncio.to_thread(_loaded, self._registry, self._settings, name)


def is_isolated(config: AgentConfig, entry: AgentEntry) -> bool:
    """Whether the agent's code runs in a process of its own: as its table says, else if it is a plugin."""
    return (config.isolation or ("process" if entry.origin == "plugin" else "none")) == "process"


def limits_of(config: AgentConfig) -> Limits:
    """What such a process may use."""
    return Limits(
        agent=config.name,
        memory_mb=config.max_memory_mb,
        cpu_seconds=(config.max_cpu or config.timeout).total_seconds(),
        max_bytes=config.max_bytes,
    )


def _loaded(registry: AgentRegistry, settings: Settings, name: str) -> tuple[type[BaseAgent], AgentConfig]:
    import structlog  # noqa: F401, PLC0415 - for `_log_of`, which runs on the loop

    agent = registry.get(name)
    return agent, settings.agent_config(name, agent)


def _to_make(
    registry: AgentRegistry, settings: Settings, name: str
) -> tuple[type[BaseAgent], AgentConfig, AgentEntry]:
    """What is needed to make the agent: its own class only if its code runs here."""
    agent, config = _loaded(registry, settings, name)
    entry = registry.entry(name)
    return agent if is_isolated(config, entry) else registry.load(name), config, entry


def _log_of(agent: str, run_id: str) -> Any:
    import structlog  # noqa: PLC0415 - 40 ms that commands without agents do not need

    log = structlog.stdlib.get_logger(f"agents.{agent}").bind(agent=agent)
    return log.bind(run_id=run_id) if run_id else log
