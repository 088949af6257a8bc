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
from daemon.errors import DaemonError, ExitCode
from daemon.render import Screen
from daemon.version import own_version

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

    from daemon.control.reach import Signs
    from daemon.control.remote import RemoteRuntime
    from daemon.events import RunResult
    from daemon.runtime import Runtime
    from daemon.settings import Settings
    from daemon.watching import Watching

_log = logging.getLogger(__name__)

MOST_SHOWN = 40
"""Proposals on the screen; the rest is counted and `askfirst proposals list` has them all."""


def run_once(
    call: Invocation,
    names: Sequence[str],
    *,
    metrics_file: Path | None = None,
    pushgateway: str | None = None,
) -> int:
    """Run the agents `names` (every enabled one if there are none) and return the exit code.

    While a daemon runs, it is the one that runs them.

    Args:
        call: the invocation.
        names: the agents.
        metrics_file: where to leave the metrics of these runs.
        pushgateway: with which Pushgateway to leave them, instead of that of the configuration.

    Raises:
        SettingsError: the configuration cannot work; nothing was run.
        click.UsageError: an agent or a place for metrics cannot be as it was named; nothing was run.
        DaemonRunning: metrics were asked for, but a daemon runs, which has its own; nothing was run.
        ControlError: a daemon runs and takes no commands of ours; nothing was run.
    """
    from daemon.control.reach import signs_of  # noqa: PLC0415 - beside what it is needed for

    settings = call.settings(check_agents=True)
    _check_names(settings, names)
    settings = _checked_places(settings, metrics_file, pushgateway)
    screen = call.screen()
    agents, signs = tuple(dict.fromkeys(names)), signs_of(settings)
    if signs.runs:
        _refuse_places(signs, metrics_file, pushgateway)
        model, results = _have_run(call, settings, signs, screen, agents)
    else:
        model, results = _run_agents(call, settings, screen, agents, metrics_file)
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


def _checked_places(settings: Settings, file: Path | None, pushgateway: str | None) -> Settings:
    """The settings with the Pushgateway that was named, after a look at both places."""
    from daemon.pushing import file_problem  # noqa: PLC0415 - beside what it is needed for

    problem = "" if file is None else file_problem(file)
    if problem:
        msg = f"--metrics-file: {problem}"
        raise click.UsageError(msg)
    if pushgateway is None:
        return settings
    from pydantic import ValidationError  # noqa: PLC0415 - loaded by the settings already

    try:
        metrics = type(settings.metrics)(max_series=settings.metrics.max_series, pushgateway=pushgateway)
    except ValidationError:
        msg = "--pushgateway: the address must begin with http:// or https://"
        raise click.UsageError(msg) from None  # the error would show the address
    return settings.model_copy(update={"metrics": metrics})


def _refuse_places(signs: Signs, file: Path | None, pushgateway: str | None) -> None:
    """A daemon does the runs: they are in its own metrics, and a copy of these would be added up again."""
    if file is None and pushgateway is None:
        return
    from daemon.errors import DaemonRunning  # noqa: PLC0415 - beside what it is needed for

    option = "--pushgateway" if file is None else "--metrics-file"
    who = "" if signs.holder is None else f" ({signs.holder})"
    msg = (
        f"{option}: a daemon runs here{who} and would do the runs, so that they are in its own metrics: "
        "let Prometheus scrape its /metrics, or stop it first, or leave the option out"
    )
    raise DaemonRunning(msg)


def _run_agents(
    call: Invocation, settings: Settings, screen: Screen, names: Sequence[str], file: Path | None
) -> tuple[dict[str, Any] | None, list[RunResult]]:
    import daemon.store.runs  # noqa: F401, PLC0415 - loads SQLAlchemy, before the event loop starts
    from daemon.observability.logging import EventLog  # noqa: PLC0415 - loads structlog
    from daemon.scheduler import AgentScheduler  # noqa: PLC0415 - loads the scheduler

    gateway = settings.metrics.pushgateway
    watching = None if file is None and gateway is None else _watching(settings)
    observers = [] if watching is None else [watching.note_call]
    scheduler = AgentScheduler(settings=settings, agents=names or None, llm_observers=observers)
    scheduler.events.subscribe(EventLog().note)
    if watching is not None:
        watching.watch(scheduler)

    async def work() -> list[RunResult]:
        async with scheduler.opened() as runtime:
            # At once: a small machine may think for a while after it.
            _say_model(screen, selection_data(runtime.selection))
            try:
                return await scheduler.run_once()
            finally:
                if watching is not None and not _cancelled():
                    await _leave_metrics(watching, runtime, file, gateway)

    with call.logging(settings):
        for warning in settings.warnings:
            _log.warning("%s", warning)
        results = run(work())
    selection = scheduler.selection
    return None if selection is None else selection_data(selection), results


def _cancelled() -> bool:
    """Whether somebody wants to end this at once, with Ctrl-C."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _watching(settings: Settings) -> Watching:
    from daemon.observability.metrics import Metrics  # noqa: PLC0415 - loads prometheus_client
    from daemon.watching import Watching  # noqa: PLC0415 - as above

    metrics = Metrics(max_series=settings.metrics.max_series)
    metrics.set_version(own_version())
    return Watching(metrics)


async def _leave_metrics(
    watching: Watching, runtime: Runtime, file: Path | None, gateway: SecretStr | None
) -> None:
    """Leave the metrics where they were asked for; where that fails it is said, and the runs count."""
    from daemon.outside import Outside, host_of  # noqa: PLC0415 - beside what it is needed for
    from daemon.pushing import of_runs, push, write_file  # noqa: PLC0415 - as above

    if runtime.llm is not None:
        await runtime.llm.flush()  # what remote calls cost may still have to be looked up
    text, _ = await watching.metrics.scrape()
    left = of_runs(text.decode())
    if file is not None:
        try:
            await asyncio.to_thread(write_file, file, left)
        except DaemonError as error:
            _log.warning("%s", error)
    if gateway is not None:
        outside, address = Outside(), gateway.get_secret_value()
        problem = await push(outside, address, left)
        await outside.aclose()
        if problem:
            _log.warning("the Pushgateway at %s did not take the metrics: %s", host_of(address), problem)


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
