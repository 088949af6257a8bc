"""`Metrics`: what the rest of the program tells and asks the metrics."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from prometheus_client import disable_created_metrics
from prometheus_client.core import Metric as Family

from agents.proposal import ProposalStatus
from daemon.events import Event, ProposalChanged, RunFinished
from daemon.observability.catalogue import METRICS, OTHER
from daemon.observability.metrics.calls import note_call, note_run
from daemon.observability.metrics.families import Exemplar, Families, Reading, Snapshot
from daemon.observability.metrics.process import ProcessReader
from daemon.observability.metrics.room import Kind, Labels, Room
from daemon.observability.metrics.scrapes import CONTENT_TYPES, Format, Scrapes, preferred_format
from daemon.observability.metrics.sources import QuickSource, SlowSource
from daemon.observability.metrics.writing import as_openmetrics, as_text
from llm.events import CallEvent

_log = logging.getLogger(__name__)

MAX_SERIES = 200
"""How many series there are at most unless the configuration says otherwise."""

MAX_AGE_S = 5.0
"""A person decides in another process, unseen here; so the proposal counts are never older than this."""

ProposalCounts = Mapping[tuple[str, ProposalStatus], int]
"""How many proposals there are for each pair of agent and status."""


class Metrics:
    """All metrics of one daemon: an observer of model calls and a subscriber of the event bus.

    Names and labels are those of the catalogue. A metric that was never given a value is not shown.
    Names of agents, backends, models and budgets are shown if they are expected (`expect_...`) and there is
    room for them; budgets first, then models and agents, is a good order. Everything else is `other`.

    Args:
        dropped_lines: how many log lines were lost so far.
        max_series: how many series there may be at most, buckets counted, whatever happens.
    """

    def __init__(self, *, dropped_lines: Callable[[], int] = int, max_series: int = MAX_SERIES) -> None:
        # They would double the series; process_start_time_seconds says when counting began.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library types only its classes
        self._families = Families(Room(max_series))
        self._quick: list[QuickSource] = []
        self._slow: list[SlowSource] = []
        self._process = ProcessReader()
        self._proposals_changed: Callable[[], None] = lambda: None
        self._scrapes = Scrapes(self._encode)
        self.read_from(lambda: {"askfirst_log_lines_dropped_total": float(dropped_lines())})

    # What is expected

    def expect_agents(self, names: Iterable[str]) -> None:
        """Show these agents by name, and no others any more; the counters of their runs begin at 0."""
        self._expect(("agent",), [(name,) for name in names])

    def expect_models(self, models: Iterable[tuple[str, str]]) -> None:
        """Show these backends and models by name, and no others any more; their counters begin at 0."""
        pairs: list[Labels] = list(models)
        self._expect(("backend",), [(backend,) for backend, _ in pairs])
        self._expect(("backend", "model"), pairs)

    def expect_budgets(self, budgets: Iterable[str]) -> None:
        """Show these budgets, as the configuration writes them, and no others any more."""
        self._expect(("budget",), [(budget,) for budget in budgets])

    def _expect(self, kind: Kind, units: list[Labels]) -> None:
        hidden = self._families.expect(kind, units)
        if hidden:
            _log.warning(
                "%d of %d %ss are not shown by name in /metrics: %d series are the most; "
                "for more raise metrics.max_series",
                len(hidden),
                len(dict.fromkeys(units)),
                kind[-1],
                self._families.room.limit,
            )

    # What happened

    def count(
        self, name: str, labels: Labels = (), amount: float = 1.0, exemplar: Exemplar | None = None
    ) -> None:
        """Add `amount` to a counter; by 0 it begins, so that its first step can be seen in a graph.

        Args:
            name: of the catalogue.
            labels: values of its labels, in the catalogue's order.
            amount: at least 0.
            exemplar: which run and call it was, for scrapers that take OpenMetrics: `run_id`, `call_id`.

        Raises:
            ValueError: there is no such counter, or its labels are others.
        """
        self._families.count(name, labels, amount, exemplar)

    def observe(self, name: str, labels: Labels, value: float, exemplar: Exemplar | None = None) -> None:
        """Put `value` into a histogram; the arguments are those of `count`.

        Raises:
            ValueError: there is no such histogram, or its labels are others.
        """
        self._families.observe(name, labels, value, exemplar)

    def set(self, name: str, labels: Labels, value: float) -> None:
        """Let a gauge be `value`; one with names that are not expected is not kept.

        Raises:
            ValueError: there is no such gauge, or its labels are others.
        """
        self._families.set(name, labels, value)

    def observe_call(self, event: CallEvent, /) -> None:
        """Take note of a model call: an `llm.events.Observer`."""
        note_call(self._families, event)

    def observe_event(self, event: Event) -> None:
        """Take note of a run or a proposal: a subscriber of the event bus."""
        match event:
            case RunFinished(result=result):
                note_run(self._families, result)
            case ProposalChanged():
                self._proposals_changed()

    def set_version(self, version: str) -> None:
        """Show the program's version in `askfirst_build_info`."""
        self.set("askfirst_build_info", (version, platform.python_version()), 1.0)

    def set_last_success(self, agent: str, seconds: float) -> None:
        """When a run of an expected agent last succeeded, seconds since 1970, perhaps before this start."""
        self.set("askfirst_agent_last_success_timestamp_seconds", (agent,), seconds)

    # What is read when a scrape comes

    def read_from(self, source: Callable[[], Reading]) -> None:
        """Call `source` on the event loop at each scrape; it must be quick: no file, no database.

        A metric or a set of label values that it leaves out is not shown. If it fails, its last values stay.
        """
        self._quick.append(QuickSource(source))

    def read_slowly_from(
        self, source: Callable[[], Awaitable[Reading]], max_age: float
    ) -> Callable[[], None]:
        """Await `source` at a scrape when what it said is older than `max_age` seconds.

        If it fails or takes over a second, its last values stay.

        Returns:
            what to call when something has changed, so that it is asked again at the next scrape.
        """
        slow = SlowSource(source, max_age)
        self._slow.append(slow)
        return slow.forget

    def read_proposals_from(self, reader: Callable[[], Awaitable[ProposalCounts]]) -> None:
        """Where the proposal counts come from; read when a scrape finds them stale or old."""
        seen: dict[Labels, float] = {}

        async def proposals() -> Reading:
            agents = [agent for (agent,) in self._families.room.expected(("agent",))]
            counts: dict[Labels, float] = {(agent, ProposalStatus.PENDING.value): 0.0 for agent in agents}
            for (agent, status), count in (await reader()).items():
                labels = (agent if agent in agents else OTHER, str(status))
                counts[labels] = counts.get(labels, 0.0) + count
            # A pair once seen stays, at 0, so that a graph falls instead of breaking off.
            seen.update({**dict.fromkeys(seen, 0.0), **counts})
            return {"askfirst_proposals": dict(seen)}

        self._proposals_changed = self.read_slowly_from(proposals, MAX_AGE_S)

    # The scrape

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text and its content type, in the format that the `Accept` header prefers."""
        wanted = preferred_format(accept)
        return await self._scrapes.get(wanted), CONTENT_TYPES[wanted]

    @property
    def waiting_scrapes(self) -> int:
        """How many scrapes are not answered yet."""
        return self._scrapes.waiting

    async def _encode(self, formats: Collection[Format]) -> Mapping[Format, bytes]:
        await asyncio.gather(*(source.refresh() for source in self._slow if source.is_old))
        readings = [*(source.last for source in self._slow), *(source.read() for source in self._quick)]
        for reading in readings:
            _check_names(reading)
        snapshot = self._families.snapshot(readings, self._process)
        # In a thread: it reads files of /proc, and takes milliseconds when there are many agents.
        return await asyncio.to_thread(_written, snapshot, formats)


def _written(snapshot: Snapshot, formats: Collection[Format]) -> dict[Format, bytes]:
    families = list(snapshot.collect())
    write: dict[Format, Callable[[Iterable[Family]], bytes]] = {
        "text": as_text,
        "openmetrics": as_openmetrics,
    }
    return {each: write[each](families) for each in formats}


def _check_names(reading: Reading) -> None:
    for name in reading:
        if name not in METRICS:
            msg = f"a source of metrics gave {name!r}, which is not in the catalogue"
            raise ValueError(msg)
