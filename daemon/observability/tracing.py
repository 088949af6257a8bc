"""Tracing: sends spans to a collector over OTLP/HTTP, with OpenTelemetry's SDK; the only file that knows it.

A thread of its own does all of it, the import of the SDK included, once a first span begins. It sleeps until
one has ended (the SDK's own batch processor wakes every 5 s), and holds a bounded number of them. A collector
that is down, slow or talks nonsense costs spans, one warning, and one line when it takes them again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from daemon.observability.messages import as_text
from daemon.observability.redact import Cleaner
from daemon.observability.spans import ERROR_TEXT, Span
from daemon.version import own_version

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables for where spans go; the SDK reads them."""

GATHER_S = 1.0
"""So long the first span waits for others to be sent with it."""

MOST_AT_ONCE = 256
MOST_WAITING = 2_048
MOST_WAITING_WITH_CONTENT = 256
"""Spans that may wait to be sent; beyond this the oldest is lost. With what was said each may hold 100 KB."""

CLOSE_LIMIT_S = 3.0
"""How long the end of the program waits for what is still to be sent."""

_MOST_ANSWER = (
    64 * 1024
)  # bytes of a collector's answer that are read, so that its connection can be used again
_PATH = "/v1/traces"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Where spans go.

    Attributes:
        endpoint: base address of a collector; empty: as OpenTelemetry's own variables say.
        headers: sent with each request; those of the variables too, where they have other names.
        instance: file that holds the name of this instance.
    """

    endpoint: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    instance: Path | None = None

    @property
    def host(self) -> str:
        """The collector's name: what may be logged of its address."""
        named = [self.endpoint, *(os.environ.get(name, "") for name in ENDPOINT_VARIABLES)]
        return urlsplit(next(filter(None, named), "")).hostname or "the collector"


class Exporter:
    """Takes spans and sends them. `put` never waits and never raises.

    Args:
        collector: where they go.
        cleaner: knows what must not be told.
        most_waiting: spans that may wait.
        gather: seconds that the first span waits for others.
    """

    def __init__(
        self,
        collector: Collector,
        cleaner: Cleaner,
        *,
        most_waiting: int = MOST_WAITING,
        gather: float = GATHER_S,
    ) -> None:
        self._collector = collector
        self._cleaner = cleaner
        self._most_waiting = most_waiting
        self._gather = gather
        self._waiting: deque[Span] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._sdk: _Sdk | None = None
        self._closing = self._useless = self._told = False
        self.lost = 0

    def put(self, span: Span) -> None:
        """Take a span to be sent, or lose the oldest that waits when there are too many."""
        with self._changed:
            if self._closing or self._useless:
                return
            if len(self._waiting) >= self._most_waiting:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(span)
            if len(self._waiting) in {1, MOST_AT_ONCE}:
                self._changed.notify()
        self.start()

    def start(self) -> None:
        """There will be a span: what sends it gets ready meanwhile."""
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._work, name="traces", daemon=True)
            self._thread.start()

    def close(self, limit: float = CLOSE_LIMIT_S) -> bool:
        """Send what waits, for at most `limit` seconds; tells whether that was done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            return True
        self._thread.join(limit)
        if self._thread.is_alive():
            if self._sdk is not None:
                self._sdk.give_up()
            return False
        return True

    def _work(self) -> None:
        try:
            self._sdk = sdk = _Sdk(self._collector, self._cleaner, closing=lambda: self._closing)
        except Exception as error:  # noqa: BLE001 - whatever the SDK finds wrong must not harm the program
            self._useless = True
            self._waiting.clear()
            _log.warning("traces cannot be sent: %s", type(error).__name__, exc_info=_log.isEnabledFor(10))
            return
        while batch := self._next():
            self._report(sdk.send(batch), len(batch))
        sdk.give_up()

    def _next(self) -> list[Span]:
        """The next spans, waiting for them; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(lambda: len(self._waiting) >= MOST_AT_ONCE or self._closing, self._gather)
            count = min(len(self._waiting), MOST_AT_ONCE)
            return [self._waiting.popleft() for _ in range(count)]

    def _report(self, failure: str, count: int) -> None:
        """Tell the change, and not its repetition."""
        host = self._collector.host
        if failure:
            self.lost += count
            if not self._told:
                self._told = True
                _log.warning("%s takes no traces: %s; told again when it does", host, failure)
        elif self._told:
            self._told = False
            _log.info("%s takes traces again", host, extra={"lost": self.lost})


class _Sdk:
    """The SDK's resource and exporter, used from one thread."""

    def __init__(self, collector: Collector, cleaner: Cleaner, *, closing: Callable[[], bool]) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - 0.2 s of CPU
            OTLPSpanExporter,
        )

        self._cleaner = cleaner
        self._failure = ""
        self._version = own_version()
        self._resource = _resource(collector, self._version)
        # What they say may hold headers and addresses, and they say it each time; we tell what matters.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        logging.getLogger("urllib3").setLevel(logging.CRITICAL + 1)
        base = collector.endpoint.rstrip("/")
        self._exporter = OTLPSpanExporter(
            endpoint=(base if base.endswith(_PATH) else base + _PATH) if base else None,
            headers=dict(collector.headers),
            session=_session(self._note, closing),
        )
        self._given_up = False

    def send(self, batch: Sequence[Span]) -> str:
        """Send spans; says what went wrong, empty for nothing. Never an address or a header."""
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415 - loaded by now

        self._failure = ""
        try:
            result = self._exporter.export([self._made(span) for span in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told and the next batch is tried
            return type(error).__name__
        if result is SpanExportResult.SUCCESS:
            return self._failure
        return self._failure or "they cannot be sent"

    def give_up(self) -> None:
        """End what is being sent, and send no more."""
        if not self._given_up:
            self._given_up = True
            self._exporter.shutdown()

    def _note(self, failure: str, *, last: bool) -> None:
        self._failure = failure
        if failure and last:
            self.give_up()

    def _made(self, span: Span) -> Any:
        """The SDK's own kind of span."""
        from opentelemetry.sdk.trace import Event, ReadableSpan  # noqa: PLC0415 - loaded by now
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415
        from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags  # noqa: PLC0415
        from opentelemetry.trace.status import Status, StatusCode  # noqa: PLC0415

        def context(trace_id: int, span_id: int, *, remote: bool = False) -> Any:
            return SpanContext(trace_id, span_id, is_remote=remote, trace_flags=TraceFlags(1))

        said = {
            name: as_text(value, self._cleaner) for name, value in span.texts.items() if value is not None
        }
        status = Status(StatusCode.ERROR, said.pop(ERROR_TEXT, None)) if span.error else Status()
        return ReadableSpan(
            name=self._cleaner.text(span.name),
            context=context(span.trace_id, span.span_id),
            parent=None if span.parent_id is None else context(span.trace_id, span.parent_id),
            resource=self._resource,
            attributes={**self._clean(span.attributes), **said},
            events=[Event(each.name, self._clean(each.attributes), each.time) for each in span.events],
            links=[Link(context(*ids, remote=True)) for ids in span.links],
            kind=SpanKind.CLIENT if span.client else SpanKind.INTERNAL,
            status=status,
            start_time=span.start,
            end_time=span.end,
            instrumentation_scope=InstrumentationScope("askfirst", self._version),
        )

    def _clean(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self._cleaner.text(value) if isinstance(value, str) else value
            for name, value in attributes.items()
        }


def _session(note: Callable[..., None], closing: Callable[[], bool]) -> Any:
    """What the exporter sends with: says how each try ended, and reads no endless answer."""
    import requests  # noqa: PLC0415 - comes with the exporter

    session = requests.Session()
    send = session.request

    def request(*args: Any, **options: Any) -> Any:
        failure = "it cannot be reached, or does not speak HTTP"
        try:
            response = send(*args, **{**options, "stream": True, "allow_redirects": False})
            failure = "" if 200 <= response.status_code < 300 else f"it answers {response.status_code}"
            with contextlib.suppress(Exception):  # the status is the answer, whatever follows it
                response.raw.read(_MOST_ANSWER)
            response.close()
        except requests.Timeout:
            failure = "no answer in time"
            raise
        finally:
            note(failure, last=closing())
        return response

    session.request = request
    return session


def _resource(collector: Collector, version: str) -> Any:
    """Who sends: we, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say something else."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415 - loaded by now

    known = {"service.name": "askfirst", "service.version": version, "host.name": socket.gethostname()}
    try:
        instance = collector.instance.read_text(encoding="utf-8").strip() if collector.instance else ""
    except (OSError, UnicodeDecodeError):
        instance = ""
    if instance:
        known["service.instance.id"] = instance
    return Resource.create(known).merge(OTELResourceDetector().detect())
