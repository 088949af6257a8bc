"""Serving: the web part of the daemon: takes the address, serves what is open, and takes webhooks."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from daemon.events import AgentState
from daemon.lifecycle import Lifecycle
from daemon.observability.health import Health
from daemon.observability.metrics import Metrics
from daemon.scheduler import AgentScheduler
from daemon.version import own_version

if TYPE_CHECKING:
    from daemon.settings import Settings
    from daemon.web.ops import Operations
    from daemon.web.server import WebServer

CLOSE_LIMIT_S = 5.0
"""How long the web endpoints may take to close."""

_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - these are recognised here, not bound


class Serving:
    """The web endpoints of a daemon, none when `web.enabled` is false.

    Args:
        settings: the configuration of the start; where to listen needs a restart.
        scheduler: runs the agents, and is told of webhooks.
        metrics: for /metrics.
        lifecycle: stops the endpoints, and says when the program ends.

    Attributes:
        url: where the endpoints are, None before they are open or without them.
    """

    def __init__(
        self, settings: Settings, scheduler: AgentScheduler, metrics: Metrics, lifecycle: Lifecycle
    ) -> None:
        self.url: str | None = None
        self._settings = settings
        self._scheduler = scheduler
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._web: WebServer | None = None
        self._operations: Operations | None = None

    def bind(self, stack: AsyncExitStack) -> None:
        """Take the address first: that it is taken by another program must be known before agents run.

        Raises:
            AddressInUse: another program has it.
            DaemonError: it cannot be had for another reason.
        """
        if not self._settings.web.enabled:
            return
        from daemon.web.server import WebServer  # noqa: PLC0415 - loads uvicorn, which not everybody wants

        self._web = web = WebServer(self._settings.web.host, self._settings.web.port)
        web.bind()
        stack.callback(web.release)

    async def show(self, health: Health, stack: AsyncExitStack) -> None:
        """Serve, and show how what is open is; again, when more has been opened since."""
        if self._operations is not None:  # it was served while the start waited for room
            self._operations.health = health
        elif self._web is not None:
            await self._start(self._web, health, stack)

    async def ended(self) -> None:
        """Return when the server has ended, wanted or not; never without one.

        Raises:
            Exception: what it broke on.
        """
        if self._web is None:
            await asyncio.Event().wait()
        else:
            await self._web.ended()

    def say_stopping(self) -> None:
        """Not ready from here on."""
        if self._operations is not None:
            self._operations.stopping = True

    async def _start(self, web: WebServer, health: Health, stack: AsyncExitStack) -> None:
        from daemon.triggers.tokens import HookTokens  # noqa: PLC0415 - as above
        from daemon.web.app import build_app  # noqa: PLC0415 - as above
        from daemon.web.assets import Assets  # noqa: PLC0415 - as above
        from daemon.web.facts import Gatherer  # noqa: PLC0415 - as above
        from daemon.web.hooks import Hooks  # noqa: PLC0415 - as above
        from daemon.web.ops import Operations  # noqa: PLC0415 - as above
        from daemon.web.status import StatusPage  # noqa: PLC0415 - as above

        version = await asyncio.to_thread(own_version)
        self._metrics.set_version(version)
        settings, assets = self._settings, Assets()
        self._operations = operations = Operations(metrics=self._metrics, health=health, version=version)
        operations.page = StatusPage(Gatherer(self._scheduler, settings, operations), assets).show
        tokens = HookTokens(settings.daemon.data_dir)
        hooks = Hooks(tokens=tokens, hooked=self._hooked, take=self._take_hook)
        own = () if web.address[0] in _WILDCARDS else (settings.web.host,)
        allowed = (*own, *settings.web.allowed_hosts)
        await web.start(build_app(operations, hooks=hooks, assets=assets, allowed_hosts=allowed))
        self._lifecycle.add_stage(stack, "web", CLOSE_LIMIT_S, web.aclose)
        self.url = web.url

    def _hooked(self) -> frozenset[str]:
        """The agents that take webhooks."""
        runtime = self._scheduler.runtime
        names = () if runtime is None else runtime.agent_names
        tables = {} if runtime is None else runtime.settings.agents
        return frozenset(name for name in names if tables.get(name, {}).get("webhook") is True)

    async def _take_hook(self, agent: str) -> str:
        """An authorised request asks for an agent; returns why it is not run, empty if it is."""
        runtime = self._scheduler.runtime
        if runtime is None or not self._scheduler.running or self._lifecycle.stopping.is_set():
            return "the program is stopping"
        status = await runtime.states.get(agent)
        if status.state is not AgentState.ACTIVE:
            way_out = f"askfirst agents resume {agent}"
            return f"it is {status.state}{status.reason and f': {status.reason}'}; resume it with: {way_out}"
        if self._scheduler.trigger(agent, "webhook"):
            return ""
        return f"it is not scheduled; see: askfirst agents why {agent}"
