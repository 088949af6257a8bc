"""`askfirst runs`: what the agents did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.commands.shapes import (
    DUE_COLUMNS,
    due_cells,
    lateness,
    moment,
    outcome_style,
    plain,
    rough,
    run_data,
    run_remarks,
    show_call,
    show_proposals,
)
from daemon.render import Column, Screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.context import ModelCall
    from daemon.events import RunResult
    from daemon.runtime import Runtime


_COLUMNS = (
    Column("run"),
    Column("began (UTC)"),
    Column("late", right=True),
    Column("agent", style="bold"),
    Column("outcome"),
    Column("new", right=True),
    Column("seconds", right=True),
)


@click.group(
    "runs",
    short_help="See what the agents did.",
    epilog=examples("askfirst runs list", "askfirst runs show RUN", "askfirst runs due"),
)
@command_options
def command() -> None:
    """See what the agents did."""


@command.command("list", epilog=examples("askfirst runs list --agent matchmaker --limit 5"))
@click.option("--agent", metavar="NAME", help="Only the runs of this agent.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@command_options
@pass_invocation
def list_runs(call: Invocation, agent: str | None, limit: int) -> None:
    """List runs, the newest first."""
    screen = call.screen()
    results = call.with_runtime(lambda runtime: runtime.runs.list(agent=agent, limit=limit))
    if screen.as_json:
        screen.data([run_data(result) for result in results])
    elif not results:
        screen.line("No runs yet. `askfirst --once` makes one of every enabled agent.")
    else:
        screen.table(_COLUMNS, [_cells(result) for result in results])


def _cells(result: RunResult) -> tuple[object, ...]:
    return (
        result.run_id,
        moment(result.started_at),
        rough(lateness(result)),
        result.agent,
        result.outcome.value,
        len(result.proposals),
        f"{result.seconds:.1f}",
    )


@command.command(
    epilog=examples("askfirst runs due --agent matchmaker", "askfirst runs due --fate missed --json")
)
@click.option("--agent", metavar="NAME", help="Only the due times of this agent.")
@click.option("--fate", type=click.Choice(["run", "coalesced", "skipped", "missed"]), help="Only these.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@command_options
@pass_invocation
def due(call: Invocation, agent: str | None, fate: str | None, limit: int) -> None:
    """List what became of due times, the newest first.

    A due time is run, coalesced (a later run stood for it too), skipped (the reason says why) or missed (the
    program could not run it).
    """
    from daemon.events import Fate  # noqa: PLC0415 - beside what it is needed for

    screen = call.screen()
    wanted = None if fate is None else Fate(fate)
    found = call.with_runtime(lambda runtime: runtime.due_times.list(agent, limit, fate=wanted))
    if screen.as_json:
        screen.data([plain(each) for each in found])
    elif found:
        screen.table(DUE_COLUMNS, [due_cells(each) for each in found])
    else:
        screen.line("There are no such due times." if agent or fate else "No due time has passed yet.")


@command.command(epilog=examples("askfirst runs show RUN --verbose"))
@click.argument("run_id", metavar="RUN")
@click.option("--verbose", "-v", is_flag=True, help="Also what the model was asked and what it answered.")
@command_options
@pass_invocation
def show(call: Invocation, run_id: str, verbose: bool) -> None:
    """Show one run: its outcome, its proposals and its model calls."""
    screen = call.screen()
    result, calls = call.with_runtime(lambda runtime: _read(runtime, run_id))
    if screen.as_json:
        screen.data({**run_data(result), "model_calls": plain(calls)})
    else:
        _show_run(screen, result, calls, verbose=verbose)


async def _read(runtime: Runtime, run_id: str) -> tuple[RunResult, Sequence[ModelCall]]:
    return await runtime.runs.get(run_id), await runtime.runs.calls_of(run_id)


def _due_fields(result: RunResult) -> list[tuple[str, object]]:
    if result.due is None:
        return []
    known: list[tuple[str, object]] = [
        ("due (UTC)", moment(result.due)),
        ("late by", rough(lateness(result))),
    ]
    return [*known, ("attempt", result.attempt)] if result.attempt > 1 else known


def _show_run(screen: Screen, result: RunResult, calls: Sequence[ModelCall], *, verbose: bool) -> None:
    screen.line(f"{result.agent}: {result.outcome.value}", outcome_style(result.outcome))
    screen.fields(
        [
            ("run", result.run_id),
            ("began (UTC)", moment(result.started_at)),
            ("took", f"{result.seconds:.1f} s"),
            ("because of", result.trigger),
            *_due_fields(result),
            ("model", f"{result.backend}, {result.model}" if result.backend else "none was asked"),
            ("duplicates", result.duplicates),
        ]
    )
    screen.items(run_remarks(result))
    if result.proposals:
        screen.heading("Proposals")
        show_proposals(screen, result.proposals, result.finished_at)
    if calls:
        screen.heading("Model calls")
    for model_call in calls:
        show_call(screen, model_call, verbose=verbose)
