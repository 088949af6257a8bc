"""For whoever operates the daemon: /metrics, /healthz, /readyz, and a list of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from daemon.observability.health import Health
from daemon.observability.metrics import Metrics


@dataclass(slots=True, kw_only=True)
class Operations:
    """What these endpoints show.

    Attributes:
        metrics: for /metrics.
        health: for /healthz and /readyz.
        version: the program's version.
        stopping: whether the program is about to end.
        started: when the program began, seconds of `time.monotonic`.
        page: shows all of it to a browser that asks for "/", None without such a page.
    """

    metrics: Metrics
    health: Health
    version: str = ""
    stopping: bool = False
    started: float = field(default_factory=time.monotonic)
    page: Callable[[Request], Awaitable[Response]] | None = None

    def routes(self) -> list[Route]:
        """The routes, for GET and HEAD only."""
        return [
            Route("/", self.index, methods=["GET"]),
            Route("/metrics", self.show_metrics, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
        ]

    async def index(self, request: Request) -> Response:
        """The status page for a browser, else what can be asked here."""
        if self.page is not None and "text/html" in request.headers.get("accept", "").lower():
            return await self.page(request)
        return PlainTextResponse(
            f"Askfirst {self.version}\n\n"
            "/          this list; in a browser, how everything is\n"
            "/metrics   metrics for Prometheus\n"
            "/healthz   whether everything it needs works\n"
            "/readyz    the same part by part\n\n"
            "Decide about proposals with: askfirst proposals list\n",
            headers={"Vary": "Accept"},
        )

    async def show_metrics(self, request: Request) -> Response:
        """The metrics in the format that the scraper prefers."""
        body, content_type = await self.metrics.scrape(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    async def healthz(self, _request: Request) -> Response:
        """200 when everything required works, else 503: the sum of the parts in one word, for a monitor."""
        fine, answers = await self.health.check()
        body = {
            "status": "ok" if fine else "failing",
            "failing": [answer.name for answer in answers if answer.required and not answer.ok],
            "version": self.version,
            "uptime_seconds": round(time.monotonic() - self.started, 1),
        }
        return JSONResponse(body, status_code=200 if fine else 503)

    async def readyz(self, _request: Request) -> Response:
        """As /healthz, and 503 while the program starts or stops; says what each part answered."""
        fine, answers = await self.health.check()
        ready = fine and not self.stopping
        body = {
            "status": "ready" if ready else "stopping" if self.stopping else "not ready",
            "checks": {answer.name: answer.as_json() for answer in answers},
        }
        return JSONResponse(body, status_code=200 if ready else 503)
