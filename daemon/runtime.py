"""Runtime: what a process needs opened, without signals or web, on one exit stack that closes in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from agents.base import BaseAgent
from agents.context import utc_now
from agents.registry import AgentRegistry
from daemon.controls import Controls
from daemon.events import EventBus
from daemon.maker import AgentMaker
from daemon.proposals import ProposalDesk
from daemon.runner import Runner
from daemon.selection import as_asked, choose_model, open_client
from daemon.settings import Settings
from daemon.standing import LocalControls
from daemon.traces import open_traces
from llm import LLMClient, LLMConfig, Routes, Selection

if TYPE_CHECKING:
    from daemon.housekeeping import Housekeeping
    from daemon.store.due_times import DueTimeStore
    from daemon.store.engine import Database
    from daemon.store.proposals import ProposalStore
    from daemon.store.runs import RunStore
    from daemon.store.states import StateStore
    from llm.events import Observer

DATABASE = "askfirst.sqlite3"
"""Name of the database file in the data folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What is open.

    Attributes:
        settings: the configuration.
        events: where everything that happens is told.
        registry: the agents there are.
        db: the database.
        proposals: reads proposals.
        runs: reads runs.
        due_times: what became of each due time.
        states: what is kept about each agent between its runs.
        desk: decides about proposals.
        runner: runs agents.
        controls: what a person may do to agents.
        housekeeping: makes backups, and forgets what is old; in the daemon by itself.
        llm: the model, None for rules only.
        selection: which model was chosen and why.
        agent_names: the agents to run, in order.
        llm_observers: told of every model call.
    """

    settings: Settings
    events: EventBus
    registry: AgentRegistry
    db: Database
    proposals: ProposalStore
    runs: RunStore
    due_times: DueTimeStore
    states: StateStore
    desk: ProposalDesk
    runner: Runner
    controls: Controls
    housekeeping: Housekeeping
    llm: LLMClient | None
    selection: Selection
    agent_names: tuple[str, ...]
    llm_observers: tuple[Observer, ...] = ()


@asynccontextmanager
async def open_runtime(
    settings: Settings,
    *,
    llm_config: LLMConfig | Routes | None = None,
    agents: Sequence[str | type[BaseAgent]] | None = None,
    with_llm: bool = True,
    events: EventBus | None = None,
    llm_observers: Sequence[Observer] = (),
    now: Callable[[], datetime] = utc_now,
) -> AsyncIterator[Runtime]:
    """Open the database, choose the model, and put the parts together; all is closed at the end.

    A close that fails does not keep the others from being closed; its exception is raised at the end.

    Args:
        settings: the configuration.
        llm_config: the model to use, or several; None chooses by the settings and by what is there.
        agents: names or classes of the agents to run; None means those that the settings enable.
        with_llm: False for commands that run no agent: no model is looked for, and the database is not
            looked through for damage.
        events: where to tell what happens; None makes a bus of its own.
        llm_observers: told of every model call.
        now: the clock, UTC.

    Raises:
        StoreError: the database cannot be used.
        AgentLoadError: a class in `agents` is no agent.
        LLMError: the model's settings cannot work.
    """
    await asyncio.to_thread(import_module, "daemon.store.runs")  # loads SQLAlchemy: 0.2 s of CPU
    from daemon.store.engine import Database  # noqa: PLC0415 - as above

    bus = EventBus() if events is None else events
    registry = AgentRegistry(settings.daemon.plugin_dir, apart=True)
    names = agents_of(settings, registry, agents)
    observers = tuple(llm_observers)
    async with AsyncExitStack() as stack:
        traces = await open_traces(settings, bus)
        if traces is not None:  # closed last: what ends at the end is sent too
            stack.push_async_callback(traces.aclose)
            observers = (*observers, traces.spans.observe_call)
        database = await Database.open(settings.daemon.data_dir / DATABASE, check=with_llm)
        stack.push_async_callback(database.aclose)
        selection = await select(settings, llm_config, with_llm=with_llm)
        llm = open_client(selection, observers=observers)
        if llm is not None:
            stack.push_async_callback(llm.aclose)
        runtime = assemble(
            settings,
            database,
            registry=registry,
            names=names,
            selection=selection,
            llm=llm,
            events=bus,
            now=now,
            llm_observers=observers,
        )
        stack.push_async_callback(partial(runtime.desk.aclose, settings.daemon.stop_grace.total_seconds()))
        yield runtime


def assemble(
    settings: Settings,
    database: Database,
    *,
    registry: AgentRegistry,
    names: tuple[str, ...],
    selection: Selection,
    llm: LLMClient | None,
    events: EventBus,
    now: Callable[[], datetime] = utc_now,
    llm_observers: Sequence[Observer] = (),
) -> Runtime:
    """Put together what stands above the database; nothing of it has to be awaited or can fail."""
    from daemon.housekeeping import Housekeeping  # noqa: PLC0415 - loads SQLAlchemy
    from daemon.store.due_times import DueTimeStore  # noqa: PLC0415 - as above
    from daemon.store.proposals import ProposalStore  # noqa: PLC0415
    from daemon.store.runs import RunStore  # noqa: PLC0415
    from daemon.store.states import StateStore  # noqa: PLC0415

    proposals, runs = ProposalStore(database), RunStore(database)
    due_times, states = DueTimeStore(database), StateStore(database)
    maker = AgentMaker(settings, registry, llm, now)
    desk = ProposalDesk(proposals, database, maker.make, events, now)
    runner = Runner(
        maker, database, proposals, runs, desk, due_times=due_times, states=states, events=events, now=now
    )
    house = Housekeeping(database, settings, now=now)
    controls = LocalControls(
        settings,
        database,
        runs,
        desk,
        runner,
        due_times=due_times,
        states=states,
        events=events,
        backup=house.backup,
        now=now,
    )
    return Runtime(
        settings=settings,
        events=events,
        registry=registry,
        db=database,
        proposals=proposals,
        runs=runs,
        due_times=due_times,
        states=states,
        desk=desk,
        runner=runner,
        controls=controls,
        housekeeping=house,
        llm=llm,
        selection=selection,
        agent_names=names,
        llm_observers=tuple(llm_observers),
    )


async def close_parts(runtime: Runtime, successor: Runtime | None = None) -> None:
    """Close what stands above the database: decisions under way get their grace, then the model goes.

    Args:
        runtime: what to close.
        successor: goes on over the same database, with the same model if that is to stay open.
    """
    try:
        await runtime.desk.aclose(runtime.settings.daemon.stop_grace.total_seconds())
    finally:
        if runtime.llm is not None and (successor is None or successor.llm is not runtime.llm):
            await runtime.llm.aclose()


def agents_of(
    settings: Settings, registry: AgentRegistry, agents: Sequence[str | type[BaseAgent]] | None
) -> tuple[str, ...]:
    """The names of the agents to run; classes among them become known to the registry."""
    if agents is None:
        return settings.enabled_agents
    for agent in agents:
        if not isinstance(agent, str):
            registry.add(agent)
    return tuple(dict.fromkeys(agent if isinstance(agent, str) else agent.name for agent in agents))


async def select(
    settings: Settings, llm_config: LLMConfig | Routes | None, *, with_llm: bool = True
) -> Selection:
    """The caller's model, or else the one that is chosen by the settings and by what is there."""
    if not with_llm:
        return Selection(config=None, reason="This command needs no model.")
    if llm_config is not None:
        return as_asked(llm_config)
    return await choose_model(settings)
