"""The status page: everything on one page for people without Prometheus; it changes nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from daemon.web.assets import Assets
from daemon.web.facts import PERIODS, Gatherer

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent / "templates"

REMEMBERED_S = 2.0
"""A page this young is shown again: reloading, by however many, costs the daemon next to nothing."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Only files of our own; no text can become a script, whatever it holds."""
_FILTERS = ("clock", "counted", "duration", "iso", "money", "number", "pieces", "relative", "seconds", "size")


class StatusPage:
    """Renders the page. Jinja2 and the template are loaded when it is first asked for, and then kept.

    Args:
        gatherer: gathers what it shows.
        assets: the files that it needs.
    """

    def __init__(self, gatherer: Gatherer, assets: Assets) -> None:
        self._gatherer = gatherer
        self._assets = assets
        self._template: Template | None = None
        self._made: dict[int, tuple[float, bytes]] = {}
        self._making = asyncio.Lock()

    async def show(self, request: Request) -> Response:
        """The page; `?days=7` shows another period. Always 200: it tells what fails."""
        asked = request.query_params.get("days", "")
        days = int(asked) if asked in map(str, PERIODS) else min(PERIODS)
        # Others may have asked meanwhile, so the page is looked for again behind the lock.
        async with self._making:
            page = self._fresh(days)
            if page is None:
                page = await self._make(days)
                self._made[days] = (time.monotonic(), page)
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY, "Vary": "Accept"})

    def _fresh(self, days: int) -> bytes | None:
        made = self._made.get(days)
        return None if made is None or time.monotonic() - made[0] > REMEMBERED_S else made[1]

    async def _make(self, days: int) -> bytes:
        facts = await self._gatherer.gather(days)
        assets = await self._assets.addresses()
        # In a thread: on a Pi it takes as long as a small run's whole work.
        return await asyncio.to_thread(self._render, facts, assets)

    def _render(self, facts: Any, assets: dict[str, str]) -> bytes:
        from daemon.web.view import view_of  # noqa: PLC0415 - only for this page

        if self._template is None:
            self._template = load_template("status.html")
        view = view_of(facts, self._gatherer.clean)
        return self._template.render(view=view, facts=facts, assets=assets).encode("utf-8", "replace")


def load_template(name: str) -> Template:
    """A page of ours: whatever a value holds is text in it, and a name that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - 2 MB of memory

    from daemon.web import words  # noqa: PLC0415 - only for pages
    from daemon.web.view import PERIOD_NAMES  # noqa: PLC0415 - as above

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({each: getattr(words, each) for each in _FILTERS})
    environment.globals["periods"] = PERIOD_NAMES
    return environment.get_template(name)
