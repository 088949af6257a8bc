"""AgentMaker: an agent, its settings read and its context filled, for one run or one decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from agents.base import BaseAgent
from agents.config import AgentConfig
from agents.context import AgentContext, utc_now
from agents.errors import AgentError
from agents.prompts import templates_of
from agents.registry import AgentRegistry
from daemon.settings import Settings
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

    async def make(self, name: str, **context: Any) -> BaseAgent:
        """A new instance of the agent.

        Args:
            name: the agent's name.
            context: further fields of its `AgentContext`, such as `run_id`.

        Raises:
            AgentError: it cannot be made; the message says why.
        """
        agent, config = await self._load(name)
        filled = AgentContext(
            llm=self._llm,
            templates=self._templates_of(agent),
            settings=config.settings,
            base_dir=self._settings.base_dir,
            data_dir=self._settings.daemon.data_dir / "agents" / name,
            now=self._now,
            log=_log_of(name, str(context.get("run_id", ""))),
            **context,
        )
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


def _loaded(registry: AgentRegistry, settings: Settings, name: str) -> tuple[type[BaseAgent], AgentConfig]:
    import structlog  # noqa: F401, PLC0415 - for `_log_of`, which runs on the loop

    agent = registry.get(name)
    return agent, settings.agent_config(name, agent)


def _log_of(agent: str, run_id: str) -> Any:
    import structlog  # noqa: PLC0415 - 40 ms that commands without agents do not need

    log = structlog.get_logger("askfirst.agent").bind(agent=agent)
    return log.bind(run_id=run_id) if run_id else log
