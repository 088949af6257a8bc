"""Makes one system call of a working program fail; needs strace and the right to trace one's own children.

    python -m tests.support.faults FOLDER [ROUNDS]

Reads orders from standard input, one JSON list each: folder, part of the life, calls, what to do to them,
and which call of each thread (`when` of strace, such as "3" or "3+"). To do "size=N" means that no file may
grow beyond N bytes: the system then writes a part of what it is asked to, which strace cannot feign.

Children are forked, so imports are paid once; strace is attached while a child waits at the beginning of
that part and let go at its end. Answers each with a JSON object: the words, what strace wrote, what the child
wrote to standard error, and whether it had to be killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

# Everything that a child needs is imported before the first fork.
import aiosqlite  # noqa: F401
import alembic.operations
import alembic.runtime.migration
import alembic.script  # noqa: F401
import sqlalchemy.ext.asyncio  # noqa: F401
import structlog  # noqa: F401

import daemon.store.due_times
import daemon.store.proposals
import daemon.store.runs
import daemon.store.states  # noqa: F401
from daemon.runtime import DATABASE
from daemon.store.migrations import STEPS
from tests.support.crashes import Faults, Story, after_a_start, live, teller
from tests.support.stores import ROOT

LIMIT_S = 30.0
"""A part that takes longer than this hangs; SQLite and we wait 5 s for a lock."""

SIZE = "size="
_PR_SET_PTRACER = 0x59616D61
_ANYBODY = -1

PARTS = ("start", "run", "approve", "undo", "reject", "stop")
WRITE, FLUSH, READ, OPEN, RESIZE = "pwrite64", "fdatasync,fsync", "pread64", "openat", "ftruncate"
NAMES = "?unlink,unlinkat,?rename,?renameat,renameat2,?mkdir,mkdirat"


def files(folder: Path) -> list[Path]:
    """The files that the program uses in `folder`: only calls about these are touched."""
    data = folder / "data"
    base = data / DATABASE
    agent = data / "agents" / "busy" / "ledger.txt"
    backup = f".before-{STEPS.head}"
    endings = ("", "-wal", "-journal", "-shm", ".lock", f"{backup}.new", backup, f"{backup}.new-journal")
    locks = [data / "locks" / f"busy.{kind}" for kind in ("run", "apply")]
    own = [data, data / "instance", data / "instance.new", agent, agent.with_suffix(".new"), agent.parent]
    return [*(base.with_name(f"{base.name}{ending}") for ending in endings), *locks, *own]


# --- the program that forks ---------------------------------------------------------------------------------


def _child(order: list[Any], pipe: int, go: int, errors: int, rounds: int) -> None:
    """Never returns."""
    folder, limited_part, _, what, _ = order
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
    os.dup2(errors, 2)
    tell = teller(pipe)

    def wait_and_tell(*words: object) -> None:
        tell(*words)
        if words[0] == "part":
            os.read(go, 1)
            most = int(what.removeprefix(SIZE)) if what.startswith(SIZE) and words[1] == limited_part else -1
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, -1))

    code = 1
    try:
        asyncio.run(live(Path(folder), wait_and_tell, rounds=rounds))
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what a person would see
        tell("broke", f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


@contextmanager
def _attached(pid: int, order: list[Any], trace: Path) -> Iterator[None]:
    """While strace does what is ordered."""
    folder, _, calls, what, when = order
    if what.startswith(SIZE):
        yield
        return
    paths = [option for path in files(Path(folder)) for option in ("-P", str(path))]
    injected = ["-e", f"inject={calls}:{what}:when={when}"] if what else []
    command = ["strace", "-f", "-o", str(trace), "-e", f"trace={calls}", *injected, *paths, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        first = strace.stderr.readline() if strace.stderr else ""
        assert "attached" in first, first
        try:
            yield
        finally:
            strace.terminate()
            strace.communicate()


def _one(order: list[Any], top: Path, rounds: int) -> dict[str, Any]:
    part = order[1]
    trace, errors = top / "trace", top / "errors"
    trace.unlink(missing_ok=True)
    read, write = os.pipe()
    waits, go = os.pipe()
    descriptor = os.open(errors, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600)
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _child(order, write, waits, descriptor, rounds)
    for each in (write, waits, descriptor):
        os.close(each)
    guard = _Guard(pid)
    with os.fdopen(read) as stream:
        told = _led(stream, pid, go, order, trace, part, guard)
    _, status = os.waitpid(pid, 0)
    guard.done()
    os.close(go)
    return {
        "told": told,
        "trace": trace.read_text(errors="replace") if trace.exists() else "",
        "errors": errors.read_text(errors="replace"),
        "hung": guard.fired,
        "ended": -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status),
    }


def _led(
    stream: Any, pid: int, go: int, order: list[Any], trace: Path, part: str, guard: _Guard
) -> list[list[Any]]:
    """Lead the child from part to part, with strace attached during the first part of that name."""
    told: list[list[Any]] = []

    def until_next_part() -> bool:
        while line := stream.readline():
            told.append(json.loads(line))
            if told[-1][0] == "part":
                return True
        return False

    reached, used = until_next_part(), False
    while reached:
        here = not used and told[-1][1] == part
        if here:
            used = True
            with _attached(pid, order, trace):
                guard.start()
                os.write(go, b"x")
                reached = until_next_part()
        else:
            guard.start()
            os.write(go, b"x")
            reached = until_next_part()
    return told


class _Guard:
    """Kills a child that hangs."""

    def __init__(self, pid: int) -> None:
        self.fired = False
        self._pid = pid
        signal.signal(signal.SIGALRM, self._kill)

    def start(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)

    def done(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _kill(self, *_: object) -> None:
        self.fired = True
        os.kill(self._pid, signal.SIGKILL)


def main() -> None:
    top, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for line in sys.stdin:
        print(json.dumps(_one(json.loads(line), top, rounds)), flush=True)


# --- for whoever starts it ----------------------------------------------------------------------------------


@dataclass
class Hit:
    """One life in which system calls failed.

    Attributes:
        story: what it told.
        failed: how many calls failed.
        most: the most of these calls that one thread made.
        errors: what it wrote to standard error.
        hung: whether it had to be killed because it did not go on.
        ended: its exit code, negative for a signal.
        broke: what it ended with when that was no answer for a person.
        seconds: how long it took.
    """

    story: Story = field(default_factory=Story)
    failed: int = 0
    most: int = 0
    errors: str = ""
    hung: bool = False
    ended: int = 0
    broke: str = ""
    seconds: float = 0.0


class FaultyProgram:
    """The program above, as a context manager; `live` lets it live once."""

    def __init__(self, top: Path, rounds: int = 1) -> None:
        top.mkdir(exist_ok=True)
        command = [sys.executable, "-m", __name__, str(top), str(rounds)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def live(self, folder: Path, part: str, calls: str, what: str = "", when: str = "1") -> Hit:
        """Live once in `folder`; during `part`, do `what` to the calls number `when` of each thread."""
        started = time.monotonic()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([str(folder), part, calls, what, when]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        hit = Hit(errors=answer["errors"], hung=answer["hung"], ended=answer["ended"])
        for words in answer["told"]:
            if words[0] == "broke":
                hit.broke = words[1]
            else:
                hit.story.hear(words)
        hit.failed = answer["trace"].count("(INJECTED)")
        hit.most = _most_per_thread(answer["trace"])
        hit.seconds = time.monotonic() - started
        return hit


def _most_per_thread(trace: str) -> int:
    calls = (line.partition(" ") for line in trace.splitlines())
    threads = Counter(thread for thread, _, rest in calls if rest.strip().partition("(")[0].isidentifier())
    return max(threads.values(), default=0)


@dataclass
class Struck:
    """What came of many such lives."""

    failed: int = 0
    refused: int = 0
    faults: Faults = field(default_factory=Faults)
    wrong: list[str] = field(default_factory=list)


def strike(program: FaultyProgram, old: Path, orders: Iterable[tuple[str, str, str, str]]) -> Struck:
    """Let it live once for each order (part, calls, what, when), each time in a copy of the folder `old`."""
    found = Struck()
    for order in orders:
        folder = old.with_name("life")
        shutil.copytree(old, folder)
        hit = program.live(folder, *order)
        hit.story.old = True
        found.failed += hit.failed
        found.refused += bool(hit.story.complaints)
        found.wrong += [f"{order}: {what}" for what in _wrong(hit)]
        found.faults.add(after_a_start(folder, hit.story))
        shutil.rmtree(folder)
    return found


def most_calls(program: FaultyProgram, old: Path, part: str, calls: str) -> int:
    """How many such calls one thread makes in that part when all goes well."""
    folder = old.with_name("counted")
    shutil.copytree(old, folder)
    hit = program.live(folder, part, calls)
    shutil.rmtree(folder)
    assert (hit.ended, hit.failed, hit.story.complaints) == (0, 0, []), hit
    return hit.most


def _wrong(hit: Hit) -> Iterator[str]:
    if hit.hung:
        yield "it hung"
    if hit.broke or "Traceback" in hit.errors:
        yield f"no answer for a person: {hit.broke}{hit.errors}"
    if hit.ended:
        yield f"it ended with {hit.ended}"


if __name__ == "__main__":
    main()
