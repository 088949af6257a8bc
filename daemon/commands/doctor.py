"""`askfirst doctor`: does everything that the program needs work?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation, run
from daemon.commands.checks import (
    Check,
    ClockCheck,
    check_disk,
    check_distributions,
    check_folder,
    check_packages,
    check_port,
)
from daemon.commands.shapes import plain
from daemon.errors import DaemonError, ExitCode, SettingsError
from daemon.render import Screen, Style

if TYPE_CHECKING:
    from datetime import datetime

    from agents.registry import AgentRegistry
    from daemon.settings import Settings
    from llm import LLMConfig

_STYLES: dict[str, Style] = {"ok": "green", "warn": "yellow", "fail": "red"}

_QUESTION = "Is a tomato a vegetable that people eat?"
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["yes", "no", "unsure"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@click.command(
    "doctor",
    short_help="Check that everything this program needs works.",
    epilog=examples("askfirst doctor", "askfirst doctor --json"),
)
@command_options
@pass_invocation
def command(call: Invocation) -> int:
    """Check that everything this program needs works, and say the way out of what does not.

    Looks at the packages, the configuration, the agents, the data folder, the disk, the database, the clock,
    the port and the model, which is asked one small question. Changes nothing. Exits with 1 when something
    fails.
    """
    screen = call.screen()
    checks = run(_examine(call, screen))
    failed = [check for check in checks if check.state == "fail"]
    if screen.as_json:
        screen.data({"ok": not failed, "checks": [plain(check) for check in checks]})
    else:
        screen.line()
        screen.line(_verdict(checks), "red" if failed else "green")
    return ExitCode.FAILED if failed else ExitCode.OK


async def _examine(call: Invocation, screen: Screen) -> list[Check]:
    checks: list[Check] = []
    async for check in _all_checks(call):
        checks.append(check)
        if not screen.as_json:
            screen.line(f"{check.state:<4}  {check.name}: {check.message}", _STYLES[check.state])
            if check.way_out:
                screen.line(f"      {check.way_out}")
    return checks


def _verdict(checks: list[Check]) -> str:
    failed, warned = (sum(check.state == state for check in checks) for state in ("fail", "warn"))
    if failed:
        return f"{failed} of {len(checks)} checks failed."
    return f"Everything works; {warned} to look at." if warned else "Everything works."


async def _all_checks(call: Invocation) -> AsyncIterator[Check]:
    clock = ClockCheck()
    yield check_packages()
    yield check_distributions()
    try:
        settings = call.settings(check_agents=True)
    except SettingsError as error:
        for problem in error.problems:
            yield Check(name="configuration", state="fail", message=str(problem))
        yield clock.result()
        return
    yield _configuration(settings)
    yield _agents(settings)
    yield check_folder(settings.daemon.data_dir)
    yield check_disk(settings.daemon.data_dir)
    with call.logging(settings):
        database, newest = await _database(settings)
        yield database
        web = settings.web
        yield await asyncio.to_thread(check_port, web.host, web.port, enabled=web.enabled)
        async for check in _model(settings):
            yield check
    yield clock.result(newest)


def _configuration(settings: Settings) -> Check:
    if settings.warnings:
        text = "; ".join(map(str, settings.warnings))
        return Check(name="configuration", state="warn", message=text)
    source = settings.config_file or "no file, the defaults alone"
    return Check(name="configuration", state="ok", message=str(source))


def _agents(settings: Settings) -> Check:
    from agents.registry import AgentRegistry  # noqa: PLC0415 - loads the agents

    registry = AgentRegistry(settings.daemon.plugin_dir)
    problems = [*registry.problems, *_unloadable(registry)]
    if problems:
        way = "repair or remove what is named; `askfirst agents list` shows the agents there are"
        return Check(name="agents", state="warn", message="; ".join(problems), way_out=way)
    enabled = settings.enabled_agents
    if not enabled:
        way = f"give one a table such as [agents.{registry.names()[0]}] in the configuration"
        return Check(name="agents", state="warn", message="none is enabled", way_out=way)
    return Check(name="agents", state="ok", message=f"{', '.join(enabled)} enabled")


def _unloadable(registry: AgentRegistry) -> list[str]:
    from agents.errors import AgentError  # noqa: PLC0415 - beside what it is needed for

    found: list[str] = []
    for name in registry.names():
        try:
            registry.get(name)
        except AgentError as error:
            found.append(str(error))
    return found


async def _database(settings: Settings) -> tuple[Check, datetime | None]:
    """The database opens, is whole and has a schema that is known; with the time of its newest run."""
    from daemon.runtime import DATABASE  # noqa: PLC0415 - loads the agents
    from daemon.store.engine import Database  # noqa: PLC0415 - loads SQLAlchemy
    from daemon.store.runs import RunStore  # noqa: PLC0415 - loads SQLAlchemy

    name, path = "database", settings.daemon.data_dir / DATABASE
    if not path.exists():
        return Check(name=name, state="ok", message=f"{path} is made at the first run"), None
    try:
        database = await Database.open(path, create=False)
        try:
            newest = await RunStore(database).list(limit=1)
        finally:
            await database.aclose()
    except DaemonError as error:
        return Check(name=name, state="fail", message=str(error)), None
    message = f"{path}, whole, with the schema of this version"
    return Check(name=name, state="ok", message=message), newest[0].started_at if newest else None


async def _model(settings: Settings) -> AsyncIterator[Check]:
    from llm import LLMError, get_llm_client, select_backend  # noqa: PLC0415 - beside what it is needed for

    try:
        selection = await select_backend(settings.llm_environ())
    except (LLMError, DaemonError) as error:
        yield Check(name="model", state="fail", message=str(error))
        return
    if selection.config is None:
        way = "that works; for a model: " + " ".join(selection.considered)
        yield Check(name="model", state="ok", message=selection.reason, way_out=way)
        return
    async with get_llm_client(selection.config) as client:
        if not await client.health_check():
            way = "start it, or choose another one with LLM_BACKEND; LLM_BACKEND=auto takes what is there"
            message = f"{selection.reason} It cannot be reached"
            yield Check(name="model", state="fail", message=message, way_out=way)
            return
    yield Check(name="model", state="ok", message=selection.reason)
    yield await _question(selection.config)


async def _question(config: LLMConfig) -> Check:
    """The model answers a structured question, asked anew: the cache must not answer for it."""
    from llm import LLMError, LLMMessage, get_llm_client  # noqa: PLC0415 - beside what it is needed for
    from llm.structured import ask  # noqa: PLC0415 - beside what it is needed for

    name, began = "structured answers", time.monotonic()
    try:
        async with get_llm_client(config) as client:
            question = [LLMMessage("user", _QUESTION)]
            response = await ask(client, question, _SCHEMA, cache=False, temperature=0.0, max_tokens=60)
    except LLMError as error:
        way = "agents go on by their rules; a larger model or a higher LLM_TIMEOUT may help"
        return Check(name=name, state="fail", message=str(error), way_out=way)
    seconds = time.monotonic() - began
    return Check(name=name, state="ok", message=f"{response.model} gave one in {seconds:.1f} s")
