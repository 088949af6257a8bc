"""Holding a process that runs somebody's code to limits, from within, and what it may know of us."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
from pathlib import Path

MAX_FILES = 256
"""Most open files of such a process."""

MAX_FILE_BYTES = 4 * 1024**3
"""Largest file that it may write: far above what agents write, below what fills a disk at once."""

NICENESS = 10
"""How far it stands back behind the daemon when both want the processor."""

_OOM_SCORE = "500"  # of -1000 to 1000: when memory is short, the kernel takes it before the daemon
_MEGABYTE = 1024 * 1024
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

_PASSED_ON = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    }
)
_PASSED_PREFIXES = ("LC_", "PYTHON", "COVERAGE_")  # coverage measures the child too when it measures us
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def small_environment() -> dict[str, str]:
    """The few variables that such a process gets: no key of ours is among them."""
    given = {
        name: value
        for name, value in os.environ.items()
        if (name in _PASSED_ON or name.startswith(_PASSED_PREFIXES))
        and not any(word in name for word in _SECRET_WORDS)
    }
    return {**given, "MALLOC_ARENA_MAX": "2"}  # glibc else takes 64 MB of address space for each thread


def stand_back() -> None:
    """Leave the processor to others who want it: the first thing that such a process does."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)


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
    with contextlib.suppress(OSError, AttributeError, ImportError, MemoryError):
        import ctypes  # noqa: PLC0415 - such a process needs it, the daemon does not

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


def signal_name(returncode: int) -> str:
    """The name of the signal that ended a process, from its negative return code."""
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
