"""What a worker may use, how it is held to that, and what its end means in words."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

MAX_FILES = 256
"""Most open files of a worker."""

MAX_FILE_BYTES = 4 * 1024**3
"""Largest file that a worker may write: far above what agents write, below what fills a disk at once."""

NICENESS = 5
"""How far a worker stands back behind the daemon when both want the processor."""

_OOM_SCORE = "500"  # of -1000 to 1000: when memory is short, the kernel takes a worker before the daemon
_MEGABYTE = 1024 * 1024
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one worker may use.

    Attributes:
        agent: the agent's name, for the way out in messages.
        memory_mb: most memory of each of its processes, MB of address space.
        cpu_seconds: most CPU time of each of its processes.
        max_bytes: most bytes that it may hand over.
    """

    agent: str
    memory_mb: int
    cpu_seconds: float
    max_bytes: int

    def too_much_memory(self) -> str:
        """What is said of a worker that wanted more memory."""
        return f"it used more than {self.memory_mb} MB of memory; raise {self._key('max_memory_mb')}"

    def too_many_bytes(self) -> str:
        """What is said of a worker that handed over too much."""
        return f"it handed over more than {self.max_bytes:,} bytes; raise {self._key('max_bytes')}"

    def death(self, returncode: int) -> str:
        """How its process ended although it had something to do.

        Args:
            returncode: its exit code, or the negative number of the signal that killed it.
        """
        if returncode >= 0:
            return f"its process ended by itself, with exit code {returncode}, before it had answered"
        killed = f"its process was killed by {_signal_name(-returncode)}"
        if -returncode == signal.SIGXCPU:
            seconds = math.ceil(self.cpu_seconds)
            return f"{killed}: it used more than {seconds} s of CPU time; raise {self._key('max_cpu')}"
        if -returncode == signal.SIGKILL:
            return f"{killed}, by somebody, or by the system because memory was short"
        return killed

    def _key(self, name: str) -> str:
        return f"agents.{self.agent}.{name}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def confine(memory_mb: int, cpu_seconds: float) -> None:
    """Hold this process, and all that it starts, to the limits; nothing of the agent's is loaded yet."""
    _die_with_the_parent()
    seconds = max(1, math.ceil(cpu_seconds))
    _lower(resource.RLIMIT_CPU, seconds, seconds + 2)  # at the first SIGXCPU, at the second SIGKILL
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, MAX_FILES)
    _lower(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
    if sys.platform == "linux":  # elsewhere it does not bind; the parent looks at the memory instead
        _lower(resource.RLIMIT_AS, memory_mb * _MEGABYTE)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def _lower(kind: int, soft: int, hard: int | None = None) -> None:
    _, allowed = resource.getrlimit(kind)
    wanted = soft if hard is None else hard
    ceiling = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
    with contextlib.suppress(OSError, ValueError):  # a system that knows no such limit
        resource.setrlimit(kind, (min(soft, ceiling), ceiling))


def _die_with_the_parent() -> None:
    """Linux: be killed when the daemon dies, and stay the parent of what leaves its own parents."""
    if sys.platform != "linux":
        return
    import ctypes  # noqa: PLC0415 - a worker needs it, the daemon does not

    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def has_descendants() -> bool:
    """Whether something that this process started still runs; a process that waits for nobody only."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return False
    return True
