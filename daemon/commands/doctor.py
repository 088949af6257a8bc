"""`askfirst doctor`: does everything that the program needs work?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

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
    check_traces,
)
from daemon.commands.shapes import plain
from daemon.errors import DaemonError, ExitCode, SettingsError
from daemon.render import Screen, Style

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from agents.registry import AgentRegistry
    from daemon.settings import Settings
    from llm import LLMResponse, Selection

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

    Looks at the packages, the configuration, the agents, their prompts, the data folder, the disk, the
    database, the clock, the port, the model, which is asked one small question, and at the service and the
    collector of traces, where there is one. Changes nothing. Exits with 1 when something fails.
    """
    screen = call.screen()
    checks = list(_shown(_all_checks(call), screen))
    failed = [check for check in checks if check.state == "fail"]
    if screen.as_json:
        screen.data({"ok": not failed, "checks": [plain(check) for check in checks]})
    else:
        screen.line()
        screen.line(_verdict(checks), "red" if failed else "green")
    return ExitCode.FAILED if failed else ExitCode.OK


def _shown(checks: Iterable[Check], screen: Screen) -> Iterator[Check]:
    """The checks, each one on the screen as soon as it is done."""
    for check in checks:
        if not screen.as_json:
            screen.line(f"{check.state:<4}  {check.name}: {check.message}", _STYLES[check.state])
            if check.way_out:
                screen.line(f"      {check.way_out}")
        yield check


def _verdict(checks: list[Check]) -> str:
    failed, warned = (sum(check.state == state for check in checks) for state in ("fail", "warn"))
    if failed:
        return f"{failed} of {len(checks)} checks failed."
    return f"Everything works; {warned} to look at." if warned else "Everything works."


def _all_checks(call: Invocation) -> Iterator[Check]:
    clock = ClockCheck()
    yield check_packages()
    yield check_distributions()
    try:
        settings = call.settings(check_agents=True)
    except SettingsError as error:
        yield from (Check(name="configuration", state="fail", message=str(p)) for p in error.problems)
        yield clock.result()
        yield from _service()
        return
    yield _configuration(settings)
    yield _agents(settings)
    yield _prompts(settings)
    yield check_folder(settings.daemon.data_dir)
    yield check_disk(settings.daemon.data_dir)
    yield check_port(settings.web.host, settings.web.port, enabled=settings.web.enabled)
    with call.logging(settings):
        database, newest = _database(settings)
        yield database
        yield clock.result(newest)
        yield from _model(settings)
    yield from _traces(settings)
    yield from _service()


def _service() -> Iterator[Check]:
    """The service, where the program is one."""
    from daemon.commands.service_checks import service_checks  # noqa: PLC0415 - imported only when chosen
    from daemon.install.machine import Machine  # noqa: PLC0415 - imported only when chosen

    yield from service_checks(Machine())


def _traces(settings: Settings) -> Iterator[Check]:
    """The collector, where one is named."""
    endpoint = settings.traces.endpoint
    if endpoint is None or not settings.traces.wanted(os.environ):
        return
    try:
        yield check_traces(endpoint, settings.trace_headers())
    except SettingsError as error:
        yield from (Check(name="traces", state="fail", message=str(problem)) for problem in error.problems)


def _configuration(settings: Settings) -> Check:
    if settings.warnings:
        text = "; ".join(map(str, settings.warnings))
        return Check(name="configuration", state="warn", message=text)
    source = settings.config_file or "no file, the defaults alone"
    return Check(name="configuration", state="ok", message=str(source))


def _agents(settings: Settings) -> Check:
    from agents.registry import AgentRegistry  # noqa: PLC0415 - loads the agents

    registry = AgentRegistry(settings.daemon.plugin_dir, apart=True)
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


def _prompts(settings: Settings) -> Check:
    """The agents' prompt templates can be used, the owner's own among them."""
    from daemon.commands.shelf import Shelf  # noqa: PLC0415 - loads the agents

    name, shelf = "prompts", Shelf(settings)
    problems = shelf.problems()
    if problems:
        way = (
            "`askfirst prompts diff NAME` shows what was changed; without the file the agent's own one counts"
        )
        return Check(name=name, state="fail", message="; ".join(map(str, problems)), way_out=way)
    entries = shelf.entries()
    own = sum(entry.overridden for entry in entries)
    return Check(name=name, state="ok", message=f"{len(entries)} templates, {own} of them your own")


def _database(settings: Settings) -> tuple[Check, datetime | None]:
    """The database opens, is whole and has a schema that is known; with the time of its newest run."""
    from daemon.runtime import DATABASE  # noqa: PLC0415 - loads the agents

    name, path = "database", settings.daemon.data_dir / DATABASE
    if not path.exists():
        return Check(name=name, state="ok", message=f"{path} is made at the first run"), None
    try:
        newest = run(_newest_run(path))
    except DaemonError as error:
        return Check(name=name, state="fail", message=str(error)), None
    return Check(name=name, state="ok", message=f"{path}, whole, with the schema of this version"), newest


async def _newest_run(path: Path) -> datetime | None:
    from daemon.store.engine import Database  # noqa: PLC0415 - loads SQLAlchemy
    from daemon.store.runs import RunStore  # noqa: PLC0415 - loads SQLAlchemy

    database = await Database.open(path, create=False)
    try:
        newest = await RunStore(database).list(limit=1)
    finally:
        await database.aclose()
    return newest[0].started_at if newest else None


def _model(settings: Settings) -> Iterator[Check]:
    """The model that would be used can be reached and answers in the form that it is asked for."""
    from daemon.selection import choose_model  # noqa: PLC0415 - beside what it is needed for
    from llm import LLMError  # noqa: PLC0415

    try:
        selection = run(choose_model(settings))
        health = run(_health(selection))
    except (LLMError, DaemonError) as error:
        yield Check(name="model", state="fail", message=str(error))
        return
    if selection.config is None:
        way = "that works; for a model: " + " ".join(selection.considered)
        yield Check(name="model", state="ok", message=selection.reason, way_out=way)
        return
    if len(health) > 1:
        yield from _backends(health)
    if not any(health.values()):
        way = "start it, or choose another one with LLM_BACKEND; LLM_BACKEND=auto takes what is there"
        message = f"{selection.reason} It cannot be reached"
        yield Check(name="model", state="fail", message=message, way_out=way)
    else:
        yield Check(name="model", state="ok", message=selection.reason)
        yield _question(selection)


async def _health(selection: Selection) -> dict[str, bool]:
    """Whether each backend answers, by its name; empty for rules only."""
    from daemon.selection import health_of, open_client  # noqa: PLC0415 - beside what it is needed for

    client = open_client(selection)
    if client is None:
        return {}
    async with client:
        return await health_of(client)


def _backends(health: Mapping[str, bool]) -> Iterator[Check]:
    """Each of several backends; while one of them answers, the others are only missed."""
    state: Literal["warn", "fail"] = "warn" if any(health.values()) else "fail"
    for name, healthy in health.items():
        if healthy:
            yield Check(name=f"backend {name}", state="ok", message="it answers and has its model")
        else:
            way = f"start it, or look at [llm.backends.{name}]: askfirst config explain llm.backends.{name}"
            yield Check(name=f"backend {name}", state=state, message="it cannot be reached", way_out=way)


def _question(selection: Selection) -> Check:
    """The model answers a structured question."""
    from llm import LLMError  # noqa: PLC0415 - beside what it is needed for

    name, began = "structured answers", time.monotonic()
    try:
        response = run(_answer(selection))
    except LLMError as error:
        way = "agents go on by their rules; a larger model or a higher LLM_TIMEOUT may help"
        return Check(name=name, state="fail", message=str(error), way_out=way)
    seconds = time.monotonic() - began
    return Check(name=name, state="ok", message=f"{response.model} gave one in {seconds:.1f} s")


async def _answer(selection: Selection) -> LLMResponse:
    """Asked anew: the cache must not answer for the model."""
    from llm import LLMMessage, get_llm_client  # noqa: PLC0415 - beside what it is needed for
    from llm.structured import ask  # noqa: PLC0415 - beside what it is needed for

    async with get_llm_client(selection.routes or selection.config) as client:
        question = [LLMMessage("user", _QUESTION)]
        return await ask(client, question, _SCHEMA, cache=False, temperature=0.0, max_tokens=60)
