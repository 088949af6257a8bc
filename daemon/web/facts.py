"""What the status page shows, gathered from the scheduler, the database, the usage ledger and the disk.

Each part is asked within a time limit, and one that fails says why in its place: a page about trouble must
not fail with it. Nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from daemon.events import AgentState, AgentStatus
from daemon.observability.health import Answer
from daemon.observability.redact import Cleaner, escaped, secrets_of

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from daemon.scheduler import AgentScheduler
    from daemon.settings import Settings
    from daemon.store.history import LastRun, RunSums, WaitingProposal
    from daemon.web.ops import Operations
    from llm.usage import BudgetStatus, Series

T = TypeVar("T")

PART_LIMIT_S = 4.0
"""A part that takes longer is shown as failed."""

WAITING_SHOWN = 5
"""So many waiting proposals are named, the oldest; the others are counted."""

LONGEST_TEXT = 240
"""Characters of an error or a title of an agent's."""

PERIODS = {1: timedelta(hours=1), 7: timedelta(days=1), 30: timedelta(days=1)}
"""Days that can be shown, and how long a step of them is."""

REMEMBERED_S = {1: 3.0, 7: 20.0, 30: 60.0}
"""How long the sums of so many days are shown before they are read again."""

NOT_OPEN = "the database is not open: the program is starting or stopping, or waits for room on the disk"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """A part of the page: its value, or why there is none.

    Attributes:
        value: None when it could not be had.
        trouble: why, empty when it could.
    """

    value: T | None
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits for a person: how many in all, and the oldest of them."""

    count: int
    oldest: tuple[WaitingProposal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """Where an agent stands.

    Attributes:
        name: the agent.
        state: whether it is run on schedule; None when the database does not say.
        schedule: when it is due, in words, empty when it cannot be scheduled.
        running_since: when its run that is under way began, None when none is.
        next_run: when it is run at the earliest, None when only a person or an event can bring a run.
        holds: what keeps it from running now, one sentence each, with the way out.
        broken: whether it cannot be scheduled at all.
        last: how its last run ended, None when it never ran or that is not known.
    """

    name: str
    state: AgentState | None
    schedule: str
    running_since: datetime | None
    next_run: datetime | None
    holds: tuple[str, ...]
    broken: bool
    last: LastRun | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What happened in the stretches of time between `edges`.

    Attributes:
        edges: local moments; one more than there are stretches.
        runs: the agents' runs.
        usage: the model calls of all programs here.
        budgets: how far each budget is used.
    """

    edges: tuple[datetime, ...]
    runs: Part[tuple[RunSums, ...]]
    usage: Part[Series]
    budgets: Part[tuple[BudgetStatus, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes: of the database with its log, free, and of the whole disk."""

    database: int
    free: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the page shows.

    Attributes:
        at: when it was gathered, local time.
        days: how many days `activity` covers.
        version: of the program.
        uptime_s: how long the program runs.
        healthy: whether everything required works.
        stopping: whether the program is about to end.
        checks: what each part of the program answered.
        model: the model in a few words, None for rules only.
        started: whether everything is open and agents are run on schedule.
        config_file: the configuration's file, None without one.
        agents: the enabled agents, in order.
        waiting: what waits for a person.
        activity: what happened.
        disk: what is left of it.
    """

    at: datetime
    days: int
    version: str
    uptime_s: float
    healthy: bool
    stopping: bool
    checks: tuple[Answer, ...]
    model: str | None
    started: bool
    config_file: Path | None
    agents: tuple[AgentFacts, ...]
    waiting: Part[Waiting]
    activity: Activity
    disk: Part[Disk]


class Gatherer:
    """Gathers the facts.

    Args:
        scheduler: runs the agents.
        settings: the configuration, until the scheduler has a newer one.
        operations: health, version and when the program began.
    """

    def __init__(self, scheduler: AgentScheduler, settings: Settings, operations: Operations) -> None:
        self._scheduler = scheduler
        self._first_settings = settings
        self._operations = operations
        self._activities: dict[int, tuple[float, Activity]] = {}
        self._failing: set[str] = set()
        self._cleaner: Cleaner | None = None
        self._cleaned_for: Settings | None = None

    async def gather(self, days: int) -> Facts:
        """Everything as it is now; never raises.

        Args:
            days: one of `PERIODS`.
        """
        runtime, settings = self._scheduler.runtime, self._settings
        await self._know_secrets(settings)
        (healthy, checks), agents, waiting, activity, disk = await asyncio.gather(
            self._operations.health.check(),
            self._agents(runtime),
            self._kept("what waits for a decision", runtime, lambda opened: _waiting(opened, self.clean)),
            self._activity(days, runtime, settings),
            self._part("the disk", lambda: asyncio.to_thread(_disk, settings.daemon.data_dir)),
        )
        return Facts(
            at=datetime.now().astimezone(),
            days=days,
            version=self._operations.version,
            uptime_s=time.monotonic() - self._operations.started,
            healthy=healthy,
            stopping=self._operations.stopping,
            checks=tuple(Answer(c.name, c.ok, self.clean(c.detail), c.required) for c in checks),
            model=_model(runtime),
            started=runtime is not None and self._scheduler.running,
            config_file=settings.config_file,
            agents=agents,
            waiting=waiting,
            activity=activity,
            disk=disk,
        )

    @property
    def _settings(self) -> Settings:
        runtime = self._scheduler.runtime
        return self._first_settings if runtime is None else runtime.settings

    def clean(self, text: str) -> str:
        """A text of an agent's, a model's or an error's: on one line, without secrets, not endless."""
        cleaner = self._cleaner or Cleaner(secrets_of())
        return escaped(cleaner.text(" ".join(text.split()), LONGEST_TEXT))

    async def _know_secrets(self, settings: Settings) -> None:
        """Keys of this configuration and of those before are hidden; they may stand in files."""
        if self._cleaned_for is settings:
            return
        from daemon.settings import all_keys  # noqa: PLC0415 - loads pydantic

        known = Cleaner(secrets_of()) if self._cleaner is None else self._cleaner
        keys = await self._part("the keys", lambda: asyncio.to_thread(all_keys, settings))
        known.hide(keys.value or ())
        self._cleaner = known
        self._cleaned_for = settings

    async def _part(self, what: str, ask: Callable[[], Awaitable[T]]) -> Part[T]:
        try:
            async with asyncio.timeout(PART_LIMIT_S):
                value = await ask()
        except TimeoutError:
            trouble = f"no answer within {PART_LIMIT_S:g} s"
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it is shown in its place
            trouble = self.clean(str(error)) or type(error).__name__
        else:
            self._failing.discard(what)
            return Part(value)
        if what not in self._failing:  # once until it works again
            self._failing.add(what)
            _log.warning("the status page cannot show %s: %s", what, trouble)
        return Part(None, trouble)

    async def _kept(
        self, what: str, runtime: Runtime | None, ask: Callable[[Runtime], Awaitable[T]]
    ) -> Part[T]:
        """A part of the database; that it is not open is no failure of its own, and not logged as one."""
        return Part(None, NOT_OPEN) if runtime is None else await self._part(what, lambda: ask(runtime))

    async def _agents(self, runtime: Runtime | None) -> tuple[AgentFacts, ...]:
        if runtime is None:
            return ()
        names = runtime.agent_names
        states = await self._part("the agents' states", runtime.states.all)
        last = await self._part("the last runs", lambda: _last_runs(runtime, names))
        told = self._scheduler.get_stats()["agents"]
        return tuple(self._agent(name, states.value, last.value or {}, told.get(name, {})) for name in names)

    def _agent(
        self,
        name: str,
        states: dict[str, AgentStatus] | None,
        last: dict[str, LastRun],
        told: dict[str, object],
    ) -> AgentFacts:
        scheduler = self._scheduler
        return AgentFacts(
            name=name,
            state=None if states is None else states.get(name, AgentStatus(agent=name)).state,
            schedule=scheduler.schedule_of(name),
            running_since=scheduler.running_since(name),
            next_run=scheduler.next_run(name),
            holds=tuple(self.clean(hold) for hold in scheduler.holds(name)),
            broken=told.get("problem") is not None,
            last=self._cleaned(last.get(name)),
        )

    def _cleaned(self, run: LastRun | None) -> LastRun | None:
        return run if run is None or run.error is None else replace(run, error=self.clean(run.error))

    async def _activity(self, days: int, runtime: Runtime | None, settings: Settings) -> Activity:
        found = self._activities.get(days)
        if found is not None and time.monotonic() - found[0] < REMEMBERED_S[days]:
            return found[1]
        edges = await asyncio.to_thread(edges_of, days, datetime.now(UTC))
        runs, usage, budgets = await asyncio.gather(
            self._kept("the runs", runtime, lambda opened: _runs(opened, edges)),
            self._part("what models used", lambda: asyncio.to_thread(_usage, settings, edges)),
            self._part("the budgets", lambda: asyncio.to_thread(_budgets, settings)),
        )
        activity = Activity(edges=edges, runs=runs, usage=usage, budgets=budgets)
        if not (runs.trouble or usage.trouble or budgets.trouble):
            self._activities[days] = (time.monotonic(), activity)
        return activity


def edges_of(days: int, now: datetime) -> tuple[datetime, ...]:
    """Whole local hours of one day, or whole local days, up to the end of the one that is under way.

    Args:
        days: one of `PERIODS`.
        now: the present, aware.
    """
    local = now.astimezone()
    if PERIODS[days] < timedelta(days=1):
        hour = local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)
        steps = range(1 - days * 24, 2)
        return tuple((hour + timedelta(hours=step)).astimezone() for step in steps)
    dates = (local.date() + timedelta(days=step) for step in range(1 - days, 2))
    # A naive moment is local, whatever daylight saving does meanwhile: some days have 23 or 25 hours.
    return tuple(datetime.combine(date, time_of_day()).astimezone() for date in dates)


async def _waiting(runtime: Runtime, clean: Callable[[str], str]) -> Waiting:
    from daemon.store.history import FOR_A_PERSON, History  # noqa: PLC0415 - loads SQLAlchemy

    counts = await runtime.proposals.counts()
    oldest = await History(runtime.db).waiting(WAITING_SHOWN)
    return Waiting(
        count=sum(number for (_, status), number in counts.items() if status in FOR_A_PERSON),
        oldest=tuple(replace(each, title=clean(each.title)) for each in oldest),
    )


async def _last_runs(runtime: Runtime, names: Sequence[str]) -> dict[str, LastRun]:
    from daemon.store.history import History  # noqa: PLC0415 - loads SQLAlchemy

    return await History(runtime.db).last_runs(names)


async def _runs(runtime: Runtime, edges: Sequence[datetime]) -> tuple[RunSums, ...]:
    from daemon.store.history import History  # noqa: PLC0415 - loads SQLAlchemy

    return await History(runtime.db).runs(edges)


def _usage(settings: Settings, edges: Sequence[datetime]) -> Series:
    from llm.usage import read_series  # noqa: PLC0415 - only for this page

    return read_series(_ledger(settings), edges)


def _budgets(settings: Settings) -> tuple[BudgetStatus, ...]:
    from daemon.settings import budgets_of  # noqa: PLC0415 - loads pydantic
    from llm.usage import budget_status  # noqa: PLC0415 - only for this page

    return budget_status(budgets_of(settings), _ledger(settings))


def _ledger(settings: Settings) -> Path:
    return Path(settings.llm_environ()["LLM_USAGE_FILE"]).expanduser()


def _disk(folder: Path) -> Disk:
    from daemon.runtime import DATABASE  # noqa: PLC0415 - beside its one use

    files = (folder / DATABASE, folder / f"{DATABASE}-wal")
    usage = shutil.disk_usage(folder)
    return Disk(
        database=sum(file.stat().st_size for file in files if file.exists()),
        free=usage.free,
        size=usage.total,
    )


def _model(runtime: Runtime | None) -> str | None:
    config = None if runtime is None else runtime.selection.config
    return None if config is None else f"{config.model} ({config.backend})"
