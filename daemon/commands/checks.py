"""What `askfirst doctor` looks at on the machine: packages, folder, disk, clock and port. Changes nothing."""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from daemon.guard import foreign_packages, owners_of

State = Literal["ok", "warn", "fail"]

PACKAGES = ("llm", "agents", "daemon")
DISK_FAIL = 50 * 1024**2
"""Bytes below which a run may not be recorded: SQLite needs room for its log and its temporary files."""

DISK_WARN = 500 * 1024**2
YEARS = range(2025, 2100)
"""A clock outside of these was never set: a board without a battery starts in 1970."""

DRIFT = timedelta(seconds=2)
PORT_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was looked at.
        state: whether it works.
        message: what was found.
        way_out: what to do about it, empty when nothing is to be done.
    """

    name: str
    state: State
    message: str
    way_out: str = ""


def check_packages() -> Check:
    """The three packages that are imported are Askfirst's own."""
    clashes = foreign_packages()
    if clashes:
        found = "; ".join(f"{clash.package}: {clash.found}" for clash in clashes)
        return Check(name="packages", state="fail", message=found, way_out=clashes[0].repair)
    return Check(name="packages", state="ok", message="llm, agents and daemon are Askfirst's own")


def check_distributions() -> Check:
    """No other installed distribution says that it owns one of them."""
    owners = {name: owners_of(name) for name in PACKAGES}
    clashes = [f"{' and '.join(by)} also brings {name!r}" for name, by in owners.items() if by]
    if not clashes:
        return Check(name="name clashes", state="ok", message="no other distribution brings these packages")
    return Check(
        name="name clashes",
        state="warn",
        message="; ".join(clashes),
        way_out="uninstalling it would delete files of ours: give Askfirst an environment of its own",
    )


def check_folder(folder: Path) -> Check:
    """The data folder can be written, and others cannot read it."""
    name = "data folder"
    if not folder.exists():
        parent = _nearest(folder)
        if os.access(parent, os.W_OK | os.X_OK):
            return Check(name=name, state="ok", message=f"{folder} is made at the first run")
        return _no_folder(name, f"{folder} cannot be made: {parent} belongs to somebody else")
    if not folder.is_dir():
        return _no_folder(name, f"{folder} is no folder")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return _no_folder(name, f"{folder} cannot be written by you")
    open_to_others = [path for path in (folder, *_files(folder)) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_to_others:
        shown = ", ".join(str(path) for path in open_to_others[:3])
        way = f"chmod -R go-rwx {folder}"
        return Check(name=name, state="warn", message=f"others may look into {shown}", way_out=way)
    return Check(name=name, state="ok", message=f"{folder}, readable by you alone")


def _no_folder(name: str, message: str) -> Check:
    way = "set daemon.data_dir to a folder that you may write, or change its owner"
    return Check(name=name, state="fail", message=message, way_out=way)


def _files(folder: Path) -> Iterable[Path]:
    """The database's own files; what agents keep is theirs."""
    return (path for path in folder.glob("askfirst.sqlite3*") if path.is_file())


def _nearest(path: Path) -> Path:
    """The nearest parent that exists."""
    return next(parent for parent in path.parents if parent.exists())


def check_disk(folder: Path) -> Check:
    """There is room for the database to grow."""
    free = shutil.disk_usage(folder if folder.exists() else _nearest(folder)).free
    state: State = "fail" if free < DISK_FAIL else "warn" if free < DISK_WARN else "ok"
    way = "" if state == "ok" else "free some space, or set daemon.data_dir to another disk"
    return Check(name="disk", state=state, message=f"{_size(free)} free", way_out=way)


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GB" if count >= 1024**3 else f"{count / 1024**2:.0f} MB"


class ClockCheck:
    """Compares the time of day with the clock that is never set, from when it is made until `result`."""

    def __init__(self) -> None:
        self._began = (datetime.now(UTC), time.monotonic())

    def result(self, newest: datetime | None = None) -> Check:
        """What the clock looks like.

        Args:
            newest: the latest time that was ever recorded; the clock must be past it.
        """
        now = datetime.now(UTC)
        way = "set the clock, or switch on time synchronisation: timedatectl set-ntp true"
        problem = self._problem(now, newest)
        if problem:
            return Check(name="clock", state="fail", message=problem, way_out=way)
        jump = abs((now - self._began[0]) - timedelta(seconds=time.monotonic() - self._began[1]))
        if jump > DRIFT:
            message = f"it was set by {jump.total_seconds():.0f} s while we looked"
            return Check(name="clock", state="warn", message=message, way_out=way)
        return Check(name="clock", state="ok", message=f"{now:%Y-%m-%d %H:%M} UTC")

    @staticmethod
    def _problem(now: datetime, newest: datetime | None) -> str:
        if now.year not in YEARS:
            return f"it says {now:%Y-%m-%d}"
        if newest is not None and newest > now + DRIFT:
            return f"it says {now:%Y-%m-%d %H:%M} UTC, but the last run was at {newest:%Y-%m-%d %H:%M} UTC"
        return ""


def check_port(host: str, port: int, *, enabled: bool) -> Check:
    """The address of the web endpoints is free, or our own daemon has it."""
    name = "port"
    if not enabled:
        return Check(name=name, state="ok", message="the web endpoints are switched off")
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            way = "set web.host to an address of this machine, such as 127.0.0.1, and web.port above 1023"
            return Check(name=name, state="fail", message=f"{host}:{port}: {error.strerror}", way_out=way)
        if _is_askfirst(host, port):
            return Check(name=name, state="ok", message=f"Askfirst answers at {host}:{port}")
        way = "set web.port to another one: ASKFIRST_WEB__PORT=8485"
        return Check(name=name, state="fail", message=f"another program has {host}:{port}", way_out=way)
    message = f"{host}:{port} is free" if port else f"any free one of {host}"
    return Check(name=name, state="ok", message=message)


def check_traces(endpoint: str, headers: Mapping[str, str]) -> Check:
    """The collector of traces takes an empty message."""
    name, host = "traces", urlsplit(endpoint).hostname or "?"
    way = (
        "start it, or correct traces.endpoint: it must take OTLP over HTTP; everything else works without it"
    )
    try:
        status = _posted(endpoint, headers)
    except (OSError, ValueError, http.client.HTTPException) as error:
        message = f"{host} takes none: {type(error).__name__}"
        return Check(name=name, state="warn", message=message, way_out=way)
    if not 200 <= status < 300:
        return Check(name=name, state="warn", message=f"{host} answers {status}", way_out=way)
    return Check(name=name, state="ok", message=f"{host} takes them")


def _posted(endpoint: str, headers: Mapping[str, str]) -> int:
    """The status of the answer to no spans at all, which is an empty message."""
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=PORT_SECONDS)
    try:
        path = path if path.endswith("/v1/traces") else f"{path}/v1/traces"
        connection.request("POST", path, b"", {"Content-Type": "application/x-protobuf", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.create_server((host, port), family=family).close()


def _is_askfirst(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=PORT_SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer = json.loads(connection.getresponse().read(4096))
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return isinstance(answer, dict) and {"status", "version", "uptime_seconds"} <= answer.keys()
