"""The web application: every room's routes behind one guard."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.types import ASGIApp

from daemon.web.assets import Assets
from daemon.web.guard import HostGuard
from daemon.web.hooks import Hooks
from daemon.web.ops import Operations


def build_app(
    operations: Operations,
    *,
    hooks: Hooks | None = None,
    assets: Assets | None = None,
    allowed_hosts: Iterable[str] = (),
) -> ASGIApp:
    """The ASGI application.

    Args:
        operations: what /metrics and the health endpoints show.
        hooks: what webhooks do, None for no webhooks.
        assets: the files of pages, None for no pages.
        allowed_hosts: names by which it may be called besides those of loopback.
    """
    rooms = (operations, hooks, assets)
    routes = [route for room in rooms if room is not None for route in room.routes()]
    return HostGuard(Starlette(routes=routes), allowed_hosts)
