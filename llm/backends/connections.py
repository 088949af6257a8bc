"""The httpx clients behind an exchange: made in a thread, kept for one event loop, closed with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

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


class LoopClients:
    """The httpx clients of one event loop, which a loop that ends closes by itself.

    Ending a loop closes the asynchronous generators that are open in it, and closing ours closes the
    clients: a program that calls `asyncio.run` again and again with one backend leaks no socket.

    Args:
        timeout: total seconds of a call, of which connecting may take a part.
    """

    def __init__(self, timeout: float) -> None:
        self._connect = min(CONNECT_SECONDS, CONNECT_SHARE * timeout)
        self._loop = asyncio.get_running_loop()
        self._made: dict[tuple[str, bool], httpx.AsyncClient] = {}
        self._keeper = _close_at_the_end(self._made)

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
            made = await asyncio.to_thread(_new_client, address, self._connect)
            if not self._made:
                await anext(self._keeper)
            self._made.setdefault(key, made)
        return self._made[key]

    async def close(self) -> None:
        """Close all connections."""
        await self._keeper.aclose()


async def _close_at_the_end(clients: Mapping[Any, httpx.AsyncClient]) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        for client in clients.values():
            await client.aclose()


def _new_client(address: Address, connect: float) -> httpx.AsyncClient:
    """Import httpx and make a client; what hinders it is named without repeating a proxy's password."""
    try:
        return _built_client(address, connect)
    except ImportError as error:
        missing = error.name or "a package for SOCKS proxies (pip install 'httpx[socks]')"
        fault = f"HTTP calls need {missing}, which is not installed"
    except (OSError, ValueError) as error:
        fault = (
            f"no HTTP client can be made ({type(error).__name__}); check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, "
            "NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        )
    raise ConfigurationError(fault)


def _built_client(address: Address, connect: float) -> httpx.AsyncClient:
    from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415 - only a call pays for it

    import httpx  # noqa: PLC0415 - the same: 0.1 s

    echoes = logging.getLogger("httpcore")  # its DEBUG lines show reply headers, which may echo a key
    if echoes.level == logging.NOTSET:
        echoes.setLevel(logging.INFO)
    return httpx.AsyncClient(
        # Plain http needs no CA bundle, whose reading costs 18 ms; https always verifies.
        verify=address.scheme == "https",
        # A proxy from the environment must not see what this machine says to itself.
        trust_env=not address.is_loopback,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=connect),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=IDLE_SECONDS),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none is kept
        headers={
            "User-Agent": "askfirst",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
    )
