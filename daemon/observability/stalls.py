"""StallWatch: says which run keeps the event loop from its other work, and where it stands.

A thread asks the loop to come round and looks at its watch. It does so only while runs are under way, since
nothing but an agent's code keeps a loop of ours for long; else it sleeps, and nothing is woken.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from daemon.events import Event, RunBegun, RunFinished

_ROUNDS = 4
"""How often within the limit the loop is asked to come round."""

_SHORTEST_S = 0.05
_WHOLE_ROUND_S = 0.005
_STACK_LINES = 12
_JOIN_S = 1.0
_LIBRARY = str(Path(traceback.__file__).parent)
_PACKAGES = f"{os.sep}site-packages{os.sep}"
_RUN = "run of "
_log = logging.getLogger(__name__)


class StallWatch:
    """Watches one event loop.

    Args:
        after: seconds that the loop may need to come round.
        late: told each time how long it needed.

    Attributes:
        stalls: how often it needed longer.
        seconds: how long it stood still in these, together.
    """

    def __init__(self, after: float, late: Callable[[float], None] | None = None) -> None:
        self.stalls = 0
        self._late = late
        self.seconds = 0.0
        self._after = max(after, _SHORTEST_S)
        self._runs: dict[str, str] = {}
        self._busy = threading.Event()
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._thread: threading.Thread | None = None

    def note(self, event: Event) -> None:
        """Learn from the bus which runs are under way."""
        if isinstance(event, RunBegun):
            self._runs[event.agent] = event.run_id
            self._busy.set()
        elif isinstance(event, RunFinished):
            self._runs.pop(event.result.agent, None)
            if not self._runs:
                self._busy.clear()

    def start(self) -> None:
        """Watch the loop that is running."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)
        self._thread.start()

    async def aclose(self) -> None:
        """Watch no longer."""
        self._closing.set()
        self._busy.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _JOIN_S)

    def _watch(self) -> None:
        while True:
            self._busy.wait()  # while nothing runs, nothing wakes this thread
            if self._closing.wait(self._after / _ROUNDS):
                return
            if self._busy.is_set() and not self._ask_round():
                return

    def _ask_round(self) -> bool:
        """Ask the loop to come round, and tell when it does not; False once it is closed."""
        asked, worked = time.monotonic(), time.process_time()
        came = threading.Event()
        times: list[float] = []

        def come() -> None:
            times.append(time.monotonic())
            if self._late is not None:
                self._late(times[0] - asked)
            came.set()

        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(come)
        except RuntimeError:  # it was closed meanwhile
            return False
        if came.wait(self._after):
            # Something that held the interpreter held this thread too. That the whole program was stopped
            # meanwhile (SIGSTOP) is no stall: it did not work then.
            lasted = times[0] - asked
            if lasted > self._after and time.process_time() - worked > lasted / 2:
                self._tell_end(self._tell(None), lasted)
            return True
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - there is no other way to it
        if frame is None or came.wait(_WHOLE_ROUND_S):
            return True
        who = self._tell(frame)
        while not came.wait(self._after):
            if self._closing.is_set():
                return False
        self._tell_end(who, times[0] - asked)
        return True

    def _tell(self, frame: FrameType | None) -> dict[str, Any]:
        """Say once who stands where."""
        self.stalls += 1
        who = self._who()
        stack = "" if frame is None else _stack_of(frame)
        where = _line_of(frame)
        _log.warning(
            "the whole program stands still: %s keeps the event loop%s",
            who.get("agent") or who["task"],
            f" at {where}" if where else "",
            extra={**who, "after_seconds": self._after, **({"stack": stack} if stack else {})},
        )
        return who

    def _tell_end(self, who: dict[str, Any], seconds: float) -> None:
        self.seconds += seconds
        known = {**who, "seconds": round(seconds, 3)}
        _log.warning("the program goes on; it stood still for %.1f s", seconds, extra=known)

    def _who(self) -> dict[str, Any]:
        """The task that keeps the loop and, if it is one's, the agent and its run."""
        task = None if self._loop is None else asyncio.current_task(self._loop)
        name = "no task" if task is None else task.get_name()
        agent = name.removeprefix(_RUN)
        if agent == name:
            return {"task": name}
        return {"task": name, "agent": agent, "run_id": self._runs.get(agent, "")}


def _stack_of(frame: FrameType) -> str:
    """The innermost frames, as a traceback shows them."""
    return "".join(traceback.format_stack(frame)[-_STACK_LINES:])


def _line_of(frame: FrameType | None) -> str:
    """The innermost line that is no library's: the agent's own, mostly. Else the innermost one."""
    if frame is None:
        return ""
    steps = [(step.filename, step.lineno) for step in reversed(traceback.extract_stack(frame))]
    own = [step for step in steps if not step[0].startswith((_LIBRARY, "<")) and _PACKAGES not in step[0]]
    file, line = (own or steps)[0]
    return f"{file}:{line}"
