"""A model hub on loopback that speaks Hugging Face's layout, with a second server for the bytes."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import unquote, urlsplit

from tests.support.loopback import LoopbackServer, SeenRequest, http_message

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class Stored:
    """One file: `sha256` is what the hub says, which a test may make a lie."""

    content: bytes
    sha256: str = ""
    commit: str = COMMIT

    def __post_init__(self) -> None:
        self.sha256 = self.sha256 or hashlib.sha256(self.content).hexdigest()


@dataclass
class Hub:
    """What the two servers have in common, and how they misbehave.

    Attributes:
        files: by "owner/name/file".
        cuts: after how many bytes of its body each further GET is cut, None for not at all; used up in turn.
        refusals: (status, X-Error-Code) with which each further HEAD is refused; used up in turn.
        expired: how many further GETs the host of the bytes refuses, as when a signature is too old.
        ranges: whether the host of the bytes understands Range.
        token: who may read; everybody if empty.
        moved: "owner/name" that was renamed, to its new name.
        linked: whether the hub names size and sum.
        stalls_after: after how many bytes of a body nothing more comes, None for not at all.
    """

    files: dict[str, Stored] = field(default_factory=dict)
    cuts: list[int | None] = field(default_factory=list)
    refusals: list[tuple[int, str]] = field(default_factory=list)
    expired: int = 0
    ranges: bool = True
    token: str = ""
    moved: dict[str, str] = field(default_factory=dict)
    linked: bool = True
    stalls_after: int | None = None


class BytesServer(LoopbackServer):
    """Where the bytes are: another origin than the hub."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        if self.hub.expired:
            self.hub.expired -= 1
            writer.write(http_message(403, b"<Error>Request has expired</Error>"))
            return
        await send_bytes(self.hub, request, writer, unquote(urlsplit(request.path).path).lstrip("/"))


async def send_bytes(hub: Hub, request: SeenRequest, writer: asyncio.StreamWriter, name: str) -> None:
    """Answer a GET: whole or from an offset, and cut where the test wants it."""
    stored = hub.files[name]
    etag = f'"{hashlib.md5(stored.content, usedforsecurity=False).hexdigest()}"'
    start, status = 0, 200
    headers = {"Content-Type": "application/octet-stream", "ETag": etag}
    asked = request.headers.get("range", "")
    if asked and hub.ranges and request.headers.get("if-range", etag) == etag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        size = len(stored.content)
        if start >= size:
            writer.write(http_message(416, b"", {"Content-Range": f"bytes */{size}"}))
            return
        status = 206
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    body = stored.content[start:]
    cut = hub.cuts.pop(0) if hub.cuts else None
    whole = http_message(status, body, headers)
    if hub.stalls_after is not None:
        writer.write(whole[: len(whole) - len(body) + hub.stalls_after])
        await writer.drain()
        await asyncio.Event().wait()  # until the connection or the server ends
    writer.write(whole if cut is None else whole[: len(whole) - len(body) + cut])
    await writer.drain()


class HubServer(LoopbackServer):
    """The hub itself; `bytes_server` runs beside it."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.bytes_server = BytesServer(hub)

    async def __aenter__(self) -> Self:
        await self.bytes_server.__aenter__()
        return await super().__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        await super().__aexit__(*exc)
        await self.bytes_server.__aexit__(*exc)

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(self._head(request))
        if request.method == "GET":
            msg = "the bytes were asked for at the hub"
            raise AssertionError(msg)

    def _head(self, request: SeenRequest) -> bytes:
        hub = self.hub
        if hub.refusals:
            status, code = hub.refusals.pop(0)
            return http_message(status, b"", {"X-Error-Code": code} if code else {})
        if hub.token and request.headers.get("authorization") != f"Bearer {hub.token}":
            return http_message(401, b"", {"X-Error-Code": "RepoNotFound"})
        parts = request.path.lstrip("/").split("/", 4)  # a slash of the revision's own is still escaped
        owner, name, _, _revision, file = map(unquote, parts)
        repo = f"{owner}/{name}"
        if repo in hub.moved:
            return http_message(307, b"", {"Location": request.path.replace(repo, hub.moved[repo])})
        stored = hub.files.get(f"{repo}/{file}")
        if stored is None:
            return http_message(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": stored.commit, "Location": self._place(f"{repo}/{file}")}
        if hub.linked:
            headers |= {"X-Linked-ETag": f'"{stored.sha256}"', "X-Linked-Size": str(len(stored.content))}
        return http_message(302, b"", headers)

    def _place(self, name: str) -> str:
        return f"{self.bytes_server.origin}/{name}?X-Amz-Signature=secret-signature"


@contextmanager
def served(server: LoopbackServer) -> Iterator[LoopbackServer]:
    """Run a server in a thread of its own, for programs that run a loop themselves."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        yield server
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def changed(stored: Stored, content: bytes) -> Stored:
    """The same file at a later commit."""
    return replace(stored, content=content, sha256=hashlib.sha256(content).hexdigest(), commit="d" * 40)
