"""The service under launchd: its plist, and the steps that install and remove it."""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Any

from daemon.install.machine import Machine
from daemon.install.marked import marked_xml
from daemon.install.plan import Call, File, Folder, Plan, Removal, Step
from daemon.install.site import LABEL, Site
from daemon.install.templates import template

KEYS = frozenset(
    [
        "AbandonProcessGroup",
        "BundleProgram",
        "Disabled",
        "EnableGlobbing",
        "EnablePressuredExit",
        "EnableTransactions",
        "EnvironmentVariables",
        "ExitTimeOut",
        "GroupName",
        "HardResourceLimits",
        "InitGroups",
        "KeepAlive",
        "Label",
        "LaunchEvents",
        "LaunchOnlyOnce",
        "LegacyTimers",
        "LimitLoadFromHosts",
        "LimitLoadToHosts",
        "LimitLoadToSessionType",
        "LowPriorityBackgroundIO",
        "LowPriorityIO",
        "MachServices",
        "MaterializeDatalessFiles",
        "Nice",
        "ProcessType",
        "Program",
        "ProgramArguments",
        "QueueDirectories",
        "RootDirectory",
        "RunAtLoad",
        "SessionCreate",
        "Sockets",
        "SoftResourceLimits",
        "StandardErrorPath",
        "StandardInPath",
        "StandardOutPath",
        "StartCalendarInterval",
        "StartInterval",
        "StartOnMount",
        "ThrottleInterval",
        "Umask",
        "UserName",
        "WatchPaths",
        "WorkingDirectory",
        "inetdCompatibility",
    ]
)
"""Every key of launchd.plist(5): launchd ignores one that it does not know without a word."""


def plist(site: Site) -> dict[str, Any]:
    """What launchd is told about this site."""
    found: dict[str, Any] = plistlib.loads(template(f"{LABEL}.plist").encode())
    found["ProgramArguments"] = [str(site.program), "run", "--config", str(site.config)]
    found["WorkingDirectory"] = str(site.config.parent)
    found["StandardOutPath"] = found["StandardErrorPath"] = str(site.log_file)
    found["ExitTimeOut"] = max(found["ExitTimeOut"], site.stop_limit)
    found["EnvironmentVariables"] = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    if site.is_system:
        found["UserName"] = site.user
    return found


def plist_text(site: Site) -> str:
    """The plist of this site."""
    return marked_xml(plistlib.dumps(plist(site), sort_keys=False).decode())


def domain(site: Site, machine: Machine) -> str:
    """Where launchd keeps the service: the user's session, or the system."""
    return "system" if site.is_system else f"gui/{machine.uid}"


def is_loaded(site: Site, machine: Machine) -> bool:
    """Whether launchd knows the service."""
    return machine.call("launchctl", "print", f"{domain(site, machine)}/{LABEL}").code == 0


def install_plan(site: Site, machine: Machine, *, start: bool = True) -> Plan:
    """The steps that install the service; done a second time they change nothing."""
    where = domain(site, machine)
    owner = site.user if site.is_system else None
    steps: list[Step] = [
        Folder(path=site.config.parent, mode=0o755 if site.is_system else 0o700),
        Folder(path=site.data_dir, mode=0o700, owner=owner),
        Folder(path=site.log_file.parent, mode=0o755 if site.is_system else 0o700, owner=owner),
        File(path=site.unit, text=plist_text(site)),
    ]
    if start:
        steps += [
            Call(
                words=("launchctl", "bootout", f"{where}/{LABEL}"),
                why="makes launchd forget an older plist",
                unneeded=lambda machine, changed: not changed or not is_loaded(site, machine),
            ),
            Call(
                words=("launchctl", "enable", f"{where}/{LABEL}"),
                why="starts it at each login",
                unneeded=lambda machine, _changed: is_loaded(site, machine),
            ),
            Call(
                words=("launchctl", "bootstrap", where, str(site.unit)),
                why="starts it now",
                unneeded=lambda machine, _changed: is_loaded(site, machine),
                help=f"see why: askfirst service logs --{site.scope}",
            ),
        ]
    return Plan(steps=tuple(steps), notes=tuple(_notes(site)))


def uninstall_plan(site: Site, machine: Machine) -> Plan:
    """The steps that remove what was installed; the data, the configuration and the log stay."""
    steps: list[Step] = [
        Call(
            words=("launchctl", "bootout", f"{domain(site, machine)}/{LABEL}"),
            why="stops it, now and at each login",
            unneeded=lambda machine, _changed: not is_loaded(site, machine),
        ),
        Removal(path=site.unit),
    ]
    notes = [
        f"the configuration stays: {site.config}",
        f"the data stay: {site.data_dir}",
        f"the log stays: {site.log_file}",
    ]
    return Plan(steps=tuple(steps), notes=tuple(notes))


def config_in(plist_file: str) -> Path | None:
    """The configuration that an installed plist names; None when it names none."""
    try:
        words = plistlib.loads(plist_file.encode()).get("ProgramArguments", [])
        return Path(words[words.index("--config") + 1])
    except (ValueError, IndexError, AttributeError, TypeError, plistlib.InvalidFileException):
        return None


def _notes(site: Site) -> list[str]:
    notes = [f"launchd never empties {site.log_file}; newsyslog can: see docs/operations.md"]
    if not site.is_system:
        notes.append("it runs while you are logged in; --system is for a Mac that nobody logs in to")
    return notes
