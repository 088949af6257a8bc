"""`askfirst agents`: which agents there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.render import Column

if TYPE_CHECKING:
    from agents.registry import AgentEntry, AgentRegistry
    from daemon.settings import Settings


@click.group("agents", short_help="See which agents there are.", epilog=examples("askfirst agents list"))
@command_options
def command() -> None:
    """See which agents there are."""


@command.command("list", epilog=examples("askfirst agents list"))
@command_options
@pass_invocation
def list_agents(call: Invocation) -> None:
    """List every agent: built in, from other packages, and from the plugin folder."""
    from agents.registry import AgentRegistry  # noqa: PLC0415 - loads the agents

    settings = call.settings()
    registry = AgentRegistry(settings.daemon.plugin_dir, apart=True)
    rows = [_described(settings, registry, entry) for entry in registry.entries()]
    screen = call.screen()
    if screen.as_json:
        screen.data({"agents": rows, "problems": list(registry.problems)})
        return
    heads = ("agent", "enabled", "every", "origin", "what it does")
    screen.table([Column(head) for head in heads], [_cells(row) for row in rows])
    for problem in registry.problems:
        screen.line(problem, "yellow")


def _described(settings: Settings, registry: AgentRegistry, entry: AgentEntry) -> dict[str, Any]:
    from agents.durations import format_duration  # noqa: PLC0415 - beside what it is needed for
    from agents.errors import AgentError  # noqa: PLC0415 - beside what it is needed for

    row: dict[str, Any] = {
        "name": entry.name,
        "origin": entry.origin,
        "location": entry.location,
        "enabled": entry.name in settings.enabled_agents,
        "every": None,
        "description": "",
        "error": None,
    }
    try:
        kind = registry.get(entry.name)
        config = settings.agent_config(entry.name, kind)
    except AgentError as error:
        return {**row, "error": str(error)}
    return {
        **row,
        "every": None if config.every is None else format_duration(config.every),
        "description": kind.description,
    }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    what = row["description"] if row["error"] is None else f"cannot be used: {row['error']}"
    return (row["name"], "yes" if row["enabled"] else "no", row["every"], row["origin"], what)
