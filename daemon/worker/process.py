"""One worker process, from its start until nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Callable
from pathlib import Path

from agents.confine import small_environment
from daemon.worker.limits import Limits
from daemon.worker.strays import find_strays
from daemon.worker.wire import MAX_LINE

PROGRAM = Path(__file__).with_name("__main__.py")

TERM_S = 1.0
"""How long a worker may take to end after it was asked to, before it is killed."""

MARK = "WORKER_OF_ASKFIRST"
"""A variable with each worker's own value, by which what has left its group is found."""

_ROUNDS = 100
_ROUND_S = 0.02
_EXIT_S = 5.0
_TAIL = 2_000
_CRASH = "Fatal Python error"
_CRASH_LINES = 3
_SAID_LINES = 200
_LONGEST_LINE = 2_000

_log = logging.getLogger(__name__)


class WorkerProcess:
    """The process of one worker, its wire, and what it says beside that.

    Args:
        limits: what it may use.
        known: what its lines of log are known by: agent and run.
        too_much: called when it says more beside the wire than it may hand over.

    Attributes:
        reader: its messages.
        writer: takes messages to it.
        exited: done when the process has ended, with its exit code.
    """

    def __init__(self, limits: Limits, known: dict[str, str], too_much: Callable[[], None]) -> None:
        self._limits = limits
        self._known = known
        self._too_much = too_much
        self._token = secrets.token_hex(16)
        self._tail: deque[str] = deque(maxlen=3)
        self._after_crash: int | None = None
        self._process: Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._stderr: asyncio.ReadTransport | None = None
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None
        self.exited: asyncio.Task[int]

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group too."""
        return 0 if self._process is None else self._process.pid

    @property
    def last_words(self) -> str:
        """What it said last beside the wire, empty when it was silent."""
        return " / ".join(self._tail)[-_TAIL:]

    async def start(self) -> None:
        """Start it.

        Raises:
            OSError: there is no room for one more process, or for its pipes.
        """
        ours, its = socket.socketpair()
        said, says = os.pipe()
        try:
            ours.setblocking(False)  # noqa: FBT003 - the socket's own way
            await self._connect(ours, said)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", str(PROGRAM)),
                stdin=its.fileno(),
                stdout=DEVNULL,
                stderr=says,
                start_new_session=True,
                env={**small_environment(), MARK: self._token},
            )
        except BaseException:
            self._close()
            raise
        finally:
            its.close()
            os.close(says)
        # Nothing is waited for from here on: who is cancelled finds either no process or a whole one.
        self.exited = asyncio.create_task(self._process.wait(), name="end of a worker")

    async def _connect(self, ours: socket.socket, said: int) -> None:
        """Our ends of the wire and of what it prints."""
        try:
            self.reader, self.writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
        except BaseException:
            ours.close()
            os.close(said)
            raise
        stream = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        self._stderr, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(said, "rb", 0)
        )
        self._listening = asyncio.create_task(self._listen(stream), name="words of a worker")

    def _close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        if self._stderr is not None:
            self._stderr.close()
        if self.writer is not None:
            self.writer.close()

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        """Log what it prints, so many lines; more bytes than it may hand over are too much here as well."""
        taken = lines = 0
        rest = b""
        while piece := await stream.read(64 * 1024):
            taken += len(piece)
            if taken > self._limits.max_bytes:
                self._too_much()
                return
            *whole, rest = (rest[-_LONGEST_LINE:] + piece[-_LONGEST_LINE * _SAID_LINES :]).split(b"\n")
            for line in whole[-_SAID_LINES:]:
                lines += 1
                self._said(line, log=lines <= _SAID_LINES)
            await asyncio.sleep(0)
        if rest:
            self._said(rest, log=True)

    def _said(self, line: bytes, *, log: bool) -> None:
        text = line[:_LONGEST_LINE].decode("utf-8", "replace").strip()
        if not text:
            return
        if text.startswith(_CRASH):  # what stands below it says where
            self._tail = deque([text])
            self._after_crash = _CRASH_LINES
        elif self._after_crash is None:
            self._tail.append(text)
        elif self._after_crash > 0:
            self._after_crash -= 1
            self._tail.append(text)
        if log:
            said = logging.getLogger(f"agents.{self._known['agent']}")  # whose level is the agent's own
            said.debug("an agent's process printed a line", extra={**self._known, "line": text})

    async def ended(self, seconds: float) -> bool:
        """Whether it ends by itself within so many seconds."""
        await asyncio.wait({self.exited}, timeout=seconds)
        return self.exited.done()

    async def end(self, *, clean: bool) -> None:
        """See to it that nothing of it is left, and close the wire.

        Args:
            clean: it has said goodbye, and that it leaves nothing behind.
        """
        if self._process is None:
            return
        try:
            if not (clean and await self.ended(TERM_S)):
                await self._kill()
        finally:
            if self._listening is not None:
                await asyncio.wait({self._listening}, timeout=_ROUND_S)
            self._close()

    async def _kill(self) -> None:
        """Ask it to end, then kill it with all that it started, in its group and beside it."""
        if not self.exited.done():
            self._signal(signal.SIGTERM)
            await self.ended(TERM_S)
        for _ in range(_ROUNDS):
            # A process that it starts meanwhile is found in the next round.
            strays = await find_strays(self.pid, MARK, self._token)
            self._signal(signal.SIGKILL)
            for stray in strays:
                with contextlib.suppress(OSError):
                    os.kill(stray, signal.SIGKILL)
            if not strays and self.exited.done():
                return
            await self.ended(_ROUND_S)
            if strays:
                await asyncio.sleep(_ROUND_S)
        if not await self.ended(_EXIT_S):
            _log.error("an agent's process cannot be killed", extra={**self._known, "pid": self.pid})

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):  # none of the group is left
            os.killpg(self.pid, number)


def memory_of(pid: int) -> int:
    """Bytes of memory that a process holds, 0 when it is gone."""
    import psutil  # noqa: PLC0415 - only where the system does not hold a process to its limit

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
