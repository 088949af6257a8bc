"""Traces: whether they are asked for, and what then watches runs, model calls and decisions."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from daemon.errors import SettingsError
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

    def __init__(self, spans: Spans, exporter: Exporter, events: EventBus) -> None:
        self.spans = spans
        self._exporter = exporter
        self._events = events
        events.subscribe(spans.note)

    async def aclose(self) -> None:
        """Watch no more, and send what is still to be sent, within a limit."""
        self._events.unsubscribe(self.spans.note)
        self.spans.finish()
        await asyncio.to_thread(self._exporter.close)


async def open_traces(settings: Settings, events: EventBus) -> Traces | None:
    """Watch the events, if traces are asked for; nothing is imported, connected or read before that is known.

    Raises:
        SettingsError: the file with the collector's headers cannot be read.
    """
    if not settings.traces.wanted(os.environ):
        return None
    return await asyncio.to_thread(_made, settings, events)


def _made(settings: Settings, events: EventBus) -> Traces | None:
    from daemon.observability import tracing  # noqa: PLC0415 - only where traces are asked for
    from daemon.observability.redact import Cleaner, secrets_of  # noqa: PLC0415
    from daemon.observability.spans import Spans  # noqa: PLC0415
    from daemon.settings import all_keys  # noqa: PLC0415
    from daemon.settings.load import can_trace  # noqa: PLC0415

    table = settings.traces
    if not can_trace():  # a warning of the settings says so; with an endpoint of ours it is an error
        return None
    headers = settings.trace_headers()
    keys: list[str] = []
    with suppress(SettingsError):  # a key file that is gone matters only to commands that need the key
        keys = all_keys(settings)
    collector = tracing.Collector(
        endpoint=table.endpoint or "", headers=headers, instance=settings.daemon.data_dir / MARKER
    )
    exporter = tracing.Exporter(
        collector,
        Cleaner((*keys, *secrets_of(), *settings.trace_secrets(os.environ))),
        most_waiting=tracing.MOST_WAITING_WITH_CONTENT if table.content else tracing.MOST_WAITING,
    )
    spans = Spans(exporter.put, exporter.start, content=table.content, sample=table.sample)
    return Traces(spans, exporter, events)
