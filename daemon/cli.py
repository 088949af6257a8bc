"""The command line: one group whose commands are imported only when chosen, and one place that ends it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from agents.errors import AgentError, AgentSettingsError
from daemon.commands.base import Invocation, examples, global_options, json_option, pass_invocation
from daemon.errors import DaemonError, ExitCode, SettingsError
from daemon.observability.redact import Cleaner, secrets_of
from daemon.render import safe
from llm.errors import ConfigurationError, LLMError

PROGRAM = "askfirst"
INTERRUPTED = 130
"""What shells expect of a program that Ctrl-C ended: 128 and the signal's number."""

_LONGEST_COMPLAINT = 100_000

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("daemon.commands.run", "Run the daemon until it is stopped."),
    "proposals": ("daemon.commands.proposals", "Look at proposals and decide about them."),
    "agents": ("daemon.commands.agents", "See where agents stand; pause, resume and run them."),
    "runs": ("daemon.commands.runs", "See what the agents did."),
    "status": ("daemon.commands.status", "See how the running daemon is."),
    "reload": ("daemon.commands.reload", "Have the running daemon read its configuration again."),
    "log": ("daemon.commands.log", "See and change what the running daemon logs."),
    "llm": ("daemon.commands.llm", "Ask models, measure them, see what they cost."),
    "prompts": ("daemon.commands.prompts", "See and change what the agents' models are asked."),
    "metrics": ("daemon.commands.metrics", "See what is measured."),
    "config": ("daemon.commands.config", "Check and explain the configuration."),
    "service": ("daemon.commands.service", "Make the program a service, and look after it."),
    "backup": ("daemon.commands.backup", "Make a copy of the database, and list those there are."),
    "restore": ("daemon.commands.restore", "Put a backup in the place of the database."),
    "doctor": ("daemon.commands.doctor", "Check that everything this program needs works."),
}
"""Each command's module, which has it as `command`, and its line in the list of commands."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of a first acquaintance."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import the command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib  # noqa: PLC0415 - 10 ms that only a typo needs

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            way = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
            ctx.fail(f"there is no command {args[0]!r}; {way}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """List the commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _show_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - only for this option

    try:
        known = version(PROGRAM)
    except PackageNotFoundError:
        known = "(not installed, run from its folder)"
    click.echo(f"{PROGRAM} {known}")
    ctx.exit()


@click.group(
    PROGRAM,
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "askfirst --once             run every enabled agent once",
        "askfirst proposals list     see what they propose",
        "askfirst doctor             check that everything works",
    )
    + "\n\nExit codes: 0 done, 1 something failed, 64 not understood, 75 not possible now, "
    "78 the configuration cannot work.",
)
@click.option("--once", is_flag=True, help="Run every enabled agent once, show what came of it, and end.")
@click.option(
    "--agent", "agents", multiple=True, metavar="NAME", help="With --once: only this agent; may be repeated."
)
@click.option(
    "--metrics-file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="With --once: leave metrics in this .prom file, for node_exporter's textfile collector.",
)
@click.option(
    "--pushgateway",
    metavar="URL",
    help="With --once: leave metrics with this Pushgateway; in the configuration: metrics.pushgateway.",
)
@json_option
@global_options()
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version.",
)
@pass_invocation
@click.pass_context
def cli(  # noqa: PLR0917 - click hands them over by name
    ctx: click.Context,
    call: Invocation,
    once: bool,  # noqa: FBT001 - click's
    agents: tuple[str, ...],
    metrics_file: Path | None,
    pushgateway: str | None,
) -> Any:
    """Small agents that work in the background and ask first.

    Without a command this is the daemon: it runs the enabled agents on their schedules until it is stopped.
    """
    given = {"--agent": agents, "--metrics-file": metrics_file, "--pushgateway": pushgateway}
    with_once = [option for option, value in given.items() if value]
    if ctx.invoked_subcommand is not None:
        if once or with_once:
            ctx.fail(
                f"{', '.join(with_once) or '--once'} stands alone, not before {ctx.invoked_subcommand!r}"
            )
        return None
    if once:
        from daemon.commands.once import run_once  # noqa: PLC0415 - imported only when chosen

        return run_once(call, agents, metrics_file=metrics_file, pushgateway=pushgateway)
    if with_once:
        ctx.fail(f"{with_once[0]} needs --once")
    from daemon.commands.run import run_daemon  # noqa: PLC0415 - imported only when chosen

    return run_daemon(call)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return the program's exit code. Shows no traceback but for `--debug`."""
    call = Invocation()
    try:
        # With standalone_mode off, click returns what the command returns, or the code of `ctx.exit`.
        code = cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False, obj=call)
        sys.stdout.flush()
        return int(code or ExitCode.OK)
    except click.ClickException as error:
        return _misunderstood(error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_has_gone()
    except Exception as error:  # noqa: BLE001 - the last place that catches: a person gets a sentence
        expected = isinstance(error, DaemonError | AgentError | LLMError)
        return _failed(error, call) if expected else _unexpected(error, call)


def _misunderstood(error: click.ClickException) -> int:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        _complain(error.ctx.get_usage(), f"Try '{error.ctx.command_path} --help'.", "")
    _complain(f"Error: {error.format_message()}")
    return ExitCode.USAGE


def _reader_has_gone() -> int:
    """Somebody piped us into `head`: say nothing more, not even when the interpreter flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.FAILED


def _failed(error: Exception, call: Invocation) -> int:
    if call.debug:
        _complain(*traceback.format_exception(error))
    if isinstance(error, SettingsError):
        _complain(*map(str, error.problems))
    else:
        _complain(f"{PROGRAM}: {error}")
    if isinstance(error, DaemonError):
        return error.exit_code
    badly_configured = isinstance(error, AgentSettingsError | ConfigurationError)
    return ExitCode.CONFIGURATION if badly_configured else ExitCode.FAILED


def _unexpected(error: Exception, call: Invocation) -> int:
    if call.debug:
        _complain(*traceback.format_exception(error))
    _complain(
        f"{PROGRAM} failed unexpectedly: {type(error).__name__}: {error}",
        "That is a fault of the program; the same command with --debug shows where. Please report it so.",
    )
    return ExitCode.FAILED


def _complain(*lines: str) -> None:
    """Write to standard error: no escape sequence, and no key that the environment knows."""
    cleaner = Cleaner(secrets_of())
    for line in lines:
        click.echo(safe(cleaner.text(line, _LONGEST_COMPLAINT)), err=True)
