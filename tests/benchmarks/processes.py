"""What a process costs, read from /proc: CPU, memory, wake-ups and bytes, of all its threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.program import ROOT, Program

READY = '"askfirst is running"'

# The libraries that the daemon lives on, with nothing of ours: what it costs to have them at all.
LIBRARIES = (
    "asyncio, apscheduler.schedulers.asyncio, sqlalchemy.ext.asyncio, sqlalchemy.dialects.sqlite.aiosqlite, "
    "structlog, prometheus_client, starlette.applications, starlette.routing, uvicorn, "
    "pydantic, click, psutil"
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process has used so far.

    Attributes:
        cpu_s: CPU seconds.
        rss_mb: memory that it holds now.
        wake_ups: how often one of its threads had waited and was woken.
        written: bytes that it handed to the system.
        on_disk: bytes of them that have to reach a disk, in whole pages.
        threads: how many threads it has.
        files: how many files it has open.
    """

    cpu_s: float
    rss_mb: float
    wake_ups: int
    written: int
    on_disk: int
    threads: int
    files: int


def cost_of(pid: int | str = "self") -> Cost:
    """Read it now."""
    process = Path("/proc", str(pid))
    threads = list((process / "task").iterdir())
    status = _pairs((process / "status").read_text())
    io = _pairs((process / "io").read_text())
    return Cost(
        cpu_s=sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9,
        rss_mb=int(status["VmRSS"].split()[0]) / 1024,
        wake_ups=sum(_switches(each) for each in threads),
        written=int(io["wchar"]),
        on_disk=int(io["write_bytes"]) - int(io["cancelled_write_bytes"]),
        threads=len(threads),
        files=len(list((process / "fd").iterdir())),
    )


def _switches(thread: Path) -> int:
    return int(_pairs((thread / "status").read_text())["voluntary_ctxt_switches"])


def _pairs(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def whole_cpu(command: Sequence[str], **options: Any) -> float:
    """CPU seconds, user and system, of a program from its start to its end."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, **options) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return usage.ru_utime + usage.ru_stime


def libraries_alone(environment: Mapping[str, str]) -> Cost:
    """What a process costs that only imports the libraries."""
    code = f"import {LIBRARIES}, sys\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(environment)
    ) as process:
        assert process.stdout
        process.stdout.readline()
        cost = cost_of(process.pid)
        process.communicate()
    return cost


@contextmanager
def daemon_ready(program: Program) -> Iterator[tuple[int, Cost]]:
    """The daemon once it says that it runs: its process id and what it has cost so far."""
    command = program.command("run")
    with subprocess.Popen(
        command, cwd=program.folder, env=bench_environment(program), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        told = []
        for line in process.stderr:
            told.append(line)
            if READY in line:
                break
        assert told, "the daemon said nothing"
        assert READY in told[-1], "".join(told)
        try:
            yield process.pid, cost_of(process.pid)
        finally:
            process.terminate()
            process.communicate()
    assert process.returncode == 0


def bench_environment(program: Program) -> dict[str, str]:
    """The program's environment, in which byte code is kept, as it is where the program is installed."""
    environment = program.whole_environment({})
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**environment, "PYTHONPATH": str(ROOT)}
