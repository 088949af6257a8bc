"""`askfirst log`: from which level on the parts of the running daemon log, seen and changed while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation, person
from daemon.commands.shapes import rough
from daemon.parts import checked_levels, parse_levels
from daemon.render import Column, Screen

if TYPE_CHECKING:
    from daemon.control.remote import RemoteRuntime

_COLUMNS = (Column("part", style="bold"), Column("level"), Column("from"), Column("until"))


@click.group(
    "log",
    short_help="See and change what the running daemon logs.",
    epilog=examples("askfirst log level", "askfirst log level llm=debug --for 10m"),
)
@command_options
def command() -> None:
    """See and change what the running daemon logs."""


@command.command(
    epilog=examples(
        "askfirst log level",
        "askfirst log level llm=debug agents.matchmaker=debug --for 10m",
        "askfirst log level llm=",
        "askfirst log level --reset",
    )
)
@click.argument("levels", nargs=-1, metavar="[PART=LEVEL]...")
@click.option("--for", "duration", metavar="DURATION", help='Go back by itself after that, such as "10m".')
@click.option("--reset", is_flag=True, help="Go back to the configuration with every part.")
@click.option("--by", default=person, show_default="your login name", help="Who is named in the log.")
@command_options
@pass_invocation
def level(call: Invocation, levels: tuple[str, ...], duration: str | None, reset: bool, by: str) -> None:
    """Show from which level on each part of the running daemon logs, or change it while it runs.

    PART is llm, agents, daemon or askfirst (the lines about runs and decisions), a module such as
    daemon.store, agents.NAME for one agent, or a library. LEVEL is debug, info, warning or error; an empty
    one goes back to the configuration. No level shows what models are asked: see askfirst runs show.

    What is changed holds until it is changed again or the daemon ends; askfirst reload does not end it.
    """
    wanted, dropped = _read(levels)
    seconds = _seconds(duration)
    if reset and (wanted or dropped or duration):
        msg = "--reset stands alone"
        raise click.UsageError(msg)
    if duration and not wanted:
        msg = "--for needs a PART=LEVEL that it is about"
        raise click.UsageError(msg)
    from daemon.control.reach import signs_of  # noqa: PLC0415 - loads pydantic

    async def change(daemon: RemoteRuntime) -> dict[str, Any]:
        if wanted:
            await daemon.logs.ask(wanted, by, seconds)
        if dropped or reset:
            await daemon.logs.forget(by, dropped)
        return await daemon.logs.show()

    settings = call.settings()
    _show(call.screen(), call.with_daemon(settings, signs_of(settings), change))


def _read(levels: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The levels that are wanted, and the parts that shall go back."""
    wanted: dict[str, str] = {}
    dropped: list[str] = []
    for text in levels:
        part, is_there, given = text.partition("=")
        if is_there and part and not given:
            dropped.append(part)
            continue
        try:
            wanted.update(checked_levels(parse_levels(text)))
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    return wanted, dropped


def _seconds(duration: str | None) -> int | None:
    if duration is None:
        return None
    from agents.durations import parse_duration  # noqa: PLC0415 - beside what it is needed for

    try:
        return max(1, round(parse_duration(duration).total_seconds()))
    except ValueError as error:
        msg = f"--for: {error}"
        raise click.UsageError(msg) from error


def _show(screen: Screen, found: Mapping[str, Any]) -> None:
    if screen.as_json:
        screen.data(found)
        return
    rows = [("everything else", found["level"], "configuration", "")]
    screen.table(_COLUMNS, [*map(_cells, found["parts"]), *rows])


def _cells(part: Mapping[str, Any]) -> tuple[object, ...]:
    from datetime import timedelta  # noqa: PLC0415 - beside what it is needed for

    if part["from"] == "configuration":
        until = ""
    elif part["seconds_left"] is None:
        until = "the end of the daemon, or: askfirst log level --reset"
    else:
        until = f"in {rough(timedelta(seconds=part['seconds_left']))}"
    return part["part"], part["level"], part["from"], until
