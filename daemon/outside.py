"""Outside: one short message to an address on another machine, in limited time; never repeats the address."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

LIMIT_S = 10.0
"""How long one message may take."""


class Outside:
    """Sends messages; nothing is loaded or connected before the first one."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def send(
        self,
        method: str,
        address: str,
        content: bytes,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = "",
    ) -> str:
        """Send one message. Name and password in the address are sent as HTTP wants them.

        Args:
            method: "POST" or "PUT".
            address: where to.
            content: what.
            query: what stands behind the question mark.
            kind: of the content, as HTTP names it.

        Returns:
            What went wrong, in words that hold nothing of the address; empty if nothing did.
        """
        client = await self._connected()
        import httpx  # noqa: PLC0415 - loaded by now

        headers = {"Content-Type": kind} if kind else None
        try:
            async with asyncio.timeout(LIMIT_S):
                response = await client.request(
                    method, address, params=query, content=content, headers=headers
                )
        except TimeoutError:
            return f"no answer within {LIMIT_S:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__  # its text may hold the address
        return "" if response.is_success else f"it answers {response.status_code}"

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = await asyncio.to_thread(_new_client)
        return self._client


def host_of(address: str) -> str:
    """What of an address can be told: the rest is as good as a password."""
    try:
        return urlsplit(address).hostname or "?"
    except ValueError:
        return "?"


def _new_client() -> httpx.AsyncClient:
    """In a thread: it reads the certificates of the authorities."""
    import httpx  # noqa: PLC0415 - only programs that tell somebody need it

    return httpx.AsyncClient(timeout=LIMIT_S, follow_redirects=False)
