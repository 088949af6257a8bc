"""Pulls one model file from a hub that speaks Hugging Face's HTTP layout: resumed, checked, atomic.

The hub is asked first (HEAD .../resolve/{revision}/{file}): it names the file's SHA-256 and size
(`X-Linked-ETag`, `X-Linked-Size`), the commit (`X-Repo-Commit`) and, as a redirect, where the bytes are.
The token goes to the hub only, never to the host of the bytes. What has come is kept in a `.part` file,
whatever happens; the next pull goes on from there if the hub still means the same file.

Source of the facts: huggingface_hub 2.4, `file_download.py` and `utils/_http.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from llm.backends.address import Address, parse_address
from llm.backends.connections import CONNECT_SECONDS, LoopClients
from llm.backends.hub_refusals import refusal
from llm.backends.known import HubFile
from llm.backends.partfile import PIECE, PartFile, RemoteFile
from llm.backends.pulled import (
    MANIFEST,
    PulledModel,
    beside,
    pull_lock,
    pulled_path,
    read_manifest,
    write_manifest,
)
from llm.errors import (
    BadReply,
    ConfigurationError,
    ConnectionFailed,
    LLMError,
    RateLimited,
    ServerError,
)

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"

_STALLED_SECONDS = 30.0
"""A server that sends nothing for so long is left; the pull goes on with a new connection."""

_HOPS = 5
_MARGIN = 64 * 1024 * 1024
"""Bytes that a pull leaves free on the disk."""

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_TRUE = frozenset({"1", "on", "yes", "true"})


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is.

    Attributes:
        step: "resolving", "resuming", "downloading", "checking" or "done"; Ollama's pulls have its words.
        done: bytes that are here.
        total: bytes of the whole file, 0 while unknown.
        resumed: bytes that were here before this pull.
    """

    step: str
    done: int = 0
    total: int = 0
    resumed: int = 0


OnProgress = Callable[[PullProgress], None]


@dataclass(frozen=True, slots=True)
class Hub:
    """Which hub is asked, and as whom.

    Attributes:
        endpoint: its address.
        token: of its user, empty for nobody; never shown.
        offline: whether no connection may be opened.
        pauses: seconds to wait before each further attempt; a byte that comes starts the count anew.
    """

    endpoint: str = ENDPOINT
    token: str = ""
    offline: bool = False
    pauses: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)

    def __repr__(self) -> str:
        return f"Hub(endpoint={parse_address(self.endpoint, 'HF_ENDPOINT').origin!r}, offline={self.offline})"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Hub:
        """Read HF_ENDPOINT, HF_TOKEN (else the file that `hf auth login` wrote) and HF_HUB_OFFLINE."""
        source = os.environ if environ is None else environ
        token = source.get("HF_TOKEN", "").strip() or source.get("HUGGING_FACE_HUB_TOKEN", "").strip()
        return cls(
            endpoint=source.get("HF_ENDPOINT", "").strip() or ENDPOINT,
            token=token or _stored_token(source),
            offline=source.get("HF_HUB_OFFLINE", "").strip().lower() in _TRUE,
        )


def _stored_token(environ: Mapping[str, str]) -> str:
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").strip().lower() in _TRUE:
        return ""
    try:
        home = environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
        return Path(environ.get("HF_TOKEN_PATH") or Path(home) / "token").read_text(encoding="utf-8").strip()
    except (OSError, RuntimeError, UnicodeError):
        return ""


async def pull_file(
    name: str,
    source: HubFile,
    folder: Path,
    *,
    hub: Hub,
    revision: str = "main",
    on_progress: OnProgress = lambda _: None,
) -> PulledModel:
    """Bring a model file into `folder`; one that is there and still the hub's is only asked about.

    Args:
        name: what LLM_MODEL will call it.
        source: which file.
        folder: of the pulled models.
        hub: where it is.
        revision: branch, tag or commit.
        on_progress: called as bytes come, on the event loop.

    Raises:
        ModelNotFound: no such repository, file or revision.
        AuthenticationFailed: the repository is gated or private.
        ConfigurationError: no room on the disk, no way to write there, or HF_HUB_OFFLINE is set.
        ConnectionFailed: the connection broke again and again; what came is kept.
        BadReply: the bytes are not those that the hub promised.
        LLMError: another program pulls the same file; or another error of the hub.
    """
    if hub.offline:
        msg = f"HF_HUB_OFFLINE is set: {source.label} is not asked for; unset it to pull models"
        raise ConfigurationError(msg)
    _guard_token(hub)
    path = pulled_path(source, folder)
    try:
        async with _locked(path, folder), _connected() as clients:
            return await _Pull(
                name=name,
                source=source,
                path=path,
                hub=hub,
                revision=revision,
                tell=on_progress,
                clients=clients,
            ).run()
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror}); {_GO_ON}, or set LLM_MODEL_DIR to another folder"
        raise ConfigurationError(msg) from error


def _guard_token(hub: Hub) -> None:
    base = parse_address(hub.endpoint, "HF_ENDPOINT")
    if hub.token and base.scheme != "https" and not base.is_loopback:
        msg = f"HF_TOKEN would travel in clear text to {base.origin}; set HF_ENDPOINT to an https:// address"
        raise ConfigurationError(msg)


_GO_ON = "what has come is kept, and the same command goes on from there"


@asynccontextmanager
async def _locked(path: Path, folder: Path) -> AsyncIterator[None]:
    with ExitStack() as held:
        await asyncio.to_thread(held.enter_context, pull_lock(path, folder))
        yield


@asynccontextmanager
async def _connected() -> AsyncIterator[LoopClients]:
    clients = LoopClients(CONNECT_SECONDS)
    try:
        yield clients
    finally:
        await clients.close()


@dataclass(slots=True, kw_only=True)
class _Pull:
    """One pull of one file."""

    name: str
    source: HubFile
    path: Path
    hub: Hub
    revision: str
    tell: OnProgress
    clients: LoopClients

    @property
    def _base(self) -> Address:
        return parse_address(self.hub.endpoint, "HF_ENDPOINT")

    async def run(self) -> PulledModel:
        self.tell(PullProgress("resolving"))
        remote = await self._patiently(self._resolve)
        here = await asyncio.to_thread(self._already_here, remote)
        if here is not None:
            self.tell(PullProgress("done", here.size, here.size, here.size))
            return here
        part = await asyncio.to_thread(PartFile, self.path, remote)
        try:
            await asyncio.to_thread(_need_room, self.path, remote.size - part.size)
            resumed = part.size
            self.tell(PullProgress("resuming" if resumed else "downloading", resumed, remote.size, resumed))
            remote = await self._download(remote, part)
            if not part.is_whole and resumed:  # an old piece was damaged: once more, all of it
                await asyncio.to_thread(part.restart)
                remote = await self._download(remote, part)
            self.tell(PullProgress("checking", part.size, remote.size))
            return await asyncio.to_thread(self._keep, remote, part)
        finally:
            await asyncio.to_thread(part.close)

    def _already_here(self, remote: RemoteFile) -> PulledModel | None:
        kept = read_manifest(self.path)
        if kept is None or not self.path.exists() or self.path.stat().st_size != kept.size:
            return None
        same = kept.sha256 == remote.sha256 if remote.sha256 else kept.commit == remote.commit != ""
        return kept if same else None

    async def _patiently(self, work: Callable[[], Awaitable[RemoteFile]]) -> RemoteFile:
        """Do `work`, again after each pause if another attempt can help."""
        for pause in (*self.hub.pauses, None):
            try:
                return await work()
            except LLMError as error:
                if pause is None or not error.retryable:
                    raise
                asked = error.retry_after if isinstance(error, RateLimited) else None
                if asked is not None and asked > 60:
                    raise
                await asyncio.sleep(pause if asked is None else asked)
        raise AssertionError  # pragma: no cover - the last round returns or raises

    async def _download(self, remote: RemoteFile, part: PartFile) -> RemoteFile:
        """Fetch until the part has all bytes; what the hub says by then."""
        pauses, broken = list(self.hub.pauses), False
        while part.size < remote.size:
            before = part.size
            try:
                if broken:
                    remote = await self._resolve_again(remote, part)
                await self._fetch(remote, part)
            except LLMError as error:
                if part.size > before:
                    pauses = list(self.hub.pauses)
                if not error.retryable or not pauses:
                    msg = f"{error}; {part.size:,} of {remote.size:,} bytes are here: {_GO_ON}"
                    raise type(error)(msg) from error
                broken = True
                await asyncio.sleep(pauses.pop(0))
        return remote

    async def _resolve_again(self, remote: RemoteFile, part: PartFile) -> RemoteFile:
        """The address of the bytes may have expired, and the file may be another by now."""
        fresh = await self._resolve()
        if fresh.tag != remote.tag:
            await asyncio.to_thread(part.start_over_for, fresh)
        return fresh

    async def _resolve(self) -> RemoteFile:
        repo, file = self.source.repo, quote(self.source.file)
        url = f"{self._base.url}/{repo}/resolve/{quote(self.revision, safe='')}/{file}"
        for _ in range(_HOPS):
            async with self._request("HEAD", url, self._authorization()) as response:
                status, headers = response.status_code, response.headers
            target = headers.get("location", "")
            if not 300 <= status < 400 or not target:
                break
            if _origin(urljoin(url, target)) != _origin(url) or headers.get("x-linked-etag"):
                break  # the bytes are there
            url = urljoin(url, target)  # a repository that was renamed
        else:
            msg = f"{self._base.origin} sends {self.source.label} round in circles"
            raise BadReply(msg)
        if not 200 <= status < 400:
            raise self._refused(status, headers)
        return self._described(url, status, headers)

    def _described(self, url: str, status: int, headers: Mapping[str, str]) -> RemoteFile:
        redirected = 300 <= status < 400
        place = urljoin(url, headers.get("location", "")) if redirected else url
        size = headers.get("x-linked-size") or ("" if redirected else headers.get("content-length", ""))
        tag = headers.get("x-linked-etag") or ("" if redirected else headers.get("etag", ""))
        if not size.isdecimal() or not int(size):
            msg = f"{self._base.origin} does not say how large {self.source.label} is; is it a model hub?"
            raise BadReply(msg)
        if self._base.scheme == "https" and not place.startswith("https://"):
            msg = f"{self._base.origin} sends {self.source.label} to an address without https; not followed"
            raise BadReply(msg)
        return RemoteFile(
            tag=tag.removeprefix("W/").strip('"').lower(),
            size=int(size),
            commit=headers.get("x-repo-commit", ""),
            url=place,
            ours=_origin(place) == self._base.origin,
        )

    async def _fetch(self, remote: RemoteFile, part: PartFile) -> None:
        """One connection's worth of bytes."""
        headers = dict(self._authorization()) if remote.ours else {}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if part.validator:
                headers["If-Range"] = part.validator
        async with self._request("GET", remote.url, headers) as response:
            status = response.status_code
            if status == 416 or (status == 206 and not _continues(response, part.size, remote.size)):
                await asyncio.to_thread(part.restart)
                msg = f"{_origin(remote.url)} no longer has the bytes that would follow; begun anew"
                raise ConnectionFailed(msg)
            if status not in {200, 206}:
                raise self._no_bytes(status, response.headers, remote)
            if status == 200 and part.size:
                await asyncio.to_thread(part.restart)
            await self._receive(response, remote, part)

    async def _receive(self, response: httpx.Response, remote: RemoteFile, part: PartFile) -> None:
        etag = response.headers.get("etag", "")
        await asyncio.to_thread(part.note, "" if etag.startswith("W/") else etag)
        resumed, waiting = part.size, bytearray()
        try:
            async for piece in response.aiter_raw():
                waiting += piece
                if len(waiting) >= PIECE:
                    await asyncio.to_thread(part.add, bytes(waiting))
                    waiting.clear()
                done = part.size + len(waiting)
                if done > remote.size:
                    msg = f"{_origin(remote.url)} sends more bytes than the {remote.size:,} that it promised"
                    raise BadReply(msg)
                self.tell(PullProgress("downloading", done, remote.size, resumed))
        finally:
            room = remote.size - part.size
            await asyncio.to_thread(part.add, bytes(waiting[:room]))
        if part.size < remote.size:
            msg = f"{_origin(remote.url)} ended after {part.size:,} of {remote.size:,} bytes"
            raise ConnectionFailed(msg)

    def _keep(self, remote: RemoteFile, part: PartFile) -> PulledModel:
        """Check what came and give it its name."""
        if not part.is_whole:
            part.discard()
            msg = (
                f"what came for {self.source.label} is not what {self._base.origin} promised (SHA-256 "
                "differs): it was thrown away; pull it again, and look for a proxy in between if it repeats"
            )
            raise BadReply(msg)
        if not part.starts_with(b"GGUF"):
            part.discard()
            msg = f"{self.source.label} is no GGUF file, though its name says so; it was thrown away"
            raise BadReply(msg)
        model = PulledModel(
            name=self.name,
            repo=self.source.repo,
            file=self.source.file,
            revision=self.revision,
            commit=remote.commit,
            sha256=part.sha256,
            verified=remote.sha256 is not None,
            size=part.size,
            endpoint=self._base.origin,
            pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
            path=self.path,
        )
        beside(self.path, MANIFEST).unlink(missing_ok=True)  # of an older version: it is not this file's
        part.become(self.path)
        write_manifest(model)
        self.tell(PullProgress("done", model.size, model.size))
        return model

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.hub.token}"} if self.hub.token else {}

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """One request without redirects; errors of the network become ours, without the URL's signature."""
        address = _address(url)
        client = await self.clients.get(address)
        import httpx  # noqa: PLC0415 - a pull has it loaded

        fault: LLMError
        try:
            timeout = httpx.Timeout(_STALLED_SECONDS, connect=CONNECT_SECONDS)
            async with client.stream(method, url, headers=dict(headers), timeout=timeout) as response:
                yield response
                return
        except httpx.TimeoutException:
            fault = ConnectionFailed(f"{address.origin} sent nothing for {_STALLED_SECONDS:g} s")
        except httpx.HTTPError as error:
            fault = ConnectionFailed(f"the connection to {address.origin} failed ({type(error).__name__})")
        except (httpx.InvalidURL, UnicodeError):
            fault = ConfigurationError(f"HF_ENDPOINT is no usable address: {address.origin}")
        raise fault

    def _no_bytes(self, status: int, headers: Mapping[str, str], remote: RemoteFile) -> LLMError:
        if remote.ours:
            return self._refused(status, headers)
        where = _origin(remote.url)
        if status in {
            401,
            403,
            404,
            410,
        }:  # the signature in the address has expired: ask the hub for another
            return ConnectionFailed(f"{where} no longer gives the bytes (HTTP {status})")
        return ServerError(f"{where} does not give the bytes (HTTP {status})")

    def _refused(self, status: int, headers: Mapping[str, str]) -> LLMError:
        return refusal(
            status,
            headers,
            source=self.source,
            revision=self.revision,
            origin=self._base.origin,
            token=bool(self.hub.token),
        )


def _origin(url: str) -> str:
    return _address(url).origin


def _address(url: str) -> Address:
    """Where a URL leads; its query is a signature and no part of it."""
    parts = urlsplit(url)
    return replace(parse_address(f"{parts.scheme}://{parts.netloc}", "HF_ENDPOINT"), path="")


def _continues(response: httpx.Response, offset: int, size: int) -> bool:
    found = _RANGE.fullmatch(response.headers.get("content-range", ""))
    return found is not None and (int(found[1]), int(found[2])) == (offset, size)


def _need_room(path: Path, missing: int) -> None:
    found = os.statvfs(path.parent)
    free = found.f_bavail * found.f_frsize
    if free < missing + _MARGIN:
        msg = (
            f"{path.name} needs {missing / 1e6:,.0f} MB more and {path.parent} has {free / 1e6:,.0f} MB "
            "free; make room or set LLM_MODEL_DIR to another folder"
        )
        raise ConfigurationError(msg)
