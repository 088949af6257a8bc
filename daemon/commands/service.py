"""`askfirst service`: make the program a service of systemd or launchd, and look after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.commands.shapes import plain
from daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from daemon.install.job import Installation
    from daemon.install.machine import Machine
    from daemon.install.plan import Plan
    from daemon.install.site import Scope, Site
    from daemon.install.state import Health, ServiceState
    from daemon.render import Screen
    from daemon.settings import Settings

NOT_RUNNING = 3
"""Exit code of `status` when the service does not run, as systemctl and the LSB have it."""


@click.group(
    "service",
    short_help="Make the program a service, and look after it.",
    epilog=examples(
        "askfirst service install --user --dry-run",
        "sudo askfirst service install --system",
        "askfirst service status",
    ),
)
@command_options
def command() -> None:
    """Make the program a service of systemd or launchd, and look after it."""


def scope_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--user` and `--system`, and what the tests need."""
    options = (
        click.option("--user", "scope", flag_value="user", default=None, help="A service of this user."),
        click.option("--system", "scope", flag_value="system", help="A service of the machine; needs root."),
        click.option("--platform", type=click.Choice(["linux", "macos"]), hidden=True),
        click.option("--root", type=click.Path(path_type=Path), hidden=True),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command(
    epilog=examples(
        "askfirst service install --user --dry-run",
        "sudo askfirst service install --system --allow-path /srv/exchange",
        "sudo askfirst service install --system --allow-network --credential llm_api_key=/etc/llm_api_key",
    )
)
@scope_options
@click.option(
    "--dry-run", is_flag=True, help="Show the unit and everything else that would be done; do nothing."
)
@click.option("--no-start", is_flag=True, help="Do not start it now.")
@click.option(
    "--allow-path", "paths", multiple=True, metavar="PATH", help="A folder that agents may write; repeatable."
)
@click.option("--allow-device", "devices", multiple=True, metavar="DEV", help="A device file; repeatable.")
@click.option(
    "--allow-address", "addresses", multiple=True, metavar="IP", help="An address or network; repeatable."
)
@click.option("--allow-network", "network", is_flag=True, help="Any address, for services known by name.")
@click.option("--allow-needed", is_flag=True, help="All that the configuration needs; it is shown.")
@click.option(
    "--credential",
    "credentials",
    multiple=True,
    metavar="NAME=FILE",
    help="A key, read from a file; repeatable.",
)
@click.option("--memory", metavar="AMOUNT", help="The most memory it may use, such as 3G; else 1G.")
@click.option("--run-as", metavar="NAME", help="The user that the system service runs as; else askfirst.")
@click.option("--fresh", is_flag=True, help="Forget what an earlier installation was allowed.")
@command_options
@pass_invocation
def install(
    call: Invocation,
    /,
    scope: Scope | None,
    platform: str | None,
    root: Path | None,
    *,
    dry_run: bool,
    no_start: bool,
    allow_needed: bool,
    run_as: str | None,
    fresh: bool,
    **granted: Any,
) -> int:
    """Install the service, or bring an installed one up to date; done twice, nothing changes.

    The unit gets the paths of this installation, and its drop-in what you allow; what an earlier installation
    was allowed stays so. Your own drop-ins are kept. A configuration that cannot work is refused.
    """
    from daemon.install.grants import Grants  # noqa: PLC0415 - imported only when chosen
    from daemon.install.job import Installation  # noqa: PLC0415 - imported only when chosen

    machine = _machine(platform, root)
    typed = Grants.of(**granted)
    job = Installation(
        call.config, machine, scope, typed, run_as=run_as, fresh=fresh, allow_needed=allow_needed
    )
    plan = job.plan(start=not no_start)
    if dry_run:
        _show_plan(call.screen(), job, plan)
        return ExitCode.OK
    job.must_be_possible()
    return _carry_out(call.screen(), machine, plan, nothing="Installed already, and as it should be.")


def _machine(platform: str | None, root: Path | None) -> Machine:
    from daemon.install.machine import Machine  # noqa: PLC0415 - imported only when chosen

    chosen: dict[str, Any] = {} if platform is None else {"platform": platform}
    return Machine(**chosen, root=Path("/") if root is None else root.resolve())


def _show_plan(screen: Screen, job: Installation, plan: Plan) -> None:
    from daemon.install.plan import File  # noqa: PLC0415 - imported only when chosen

    files = [step for step in plan.steps if isinstance(step, File)]
    first = sorted(files, key=lambda file: file.path != job.site.unit)
    if screen.as_json:
        screen.data(
            {
                "scope": job.scope,
                "platform": job.machine.platform,
                "files": [
                    {"path": file.path, "mode": f"{file.mode:04o}", "text": file.text} for file in first
                ],
                "steps": [str(step) for step in plan.steps],
                "notes": list(plan.notes),
                "refused_because": job.obstacles,
            }
        )
        return
    screen.line(first[0].text.rstrip("\n"))
    for file in first[1:]:
        screen.heading(f"{file.path}:")
        screen.line(file.text.rstrip("\n"))
    screen.heading("It would")
    screen.items(_told(step) for step in plan.steps)
    _list(screen, "The configuration needs, and would be allowed", [str(want) for want in job.allowed])
    _list(screen, "Good to know", plan.notes)
    _list(screen, "It would be refused now", job.obstacles)


def _told(step: object) -> str:
    why = getattr(step, "why", "")
    return f"{step}, which {why}" if why else str(step)


def _list(screen: Screen, heading: str, lines: Sequence[str]) -> None:
    if lines:
        screen.heading(heading)
        screen.items(lines)


def _carry_out(screen: Screen, machine: Machine, plan: Plan, *, nothing: str) -> int:
    from daemon.install.plan import Carrier  # noqa: PLC0415 - imported only when chosen

    done: list[str] = []

    def tell(what: str) -> None:
        done.append(what)
        if not screen.as_json:
            screen.line(what)

    carrier = Carrier(machine, tell)
    carrier.carry_out(plan.steps)
    if screen.as_json:
        screen.data({"changed": carrier.changed, "done": done, "notes": list(plan.notes)})
        return ExitCode.OK
    if not carrier.changed:
        screen.line(nothing, "green")
    _list(screen, "Good to know", plan.notes)
    return ExitCode.OK


@command.command(
    epilog=examples("askfirst service uninstall --user", "sudo askfirst service uninstall --system")
)
@scope_options
@click.option("--dry-run", is_flag=True, help="Show what would be done; do nothing.")
@command_options
@pass_invocation
def uninstall(
    call: Invocation, scope: Scope | None, platform: str | None, root: Path | None, *, dry_run: bool
) -> int:
    """Stop the service and remove what `install` wrote. Data, configuration and your own drop-ins stay."""
    from daemon.install import launchd, systemd  # noqa: PLC0415 - imported only when chosen
    from daemon.install.job import installed_site  # noqa: PLC0415 - imported only when chosen

    machine = _machine(platform, root)
    site = installed_site(machine, scope)
    if machine.is_real and site.is_system and machine.uid != 0 and not dry_run:
        msg = "a service of the machine needs root: sudo askfirst service uninstall --system"
        raise DaemonError(msg)
    remove = launchd.uninstall_plan if machine.platform == "macos" else systemd.uninstall_plan
    plan = remove(site, machine)
    screen = call.screen()
    if not dry_run:
        return _carry_out(screen, machine, plan, nothing="It is not installed.")
    if screen.as_json:
        screen.data({"steps": [str(step) for step in plan.steps], "notes": list(plan.notes)})
    else:
        screen.line("It would", "bold")
        screen.items(_told(step) for step in plan.steps)
        _list(screen, "Good to know", plan.notes)
    return ExitCode.OK


@command.command(epilog=examples("askfirst service status"))
@scope_options
@command_options
@pass_invocation
def status(call: Invocation, scope: Scope | None, platform: str | None, root: Path | None) -> int:
    """Show how the service is doing: what its manager says, and what the program itself says.

    Exits with 3 when it does not run, or when something that it needs does not work.
    """
    from daemon.install.job import installed_site, settings_of  # noqa: PLC0415 - imported only when chosen
    from daemon.install.state import Health, address_in, health_at, state_of  # noqa: PLC0415 - as above

    machine = _machine(platform, root)
    site = installed_site(machine, scope)
    _manager_needed(machine, site)
    state = state_of(site, machine)
    address = (address_in(state.status) or _address_of(settings_of(site, machine))) if state.active else None
    health = Health(reached=False) if address is None else health_at(address)
    screen = call.screen()
    if screen.as_json:
        screen.data({"scope": site.scope, "unit": site.unit, "state": plain(state), "health": plain(health)})
    else:
        _show_state(screen, site, state, health)
    well = state.active and (health.ready or address is None)
    return ExitCode.OK if well else NOT_RUNNING


def _manager_needed(machine: Machine, site: Site) -> None:
    """Say the way out where nobody could answer."""
    from daemon.install.job import without_systemd  # noqa: PLC0415 - imported only when chosen

    tool = "launchctl" if machine.platform == "macos" else "systemctl"
    if not machine.is_real or machine.has(tool):
        return
    raise DaemonError(
        without_systemd(site) if tool == "systemctl" else "launchctl is missing: this is no Mac"
    )


def _address_of(settings: Settings | None) -> str | None:
    if settings is None or not settings.web.enabled or settings.web.port == 0:
        return None
    host = settings.web.host
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - recognised, not bound
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.web.port}"


def _show_state(screen: Screen, site: Site, state: ServiceState, health: Health) -> None:
    if not state.known:
        screen.line(f"The service is not installed for the {site.scope}: {state.word}", "yellow")
        screen.line(f"askfirst service install --{site.scope} makes it one.")
        return
    screen.line(f"{site.unit}: {state.word}", "green" if state.active else "red")
    screen.fields(_state_fields(state, health))
    for name, told in health.parts:
        screen.line(f"    {name}: {told}")
    for line in _ways_out(site, state):
        screen.line(line, "yellow")


def _state_fields(state: ServiceState, health: Health) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = []
    if state.since and state.active:
        fields.append(("since", state.since))
    if state.enabled is not None:
        fields.append(("starts with the machine", "yes" if state.enabled else "no"))
    if state.pid:
        fields.append(("process", state.pid))
    if state.restarts is not None:
        fields.append(("started anew", f"{state.restarts} times"))
    if state.memory is not None:
        limit = "" if state.memory_limit is None else f" of {state.memory_limit // 2**20} MB"
        fields.append(("memory", f"{state.memory // 2**20} MB{limit}"))
    if state.status:
        fields.append(("it says", state.status))
    if not state.active and state.exit_status is not None:
        fields.append(("last exit status", state.exit_status))
    if health.address:
        answer = "ready" if health.ready else "not ready" if health.reached else "no answer"
        fields.append(("health", f"{answer}, {health.address}"))
    return fields


def _ways_out(site: Site, state: ServiceState) -> list[str]:
    lines: list[str] = []
    if state.gave_up:
        lines.append(
            f"Its configuration cannot work: askfirst config check --config {site.config}; then start it."
        )
    elif not state.active:
        lines.append(f"See why: askfirst service logs --{site.scope} -n 50")
    if state.outdated:
        lines.append("systemd knows an older unit: systemctl daemon-reload, then restart it.")
    return lines


@command.command(epilog=examples("askfirst service logs -f", "askfirst service logs --since today -n 100"))
@scope_options
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), metavar="COUNT", help="How many of the last lines."
)
@click.option("--since", metavar="WHEN", help='As journalctl has it: "today", "-1h", "2026-03-01 12:00".')
@command_options
@pass_invocation
def logs(
    call: Invocation,
    scope: Scope | None,
    platform: str | None,
    root: Path | None,
    *,
    follow: bool,
    lines: int | None,
    since: str | None,
) -> int:
    """Show the service's log: the journal, on a Mac its log file."""
    from daemon.install.job import installed_site, without_systemd  # noqa: PLC0415 - only when chosen

    machine = _machine(platform, root)
    site = installed_site(machine, scope)
    if machine.platform == "macos":
        if since is not None:
            raise click.UsageError("--since needs a journal; on a Mac use -n")
        words = ["tail", "-n", str(100 if lines is None else lines), *(["-f"] if follow else [])]
        if not machine.place(site.log_file).exists():
            msg = f"there is no log {site.log_file}: was the service ever started? askfirst service status"
            raise DaemonError(msg)
        return _passed_on([*words, str(machine.place(site.log_file))], {})
    if not machine.has("journalctl"):
        raise DaemonError(without_systemd(site))
    words = ["journalctl", "--unit" if site.is_system else "--user-unit", "askfirst"]
    words += ["--lines", str(lines)] if lines is not None else []
    words += ["--since", since] if since is not None else []
    words += ["--follow"] if follow else []
    words += ["--output", "json"] if call.as_json else []
    return _passed_on(words, {"SYSTEMD_PAGER": ""} if not os.isatty(1) else {})


def _passed_on(words: list[str], environ: Mapping[str, str]) -> int:
    """Run a command that writes to our own standard output; Ctrl-C ends both."""
    import subprocess  # noqa: PLC0415 - imported only when chosen

    return subprocess.run(words, env={**os.environ, **environ}, check=False).returncode  # noqa: S603 - no shell
