"""How the daemon's life ends: signals, word to systemd, and stopping in named stages with a limit each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

_log = logging.getLogger(__name__)

HURRIED_LIMIT_S = 1.0
"""What a stage may still take after a second signal."""

EXIT_LIMIT_S = 3.0
"""How long what was left behind may keep the process alive after everything was closed."""

NOTIFY_LIMIT_S = 1.0
"""How long systemd may leave our datagram waiting."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Lifecycle:
    """When to stop, and stopping itself.

    Attributes:
        stopping: set when somebody wants the program to end.
        hurried: set when somebody wants it to end at once.
        reason: who or what asked, such as "SIGTERM".
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.hurried = asyncio.Event()
        self.reason = ""
        self._on_hurry: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Take SIGTERM, SIGINT and SIGHUP while the block runs; only possible in the main thread."""
        loop = asyncio.get_running_loop()
        taken = (*STOP_SIGNALS, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in taken}
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.ask_to_stop, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    def ask_to_stop(self, reason: str) -> None:
        """Stop in good order; asked a second time, stop without waiting for anybody."""
        if not self.stopping.is_set():
            self.reason = reason
            self.stopping.set()
        elif not self.hurried.is_set():
            _log.warning("asked again to stop: not waiting any longer", extra={"reason": reason})
            self.hurried.set()
            for tell in self._on_hurry:
                tell()

    def on_hurry(self, tell: Callable[[], None]) -> None:
        """Call `tell` when somebody asks a second time."""
        self._on_hurry.append(tell)

    @staticmethod
    def _hang_up() -> None:
        _log.info("SIGHUP is ignored: restart the program to read its configuration again")

    async def stage(self, name: str, limit: float, stop: Callable[[], Awaitable[None]]) -> bool:
        """Run one stage of stopping: at most `limit` seconds, or `HURRIED_LIMIT_S` after a second signal.

        Never raises, so that the stages after it run too. Tells whether the stage came to its end.
        """
        started = time.monotonic()
        task = asyncio.ensure_future(stop())
        if not await self._finished(task, limit):
            tasks = sorted({t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()})
            _log.warning("stage %r did not end in time", name, extra={"still_running": tasks})
            task.cancel()
            await asyncio.wait({task}, timeout=HURRIED_LIMIT_S)
            return False
        seconds = round(time.monotonic() - started, 3)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("stage %r failed", name, extra={"seconds": seconds}, exc_info=error)
        _log.debug("stage %r ended", name, extra={"seconds": seconds})
        return error is None

    async def _finished(self, task: asyncio.Future[None], limit: float) -> bool:
        hurry = asyncio.ensure_future(self.hurried.wait())
        both: set[asyncio.Future[Any]] = {task, hurry}
        await asyncio.wait(both, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if hurry.done() and not task.done():
            await asyncio.wait({task}, timeout=min(limit, HURRIED_LIMIT_S))
        hurry.cancel()
        return task.done()


def run_process(work: Coroutine[Any, Any, int]) -> int:
    """Run the program in an event loop of its own and return its exit code.

    Asyncio waits at the end for every task and every thread, also for an agent that ignores being cancelled
    or a call that never returns. Here the process ends nevertheless, with the same code.
    """
    runner = asyncio.Runner()
    code = 1
    try:
        code = int(runner.run(work))
    finally:
        guard = threading.Timer(EXIT_LIMIT_S, os._exit, (code,))
        guard.daemon = True
        guard.start()
        runner.close()
        guard.cancel()
    return code


def notify(state: str) -> bool:
    """Tell systemd about our state by the datagram of sd_notify(3), when it asked to be told.

    Args:
        state: lines such as "READY=1" or "STOPPING=1".

    Returns:
        Whether it was told. A failure is logged: it must not end a program that works.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # an abstract socket, whose name begins with a zero byte
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(NOTIFY_LIMIT_S)
            channel.connect(address)
            channel.sendall(state.encode())
    except OSError as error:
        _log.warning("systemd could not be told %r: %s", state.partition("\n")[0], error)
        return False
    return True
