"""`askfirst status`: how the running daemon is, on one screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.commands.shapes import until
from daemon.errors import DaemonAbsent, ExitCode
from daemon.render import Column, Screen

_COLUMNS = (
    Column("agent", style="bold"),
    Column("state"),
    Column("next run"),
    Column("last run"),
    Column("remark"),
)


@click.command(
    "status",
    short_help="See how the running daemon is.",
    epilog=examples("askfirst status", "askfirst status --json"),
)
@command_options
@pass_invocation
def command(call: Invocation) -> int:
    """See since when the daemon runs, its model, its agents, and what waits for a decision.

    Ends with 3 when no daemon runs, and with 75 when one runs but does not answer.
    """
    from daemon.control.reach import signs_of  # noqa: PLC0415 - loads pydantic

    screen = call.screen()
    settings = call.settings()
    try:
        found = call.with_daemon(settings, signs_of(settings), lambda daemon: daemon.status())
    except DaemonAbsent as absent:
        _say_absent(screen, absent)
        return ExitCode.NOT_RUNNING
    if screen.as_json:
        screen.data(found)
    else:
        _show(screen, found, datetime.now(UTC))
    return ExitCode.OK


def _say_absent(screen: Screen, absent: DaemonAbsent) -> None:
    if screen.as_json:
        screen.data({"running": False})
    else:
        screen.line(f"Not running: {absent}", "yellow")


def _show(screen: Screen, found: Mapping[str, Any], now: datetime) -> None:
    screen.line(f"Running since {_local(found['since'])} ({until(_moment(found['since']), now)})", "green")
    model = found["model"]
    screen.fields(
        [
            ("version", found["version"]),
            ("pid", found["pid"]),
            ("data", found["data_dir"]),
            ("address", found["address"] or "none: web.enabled is false"),
            ("model", f"{model['backend']} {model['model']}" if model["backend"] else "none: rules only"),
            *_unwell(found["open"]),
        ]
    )
    screen.line()
    if found["agents"]:
        screen.table(_COLUMNS, [tuple(_cells(agent, now)) for agent in found["agents"]])
    else:
        screen.line("No agent is enabled: give one a table such as [agents.matchmaker] in the configuration.")
    screen.line()
    screen.line(_waiting(found["waiting"]), "bold")


def _unwell(answers: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, object]]:
    for name, answer in answers.items():
        if answer["ok"] is False:
            yield name, f"not well: {answer['detail']}"


def _cells(agent: Mapping[str, Any], now: datetime) -> Iterator[object]:
    yield agent["name"]
    yield "running" if agent["running"] else agent["state"]
    yield until(_moment(agent["next_run"]), now)
    yield agent["last_outcome"]
    held = agent["held_until"]
    yield agent["problem"] or agent["reason"] or (f"held until {_local(held)}" if held else "")


def _waiting(waiting: Mapping[str, int]) -> str:
    told = [f"{number} {status.replace('_', ' ')}" for status, number in waiting.items() if number]
    if not told:
        return "Nothing waits for a decision."
    return f"Proposals: {', '.join(told)}; see them: askfirst proposals list"


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _local(text: str | None) -> str:
    moment = _moment(text)
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
