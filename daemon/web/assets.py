"""The files that pages need: a closed list, served under names that change with their content."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "static"

FILES: Mapping[str, str] = MappingProxyType(
    {
        "status.css": "text/css; charset=utf-8",
        "status.js": "text/javascript; charset=utf-8",
        "favicon.svg": "image/svg+xml",
        "vendor/uPlot.iife.min.js": "text/javascript; charset=utf-8",
        "vendor/uPlot.min.css": "text/css; charset=utf-8",
    }
)
"""What is served, with its type; nothing else in the folder is."""

FOR_EVER = "public, max-age=31536000, immutable"
"""Another content has another address, so that what a browser has once it need not ask for again."""

_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is served: its name in the address, its content and its type."""

    name: str
    content: bytes
    kind: str


class Assets:
    """The files, read when the first page is asked for, and kept: 70 KB.

    What is served is what the addresses in our pages promise, also when the program on the disk is upgraded
    meanwhile.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Asset] = {}
        self._reading = asyncio.Lock()

    def routes(self) -> list[Route]:
        """The route, for GET and HEAD only."""
        return [Route("/static/{name:str}", self.serve, methods=["GET"])]

    async def addresses(self) -> dict[str, str]:
        """The address of each file, by its name in `FILES`."""
        assets = await self._all()
        return dict(zip(FILES, (f"/static/{name}" for name in assets), strict=True))

    async def serve(self, request: Request) -> Response:
        """One file, 404 for any other name."""
        asset = (await self._all()).get(request.path_params["name"])
        if asset is None:
            return PlainTextResponse("There is no such file.\n", status_code=404)
        return Response(asset.content, headers={"Content-Type": asset.kind, "Cache-Control": FOR_EVER})

    async def _all(self) -> dict[str, Asset]:
        async with self._reading:
            if not self._by_name:
                self._by_name = {asset.name: asset for asset in await asyncio.to_thread(_read)}
        return self._by_name


def _read() -> list[Asset]:
    return [_asset(name, kind) for name, kind in FILES.items()]


def _asset(name: str, kind: str) -> Asset:
    content = (FOLDER / name).read_bytes()
    stem, _, ending = name.rpartition("/")[2].rpartition(".")
    digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
    return Asset(f"{stem}.{digest}.{ending}", content, kind)
