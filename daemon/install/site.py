"""Which program becomes the service, with which configuration, for whom."""

from __future__ import annotations

import pwd
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon.guard import ROOT
from daemon.install.machine import Machine, Platform

Scope = Literal["user", "system"]

SERVICE = "askfirst"
LABEL = "org.askfirst.daemon"
USER = "askfirst"
STATE_DIR = Path("/var/lib/askfirst")
HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
"""What a system service does not see: ProtectHome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is installed where.

    Attributes:
        platform: systemd's or launchd's.
        scope: a service of one user, or of the system.
        program: the console script that is started.
        folders: what is executed or loaded from, besides /usr: the environment, its interpreter, the code.
        config: the configuration file.
        data_dir: the folder of the database.
        user: who the service runs as.
        home: the home of whom it is installed for.
        stop_limit: seconds that stopping may take.
    """

    platform: Platform
    scope: Scope
    program: Path
    folders: tuple[Path, ...]
    config: Path
    data_dir: Path
    user: str
    home: Path
    stop_limit: int = 30

    @property
    def is_system(self) -> bool:
        """Whether it is a service of the system."""
        return self.scope == "system"

    @property
    def unit(self) -> Path:
        """The unit, or the plist."""
        if self.platform == "macos":
            folder = Path("/Library/LaunchDaemons") if self.is_system else self.home / "Library/LaunchAgents"
            return folder / f"{LABEL}.plist"
        folder = Path("/etc/systemd/system") if self.is_system else self.home / ".config/systemd/user"
        return folder / f"{SERVICE}.service"

    @property
    def drop_in(self) -> Path:
        """The drop-in that holds what was granted."""
        return self.unit.with_name(f"{self.unit.name}.d") / "10-install.conf"

    @property
    def log_file(self) -> Path:
        """Where launchd writes what the program says."""
        folder = Path("/Library/Logs") if self.is_system else self.home / "Library/Logs"
        return folder / "askfirst" / "askfirst.log"

    def hidden(self, *paths: Path) -> Iterator[Path]:
        """Those of the program's paths, and of `paths`, that a system service of systemd would not see."""
        if not self.is_system or self.platform != "linux":
            return
        for path in (self.program, *self.folders, self.config, self.data_dir, *paths):
            if any(path.is_relative_to(home) for home in HIDDEN):
                yield path


def program_of(prefix: Path | None = None) -> Path:
    """The console script of this installation."""
    return Path(sys.prefix if prefix is None else prefix).resolve() / "bin" / SERVICE


def folders_of() -> tuple[Path, ...]:
    """Where this installation's code and interpreter are, without /usr and what is in another of them."""
    candidates = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), ROOT]
    found: list[Path] = []
    for path in candidates:
        if not any(path.is_relative_to(known) for known in (Path("/usr"), *found)):
            found.append(path)
    return tuple(found)


def installed_scope(machine: Machine) -> Scope | None:
    """How the service is installed here: for this user first, else for the system; None when it is not."""
    for scope in ("user", "system"):
        if machine.place(bare(machine, scope).unit).is_file():
            return scope
    return None


def usual_scope(machine: Machine) -> Scope:
    """What is meant when nobody says: on a Mac the user, on Linux the system for root."""
    return "system" if machine.platform == "linux" and machine.uid == 0 else "user"


def bare(machine: Machine, scope: Scope) -> Site:
    """A site with its paths, for who does not look at the configuration."""
    system = scope == "system" and machine.platform == "linux"
    return Site(
        platform=machine.platform,
        scope=scope,
        program=program_of(),
        folders=folders_of(),
        config=usual_config(machine, scope),
        data_dir=STATE_DIR if system else _own_data_dir(machine),
        user=USER if system else _name_of(machine.uid),
        home=machine.home,
    )


def _own_data_dir(machine: Machine) -> Path:
    folder = "Library/Application Support" if machine.platform == "macos" else ".local/state"
    return machine.home / folder / "askfirst"


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def usual_config(machine: Machine, scope: Scope) -> Path:
    """Where the configuration file of a service is when nobody says."""
    from daemon.settings.places import SYSTEM_CONFIG  # noqa: PLC0415 - beside what it is needed for

    if scope == "system" and machine.platform == "linux":
        return SYSTEM_CONFIG
    folder = "Library/Application Support" if machine.platform == "macos" else ".config"
    return machine.home / folder / "askfirst" / "askfirst.toml"
