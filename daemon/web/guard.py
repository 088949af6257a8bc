"""What stands before every route: whom we answer, and the headers that every answer carries."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers would then send "Origin: null" with the forms of a later review page.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

REFUSED = (
    "This address answers only to names it knows. To allow another one, add it to web.allowed_hosts in the "
    "configuration, or to ASKFIRST_WEB__ALLOWED_HOSTS.\n"
)


class HostGuard:
    """The outermost layer: answers only requests whose Host header is a name of ours, on every route.

    A page of another site can make a browser send requests here, and can point a name of its own at this
    machine (DNS rebinding); then the Host header is that site's name, and nothing is answered.

    Args:
        app: what is behind the guard.
        allowed: names and addresses besides those of this machine's loopback.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str] = ()) -> None:
        self._app = app
        self._allowed = {_plain(name) for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":  # no other protocol is served
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)  # a page may need more than nothing, and says what
            await send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and self._is_ours(_host_name(hosts[0].decode("latin-1"))):
            await self._app(scope, receive, send_with_headers)
        else:
            await PlainTextResponse(REFUSED, status_code=421)(scope, receive, send_with_headers)

    def _is_ours(self, name: str) -> bool:
        return name == "localhost" or name in self._allowed or _is_loopback(name)


def _host_name(header: str) -> str:
    """The Host header without its port: "[::1]:8484" -> "::1"."""
    if header.startswith("["):
        return _plain(header[1:].partition("]")[0])
    return _plain(header.rpartition(":")[0] if ":" in header else header)


def _plain(name: str) -> str:
    return name.strip().strip("[]").rstrip(".").lower()


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
