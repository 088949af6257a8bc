"""One installation: what is installed from what was typed and configured, and what stands against it."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import DaemonError, ExitCode, SettingsError, SettingsProblem
from daemon.install import launchd, systemd
from daemon.install.grants import Grants
from daemon.install.launchd import config_in
from daemon.install.machine import Machine
from daemon.install.plan import Plan, readable_by, user_exists
from daemon.install.site import (
    STATE_DIR,
    USER,
    Scope,
    Site,
    bare,
    installed_scope,
    program_of,
    usual_config,
    usual_scope,
)
from daemon.install.systemd import given_before, site_in
from daemon.install.wants import Want, wants
from daemon.lifecycle import UNIT_STOP_LIMIT_S
from daemon.settings.places import CONFIG_VARIABLE

if TYPE_CHECKING:
    from daemon.settings import Settings


class Refused(DaemonError):
    """The service cannot be installed so; every reason at once."""

    def __init__(self, reasons: Sequence[str], code: ExitCode) -> None:
        super().__init__(
            "the service was not installed:\n" + "\n".join(f"  - {reason}" for reason in reasons)
        )
        self.exit_code = code  # type: ignore[misc]  # one class, and two kinds of reasons


class Installation:
    """What is to be installed, and what stands against it."""

    def __init__(
        self,
        named: Path | None,
        machine: Machine,
        scope: Scope | None,
        typed: Grants,
        *,
        run_as: str | None,
        fresh: bool,
        allow_needed: bool,
    ) -> None:

        self.machine = machine
        self.scope: Scope = scope or usual_scope(machine)
        self.problems: list[str] = []
        config = config_of(named, machine, self.scope)
        self.settings = self._read(config)
        self.site = _site(machine, self.scope, config, self.settings, run_as)
        before = Grants() if fresh else given_before(self.site, machine)
        self.grants = before.joined(typed)
        self.allowed = self.missing() if allow_needed else []
        for want in self.allowed:
            self.grants = self.grants.joined(want.grant)

    def plan(self, *, start: bool) -> Plan:
        """The steps of it."""
        if self.machine.platform == "macos":
            plan = launchd.install_plan(self.site, self.machine, start=start)
        else:
            plan = systemd.install_plan(self.site, self.grants, self.machine, start=start)
        return replace(plan, notes=(*plan.notes, *self._notes()))

    def _notes(self) -> Iterator[str]:
        """What works and surprises."""
        if self.machine.platform == "macos" and self.grants:
            yield (
                "launchd closes nothing off, so nothing needs to be allowed, and it hands no keys over: "
                "name the key's file with llm.api_key_file"
            )
        if self.settings is None:
            return
        daemon = self.settings.sources.table.get("daemon", {})
        if self.site.is_system and "data_dir" not in daemon:
            yield (
                f"commands that you type look for the database elsewhere: write data_dir = "
                f'"{self.site.data_dir}" into the table [daemon] of {self.site.config}'
            )
        unseen = sorted(name for name in os.environ if name.startswith(("LLM_", "ASKFIRST_")))
        if unseen:
            yield f"the service sees no variable of your shell; these are set there: {', '.join(unseen)}"

    @property
    def obstacles(self) -> list[str]:
        """Every reason why it cannot be installed so."""
        missing = [
            f"{want.why}, which the service may not use: add {' '.join(want.grant.words())}, "
            "or --allow-needed for all that is needed"
            for want in self.missing()
        ]
        return [
            *self._of_the_machine(),
            *self._of_the_program(),
            *self._of_the_files(),
            *self.problems,
            *missing,
        ]

    def must_be_possible(self) -> None:
        """Refuse what cannot work.

        Raises:
            Refused: with every reason.
        """
        if self.obstacles:
            raise Refused(self.obstacles, ExitCode.CONFIGURATION if self.problems else ExitCode.FAILED)

    def missing(self) -> list[Want]:
        """What the configuration needs and nobody allowed; only the system's service is closed in at all."""
        if self.settings is None or not self.site.is_system or self.machine.platform != "linux":
            return []
        return wants(self.settings, self._environ(), self.grants)

    def _environ(self) -> dict[str, str]:
        return _service_environ(self.machine, self.scope)

    def _read(self, config: Path) -> Settings | None:
        from daemon.settings import load_settings  # noqa: PLC0415 - loads pydantic

        place = self.machine.place(config) if not self.machine.is_real else config
        if not place.is_file():
            self.problems.append(
                f"there is no configuration {config}: write it first, see docs/configuration.md"
            )
            return None
        by_itself = self.machine.uid != 0 or not self.machine.is_real
        try:
            # Agents of the plugin folder are not loaded by root: whoever may write there would become it.
            settings = load_settings(place, self._environ(), check_agents=by_itself)
        except SettingsError as error:
            self.problems += map(str, error.problems)
            return None
        if not by_itself:
            self.problems += _checked_by_the_user(self.machine, self.scope, config)
        return settings

    def _of_the_machine(self) -> list[str]:
        machine = self.machine
        if not machine.is_real:
            return []
        if self.scope == "user" and machine.uid == 0 and machine.environ.get("SUDO_USER"):
            return [
                "--user with sudo would make it root's own service: type it without sudo, or use --system"
            ]
        if not machine.is_this_kind:
            return [f"this is no {machine.platform}: --dry-run shows what would be done there"]
        if machine.platform == "linux" and not machine.runs_systemd():
            return [without_systemd(self.site)]
        if self.site.is_system and machine.uid != 0:
            return [
                "a service of the machine needs root: sudo askfirst service install --system; or use --user",
            ]
        unknown = self.site.is_system and self.site.user != USER and not user_exists(self.site.user)
        return [f"there is no user {self.site.user}: make it first, or leave out --run-as"] if unknown else []

    def _of_the_program(self) -> list[str]:
        site, found = self.site, []
        if not self.machine.is_real:
            return []
        if not os.access(site.program, os.X_OK):
            found.append(f"{site.program} is not there: install Askfirst into this environment first")
        found += [
            f"{path} is in a home, which a service of the machine does not see; put it elsewhere, the "
            "program for example into an environment of `python3 -m venv /opt/askfirst`, or use --user"
            for path in site.hidden(*_read_folders(self.settings))
        ]
        return found

    def _of_the_files(self) -> list[str]:
        found: list[str] = []
        if self.machine.is_real and self.site.is_system:
            absent = [path for path in self.grants.paths if not Path(path).exists()]
            found += [f"there is no {path}, which agents shall write: make it first" for path in absent]
        for name, file in self.grants.credentials:
            place = self.machine.place(file)
            if not place.is_file():
                found.append(f"the credential {name} has no file {file}")
            elif place.stat().st_mode & 0o077:
                found.append(f"others may read {file}, the credential {name}: chmod 600 {file}")
        if self.site.is_system and self.machine.platform == "linux":
            found += [
                f"{key} is {file}, which the user {self.site.user} may not read: leave that setting out and "
                f"hand the file over with --credential llm_api_key={file}"
                for key, file in _key_files(self.settings)
                if file.is_file() and not readable_by(file, self.site.user)
            ]
        return found


def config_of(named: Path | None, machine: Machine, scope: Scope) -> Path:
    """The configuration file of the service: the one that was named, else the usual one."""
    variable = os.environ.get(CONFIG_VARIABLE, "").strip()
    file = named or (Path(variable) if variable else None)
    if file is not None:
        return (Path.cwd() / file.expanduser()).resolve()
    return usual_config(machine, scope)


def _site(
    machine: Machine, scope: Scope, config: Path, settings: Settings | None, run_as: str | None
) -> Site:

    site = replace(bare(machine, scope), config=config)
    if run_as is not None:
        site = replace(site, user=run_as)
    elif site.is_system and machine.platform == "macos":
        site = replace(site, user=machine.environ.get("SUDO_USER") or site.user)
    if settings is None:
        return site
    grace = settings.daemon.stop_grace.total_seconds()
    return replace(site, data_dir=settings.daemon.data_dir, stop_limit=round(UNIT_STOP_LIMIT_S + grace))


def _read_folders(settings: Settings | None) -> list[Path]:
    """What the program reads besides its data."""
    if settings is None:
        return []
    folders = (settings.daemon.plugin_dir, settings.daemon.prompts_dir, settings.llm.model_dir)
    return [folder for folder in folders if folder is not None]


def _key_files(settings: Settings | None) -> Iterator[tuple[str, Path]]:
    """The files that hold keys, by their settings."""
    if settings is None:
        return
    if settings.llm.api_key_file is not None:
        yield "llm.api_key_file", settings.llm.api_key_file
    for name, table in settings.llm.backends.items():
        if table.api_key_file is not None:
            yield f"llm.backends.{name}.api_key_file", table.api_key_file


def _service_environ(machine: Machine, scope: Scope) -> dict[str, str]:
    """What the service will see of the environment: nothing of the shell that installs it."""
    if scope == "system" and machine.platform == "linux":
        return {"STATE_DIRECTORY": str(STATE_DIR)}
    return {"HOME": str(machine.home)}


def _checked_by_the_user(machine: Machine, scope: Scope, config: Path) -> list[str]:
    """What is wrong with the configuration for the user who will read it, by `askfirst config check`."""
    if scope != "system" or not machine.is_real or machine.platform != "linux":
        return []
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        user = pwd.getpwnam("nobody")
    done = subprocess.run(  # noqa: S603 - a command of ours, no shell
        [str(program_of()), "config", "check", "--json", "--config", str(config)],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **_service_environ(machine, scope)},
        cwd="/",
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 0:
        return []
    try:
        problems = json.loads(done.stdout)["problems"]
    except (ValueError, KeyError, TypeError):
        problems = []
    said = [
        str(
            SettingsProblem(
                **{name: problem[name] for name in ("key", "message", "source", "line", "variable")}
            )
        )
        for problem in problems
    ]
    return said or [f"the user {user.pw_name} cannot check {config}: {done.stderr.strip()[-500:]}"]


def without_systemd(site: Site) -> str:
    """How to go on where systemd does not run."""
    return (
        "this machine does not run systemd: have what starts programs here (OpenRC, runit, a container's "
        f"command) run `{site.program} run --config {site.config}`, and start it again unless it ends with "
        f"{ExitCode.CONFIGURATION:d}"
    )


def installed_site(machine: Machine, scope: Scope | None) -> Site:
    """What is installed here, with the configuration and the data that it names."""
    site = bare(machine, scope or installed_scope(machine) or usual_scope(machine))
    place = machine.place(site.unit)
    if not place.is_file():
        return site
    text = place.read_text(encoding="utf-8", errors="replace")
    if machine.platform == "macos":
        site = replace(site, config=config_in(text) or site.config)
    else:
        site = site_in(text, site)
    settings = settings_of(site, machine)
    return site if settings is None else replace(site, data_dir=settings.daemon.data_dir)


def settings_of(site: Site, machine: Machine) -> Settings | None:
    """The settings that the service has; None when they cannot be read."""
    from daemon.settings import load_settings  # noqa: PLC0415 - loads pydantic

    try:
        return load_settings(machine.place(site.config), _service_environ(machine, site.scope))
    except (SettingsError, OSError):
        return None
