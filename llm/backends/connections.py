"""The connections behind an exchange: made in a thread, kept for one event loop, closed with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from llm.backends.address import Address
from llm.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
"""Longest wait for a connection, when the call's whole time is longer."""

CONNECT_SHARE = 0.45
"""Part of the call's time that connecting may take, and TLS again: the deadline must not cut these short,
because httpcore 1.0 leaves the socket open when it is cancelled during a TLS handshake."""

IDLE_SECONDS = 4.0
"""How long a connection is kept for the next call: less than the 5 s of uvicorn and llama.cpp's server, so
that no call is sent into a connection that is just being closed."""


HEADERS: Mapping[str, str] = {
    "User-Agent": "askfirst",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
}
"""What every request says of itself."""


class Line(Protocol):
    """A way to servers: sends a request and gives the reply as soon as its headers are there."""

    async def open(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        """Send it. Whoever opens a reply closes it (`aclose`)."""

    async def aclose(self) -> None:
        """Close all connections."""


class LoopClients:
    """The connections of one event loop, which a loop that ends closes by itself.

    Ending a loop closes the asynchronous generators that are open in it, and closing ours closes the
    connections: a program that calls `asyncio.run` again and again with one backend leaks no socket.

    Args:
        timeout: total seconds of a call, of which connecting may take a part.
    """

    def __init__(self, timeout: float) -> None:
        self._connect = min(CONNECT_SECONDS, CONNECT_SHARE * timeout)
        self._loop = asyncio.get_running_loop()
        self._made: dict[tuple[str, bool], Line] = {}
        self._keeper = _close_at_the_end(self._made)

    @property
    def is_here(self) -> bool:
        """Whether this is the loop that it belongs to."""
        return self._loop is asyncio.get_running_loop()

    async def get(self, address: Address) -> Line:
        """The line to an address; there is one each for http and https, this machine and others."""
        key = (address.scheme, address.is_loopback)
        if key not in self._made:
            # In a thread, because importing httpx and reading the CA bundle take a tenth of a second
            # here and more than one on a Raspberry Pi.
            made = await asyncio.to_thread(_new_line, address, self._connect)
            if not self._made:
                await anext(self._keeper)
            self._made.setdefault(key, made)
        return self._made[key]

    async def close(self) -> None:
        """Close all connections."""
        await self._keeper.aclose()


async def _close_at_the_end(lines: Mapping[Any, Line]) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        for line in lines.values():
            await line.aclose()


def _new_line(address: Address, connect: float) -> Line:
    """Import httpx and make a line; what hinders it is named without repeating a proxy's password."""
    try:
        import httpx  # noqa: F401, PLC0415 - only a call pays for it: 0.1 s

        echoes = logging.getLogger("httpcore")  # its DEBUG lines show reply headers, which may echo a key
        if echoes.level == logging.NOTSET:
            echoes.setLevel(logging.INFO)
        return _DirectLine(address, connect) if address.is_loopback else _ProxiedLine(address, connect)
    except ImportError as error:
        missing = error.name or "a package for SOCKS proxies (pip install 'httpx[socks]')"
        fault = f"HTTP calls need {missing}, which is not installed"
    except (OSError, ValueError) as error:
        fault = (
            f"no HTTP client can be made ({type(error).__name__}); check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, "
            "NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        )
    raise ConfigurationError(fault)


def _settings(address: Address) -> dict[str, Any]:
    """What both lines have in common."""
    import httpx  # noqa: PLC0415 - see _new_line

    return {
        # Plain http needs no CA bundle, whose reading costs 18 ms; https always verifies.
        "verify": address.scheme == "https",
        "limits": httpx.Limits(
            max_connections=None, max_keepalive_connections=8, keepalive_expiry=IDLE_SECONDS
        ),
    }


class _DirectLine:
    """To servers on this machine: no proxy may see what it says to itself, and so no client is needed.

    What an httpx client adds to its transport (redirects, cookies, authentication, the environment's
    proxies) is unwanted here, and costs a fifth of a call.
    """

    def __init__(self, address: Address, connect: float) -> None:
        import httpx  # noqa: PLC0415 - see _new_line

        self._transport = httpx.AsyncHTTPTransport(trust_env=False, **_settings(address))
        self._extensions = {"timeout": httpx.Timeout(None, connect=connect).as_dict()}
        self._request = httpx.Request
        self._url = lru_cache(maxsize=64)(httpx.URL)  # taking one apart costs 30 us

    async def open(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        """Send it."""
        request = self._request(
            method,
            self._url(url),
            headers={**HEADERS, **headers},
            content=content,
            extensions=self._extensions,
        )
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _ProxiedLine:
    """To all others, through the proxies of the environment if it names any."""

    def __init__(self, address: Address, connect: float) -> None:
        from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415 - see _new_line

        import httpx  # noqa: PLC0415 - see _new_line

        self._client = httpx.AsyncClient(
            trust_env=True,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=connect),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none is kept
            headers=HEADERS,
            **_settings(address),
        )

    async def open(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        """Send it."""
        request = self._client.build_request(method, url, headers=headers, content=content)
        return await self._client.send(request, stream=True)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()
