"""`askfirst --once`: every enabled agent runs once, and one screen says what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from agents.proposal import Proposal, ProposalStatus
from daemon.commands.base import Invocation, run
from daemon.commands.shapes import (
    RUN_COLUMNS,
    proposal_data,
    run_cells,
    run_data,
    run_remarks,
    selection_data,
    show_proposals,
)
from daemon.errors import ExitCode
from daemon.render import Screen

if TYPE_CHECKING:
    from daemon.control.reach import Signs
    from daemon.control.remote import RemoteRuntime
    from daemon.events import RunResult
    from daemon.runtime import Runtime
    from daemon.scheduler import AgentScheduler
    from daemon.settings import Settings

_log = logging.getLogger(__name__)

MOST_SHOWN = 40
"""Proposals on the screen; the rest is counted and `askfirst proposals list` has them all."""


def run_once(call: Invocation, names: Sequence[str]) -> int:
    """Run the agents `names` (every enabled one if there are none) and return the exit code.

    While a daemon runs, it is the one that runs them.

    Raises:
        SettingsError: the configuration cannot work; nothing was run.
        click.UsageError: there is no agent of such a name; nothing was run.
        ControlError: a daemon runs and takes no commands of ours; nothing was run.
    """
    from daemon.control.reach import signs_of  # noqa: PLC0415 - beside what it is needed for

    settings = call.settings(check_agents=True)
    _check_names(settings, names)
    screen = call.screen()
    agents, signs = tuple(dict.fromkeys(names)), signs_of(settings)
    if signs.runs:
        model, results = _have_run(call, settings, signs, screen, agents)
    else:
        model, results = _run_agents(call, settings, screen, agents)
    proposals = call.with_runtime(lambda runtime: open_proposals(runtime, results))
    if screen.as_json:
        screen.data(report(model, results, proposals))
    else:
        show_results(screen, results, proposals)
    succeeded = all(result.outcome == "succeeded" for result in results)
    return ExitCode.OK if succeeded else ExitCode.FAILED


def _have_run(
    call: Invocation, settings: Settings, signs: Signs, screen: Screen, names: Sequence[str]
) -> tuple[dict[str, Any] | None, list[RunResult]]:
    """Have the daemon run them, beside what it runs by itself."""

    async def work(daemon: RemoteRuntime) -> tuple[dict[str, Any] | None, list[RunResult]]:
        model: dict[str, Any] | None = None
        results: list[RunResult] = []
        async for part in daemon.once(names):
            if isinstance(part, Mapping):
                model = dict(part)
                _say_model(screen, model)
            else:
                results.append(part)
        return model, results

    model, results = call.with_daemon(settings, signs, work)
    order = {name: place for place, name in enumerate(names or settings.enabled_agents)}
    return model, sorted(results, key=lambda result: order.get(result.agent, len(order)))


def _check_names(settings: Settings, names: Sequence[str]) -> None:
    if not names:
        return
    from agents.errors import AgentNotFound  # noqa: PLC0415 - beside what it is needed for
    from agents.registry import AgentRegistry  # noqa: PLC0415 - loads the agents

    registry = AgentRegistry(settings.daemon.plugin_dir, apart=True)
    for name in names:
        try:
            registry.get(name)
        except AgentNotFound as error:
            msg = f"--agent: {error}"
            raise click.UsageError(msg) from error


def _run_agents(
    call: Invocation, settings: Settings, screen: Screen, names: Sequence[str]
) -> tuple[dict[str, Any] | None, list[RunResult]]:
    import daemon.store.runs  # noqa: F401, PLC0415 - loads SQLAlchemy, before the event loop starts
    from daemon.observability.logging import EventLog  # noqa: PLC0415 - loads structlog
    from daemon.scheduler import AgentScheduler  # noqa: PLC0415 - loads the scheduler

    scheduler = AgentScheduler(settings=settings, agents=names or None)
    scheduler.events.subscribe(EventLog().note)

    async def work() -> list[RunResult]:
        runs = asyncio.ensure_future(scheduler.run_once())
        await _show_model(screen, scheduler, runs)
        return await runs

    with call.logging(settings):
        for warning in settings.warnings:
            _log.warning("%s", warning)
        results = run(work())
    selection = scheduler.selection
    return None if selection is None else selection_data(selection), results


async def _show_model(screen: Screen, scheduler: AgentScheduler, runs: asyncio.Future[Any]) -> None:
    """Say which model is used as soon as that is settled: a small machine may think for a while after it."""
    if screen.as_json:
        return
    while scheduler.selection is None and not runs.done():
        await asyncio.wait({runs}, timeout=0.02)
    if scheduler.selection is not None:
        _say_model(screen, selection_data(scheduler.selection))


def _say_model(screen: Screen, model: Mapping[str, Any]) -> None:
    if screen.as_json:
        return
    screen.line(model["reason"], "bold")
    for passed in model["considered"]:
        screen.line(f"  {passed}", "dim")
    screen.line()


async def open_proposals(runtime: Runtime, results: Sequence[RunResult]) -> list[Proposal]:
    """The proposals that wait, those of these runs first."""
    waiting = [status for status in ProposalStatus if status.is_open]
    found = await runtime.proposals.list(status=waiting, limit=None)
    new = {proposal.id for result in results for proposal in result.proposals}
    return sorted(found, key=lambda proposal: (proposal.id not in new, proposal.id or 0))


def report(
    model: Mapping[str, Any] | None, results: Sequence[RunResult], proposals: Sequence[Proposal]
) -> dict[str, Any]:
    """What runs came to, as `--json` says it."""
    made = {proposal.id for result in results for proposal in result.proposals}
    return {
        "model": model,
        "runs": [run_data(result) for result in results],
        "proposals": [{**proposal_data(p), "new": p.id in made} for p in proposals],
    }


def show_results(screen: Screen, results: Sequence[RunResult], proposals: Sequence[Proposal]) -> None:
    """What runs came to, and what waits for a decision now."""
    if not results:
        screen.line("No agent is enabled: give one a table such as [agents.matchmaker] in the configuration.")
        screen.line("`askfirst agents list` shows the agents there are.")
    else:
        screen.table(RUN_COLUMNS, [run_cells(result) for result in results])
    remarks = [remark for result in results for remark in run_remarks(result)]
    if remarks:
        screen.line()
        screen.items(remarks)
    _show_proposals(screen, sum(len(result.proposals) for result in results), proposals)


def _show_proposals(screen: Screen, new: int, proposals: Sequence[Proposal]) -> None:
    if not proposals:
        screen.heading("Nothing waits for a decision.")
        return
    screen.heading(f"{new or 'No'} new, {len(proposals)} open:")
    shown = proposals[:MOST_SHOWN]
    show_proposals(screen, shown, datetime.now(UTC))
    if len(proposals) > len(shown):
        screen.line(f"... and {len(proposals) - len(shown)} more: askfirst proposals list")
    screen.line()
    screen.line(f"Next: askfirst proposals show {shown[0].id}", "bold")
