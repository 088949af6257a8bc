"""Daemon: the long-running program: logging, scheduler and web endpoints on one stack."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from daemon.control.lock import Holder, daemon_lock
from daemon.control.operations import Operation, stopping, table_of
from daemon.control.operations import Operations as Commands
from daemon.control.report import report
from daemon.control.server import ControlServer
from daemon.crew import CANCEL_LIMIT_S
from daemon.deadman import DeadMan
from daemon.errors import DaemonError, ExitCode, SettingsError, StoreFull
from daemon.events import EventBus
from daemon.lifecycle import Lifecycle, StatusLine, Watchdog
from daemon.observability.calls import CallLog
from daemon.observability.health import Health, Ping
from daemon.observability.logging import EventLog, adjust_logging, configure_logging, dropped_lines
from daemon.observability.metrics import Metrics
from daemon.observability.stalls import StallWatch
from daemon.scheduler import AgentScheduler
from daemon.serving import Serving
from daemon.standing import DaemonControls
from daemon.store.space import LOW_LOOK_EVERY_S, SpaceGuard
from daemon.timer import LOOK_EVERY_S
from daemon.watching import Watching

if TYPE_CHECKING:
    from agents.base import BaseAgent
    from daemon.housekeeping import Housekeeping
    from daemon.runtime import Runtime
    from daemon.settings import Settings
    from llm import LLMConfig

_log = logging.getLogger(__name__)

CLOSE_LIMIT_S = 5.0
"""How long the database and the model may take to close."""

TICK_LIMIT_S = 3 * LOOK_EVERY_S
"""A scheduler that has not looked for what is due for longer than this is stuck."""


class Daemon:
    """The program that runs agents on their schedules until it is told to stop.

    Args:
        settings: the configuration.
        llm_config: how to reach the model; None lets the settings choose.
        agents: names or classes of the agents; None means those that the settings enable.
        log_level: instead of `settings.daemon.log_level`.
        log_format: instead of `settings.daemon.log_format`.

    Attributes:
        lifecycle: how to ask it to stop, as a signal does.
        ready: set when everything is open and agents are scheduled.
        stalls: says which run keeps the loop, and counts; None before it runs.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        llm_config: LLMConfig | None = None,
        agents: Sequence[str | type[BaseAgent]] | None = None,
        log_level: str | None = None,
        log_format: str | None = None,
    ) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.ready = asyncio.Event()
        self.stalls: StallWatch | None = None
        self._fixed_level, self._fixed_format = log_level, log_format
        calls = CallLog()
        self._metrics = Metrics(dropped_lines=dropped_lines, max_series=settings.metrics.max_series)
        self._watching = Watching(self._metrics)
        self._scheduler = AgentScheduler(
            llm_config,
            agents,
            settings,
            events=EventBus(),
            llm_observers=[self._watching.note_call, calls.observe],
        )
        self._watching.watch(self._scheduler)
        self._scheduler.events.subscribe(EventLog(calls).note)
        self._space = SpaceGuard(
            settings.daemon.data_dir,
            settings.daemon.min_free_bytes,
            hold=self._scheduler.hold_all,
            release=self._scheduler.release_all,
        )
        self._waiting_for_room = False
        self._house: Housekeeping | None = None
        self._watching.watch_program(settings.daemon.data_dir, self._space, lambda: self._house)
        self._serving = Serving(settings, self._scheduler, self._metrics, self.lifecycle)
        self._control: ControlServer | None = None
        self._dead_man: DeadMan | None = None
        self._reloading = asyncio.Lock()
        self._status = StatusLine(self._status_text)
        self._scheduler.events.subscribe(self._status.changed)
        self._watchdog = Watchdog(self._silent_for, TICK_LIMIT_S)

    @property
    def url(self) -> str | None:
        """Where the web endpoints are, None before they are open or without them."""
        return self._serving.url

    async def run_until_stopped(self) -> ExitCode:
        """Run until a signal says to stop, then close everything in good order.

        Returns:
            OK when it was told to stop, FAILED when a part of it broke.

        Raises:
            DaemonRunning: another daemon uses the same data.
            AddressInUse: the port of the web endpoints is taken.
            DaemonError: the configuration or the database cannot be used.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self.lifecycle.signals())
            stack.callback(self._watchdog.close)
            # In threads: the key may be in a file, and closing waits for whoever reads the log.
            close = await asyncio.to_thread(self._configure_logging)
            stack.push_async_callback(asyncio.to_thread, close)
            if not await self._unless_stopped(self._open(stack)):
                return ExitCode.OK
            self._announce()
            self.ready.set()
            return await self._wait()

    def _configure_logging(self) -> Callable[[], None]:
        from daemon.settings import all_keys  # noqa: PLC0415 - loads pydantic

        secrets, daemon = all_keys(self.settings), self.settings.daemon
        return configure_logging(
            self._fixed_level or daemon.log_level,
            self._fixed_format or daemon.log_format,
            secrets=secrets,
            levels=daemon.log_levels,
        )

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again, whole or not at all; returns what changed, one sentence each.

        Raises:
            SettingsError: it cannot work, or changes what needs a restart; the old one stays in force.
        """
        from daemon.settings import all_keys, load_settings  # noqa: PLC0415 - loads pydantic

        async with self._reloading:
            # Told each time, also when the same problem as before is not told again.
            _log.info("reading the configuration again", extra={"file": str(self.settings.config_file)})
            with self.lifecycle.reloading():
                try:
                    settings = await asyncio.to_thread(
                        load_settings, self.settings.config_file, check_agents=True
                    )
                    keys = await asyncio.to_thread(all_keys, settings)
                    adjust_logging(self._fixed_level or self.settings.daemon.log_level, keys)
                    changes = await self._scheduler.reload(settings)
                except SettingsError as error:
                    for problem in error.problems:
                        _log.error("the configuration was not taken over: %s", problem)
                    raise
                self.settings = settings
                self._watching.follow()
                self._space.follow(settings.daemon.min_free_bytes)
                if self._dead_man is not None and self._scheduler.runtime is not None:
                    self._dead_man.set_agents(self._ping_addresses(self._scheduler.runtime))
                if self._house is not None:
                    self._house.follow(settings)
                levels = settings.daemon.log_levels
                adjust_logging(self._fixed_level or settings.daemon.log_level, levels=levels)
        for text in (*settings.warnings, *changes):
            _log.info("the configuration was read again: %s", text)
        return changes

    async def _reload_by_signal(self) -> None:
        with suppress(SettingsError):  # it was logged
            if not await self.reload():
                _log.info("the configuration was read again: nothing changed")

    async def _open(self, stack: AsyncExitStack) -> None:
        await self._space.look()  # gives up the reserve if need be
        own = await stack.enter_async_context(daemon_lock(self.settings.daemon.data_dir))
        self._serving.bind(stack)
        self._watch_for_stalls(stack)
        grace = self.settings.daemon.stop_grace.total_seconds()
        limit = grace + CANCEL_LIMIT_S + CLOSE_LIMIT_S
        self.lifecycle.on_hurry(self._scheduler.hurry)
        # Closed after the agents, so that who waits for a decision or a run still gets the answer.
        self.lifecycle.add_stage(stack, "commands", CLOSE_LIMIT_S, self._close_control)
        self.lifecycle.add_stage(stack, "agents", limit, self._scheduler.stop)
        await self._start_agents(stack)
        runtime = self._scheduler.runtime
        if runtime is None:  # stopped while it was starting
            return
        await self._keep_house(runtime, stack)
        health = Health(self._pings(runtime))
        stack.push_async_callback(health.aclose)
        self._start_dead_man(runtime, health, stack)
        await self._serving.show(health, stack)
        await self._take_commands(health, own)
        stack.callback(self._say_stopping)

    async def _start_agents(self, stack: AsyncExitStack) -> None:
        """Open everything; on a full disk serve the endpoints, say so, and wait for room: no crash loop."""
        try:
            await self._scheduler.start()
        except StoreFull as error:
            await self._wait_for_room(error, stack)

    async def _wait_for_room(self, error: StoreFull, stack: AsyncExitStack) -> None:
        async def storage() -> str:
            raise error

        self._waiting_for_room = True
        await self._serving.show(Health([Ping("storage", storage)]), stack)
        _log.warning("waiting for room on the disk: %s", error)
        self._status.tell("READY=1")  # systemd must not take this for a start that hangs
        self._watchdog.start()
        while self._waiting_for_room:
            await asyncio.sleep(LOW_LOOK_EVERY_S)
            await self._space.look()
            with suppress(StoreFull):
                await self._scheduler.start()
                self._waiting_for_room = False
        _log.info("there is room on the disk again: going on with the start")

    async def _keep_house(self, runtime: Runtime, stack: AsyncExitStack) -> None:
        """Look after the room on the disk, backups, and what is old, until the end."""
        self._house = house = runtime.housekeeping
        runtime.db.on_full = self._space.give_way
        await self._space.look()
        for name, work in (("space", self._space.run()), ("housekeeping", house.run())):
            stack.push_async_callback(_ended, asyncio.create_task(work, name=name))
        stack.push_async_callback(house.aclose)

    async def _take_commands(self, health: Health, own: Holder) -> None:
        def table() -> dict[str, Operation]:
            scheduler, runtime = self._scheduler, self._scheduler.runtime
            if runtime is None:
                raise stopping()
            status = partial(report, runtime, scheduler, health, own, self.url)
            backup = None if self._house is None else self._house.backup
            controls = DaemonControls(scheduler, runtime, reload=self.reload, backup=backup)
            return table_of(runtime, scheduler, controls, reload=self.reload, status=status)

        daemon = self.settings.daemon
        self._control = ControlServer(Commands(table), daemon.data_dir, own, group=daemon.control_group)
        await self._control.start()
        self.lifecycle.on_reload(self._reload_by_signal)

    async def _close_control(self) -> None:
        if self._control is not None:
            await self._control.aclose(CLOSE_LIMIT_S / 2)

    def _silent_for(self) -> float | None:
        if self._waiting_for_room:
            return 0.0
        return self._scheduler.seconds_since_tick if self._scheduler.running else None

    def _watch_for_stalls(self, stack: AsyncExitStack) -> None:
        after, late = self.settings.daemon.stall_after.total_seconds(), self._scheduler.lag.note
        self.stalls = StallWatch(after, late)
        self._watching.watch_stalls(self.stalls)
        self._scheduler.events.subscribe(self.stalls.note)
        self.stalls.start()
        stack.push_async_callback(self.stalls.aclose)

    async def _unless_stopped(self, opening: Coroutine[None, None, None]) -> bool:
        """Open, unless somebody wants to stop before that is done; tells whether all is open."""
        task = asyncio.create_task(opening, name="start")
        stop = asyncio.create_task(self.lifecycle.stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            return False
        await task  # raises what went wrong
        return True

    def _start_dead_man(self, runtime: Runtime, health: Health, stack: AsyncExitStack) -> None:
        """Tell whoever shall be told that all is well, if there is anybody."""
        daemon = self.settings.daemon
        program = None if daemon.ping_url is None else daemon.ping_url.get_secret_value()
        agents = self._ping_addresses(runtime)

        async def healthy() -> bool:
            return (await health.check())[0]

        dead_man = DeadMan(program, daemon.ping_every.total_seconds(), healthy, agents)
        self._scheduler.events.subscribe(dead_man.note)
        self._dead_man = dead_man
        dead_man.start()
        stack.push_async_callback(dead_man.aclose)

    @staticmethod
    def _ping_addresses(runtime: Runtime) -> dict[str, str]:
        tables = {name: runtime.settings.agents.get(name, {}) for name in runtime.agent_names}
        return {name: str(table["ping_url"]) for name, table in tables.items() if table.get("ping_url")}

    def _pings(self, runtime: Runtime) -> list[Ping]:
        async def database() -> str:
            return f"{sum((await runtime.proposals.counts()).values())} proposals"

        async def scheduler() -> str:
            silent = self._scheduler.seconds_since_tick
            if silent is None or silent > TICK_LIMIT_S or not self._scheduler.running:
                msg = "stopped" if silent is None else f"last looked for due agents {silent:.0f} s ago"
                raise DaemonError(msg)
            return f"looked for due agents {silent:.0f} s ago"

        async def model() -> str:
            llm = (
                self._scheduler.runtime or runtime
            ).llm  # another one after the configuration was read again
            if llm is None:
                return "none: rules only"
            name = f"{llm.backend} {llm.config.model}"
            if not await llm.health_check():
                msg = f"{name} does not answer; agents go on by rules where they can"
                raise DaemonError(msg)
            return name

        return [
            Ping("database", database),
            Ping("scheduler", scheduler),
            Ping("storage", self._space.ping),
            Ping("model", model, required=False),
        ]

    def _announce(self) -> None:
        runtime, selection = self._scheduler.runtime, self._scheduler.selection
        if runtime is None or selection is None:
            return
        config = selection.config
        model = "none: rules only" if config is None else f"{config.backend} {config.model}"
        values = {
            "address": self.url or "none: web.enabled is false",
            "model": model,
            "why": selection.reason,
            "agents": list(runtime.agent_names),
            "data": str(self.settings.daemon.data_dir),
        }
        _log.info("askfirst is running", extra=values)
        if not runtime.agent_names:
            _log.warning("no agent is enabled: add a table such as [agents.matchmaker] to the configuration")
        self._status.tell("READY=1")
        self._watchdog.start()

    def _status_text(self) -> str:
        """What `systemctl status` shows in its line."""
        if self._waiting_for_room:
            return "waiting for room on the disk"
        runtime, selection = self._scheduler.runtime, self._scheduler.selection
        if runtime is None or selection is None:
            return "starting"
        config = selection.config
        model = "rules only" if config is None else f"{config.backend} {config.model}"
        waiting = self._scheduler.get_stats()["proposals"].get("pending", 0)
        agents, proposals = _counted(len(runtime.agent_names), "agent"), _counted(waiting, "proposal")
        return ", ".join([agents, model, f"{proposals} waiting", *([self.url] if self.url else [])])

    def _say_stopping(self) -> None:
        """The first stage: no new run from here on."""
        _log.info("stopping", extra={"reason": self.lifecycle.reason})
        self._status.close()
        self._watchdog.stopping()
        self.lifecycle.say_stopping()
        self._serving.say_stopping()
        self._scheduler.hold()
        if self._control is not None:
            self._control.hold()

    async def _wait(self) -> ExitCode:
        stop = asyncio.create_task(self.lifecycle.stopping.wait())
        waiting: set[asyncio.Task[Any]] = {stop, asyncio.create_task(self._serving.ended())}
        disk = None
        if self._scheduler.runtime is not None:
            disk = asyncio.create_task(self._scheduler.runtime.db.given_up.wait())
            waiting.add(disk)
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        broken, failed = not stop.done(), disk is not None and disk.done()
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        if not broken:
            return ExitCode.OK
        if failed:
            _log.error("ending: the disk fails again and again; a new start looks through the database")
            return ExitCode.FAILED
        errors = [result for result in results if isinstance(result, Exception)]
        _log.error("the web endpoints ended by themselves", exc_info=errors[0] if errors else None)
        return ExitCode.FAILED


async def _ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
