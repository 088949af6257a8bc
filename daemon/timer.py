"""Timer: wakes the event loop at the moment that it was told. The only file that knows APScheduler.

Which moment that is is decided by the agenda, because APScheduler's own interval trigger falls silent for the
length of a backward clock step and blocks for minutes after a large forward one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from daemon.deadlines import AT_LEAST_EVERY

LOOK_EVERY_S = 30.0
"""The clocks are compared at least this often: the loop's timers stand still while the machine sleeps."""

_WAKE_UP = "#wake-up"  # no agent can have these names
_DEADLINES = "#deadlines"


class _Onward(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Of a job that is told when it is due next; until it is told, a minute later, never in the past."""

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        return now + AT_LEAST_EVERY


class _Clockwork(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler has no types
    """APScheduler that looks at the agenda itself before it looks at its jobs, and without a thread's detour.

    Args:
        look: called at each wake-up.
        late: told by how many seconds each wake-up came too late.
    """

    def __init__(self, look: Callable[[], None], late: Callable[[float], None], **options: Any) -> None:
        super().__init__(**options)
        self._look = look
        self._late = late
        self._looking = False

    def wakeup(self) -> None:
        """Look at the agenda, which moves its job onward, then at the jobs."""
        if self._looking:  # the agenda moves its job
            return
        late = -1.0 if self._timeout is None else self._eventloop.time() - self._timeout.when()
        if late >= 0:  # it is the timer that woke us, or was about to
            self._late(late)
        self._looking = True
        try:
            self._look()
        finally:
            self._looking = False
        self.wait_anew()

    def move(self, job_id: str, moment: datetime | None) -> None:
        """That job is due at `moment`, None for not at all; the agenda is not looked at because of it."""
        before, self._looking = self._looking, True
        try:
            self.modify_job(job_id, next_run_time=moment)
        finally:
            self._looking = before
        if not before:
            self.wait_anew()

    def wait_anew(self) -> None:
        """Wait for the job that is due next."""
        if self.running:
            self._start_timer(self._process_jobs())


class Timer:
    """Wakes the loop at the moment that it was told, whatever happens to the clock. It is APScheduler.

    One job stands for the whole agenda, another for the deadlines of proposals.

    Args:
        late: told by how many seconds the loop woke up too late, as often as it does so anyway.
    """

    def __init__(self, late: Callable[[float], None] | None = None) -> None:
        self._late = late
        self._watch: asyncio.Task[None] | None = None
        self._look: Callable[[], None] | None = None
        self._moment: datetime | None = None
        self._closing = False
        timer_log = logging.getLogger(f"{__name__}.timer")
        timer_log.setLevel(logging.ERROR)
        self._aps = _Clockwork(
            self._wake_up,
            self._was_late,
            timezone=UTC,
            logger=timer_log,
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._aps.add_job(self._woken, _Onward(), next_run_time=None, id=_WAKE_UP, name=_WAKE_UP)

    def at(self, moment: datetime | None) -> None:
        """Wake up at `moment`, None for not by the clock; in place of what was said before."""
        if moment != self._moment:
            self._moment = moment
            self._aps.move(_WAKE_UP, moment)

    def add_deadline(self, call: Callable[[], Awaitable[None]], first: datetime) -> None:
        """Call `call` at `first`, and then when it says by `move_deadline`."""
        job = {"id": _DEADLINES, "name": _DEADLINES, "args": (call,)}
        self._aps.add_job(self._fire, _Onward(), next_run_time=first, **job)

    def move_deadline(self, moment: datetime) -> None:
        """The deadline job is due at `moment`."""
        self._aps.move(_DEADLINES, moment)

    def bring_deadline_forward(self, moment: datetime) -> None:
        """The deadline job is due at `moment` if that is sooner than it was due before."""
        job = self._aps.get_job(_DEADLINES)
        due: datetime | None = getattr(job, "next_run_time", None)  # absent until the timer starts
        if job is not None and (due is None or moment < due):
            self.move_deadline(moment)

    def start(self, look: Callable[[], None]) -> None:
        """Begin; `look` is called at each wake-up, at least every `LOOK_EVERY_S`."""
        self._look = look
        self._aps.start()
        self._watch = asyncio.create_task(self._watch_clock(), name="clock watch")

    def pause(self) -> None:
        """Call nothing any more."""
        if self._aps.running:
            self._aps.pause()

    async def aclose(self) -> None:
        """End for good; what is under way has to be ended before."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._aps.running:
            self._aps.shutdown(wait=False)
            await asyncio.sleep(0)  # it ends in the loop's next round

    async def _fire(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except asyncio.CancelledError:
            if not self._closing:  # APScheduler reports the end of its own shutdown as an error
                raise

    async def _woken(self) -> None:
        """The moment came after the look at the agenda and before that at the jobs: look again."""
        self._moment = None
        self._wake_up()

    def _wake_up(self) -> None:
        if self._look is not None:
            self._look()

    def _was_late(self, seconds: float) -> None:
        if self._late is not None:
            self._late(seconds)

    async def _watch_clock(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            planned = loop.time() + LOOK_EVERY_S
            await asyncio.sleep(LOOK_EVERY_S)
            self._was_late(max(0.0, loop.time() - planned))
            self._aps.wakeup()
