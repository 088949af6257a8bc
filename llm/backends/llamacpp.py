"""LlamaCppBackend: a llama.cpp of our own in a child process, so that a fresh machine has a model."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from llm.backends.address import parse_address
from llm.backends.child import EngineProcess, Launch, engine_environment
from llm.backends.connections import LoopClients
from llm.backends.gguf import GGUFHeader, NotGGUF, read_header
from llm.backends.host import EngineHost
from llm.backends.http import Fold, HttpExchange, reading_from
from llm.backends.known import PACKAGED
from llm.backends.models import model_file
from llm.backends.prefixes import PrefixFiles, PrefixKeeper
from llm.backends.pulled import models_folder
from llm.backends.remote import openai_embed
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import (
    BadReply,
    BadRequest,
    ConnectionFailed,
    LLMError,
    ModelNotFound,
    NotSupported,
    ServerError,
)
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.overflow import ROUNDS, shortened, too_long
from llm.types import Capabilities, Chunk, Embeddings, EmbedRequest, LLMRequest, LLMResponse, StreamEnd
from llm.wire import openai
from llm.wire.takes import Takes

_SCRIPT = Path(__file__).parent.parent / "engines" / "llamacpp_server.py"
_INSTALL = "pip install 'askfirst[llamacpp]'"

_CHAT = "/v1/chat/completions"
_TOO_LONG = re.compile(r"\((\d+) tokens\) exceeds the available context size \((\d+) tokens\)")
_TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large")

_EMBED_CONTEXT = 2048
"""Most tokens of one text to embed; the engine's buffers grow with it."""


def unavailable_reason(model: str, *, model_dir: str | None = None) -> str | None:
    """Why `model` cannot run here, with the way out; None when it can. Imports and loads nothing.

    Args:
        model: its name.
        model_dir: folder of pulled models, as `LLMConfig.model_dir` says it.
    """
    try:
        _require_engine()
        model_file(model, models_folder(model_dir))
    except LLMError as error:
        return str(error)
    return None


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 - part of the key: the file may change
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=8)
def _header(path: Path, size: int, modified: int) -> GGUFHeader:  # noqa: ARG001 - the same
    try:
        return read_header(path)
    except (NotGGUF, OSError) as error:
        msg = f"the model file {path} has no readable header; it may be damaged: get it again"
        raise ModelNotFound(msg) from error


@dataclass(frozen=True, slots=True)
class _Model:
    """A model on this machine; made in a thread, for it reads files.

    Attributes:
        name: what the configuration calls it.
        path: its file.
        header: what the file says of itself.
        identity: changes with the file.
    """

    name: str
    path: Path
    header: GGUFHeader
    identity: str

    @classmethod
    def find(cls, name: str, config: LLMConfig) -> _Model:
        """Find it, and refuse a packaged one that is not the one known: it is native code's input."""
        path = model_file(name, models_folder(config.model_dir))
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if name in PACKAGED and _sha256(*key) != PACKAGED[name].sha256:
            msg = f"{path} is not the {name} that askfirst knows (SHA-256 differs); {PACKAGED[name].install}"
            raise ModelNotFound(msg)
        return cls(name, path, _header(*key), repr(key))


def _require_engine() -> None:
    if find_spec("xllamacpp") is None:
        msg = f"the embedded llama.cpp is not installed; {_INSTALL}"
        raise ConnectionFailed(msg)


def _engine_version() -> str:
    try:
        return version("xllamacpp")
    except PackageNotFoundError:  # on the path without its metadata
        return ""


def _threads() -> int:
    """One core stays free for the rest of the machine; with both of two cores llama.cpp is slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


@dataclass(frozen=True, slots=True)
class _Server:
    """A running llama.cpp, asked over HTTP with its key."""

    process: EngineProcess
    exchange: HttpExchange
    address: str
    key: str = ""

    @property
    def pid(self) -> int | None:
        return self.process.pid

    async def ask(self, path: str, body: Any) -> Any:
        return await self._call("POST", path, body)

    async def state(self, action: str, file: str) -> None:
        """Save or restore the slot, with a client of its own: seldom, and the exchange takes no query."""
        clients = LoopClients(self.exchange.config.timeout)
        client = await clients.get(parse_address(self.address))
        import httpx  # noqa: PLC0415 - a call has it loaded

        status: int | str
        try:
            reply = await client.post(
                f"{self.address}/slots/0",
                params={"action": action},
                headers=self.headers,
                json={"filename": file},
            )
            status = reply.status_code
        except httpx.HTTPError as error:
            status = type(error).__name__
        finally:
            await clients.close()
        if status != 200:
            msg = f"llama.cpp did not {action} its state ({status})"
            raise ServerError(msg)

    async def sleeps(self) -> bool:
        return bool((await self._call("GET", "/props"))["is_sleeping"])

    def stream(self, path: str, body: Any, fold: Fold) -> AsyncGenerator[Chunk, None]:
        # llama.cpp hangs up after a stream though it does not say so: the next call must not meet that.
        headers = {**self.headers, "Connection": "close"}
        return self.exchange.chunks("POST", self.address + path, fold, headers=headers, body=body)

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        return await self.exchange.request_json(method, self.address + path, headers=self.headers, body=body)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


class LlamaCppBackend(LLMClient):
    """llama.cpp in a child process, one call at a time, asked over HTTP on loopback.

    The process starts at the first call and is replaced when it died. Its port takes a random key that no
    other process knows. After `idle_seconds` it unloads the model; the fixed beginnings of prompts are kept
    below `cache_dir` meanwhile (see `llm.backends.prefixes`), unless `enable_cache` is off. Embeddings have a
    second process of the same kind, with a model that is made for them.

    Args:
        config: `model` is a known name, the path of a .gguf file, or "owner/name:file.gguf" of a hub, pulled.
        middleware: as in `LLMClient`.
        observers: as in `LLMClient`.
        name: as in `LLMClient`.
    """

    backend: ClassVar[str] = "llamacpp"

    def __init__(
        self,
        config: LLMConfig,
        *,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
        name: str = "",
    ) -> None:
        super().__init__(config, middleware=middleware, observers=observers, name=name)
        self._key = secrets.token_urlsafe(32)
        self._host = EngineHost(self.backend, _SCRIPT, self._launch)
        self._embed_host = EngineHost(f"{self.backend} embedding", _SCRIPT, self._launch_embedder)
        self._exchange = HttpExchange(config, way_out="call again: the engine starts anew if it died")
        self._prefixes = PrefixKeeper(config.idle_seconds)
        self._files: PrefixFiles | None = None
        self._thinks = False

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Answer one request.

        Raises:
            ModelNotFound: no such model, or its file is no model.
            ConnectionFailed: xllamacpp is not installed.
            NotSupported: tools for a model whose template has no place for them, or a model for embeddings.
            BadRequest: the prompt is longer than the context, or the schema cannot be followed.
            ServerError: the process died.
        """
        async with self._turn(request) as (server, told):
            sent, payload = request, None
            for round_ in count():
                try:
                    payload = await server.ask(_CHAT, self._body(sent))
                    break
                except BadRequest as error:
                    sent = self._shorter(sent, error, round_)
            with reading_from(server.address):
                response = openai.read_chat(payload, request, backend=self.backend)
        return _finished(response, request, told=told)

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        """Answer one request in pieces; the engine is the caller's alone until the stream ends or is closed.

        Raises:
            LLMError: as for `send`.
        """
        async with self._turn(request) as (server, told):
            sent, begun = request, False
            for round_ in count():
                fold = openai.ChatStream(request, backend=self.backend)
                chunks = server.stream(_CHAT, self._body(sent, stream=True), fold)
                try:
                    async with aclosing(chunks):
                        async for chunk in chunks:
                            begun = True
                            if isinstance(chunk, StreamEnd):
                                yield StreamEnd(_finished(chunk.response, request, told=told))
                                return
                            yield chunk
                    break
                except BadRequest as error:
                    if begun:
                        raise
                    sent = self._shorter(sent, error, round_)

    def _shorter(self, request: LLMRequest, error: BadRequest, round_: int) -> LLMRequest:
        """A prompt that was too long with its oldest turns left out, if LLM_OVERFLOW is "trim".

        Raises:
            BadRequest: `error`, when it is about something else, or there is nothing to leave out.
        """
        told = too_long(str(error)) if self.config.overflow == "trim" and round_ < ROUNDS else None
        shorter = None if told is None else shortened(request, told, context=self.config.context_length)
        if shorter is None:
            raise error
        return shorter

    def _body(self, request: LLMRequest, *, stream: bool = False) -> dict[str, Any]:
        """OpenAI's body, and whether a model that can think shall: unasked, such models always do."""
        return openai.chat_body(request, Takes(effort=False, switch=self._thinks), stream=stream)

    @asynccontextmanager
    async def _turn(self, request: LLMRequest) -> AsyncIterator[tuple[_Server, bool]]:
        """The server for this call alone, with as much of the prompt in it as was kept.

        The second value is true when it was told a part of the prompt just now, to be kept.
        """
        if request.tools and not (await self.capabilities()).tools:
            msg = f"{request.model} was not made for tools: its chat template has no place for them"
            raise NotSupported(msg)
        async with self._host.turn() as process, self._blamed(process) as server:
            try:
                files = self._files
                told = files is not None and await self._prefixes.prepare(files, server, request)
                yield server, told
            finally:
                self._prefixes.finished()

    @asynccontextmanager
    async def _blamed(self, process: EngineProcess) -> AsyncIterator[_Server]:
        """The server of a process; a broken connection becomes the process's death if that was the reason."""
        try:
            yield _Server(process, self._exchange, (await process.ready())["address"], self._key)
        except (ConnectionFailed, BadReply) as error:
            raise await process.blame(error) from error
        except (BadRequest, ServerError) as error:
            raise _translated(error) from error

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        """Turn texts into vectors with a second process, whose model is `embed_model` or else `model`.

        Raises:
            NotSupported: the model is not made for embeddings.
            BadRequest: a text is longer than the model reads.
            LLMError: as for `send`.
        """
        async with self._embed_host.turn() as process, self._blamed(process) as server:
            return await openai_embed(
                self._exchange,
                request,
                base=f"{server.address}/v1",
                headers=server.headers,
                backend=self.backend,
            )

    async def capabilities(self) -> Capabilities:
        """What the model's file says of itself; nothing is loaded.

        Raises:
            ModelNotFound: no such model, or its file is no model.
        """
        model = await asyncio.to_thread(_Model.find, self.config.model, self.config)
        header = model.header
        return Capabilities(
            model=model.name,
            schema=not header.embeds,
            tools=header.takes_tools,
            thinking=header.thinks,
            embedding=header.embeds,
            chat=not header.embeds,
            context_length=header.context_length or None,
        )

    async def health_check(self) -> bool:
        """Whether engine and model are installed and, if it runs, the server answers; loads nothing."""
        model, folder = self.config.model, self.config.model_dir
        if await asyncio.to_thread(unavailable_reason, model, model_dir=folder) is not None:
            return False
        process = self._host.current
        if process is None or not process.is_ready:
            return True
        try:
            address = (await process.ready())["address"]
            await self._exchange.request_json("GET", f"{address}/health")
        except LLMError:
            return False
        return True

    async def _release(self) -> None:
        await self._exchange.aclose()
        await asyncio.gather(self._host.aclose(), self._embed_host.aclose())

    def _launch(self) -> Launch:
        """What the child that chats is started with."""
        _require_engine()
        model = _Model.find(self.config.model, self.config)
        if model.header.embeds:
            msg = f"{model.name} is made for embeddings and does not chat; set LLM_MODEL to another model"
            raise NotSupported(msg)
        self._thinks = model.header.thinks
        self._files = self._prefix_files(model)
        folder = "" if self._files is None else str(self._files.folder.absolute())
        return self._launched(model, context_length=self.config.context_length, slot_folder=folder)

    def _launch_embedder(self) -> Launch:
        """What the child that embeds is started with."""
        _require_engine()
        model = _Model.find(self.config.embed_model or self.config.model, self.config)
        if not model.header.embeds:
            msg = (
                f"{model.name} is not made for embeddings; set LLM_EMBED_MODEL to one that is, such as "
                "all-minilm:l6-v2 (get it with `askfirst llm pull all-minilm:l6-v2`)"
            )
            raise NotSupported(msg)
        return self._launched(
            model,
            context_length=min(model.header.context_length or _EMBED_CONTEXT, _EMBED_CONTEXT),
            embedding="own" if model.header.about("pooling_type") else "mean",
        )

    def _launched(self, model: _Model, **settings: Any) -> Launch:
        common = {
            "model": str(model.path),
            "name": model.name,
            "key": self._key,
            "threads": _threads(),
            "idle_seconds": max(1, round(self.config.idle_seconds)),
            "install": _INSTALL,
        }
        return Launch(settings=common | settings, environ=engine_environment(), secrets=(self._key,))

    def _prefix_files(self, model: _Model) -> PrefixFiles | None:
        """Where the beginnings of prompts are kept; None if nothing may be, or nothing can."""
        if not self.config.enable_cache or self.config.cache_mode not in {"on", "write"}:
            return None
        folder = Path(os.path.expanduser(self.config.cache_dir)) / "llamacpp"  # noqa: PTH111 - see `from_home`
        try:
            return PrefixFiles(folder, f"{model.identity} {self.config.context_length} {_engine_version()}")
        except OSError:
            return None


def _finished(response: LLMResponse, request: LLMRequest, *, told: bool) -> LLMResponse:
    """The response under the configured name; what was read for this very call was not cached before it."""
    cached = 0 if told else response.cached_tokens
    return replace(response, model=request.model, cached_tokens=cached)


def _translated(error: LLMError) -> LLMError:
    if found := _TOO_LONG.search(str(error)):
        msg = (
            f"the prompt has {found[1]} tokens and the context {found[2]}; shorten the prompt or raise "
            "LLM_CONTEXT_LENGTH (up to what the model was trained with)"
        )
        return BadRequest(msg)
    if found := _TOO_LARGE.search(str(error)):
        msg = f"a text has {found[1]} tokens, more than the embedding model reads at once; cut it into pieces"
        return BadRequest(msg)
    return error
