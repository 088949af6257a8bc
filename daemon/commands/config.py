"""`askfirst config`: check it, explain a value, print the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.commands.shapes import plain
from daemon.errors import ExitCode, SettingsError, SettingsProblem
from daemon.render import Column, Screen

if TYPE_CHECKING:
    from agents.base import BaseAgent
    from daemon.settings import Settings


@click.group(
    "config",
    short_help="Check and explain the configuration.",
    epilog=examples("askfirst config check", "askfirst config explain web.port"),
)
@command_options
def command() -> None:
    """Check and explain the configuration."""


@command.command(epilog=examples("askfirst config check"))
@command_options
@pass_invocation
def check(call: Invocation) -> int:
    """Check the configuration, the agents' own settings and your own prompt templates included.

    Exits with 78 when it cannot work.
    """
    screen = call.screen()
    settings, problems = _checked(call)
    if screen.as_json:
        screen.data(_report(settings, problems))
    else:
        _show(screen, settings, problems)
    return ExitCode.CONFIGURATION if problems else ExitCode.OK


def _checked(call: Invocation) -> tuple[Settings | None, tuple[SettingsProblem, ...]]:
    from daemon.commands.shelf import Shelf  # noqa: PLC0415 - loads the agents

    try:
        settings = call.settings(check_agents=True)
    except SettingsError as error:
        return None, error.problems
    return settings, tuple(Shelf(settings).problems())


def _report(settings: Settings | None, problems: tuple[SettingsProblem, ...]) -> dict[str, Any]:
    return {
        "ok": not problems,
        "file": None if settings is None else settings.config_file,
        "problems": [plain(problem) for problem in problems],
        "warnings": [] if settings is None else [plain(warning) for warning in settings.warnings],
    }


def _show(screen: Screen, settings: Settings | None, problems: tuple[SettingsProblem, ...]) -> None:
    for problem in problems:
        screen.line(problem, "red")
    if settings is not None:
        for warning in settings.warnings:
            screen.line(f"{warning} (warning)", "yellow")
    if settings is not None and not problems:
        source = settings.config_file or "no file, the defaults alone"
        screen.line(f"The configuration works: {source}.", "green")


@command.command(
    epilog=examples("askfirst config explain web.port", "askfirst config explain agents.matchmaker")
)
@click.argument("key", default="")
@command_options
@pass_invocation
def explain(call: Invocation, key: str) -> None:
    """Say what a setting is and where its value came from. Without KEY: every setting."""
    from daemon.settings.explain import explain as explained  # noqa: PLC0415 - loads pydantic

    settings = call.settings()
    found = explained(settings, key, _classes(settings))
    screen = call.screen()
    if screen.as_json:
        screen.data([plain(one) for one in found])
    elif len(found) == 1:
        one = found[0]
        screen.line(f"{one.key} = {one.value}", "bold")
        screen.fields(_details(one))
    else:
        screen.table(
            (Column("key", style="bold"), Column("value"), Column("from", style="dim")),
            [(one.key, one.value, one.origin) for one in found],
        )


def _details(one: Any) -> list[tuple[str, str]]:
    details = [("from", one.origin)]
    details += [("overrides", f"{value} in {place}") for place, value in one.overridden]
    details += [("set it with", one.variable)] if one.variable else []
    return details + ([("what it is", one.description)] if one.description else [])


def _classes(settings: Settings) -> dict[str, type[BaseAgent]]:
    """The classes of the configured agents; one that cannot be loaded is explained by its table alone."""
    from agents.errors import AgentError  # noqa: PLC0415 - beside what it is needed for
    from agents.registry import AgentRegistry  # noqa: PLC0415 - loads the agents

    registry, found = AgentRegistry(settings.daemon.plugin_dir, apart=True), {}
    for name in settings.agents:
        try:
            found[name] = registry.get(name)
        except AgentError:
            continue
    return found


@command.command(
    epilog=examples("askfirst config schema > askfirst.schema.json", "askfirst config schema --markdown")
)
@click.option("--markdown", is_flag=True, help="A table for people instead of a JSON schema.")
@command_options
@pass_invocation
def schema(call: Invocation, markdown: bool) -> None:
    """Print the JSON schema of the configuration file, for editors that can check a file with one."""
    from daemon.settings import explain as explaining  # noqa: PLC0415 - loads pydantic

    screen = call.screen()
    if markdown and not screen.as_json:
        screen.line(explaining.markdown().rstrip("\n"))
    else:
        screen.data(explaining.schema())
