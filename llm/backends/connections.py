"""The connections behind an exchange: made in a thread, kept for one event loop, closed with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from llm.backends.address import Address
from llm.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

_Made = TypeVar("_Made")

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
        self._made: dict[tuple[str, bool], httpx.AsyncClient] = {}
        self._lines: dict[tuple[str, bool], Line] = {}
        self._stack = AsyncExitStack()
        self._keeper = _close_at_the_end(self._stack)
        self._kept = False

    @property
    def is_here(self) -> bool:
        """Whether this is the loop that it belongs to."""
        return self._loop is asyncio.get_running_loop()

    async def get(self, address: Address) -> httpx.AsyncClient:
        """The client for an address; there is one each for http and https, this machine and others."""
        key = (address.scheme, address.is_loopback)
        if key not in self._made:
            # In a thread, because importing httpx and reading the CA bundle take a tenth of a second
            # here and more than one on a Raspberry Pi.
            made = await asyncio.to_thread(_new, _built_client, address, self._connect)
            await self._keep(made)
            self._made.setdefault(key, made)
        return self._made[key]

    async def line(self, address: Address) -> Line:
        """The quickest way to an address that there is; one each as for clients."""
        key = (address.scheme, address.is_loopback)
        if key not in self._lines:
            if address.is_loopback:
                direct = await asyncio.to_thread(_new, _DirectLine, address, self._connect)
                await self._keep(direct)
                self._lines.setdefault(key, direct)
            else:
                self._lines[key] = _ClientLine(await self.get(address))
        return self._lines[key]

    async def _keep(self, made: _Closing) -> None:
        self._stack.push_async_callback(made.aclose)
        if not self._kept:
            self._kept = True
            await anext(self._keeper)

    async def close(self) -> None:
        """Close all connections."""
        await self._keeper.aclose()


class _Closing(Protocol):
    async def aclose(self) -> None:
        """Close all connections."""


async def _close_at_the_end(stack: AsyncExitStack) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await stack.aclose()


def _new(make: Callable[[Address, float], _Made], address: Address, connect: float) -> _Made:
    """Import httpx and make it; what hinders that is named without repeating a proxy's password."""
    try:
        import httpx  # noqa: F401, PLC0415 - only a call pays for it: 0.1 s
        import sniffio  # noqa: F401, PLC0415 - httpcore looks for it at each lock: 0.1 ms where it is not there

        echoes = logging.getLogger("httpcore")  # its DEBUG lines show reply headers, which may echo a key
        if echoes.level == logging.NOTSET:
            echoes.setLevel(logging.INFO)
        return make(address, connect)
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
    """What clients and direct lines have in common."""
    import httpx  # noqa: PLC0415 - see _new

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
        import httpx  # noqa: PLC0415 - see _new

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


class _ClientLine:
    """To all others, through the proxies of the environment if it names any."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def open(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        """Send it."""
        request = self._client.build_request(method, url, headers=headers, content=content)
        return await self._client.send(request, stream=True)


def _built_client(address: Address, connect: float) -> httpx.AsyncClient:
    from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415 - see _new

    import httpx  # noqa: PLC0415 - see _new

    return httpx.AsyncClient(
        # A proxy from the environment must not see what this machine says to itself.
        trust_env=not address.is_loopback,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=connect),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none is kept
        headers=HEADERS,
        **_settings(address),
    )
