"""Pushing: leaves the metrics of a program that ends where they can be scraped after its end.

A file for node_exporter's textfile collector is written whole beside its place and renamed. Its counters and
histograms go on from those in the file before, so that `rate` and `increase` work on what one short run
after the other counts. A Pushgateway keeps the last push as it is: its counters begin anew with each.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from daemon.errors import DaemonError
from daemon.observability.catalogue import METRICS

if TYPE_CHECKING:
    from daemon.outside import Outside

SUFFIX = ".prom"
"""The textfile collector reads no other files."""

JOB = "askfirst"
MODE = 0o644
"""node_exporter is another user."""

_CONTENT = "text/plain; version=0.0.4; charset=utf-8"
_NOT_OF_RUNS = (
    "process_",  # node_exporter and the Pushgateway tell these of themselves
    "askfirst_log_",
    "askfirst_agent_missed",
    # People decide through other processes.
    "askfirst_proposal_decision",
    "askfirst_proposal_apply",
)
"""How the names of metrics begin that only a program that goes on running can tell."""

_LARGEST = 4 * 1024 * 1024  # bytes of a file of ours, by far
_ADDED = frozenset({"counter", "histogram"})


def file_problem(path: Path) -> str:
    """Why metrics cannot be left in that file, empty if they can; blocks."""
    if path.suffix != SUFFIX:
        return (
            f"node_exporter's textfile collector reads only files that end with {SUFFIX}, not {path.name!r}"
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no folder {folder}; make it, or name the one that node_exporter reads"
    if path.is_dir():
        return f"{path} is a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"this user may not write into {folder}"
    return ""


def write_file(path: Path, text: str) -> None:
    """Leave metrics in a file, whole or not at all, going on from what was counted there before; blocks.

    Args:
        path: the file.
        text: the metrics in Prometheus' text format.

    Raises:
        DaemonError: it cannot be written; what was there is as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        written = counted_on(text, _read(path))
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            os.fchmod(descriptor, MODE)  # whatever the umask says
            with open(descriptor, "wb", closefd=False) as file:
                file.write(written.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        msg = f"the metrics cannot be written to {path}: {error.strerror or error}"
        raise DaemonError(msg) from error


async def push(outside: Outside, address: str, text: str) -> str:
    """Leave metrics with a Pushgateway, in place of what this machine left there before.

    Args:
        outside: sends it.
        address: of the Pushgateway, such as "http://user:password@pi.lan:9091".
        text: the metrics in Prometheus' text format.

    Returns:
        What went wrong, without anything of the address; empty if nothing did.
    """
    host = quote(socket.gethostname() or "localhost", safe="")
    place = f"{address.rstrip('/')}/metrics/job/{JOB}/instance/{host}"
    return await outside.send("PUT", place, text.encode(), kind=_CONTENT)


def of_runs(text: str) -> str:
    """The metrics that a program can tell which has ended when somebody reads them."""
    return _written([family for family in _families(text) if not family.name.startswith(_NOT_OF_RUNS)])


def counted_on(text: str, before: str) -> str:
    """Metrics whose counters and histograms go on from those before; gauges are as they are now.

    Args:
        text: what was counted anew, from 0.
        before: what was written last; empty or unreadable, the counting begins.
    """
    families = {family.name: family for family in _families(text)}
    try:
        known = [family for family in _families(before) if _goes_on(family)]
    except ValueError:  # somebody else's file, or damaged
        return _written(list(families.values()))
    for old in known:
        new = families.setdefault(old.name, _Family(old.name, old.kind, old.about))
        if new.kind == old.kind:
            for series, value in old.samples.items():
                new.samples[series] = new.samples.get(series, 0.0) + value
    return _written(list(families.values()))


@dataclass(slots=True)
class _Family:
    """One metric of a text.

    Attributes:
        name: its name.
        kind: "counter", "gauge" or "histogram".
        about: the line with its help.
        samples: the value of each series, by name and labels as they are written.
    """

    name: str
    kind: str = ""
    about: str = ""
    samples: dict[str, float] = field(default_factory=dict)


def _families(text: str) -> Iterator[_Family]:
    """The metrics of a text.

    Raises:
        ValueError: it is none that we write.
    """
    family: _Family | None = None
    for line in text.splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "#":
            what, name, *words = rest.split(" ", 2)
            if family is None or family.name != name:
                if family is not None:
                    yield family
                family = _Family(name)
            if what == "HELP":
                family.about = line
            elif what == "TYPE":
                family.kind = "".join(words)
        elif line:
            if family is None:
                raise ValueError(line)
            series, _, value = line.rpartition(" ")
            family.samples[series] = float(value)
    if family is not None:
        yield family


def _goes_on(family: _Family) -> bool:
    """Whether it is a counter or histogram of ours, with the buckets that it has today."""
    metric = METRICS.get(family.name)
    if metric is None or metric.kind != family.kind or family.kind not in _ADDED:
        return False
    bounds = {
        series.partition('le="')[2].partition('"')[0] for series in family.samples if "_bucket" in series
    }
    return {float(each) for each in bounds} == ({*metric.buckets, math.inf} if bounds else set())


def _written(families: list[_Family]) -> str:
    lines: list[str] = []
    for family in families:
        lines += [family.about, f"# TYPE {family.name} {family.kind}"]
        lines += [f"{series} {value!r}" for series, value in family.samples.items()]
    return "".join(f"{line}\n" for line in lines)


def _read(path: Path) -> str:
    """What the file holds, empty if it is not there or cannot be one of ours."""
    try:
        if path.stat().st_size > _LARGEST:
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
