"""How the daemon lives and ends: signals, word to systemd, and stopping in named stages with a limit each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

_log = logging.getLogger(__name__)

HURRIED_LIMIT_S = 1.0
"""What a stage may still take after a second signal."""

EXIT_LIMIT_S = 3.0
"""How long what was left behind may keep the process alive after everything was closed."""

NOTIFY_LIMIT_S = 1.0
"""How long systemd may leave our datagram waiting."""

UNIT_STOP_LIMIT_S = 30.0
"""TimeoutStopSec of the units that we ship; who needs longer says so when it stops."""

NOTIFY_AGAIN_S = 0.05
"""How soon an event loop tries again to tell systemd."""

STATUS_DELAY_S = 1.0
"""Changes within so long are told systemd as one."""

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
        self._limits: list[float] = []
        self._reload: Callable[[], Awaitable[object]] | None = None
        self._reload_task: asyncio.Task[None] | None = None
        self._reload_again = False
        self._reloading = 0

    @property
    def stop_limit_s(self) -> float:
        """The longest that stopping takes, in seconds: all stages, each cut off at its limit, and the end."""
        return sum(limit + HURRIED_LIMIT_S for limit in self._limits) + EXIT_LIMIT_S

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

    def on_reload(self, reload: Callable[[], Awaitable[object]]) -> None:
        """Call `reload` at each SIGHUP: one after the other, and once more for those that come meanwhile."""
        self._reload = reload

    def _hang_up(self) -> None:
        if self._reload is None:
            _log.info("SIGHUP is ignored: restart the program to read its configuration again")
        elif self.stopping.is_set():
            _log.info("SIGHUP is ignored: the program is stopping")
        elif self._reload_task is not None and not self._reload_task.done():
            self._reload_again = True
        else:
            self._reload_task = asyncio.create_task(self._reloaded(self._reload), name="reload")

    async def _reloaded(self, reload: Callable[[], Awaitable[object]]) -> None:
        self._reload_again = True
        while self._reload_again and not self.stopping.is_set():
            self._reload_again = False
            try:
                with self.reloading():
                    await reload()
            except Exception:  # noqa: BLE001 - the configuration of before goes on
                _log.exception("the configuration could not be read again")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Tell systemd that the configuration is being read again, and afterwards that the program is ready.

        `systemctl status` shows "reloading" until then. One inside another tells nothing of its own.
        """
        self._reloading += 1
        if self._reloading == 1:
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self._reloading -= 1
            if not self._reloading and not self.stopping.is_set():
                notify("READY=1")

    def add_stage(
        self, stack: AsyncExitStack, name: str, limit: float, stop: Callable[[], Awaitable[None]]
    ) -> None:
        """Make `stop` a stage of closing `stack`; see `stage`. `stop_limit_s` counts it."""
        self._limits.append(limit)
        stack.push_async_callback(self.stage, name, limit, stop)

    def say_stopping(self) -> None:
        """Tell systemd that the program stops, and how long it takes if that is longer than usual."""
        longest = self.stop_limit_s
        more = f"\nEXTEND_TIMEOUT_USEC={round(longest * 1e6)}" if longest > UNIT_STOP_LIMIT_S else ""
        notify(f"STOPPING=1\nSTATUS=stopping: {self.reason or 'a part of the program ended'}{more}")

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


class Watchdog:
    """Tells systemd at half of its `WatchdogSec` that all is well, as long as that is so.

    The event loop tells it, so a loop that is blocked is silent by itself. A scheduler that has not looked
    for due agents lately makes it silent too; systemd then ends the program and starts it anew.

    Args:
        silent_for: how many seconds ago the scheduler looked, None while it does not run.
        limit: a scheduler that has been silent for longer than so many seconds is stuck.
        environ: where systemd says whether it wants to be told; `os.environ` if None.
    """

    def __init__(
        self,
        silent_for: Callable[[], float | None],
        limit: float,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.interval = watchdog_interval(os.environ if environ is None else environ)
        self._silent_for, self._limit = silent_for, limit
        self._timer: asyncio.TimerHandle | None = None
        self._well = True
        self._only_the_loop = False

    def start(self) -> None:
        """Tell it now, and again and again until `close`; without systemd's wish nothing happens."""
        if self.interval is not None and self._timer is None:
            self._tell(self.interval)

    def stopping(self) -> None:
        """From now on only the event loop counts: no agent is looked for, and each stage has its limit."""
        self._only_the_loop = True

    def close(self) -> None:
        """Tell it no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, interval: float) -> None:
        if self._all_is_well():
            notify("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(interval, self._tell, interval)

    def _all_is_well(self) -> bool:
        if self._only_the_loop:
            return True
        seconds = self._silent_for()
        well = seconds is not None and seconds <= self._limit
        if well != self._well:
            self._well = well
            if well:
                _log.warning("the scheduler looks for due agents again")
            else:
                _log.error("the scheduler is stuck: systemd will start the program anew")
        return well


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """How often systemd wants to be told that all is well, in seconds; None when it does not.

    Half the time after which it would end the program, as sd_watchdog_enabled(3) recommends.
    """
    text, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if process and process != str(os.getpid()):  # meant for the process that started us
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        return None
    return int(text) / 2e6


class StatusLine:
    """Keeps the line that `systemctl status` shows true: it is told again when it has changed.

    Args:
        text: makes the line.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._told = ""
        self._timer: asyncio.TimerHandle | None = None

    def changed(self, *_: object) -> None:
        """Something that the line may tell has changed; from within the event loop."""
        if self._timer is None and "NOTIFY_SOCKET" in os.environ:
            self._timer = asyncio.get_running_loop().call_later(STATUS_DELAY_S, self.tell)

    def tell(self, *words: str) -> None:
        """Tell systemd the line if it is another one than the last, after `words` such as "READY=1"."""
        self.close()
        text = " ".join(self._text().split())
        lines = [*words, *([f"STATUS={text}"] if text != self._told else [])]
        if lines and notify("\n".join(lines)):
            self._told = text

    def close(self) -> None:
        """Forget a change that was not told yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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

    Never keeps an event loop waiting: where systemd is slow to read, the loop tries again for a second.

    Args:
        state: lines such as "READY=1" or "STOPPING=1".

    Returns:
        Whether it was told, or is being told. A failure is logged: it must not end a program that works.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # an abstract socket, whose name begins with a zero byte
        address = "\0" + address[1:]
    return _tell(address, state, time.monotonic() + NOTIFY_LIMIT_S)


def _tell(address: str, state: str, deadline: float) -> bool:
    loop = _running_loop()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(NOTIFY_LIMIT_S if loop is None else 0)
            channel.connect(address)
            channel.sendall(state.encode())
    except BlockingIOError as error:
        if loop is not None and time.monotonic() < deadline:
            loop.call_later(NOTIFY_AGAIN_S, _tell, address, state, deadline)
            return True
        return _untold(state, error)
    except OSError as error:
        return _untold(state, error)
    return True


def _untold(state: str, error: OSError) -> bool:
    _log.warning("systemd could not be told %r: %s", state.partition("\n")[0], error)
    return False


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
