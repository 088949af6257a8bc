"""Traces: whether they are asked for, and what then watches runs, model calls and decisions."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from daemon.store.files import MARKER

if TYPE_CHECKING:
    from daemon.events import EventBus
    from daemon.observability.spans import Spans
    from daemon.observability.tracing import Exporter
    from daemon.settings import Settings


class Traces:
    """Makes spans of what happens and sends them.

    Attributes:
        spans: an observer of model calls (`observe_call`) and a subscriber of the event bus (`note`).
    """

    def __init__(self, spans: Spans, exporter: Exporter) -> None:
        self.spans = spans
        self._exporter = exporter

    async def aclose(self) -> None:
        """Send what is still to be sent, within a limit."""
        self.spans.finish()
        await asyncio.to_thread(self._exporter.close)


async def open_traces(settings: Settings, events: EventBus) -> Traces | None:
    """Watch the events, if traces are asked for; nothing is imported, connected or read before that is known.

    Raises:
        SettingsError: the file with the collector's headers cannot be read.
    """
    if not settings.traces.wanted(os.environ):
        return None
    traces = await asyncio.to_thread(_made, settings)
    if traces is not None:
        events.subscribe(traces.spans.note)
    return traces


def _made(settings: Settings) -> Traces | None:
    from daemon.observability import tracing  # noqa: PLC0415 - only where traces are asked for
    from daemon.observability.redact import Cleaner, secrets_of  # noqa: PLC0415
    from daemon.observability.spans import Spans  # noqa: PLC0415
    from daemon.settings import all_keys  # noqa: PLC0415
    from daemon.settings.load import can_trace  # noqa: PLC0415

    table = settings.traces
    if not can_trace():  # a warning of the settings says so; with an endpoint of ours it is an error
        return None
    headers = settings.trace_headers()
    collector = tracing.Collector(
        endpoint=table.endpoint or "", headers=headers, instance=settings.daemon.data_dir / MARKER
    )
    exporter = tracing.Exporter(
        collector,
        Cleaner((*all_keys(settings), *secrets_of(), *headers.values())),
        most_waiting=tracing.MOST_WAITING_WITH_CONTENT if table.content else tracing.MOST_WAITING,
    )
    return Traces(Spans(exporter.put, exporter.start, content=table.content, sample=table.sample), exporter)
