"""`askfirst llm`: ask the model, measure it, and see whether it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from daemon.commands.ask import ask
from daemon.commands.base import Invocation, command_options, examples, pass_invocation, run
from daemon.commands.bench import bench
from daemon.commands.cache import cache
from daemon.commands.pull import pull
from daemon.commands.shapes import selection_data
from daemon.commands.usage import usage
from daemon.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.render import Screen
    from daemon.settings import Settings
    from llm import Selection


@click.group(
    "llm",
    short_help="Ask models, measure them, see what they cost.",
    epilog=examples("askfirst llm health", 'askfirst llm ask "Name three vegetables"', "askfirst llm bench"),
)
@command_options
def command() -> None:
    """Ask models, measure them, see what they cost."""


command.add_command(ask)
command.add_command(bench)
command.add_command(cache)
command.add_command(usage)
command.add_command(pull)


@command.command(epilog=examples("askfirst llm health"))
@command_options
@pass_invocation
def health(call: Invocation) -> int:
    """Say which model is used and why, and whether it can be reached.

    Exits with 1 when none of the configured backends can be reached.
    """
    settings = call.settings()
    with call.logging(settings):
        selection, found = run(_health(settings))
    healthy = any(found.values())
    screen = call.screen()
    if screen.as_json:
        screen.data({**selection_data(selection), "healthy": healthy, "backends": found})
    else:
        _show_health(screen, selection, found)
    return ExitCode.OK if healthy else ExitCode.FAILED


def _show_health(screen: Screen, selection: Selection, found: Mapping[str, bool]) -> None:
    screen.line(selection.reason)
    for passed in selection.considered:
        screen.line(f"  {passed}", "dim")
    for name, well in found.items():
        who = "It" if len(found) == 1 else name
        screen.line(f"{who} {'is ready' if well else 'cannot be reached'}.", "green" if well else "red")


async def _health(settings: Settings) -> tuple[Selection, dict[str, bool]]:
    from daemon.selection import choose_model, health_of, open_client  # noqa: PLC0415 - loads the layer

    selection = await choose_model(settings)
    client = open_client(selection)
    if client is None:
        return selection, {}
    async with client:
        return selection, await health_of(client)
