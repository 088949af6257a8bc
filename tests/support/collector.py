"""A collector of traces on loopback: takes OTLP over HTTP and reads it with OpenTelemetry's own messages."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.support.waiting import seen_now

WELL = ExportTraceServiceResponse().SerializeToString()


class Received:
    """A span as it arrived."""

    def __init__(self, span: Any, resource: Any, scope: Any) -> None:
        self.name: str = span.name
        self.trace: str = span.trace_id.hex()
        self.id: str = span.span_id.hex()
        self.parent: str = span.parent_span_id.hex()
        self.kind: int = span.kind
        self.start: int = span.start_time_unix_nano
        self.end: int = span.end_time_unix_nano
        self.attributes = values_of(span.attributes)
        self.events = [(event.name, values_of(event.attributes)) for event in span.events]
        self.event_times = [event.time_unix_nano for event in span.events]
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
        self.failed: bool = span.status.code == 2
        self.message: str = span.status.message
        self.resource = values_of(resource.attributes)
        self.scope = (scope.name, scope.version)

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9

    def __repr__(self) -> str:
        return f"<{self.name} {self.attributes}>"


def values_of(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


class Collector:
    """What a collector got so far.

    Attributes:
        url: its base address.
        headers: those of each request, names in lower case.
        answer: the status, the body and further headers of its answers; may be changed at any time.
        wait: called before each answer.
        endless: whether its answers never end.
    """

    def __init__(self) -> None:
        self.url = ""
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.answer: tuple[int, bytes, dict[str, str]] = (200, WELL, {})
        self.wait: Callable[[], Any] = lambda: None
        self.endless = False

    @property
    def spans(self) -> list[Received]:
        """All spans, in the order in which they came."""
        found: list[Received] = []
        for body in list(self.bodies):
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in group.scope_spans:
                    found += [Received(span, group.resource, scope.scope) for span in scope.spans]
        return found

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Received:
        """The one span of that name, as soon as it is there."""
        seen_now(lambda: bool(self.named(name)))
        (span,) = self.named(name)
        return span


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    collector: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ours = self.collector
        ours.paths.append(self.path)
        ours.headers.append({name.lower(): value for name, value in self.headers.items()})
        ours.wait()
        status, answer, headers = ours.answer
        if status == 200:
            ours.bodies.append(body)
        self.send_response(status)
        if ours.endless:
            self.end_headers()
            while True:  # until the client hangs up
                self.wfile.write(b"x" * 65536)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is part of the game."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""
    collector = Collector()
    handler = type("Handler", (_Handler,), {"collector": collector})
    with _Server(("127.0.0.1", 0), handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()


class _Nonsense(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(65536)
        self.request.sendall(b"SMTP? no idea\r\n\r\n\0\0\0")


@contextmanager
def talking_nonsense() -> Iterator[str]:
    """The address of something that does not speak HTTP."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Nonsense) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
