"""Finding what a worker started, wherever it has gone: by its parents, and by a mark in its environment."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class _Seen:
    """One living process: its parent, and whether it has the mark."""

    parent: int
    marked: bool


async def find_strays(pid: int, variable: str, value: str) -> list[int]:
    """The living processes that the worker `pid` started; itself is none of them.

    Args:
        pid: the worker, which may be dead.
        variable: the name of its mark.
        value: what its mark says, like no other's.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_hunters(), _strays, pid, f"{variable}={value}")


@cache
def _hunters() -> ThreadPoolExecutor:
    # Threads of their own: many workers that end at a time must not keep others from the loop's threads.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="stray hunt")


def _strays(pid: int, mark: str) -> list[int]:
    seen = dict(_linux(mark.encode("ascii")) if sys.platform == "linux" else _elsewhere(mark))
    found = {each for each, what in seen.items() if what.marked}
    found |= _descendants(pid, seen)
    return sorted(found - {pid})


def _descendants(pid: int, seen: Mapping[int, _Seen]) -> set[int]:
    found: set[int] = set()
    rest = [pid]
    while rest:
        parent = rest.pop()
        new = [each for each, what in seen.items() if what.parent == parent and each not in found]
        found.update(new)
        rest += new
    return found


def _linux(mark: bytes) -> Iterator[tuple[int, _Seen]]:
    """As psutil would tell, at a tenth of its price: there are two short reads for each process."""
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in brackets, may hold anything: what counts begins behind it.
            fields = folder.joinpath("stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] in {b"Z", b"X"}:
                continue
            yield int(folder.name), _Seen(int(fields[1]), mark in _environ(folder))


def _environ(folder: Path) -> bytes:
    try:
        return folder.joinpath("environ").read_bytes()
    except OSError:  # somebody else's
        return b""


def _elsewhere(mark: str) -> Iterator[tuple[int, _Seen]]:
    import psutil  # noqa: PLC0415 - only where a worker did not end well

    name, _, value = mark.partition("=")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process.pid, _Seen(process.ppid(), _environment(process).get(name) == value)


def _environment(process: object) -> Mapping[str, str]:
    import psutil  # noqa: PLC0415 - as above

    try:
        found: Mapping[str, str] = process.environ()  # type: ignore[attr-defined]  # psutil has no types here
    except (psutil.Error, OSError):  # somebody else's
        return {}
    return found
