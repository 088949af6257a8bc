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
    """Say which model is used and why, and whether it can be reached. Exits with 1 when it cannot."""
    settings = call.settings()
    with call.logging(settings):
        selection, healthy = run(_health(settings.llm_environ()))
    screen = call.screen()
    if screen.as_json:
        screen.data({**selection_data(selection), "healthy": healthy})
    else:
        screen.line(selection.reason)
        for passed in selection.considered:
            screen.line(f"  {passed}", "dim")
        if selection.config is not None:
            screen.line("It is ready." if healthy else "It cannot be reached.", "green" if healthy else "red")
    return ExitCode.OK if healthy else ExitCode.FAILED


async def _health(environ: Mapping[str, str]) -> tuple[Selection, bool]:
    from llm import get_llm_client, select_backend  # noqa: PLC0415 - beside what it is needed for

    selection = await select_backend(environ)
    if selection.config is None:
        return selection, False
    async with get_llm_client(selection.config) as client:
        return selection, await client.health_check()
