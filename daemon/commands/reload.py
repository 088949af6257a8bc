"""`askfirst reload`: the running daemon reads its configuration again."""

from __future__ import annotations

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation


@click.command(
    "reload",
    short_help="Have the running daemon read its configuration again.",
    epilog=examples("askfirst reload", "askfirst reload --json"),
)
@command_options
@pass_invocation
def command(call: Invocation) -> None:
    """Have the running daemon read its configuration again, and say what changed.

    A configuration that cannot work is not taken over: every problem is shown, with file and line, the daemon
    goes on with the old one, and this ends with 78. Runs under way go on.
    """
    from daemon.control.reach import signs_of  # noqa: PLC0415 - loads pydantic

    screen = call.screen()
    settings = call.settings()
    changes = call.with_daemon(settings, signs_of(settings), lambda daemon: daemon.controls.reload())
    if screen.as_json:
        screen.data({"changes": list(changes)})
    elif changes:
        screen.items(changes)
    else:
        screen.line("Nothing changed.")
