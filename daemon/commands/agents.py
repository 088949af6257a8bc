"""`askfirst agents`: which agents there are, where they stand and why; pause, resume and run them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation, person
from daemon.commands.hooks import hook
from daemon.commands.shapes import DUE_COLUMNS, due_cells, moment, plain, rough, run_data, run_remarks, until
from daemon.errors import DaemonError, ExitCode
from daemon.render import Column, Screen, Style

if TYPE_CHECKING:
    from agents.proposal import Proposal
    from agents.registry import AgentEntry, AgentRegistry
    from daemon.controls import Standing
    from daemon.events import AgentStatus, RunResult
    from daemon.runtime import Runtime
    from daemon.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_STYLES: Mapping[str, Style] = {"active": "green", "paused": "yellow", "quarantined": "red"}
_INDENT = 6


@click.group(
    "agents",
    short_help="See where agents stand; pause, resume and run them.",
    epilog=examples(
        "askfirst agents list",
        "askfirst agents why matchmaker",
        'askfirst agents pause matchmaker --reason "on holiday"',
        "askfirst agents resume matchmaker",
        "askfirst agents run matchmaker",
    ),
)
@command_options
def command() -> None:
    """See where agents stand; pause, resume and run them."""


command.add_command(hook)


@command.command("list", epilog=examples("askfirst agents list"))
@command_options
@pass_invocation
def list_agents(call: Invocation) -> None:
    """List every agent: when it is run, where it stands, and what it does."""
    from agents.registry import AgentRegistry  # noqa: PLC0415 - loads the agents

    settings = call.settings()
    registry = AgentRegistry(settings.daemon.plugin_dir, apart=True)
    entries = registry.entries()
    here = {entry.name for entry in entries}
    known = _look(call, [name for name in settings.enabled_agents if name in here])
    now = datetime.now(UTC)
    rows = [_described(settings, registry, entry, known, now) for entry in entries]
    problems = [*known.problems, *registry.problems]
    screen = call.screen()
    if screen.as_json:
        screen.data({"agents": rows, "problems": problems})
        return
    heads = ("agent", "state", "schedule", "next run", "what it does")
    screen.table([Column(head) for head in heads], [_cells(row, now) for row in rows])
    for problem in problems:
        screen.line(problem, "yellow")
    if known.alone:
        screen.line("No daemon is running, so nothing runs on schedule: askfirst run", "yellow")


@command.command(epilog=examples("askfirst agents why matchmaker", "askfirst agents why matchmaker --json"))
@click.argument("name", metavar="NAME")
@command_options
@pass_invocation
def why(call: Invocation, name: str) -> None:
    """Show when an agent ran, when it runs next and why not sooner."""
    screen = call.screen()
    standing = call.with_runtime(lambda runtime: runtime.controls.why(name))
    if screen.as_json:
        screen.data(_standing_data(standing))
    else:
        _show_standing(screen, standing, datetime.now(UTC))


def change_options(function: F) -> F:
    """The agent, and who changes its state."""
    for option in (
        command_options,
        click.option("--by", default=person, show_default="your login name", help="Who decides."),
        click.argument("name", metavar="NAME"),
    ):
        function = option(function)
    return function


@command.command(epilog=examples('askfirst agents pause matchmaker --reason "on holiday"'))
@change_options
@click.option("--reason", default="", help="Why, shown by `askfirst agents why`.")
@pass_invocation
def pause(call: Invocation, name: str, by: str, reason: str) -> None:
    """Do not run an agent on schedule until it is resumed; a run under way goes on."""
    status = call.with_runtime(lambda runtime: runtime.controls.pause(name, by, reason))
    words = f"{name} is paused: it is not run on schedule until you resume it: askfirst agents resume {name}"
    _show_status(call.screen(), status, words)


@command.command(epilog=examples("askfirst agents resume matchmaker"))
@change_options
@pass_invocation
def resume(call: Invocation, name: str, by: str) -> None:
    """Run a paused, quarantined or held agent on schedule again; its failures are forgotten."""
    status = call.with_runtime(lambda runtime: runtime.controls.resume(name, by))
    _show_status(call.screen(), status, f"{name} is active. When it runs next: askfirst agents why {name}")


@command.command(epilog=examples("askfirst agents run matchmaker"))
@click.argument("name", metavar="NAME")
@command_options
@pass_invocation
def run(call: Invocation, name: str) -> int:
    """Run an agent now, whatever holds it, and show what came of it."""
    from daemon.commands.once import report, show_results  # noqa: PLC0415 - beside what it is needed for

    screen = call.screen()
    result, proposals = call.with_runtime(lambda runtime: _run(runtime, name), with_llm=True)
    if screen.as_json:
        screen.data(report(None, [result], proposals))
    else:
        show_results(screen, [result], proposals)
    return ExitCode.OK if result.outcome == "succeeded" else ExitCode.FAILED


async def _run(runtime: Runtime, name: str) -> tuple[RunResult, list[Proposal]]:
    from daemon.commands.once import open_proposals  # noqa: PLC0415 - beside what it is needed for

    result = await runtime.controls.run(name)
    return result, await open_proposals(runtime, [result])


@dataclass
class _Known:
    """What is known of all agents, for a list of them.

    Attributes:
        statuses: what is kept about them; None when that cannot be read.
        standings: where they stand, while a daemon runs them.
        alone: whether no daemon does.
        problems: what is not known, and why.
    """

    statuses: dict[str, AgentStatus] | None = None
    standings: dict[str, Standing] = field(default_factory=dict)
    alone: bool = False
    problems: list[str] = field(default_factory=list)


def _look(call: Invocation, enabled: list[str]) -> _Known:
    """Look where agents stand; a list of them is shown even if that cannot be known."""
    from agents.errors import AgentError  # noqa: PLC0415 - beside what it is needed for

    known = _Known()

    async def look(runtime: Runtime) -> None:
        known.statuses = await runtime.states.all()
        for name in enabled:
            try:
                standing = await runtime.controls.why(name)
            except AgentError as error:  # a daemon that runs may not know it yet
                known.problems.append(str(error))
                continue
            if _is_alone(standing):  # then nobody can say of any agent when it is run
                known.alone = True
                return
            known.standings[name] = standing

    try:
        call.with_runtime(look)
    except DaemonError as error:
        known.problems.append(f"where they stand is not known: {error}")
    return known


def _is_alone(standing: Standing) -> bool:
    """Whether nothing runs on schedule, for want of a daemon."""
    from daemon.standing import NO_DAEMON  # noqa: PLC0415 - loads what runs agents

    return NO_DAEMON in standing.holds


def _described(
    settings: Settings, registry: AgentRegistry, entry: AgentEntry, known: _Known, now: datetime
) -> dict[str, Any]:
    from agents.durations import format_duration  # noqa: PLC0415 - beside what it is needed for
    from agents.errors import AgentError  # noqa: PLC0415 - beside what it is needed for
    from daemon.discipline import held_until  # noqa: PLC0415 - beside what it is needed for
    from daemon.events import AgentStatus  # noqa: PLC0415 - beside what it is needed for

    standing = known.standings.get(entry.name)
    status = None if known.statuses is None else known.statuses.get(entry.name, AgentStatus(agent=entry.name))
    row: dict[str, Any] = {
        "name": entry.name,
        "origin": entry.origin,
        "location": entry.location,
        "enabled": entry.name in settings.enabled_agents,
        "every": None,
        "schedule": None,
        "state": None if status is None else status.state.value,
        "held_until": None if status is None else held_until(status, now),
        "next_run": None if standing is None else standing.next_run,
        "running_since": None if standing is None else standing.running_since,
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
        "schedule": str(config.schedule),
        "description": kind.description,
    }


def _cells(row: dict[str, Any], now: datetime) -> tuple[object, ...]:
    what = row["description"] if row["error"] is None else f"cannot be used: {row['error']}"
    next_run = "running" if row["running_since"] else until(row["next_run"], now)
    return (row["name"], _state(row, now), row["schedule"], next_run, what)


def _state(row: dict[str, Any], now: datetime) -> str:
    if row["state"] in {"paused", "quarantined"}:
        return str(row["state"])
    if not row["enabled"]:
        return "not enabled"
    held: datetime | None = row["held_until"]
    if held is None:
        return row["state"] or "enabled"
    return f"held for {rough(held - now)}"


def _show_status(screen: Screen, status: AgentStatus, words: str) -> None:
    if screen.as_json:
        screen.data(plain(status))
    else:
        screen.line(words)


def _standing_data(standing: Standing) -> dict[str, Any]:
    last = standing.last_run
    return {**plain(standing), "last_run": None if last is None else run_data(last)}


def _show_standing(screen: Screen, standing: Standing, now: datetime) -> None:
    status = standing.status
    state = status.state.value if standing.enabled or status.state != "active" else "not enabled"
    screen.line(f"{status.agent}: {state}", _STYLES.get(state, "yellow"))
    screen.fields([(name, value) for name, value in _fields(standing, now) if value])
    if standing.holds:
        screen.heading("What holds it:")
        screen.items(_wrapped(screen, standing.holds))
    last = standing.last_run
    if last is not None and (remarks := run_remarks(last)):
        screen.heading("Its last run says:")
        screen.items(_wrapped(screen, remarks))
    if standing.due_times:
        screen.heading("Its last due times:")
        due, times, _agent, *others = DUE_COLUMNS
        cells = [due_cells(each) for each in standing.due_times]
        screen.table((due, times, *others), [(*row[:2], *row[3:]) for row in cells])


def _wrapped(screen: Screen, texts: Iterable[str]) -> list[str]:
    """Sentences in lines of whole words at a terminal; a line each for whoever reads them otherwise."""
    if not screen.for_people:
        return list(texts)
    width = max(shutil.get_terminal_size().columns - _INDENT, _INDENT)
    return ["\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) for text in texts]


def _fields(standing: Standing, now: datetime) -> list[tuple[str, object]]:
    status, last = standing.status, standing.last_run
    failures = ""
    if status.failures:
        of_model = f", {status.model_failures} of them because of its model" if status.model_failures else ""
        failures = f"{status.failures} in a row{of_model}"
    return [
        ("schedule", standing.schedule),
        ("running since (UTC)", _moment(standing.running_since, now)),
        ("last run (UTC)", "never" if last is None else _how_it_ended(last, now)),
        ("details", "" if last is None else f"askfirst runs show {last.run_id}"),
        ("failures", failures),
        ("next due (UTC)", _moment(standing.next_due, now)),
        ("next run (UTC)", _next_run(standing, now)),
    ]


def _next_run(standing: Standing, now: datetime) -> str:
    if standing.next_run is not None:
        return _moment(standing.next_run, now)
    if standing.status.state != "active":
        return "when it is resumed"
    if _is_alone(standing):
        return "when a daemon runs"
    return "not as things stand" if standing.holds else "by hand, or when something happens"


def _how_it_ended(run: RunResult, now: datetime) -> str:
    return f"{_moment(run.started_at, now)}: {run.outcome.value} after {run.seconds:.1f} s"


def _moment(at: datetime | None, now: datetime) -> str:
    return "" if at is None else f"{moment(at)} ({until(at, now)})"
