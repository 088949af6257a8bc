"""One engine process of ours, from its start to its end; `llm.backends.host` keeps one running.

The two ends speak JSON lines. The first line to the child is its settings; the first line from it is
`{"ready": {...}}` or `{"error": {"code", "message"}}`. After that, requests `{"id", ...}` and
`{"cancel": id}` go down, answers `{"id", ...}` come up: one for a call, several for a stream, the last of
which has `"done": true`. The child ends by itself when its stdin ends, which
is how it learns that we died, also by kill -9. Secrets go over stdin only: arguments and environment of a
process can be read by others.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from llm.errors import (
    BadReply,
    BadRequest,
    ConfigurationError,
    ConnectionFailed,
    LLMError,
    ModelNotFound,
    NotSupported,
    ServerError,
)
from llm.wire.common import encode
from llm.wire.redact import redact

Pipe = TypeVar("Pipe", asyncio.StreamReader, asyncio.StreamWriter)

_TAIL = 4096
"""Bytes of the child's stderr that are kept for messages."""

_LINE_BYTES = 64 * 1024
_ESCAPED = 6
"""JSON may write one byte of text as six (\\u0000)."""

_ERRORS: Mapping[str, type[LLMError]] = {
    kind.code: kind
    for kind in (BadReply, BadRequest, ConfigurationError, ConnectionFailed, ModelNotFound, NotSupported)
}

_PASSED_ON = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_CACHE_HOME"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    }
)
_PASSED_PREFIXES = ("LC_", "COVERAGE_")  # coverage measures the child too when it measures us


def engine_environment(*prefixes: str) -> dict[str, str]:
    """The few variables that a child gets: no key of ours is among them.

    Args:
        prefixes: further variables, by how their names begin; names that speak of a token or key stay out.
    """
    wanted = (*_PASSED_PREFIXES, *prefixes)
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or (name.startswith(wanted) and not any(w in name for w in ("TOKEN", "KEY")))
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What one start of an engine needs.

    Attributes:
        settings: the child's first line.
        environ: its whole environment.
        secrets: what must not be shown when the child's last words are.
        reply_bytes: longest text that an answer may hold.
        grace: seconds that the child gets to end by itself, and again after SIGTERM.
    """

    settings: Mapping[str, Any] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    reply_bytes: int = 0
    grace: float = 3.0


class _Inflow:
    """What came for one stream and was not yet taken.

    A consumer who is slow does not make it grow by the message: pieces of one kind of text are put together.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, dict[str, Any], list[str]]] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._error: LLMError | None = None
        self.ended = False

    def put(self, message: dict[str, Any]) -> None:
        kind = _text_of(message)
        if kind and self._waiting and self._waiting[-1][0] == kind:
            self._waiting[-1][2].append(message[kind])
        else:
            self._waiting.append((kind, message, [message[kind]] if kind else []))
        self._wake()

    def fail(self, error: LLMError) -> None:
        self._error = self._error or error
        self._wake()

    async def get(self) -> dict[str, Any]:
        while not self._waiting:
            if self._error is not None:
                self.ended = True
                raise self._error
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        kind, message, parts = self._waiting.popleft()
        self.ended = "done" in message
        return {**message, kind: "".join(parts)} if len(parts) > 1 else message

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


def _text_of(message: Mapping[str, Any]) -> str:
    """The one field of a message that is a piece of text and nothing else, empty if it is not such a one."""
    if len(message) != 2:
        return ""
    return next((name for name, value in message.items() if name != "id" and isinstance(value, str)), "")


class EngineProcess:
    """One engine process, from its start to its end.

    A task of its own owns the process. Cancelling that task, by `aclose` or by the end of the event loop,
    ends the process; a caller who stops waiting does not.

    Args:
        name: the backend's name, for messages.
        script: the program, run by this Python in isolated mode.
        prepare: gives the launch, in a thread; raises an `LLMError` when there is nothing to start.
    """

    def __init__(self, name: str, script: Path, prepare: Callable[[], Launch]) -> None:
        self._name = name
        self._script = script
        self._prepare = prepare
        self._process: Process | None = None
        self._launch: Launch | None = None
        self._failure: LLMError | None = None
        self._refusal: Mapping[str, Any] | None = None
        self._stderr = bytearray()
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._streams: dict[int, _Inflow] = {}
        loop = self._loop = asyncio.get_running_loop()
        self._last_used = loop.time()
        self._ready: asyncio.Future[dict[str, Any]] = loop.create_future()
        # In a context of its own: it outlives the call that happens to need it first.
        self._life = loop.create_task(self._live(), name=f"{name} engine", context=Context())

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._life.done()

    @property
    def is_ready(self) -> bool:
        """Whether the engine is loaded."""
        return self._ready.done() and not self.ended

    async def ready(self) -> Mapping[str, Any]:
        """Wait until the engine is loaded; what it said when it was.

        Raises:
            LLMError: it could not start; the message has its last words.
        """
        return await asyncio.shield(self._ready)

    @property
    def idle_seconds(self) -> float:
        """How long nobody has been waiting for an answer."""
        return 0.0 if self._waiting or self._streams else self._loop.time() - self._last_used

    def touch(self) -> None:
        """Count as used just now: somebody is about to."""
        self._last_used = self._loop.time()

    async def call(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer; a caller who stops waiting cancels it in the child.

        Raises:
            LLMError: the child refused or failed, or died.
        """
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if self.ended:
                raise self._obituary()
            self._write({"id": number, **payload})
            return await answer
        finally:
            del self._waiting[number]
            self.touch()
            if answer.cancelled():
                self._write({"cancel": number})

    async def stream(self, payload: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Send one request and give its messages as they come, the last of which has `"done": true`.

        Closing the generator before that cancels the request in the child.

        Raises:
            LLMError: the child refused or failed, or died.
        """
        number = next(self._numbers)
        inflow = self._streams[number] = _Inflow()
        try:
            if self.ended:
                inflow.ended = True
                raise self._obituary()
            self._write({"id": number, **payload})
            while not inflow.ended:
                yield await inflow.get()
        finally:
            del self._streams[number]
            self.touch()
            if not inflow.ended:
                self._write({"cancel": number})

    async def blame(self, error: LLMError) -> LLMError:
        """The error to raise for a call that failed: the process's death if that was the reason.

        A broken connection is noticed before the end of the process is; so wait a moment for it.
        """
        await asyncio.wait({self._life}, timeout=1.0)
        return self._obituary() if self.ended else error

    async def aclose(self) -> None:
        """End the process: stdin ends, then SIGTERM, then SIGKILL."""
        self._life.cancel()
        await asyncio.wait({self._life})

    def abandon(self) -> None:
        """Kill the process of an event loop that is gone and can no longer end it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _live(self) -> None:
        try:
            launch = self._launch = await asyncio.to_thread(self._prepare)
            await self._run(launch)
        except LLMError as error:
            self._failure = error
        except OSError as error:
            msg = f"the {self._name} engine cannot be started with {sys.executable}: {error}"
            self._failure = ConnectionFailed(msg)
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:  # too long, no JSON, no object
            msg = f"the {self._name} engine process sent what cannot be read ({type(error).__name__})"
            self._failure = ServerError(msg)
        finally:
            self._fail_all()

    async def _run(self, launch: Launch) -> None:
        process = self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(self._script)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=dict(launch.environ),
            limit=_LINE_BYTES + _ESCAPED * launch.reply_bytes,
            start_new_session=True,  # Ctrl-C at the terminal is for us; we end the child in order
        )
        tail = asyncio.get_running_loop().create_task(self._keep_tail(_open(process.stderr)))
        try:
            self._write(launch.settings)
            async for line in _open(process.stdout):
                if line.endswith(b"\n"):  # else it died in the middle of a line
                    self._receive(json.loads(line))
        finally:
            await self._end(process, tail, launch.grace)

    def _receive(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            if not self._ready.done():
                self._ready.set_result(message["ready"])
        elif "id" not in message:
            self._refusal = _refusal(message["error"])
        elif (inflow := self._streams.get(message["id"])) is not None:
            if "error" in message:
                inflow.fail(self._refused(message["error"]))
            else:
                inflow.put(message)
        elif (answer := self._waiting.get(message["id"])) is not None and not answer.done():
            if "error" in message:
                answer.set_exception(self._refused(message["error"]))
            else:
                answer.set_result(message)

    def _write(self, message: Mapping[str, Any]) -> None:
        stdin = None if self._process is None else self._process.stdin
        if stdin is None or stdin.is_closing():
            return  # it is ending: whoever waits is told by _fail_all
        stdin.write(encode(message) + b"\n")

    async def _keep_tail(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(_TAIL):
            self._stderr += chunk
            del self._stderr[:-_TAIL]

    async def _end(self, process: Process, tail: asyncio.Task[None], grace: float) -> None:
        """See the process out, and its pipes; never leaves it running."""
        try:
            _open(process.stdin).close()
            for push in (None, signal.SIGTERM, signal.SIGKILL):
                if push is not None:
                    with suppress(OSError):
                        os.killpg(process.pid, push)  # with what it may have started itself
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await self._gone(process, tail)
                        return
        finally:
            if process.returncode is None:
                process.kill()
            tail.cancel()

    async def _gone(self, process: Process, tail: asyncio.Task[None]) -> None:
        while await _open(process.stdout).read(_LINE_BYTES):
            continue  # it may wait for room to write, and a pipe that is not read to its end is never closed
        await process.wait()
        await asyncio.wait({tail})
        with suppress(OSError):
            await _open(process.stdin).wait_closed()

    def _fail_all(self) -> None:
        error = self._obituary()
        for answer in (self._ready, *self._waiting.values()):
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # perhaps nobody waits any more
        for inflow in self._streams.values():
            inflow.fail(error)

    def _obituary(self) -> LLMError:
        if self._failure is not None:
            return self._failure
        if self._refusal is not None:
            return self._refused(self._refusal, self._last_words() if self._refusal.get("stderr") else "")
        code = None if self._process is None else self._process.returncode
        msg = f"the {self._name} engine process {_cause(code)}; the next call starts a new one"
        return ServerError(_with_words(msg, self._last_words()))

    def _last_words(self) -> str:
        lines = self._stderr.decode("utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return redact(" | ".join(said[-3:])[-300:], self._secrets())

    def _refused(self, said: Any, words: str = "") -> LLMError:
        """What the child says went wrong; a library's text in it may name a proxy with its password."""
        found, secrets = _refusal(said), self._secrets()
        message = redact(found["message"], secrets) if secrets else found["message"]
        return _ERRORS.get(found["code"], ServerError)(_with_words(message, words))

    def _secrets(self) -> tuple[str, ...]:
        return () if self._launch is None else self._launch.secrets


def _open(pipe: Pipe | None) -> Pipe:
    """One of the process's pipes, all of which were asked for."""
    if pipe is None:
        msg = "the process was started without this pipe"
        raise RuntimeError(msg)
    return pipe


def _refusal(said: Any) -> dict[str, Any]:
    """The child's error with its code and message, whatever was sent as one: nobody may wait for ever."""
    found = dict(said) if isinstance(said, Mapping) else {"message": said}
    return {**found, "code": str(found.get("code")), "message": str(found.get("message"))}


def _with_words(message: str, words: str) -> str:
    return f"{message}. Its last words: {words}" if words else message


def _cause(code: int | None) -> str:
    if code is None:
        return "was ended"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
