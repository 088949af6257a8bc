"""How the installed service is doing, as systemd or launchd tell it."""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from daemon.errors import ExitCode
from daemon.install.launchd import domain
from daemon.install.machine import Machine
from daemon.install.site import LABEL, SERVICE, Site
from daemon.install.systemd import systemctl

ANSWER_S = 5.0
"""How long the program may take to say how it is."""

_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "NRestarts",
    "Result",
    "ExecMainStatus",
    "StatusText",
    "ActiveEnterTimestamp",
    "MemoryCurrent",
    "MemoryMax",
    "WatchdogUSec",
    "NeedDaemonReload",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """What the service manager says.

    Attributes:
        known: whether the manager knows the service.
        active: whether it runs and said that it is ready.
        word: the state in the manager's words, such as "active (running)".
        enabled: whether it starts with the machine, or at the login; None when that is not told.
        pid: its process.
        restarts: how often the manager started it anew since it was last started by hand; None if not told.
        exit_status: how its last process ended; None if not told.
        status: the line that the program itself keeps.
        since: since when.
        memory: bytes in use.
        memory_limit: the most bytes that it may use.
        watchdog_s: after how many seconds of silence it is started anew; None without one.
        outdated: whether the manager has read an older unit than the one on the disk.
    """

    known: bool
    active: bool = False
    word: str = "unknown"
    enabled: bool | None = None
    pid: int | None = None
    restarts: int | None = None
    exit_status: int | None = None
    status: str = ""
    since: str = ""
    memory: int | None = None
    memory_limit: int | None = None
    watchdog_s: float | None = None
    outdated: bool = False

    @property
    def gave_up(self) -> bool:
        """Whether it is left alone because its configuration cannot work."""
        return not self.active and self.exit_status == ExitCode.CONFIGURATION


def state_of(site: Site, machine: Machine) -> ServiceState:
    """How the service is doing."""
    return _launchd_state(site, machine) if site.platform == "macos" else _systemd_state(site, machine)


def _systemd_state(site: Site, machine: Machine) -> ServiceState:
    done = machine.call(*systemctl(site), "show", SERVICE, f"--property={','.join(_PROPERTIES)}")
    found = dict(line.split("=", 1) for line in done.out.splitlines() if "=" in line)
    if done.code != 0 or found.get("LoadState") != "loaded":
        return ServiceState(known=False, word=done.err.strip() or found.get("LoadState", "unknown"))
    return ServiceState(
        known=True,
        active=found.get("ActiveState") == "active",
        word=f"{found.get('ActiveState')} ({found.get('SubState')})",
        enabled=found.get("UnitFileState") == "enabled",
        pid=_number(found.get("MainPID")) or None,
        restarts=_number(found.get("NRestarts")),
        exit_status=_number(found.get("ExecMainStatus")),
        status=found.get("StatusText", ""),
        since=found.get("ActiveEnterTimestamp", ""),
        memory=_number(found.get("MemoryCurrent")),
        memory_limit=_number(found.get("MemoryMax")),
        watchdog_s=_time_span(found.get("WatchdogUSec", "")),
        outdated=found.get("NeedDaemonReload") == "yes",
    )


def _launchd_state(site: Site, machine: Machine) -> ServiceState:
    done = machine.call("launchctl", "print", f"{domain(site, machine)}/{LABEL}")
    if done.code != 0:
        return ServiceState(known=False, word=done.err.strip() or "not loaded")
    found = dict(re.findall(r"^\t?([a-z ]+) = (.*)$", done.out, re.MULTILINE))
    word = found.get("state", "unknown")
    return ServiceState(
        known=True,
        active=word == "running",
        word=word,
        pid=_number(found.get("pid")),
        restarts=max((_number(found.get("runs")) or 1) - 1, 0),
        exit_status=_number(found.get("last exit code", "").partition(":")[0]),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and int(text) < 2**63 else None


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _time_span(text: str) -> float | None:
    """A time as systemd shows it, such as "1min 30s"; None for "infinity" and 0."""
    parts = re.findall(r"(\d+)(us|ms|s|min|h|d)\b", text)
    return sum(int(number) * _UNITS[unit] for number, unit in parts) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the program says about itself.

    Attributes:
        reached: whether it answered.
        ready: whether everything that it needs works.
        parts: name of each part and how it is.
        address: where it was asked.
    """

    reached: bool
    ready: bool = False
    parts: tuple[tuple[str, str], ...] = ()
    address: str = ""


def health_at(address: str) -> Health:
    """Ask /readyz of the program at `address`, such as "http://127.0.0.1:8484"."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/readyz")
        answer: Any = json.loads(connection.getresponse().read(65536))
        found = answer.get("checks", {}) if isinstance(answer, dict) else {}
        told = tuple((str(name), _told(value)) for name, value in found.items())
        ready = isinstance(answer, dict) and answer.get("status") == "ready"
        return Health(reached=True, ready=ready, parts=told, address=address)
    except (OSError, ValueError, http.client.HTTPException):
        return Health(reached=False, address=address)
    finally:
        connection.close()


_WORDS = {True: "works", False: "does not work", None: "not known yet"}


def _told(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    word = _WORDS.get(value.get("ok"), "not known yet")
    return f"{word}: {value['detail']}" if value.get("detail") else word


def address_in(status: str) -> str | None:
    """The address of the web endpoints in the line that the program keeps for systemd."""
    found = re.search(r"http://\S+", status)
    return found.group(0) if found else None
