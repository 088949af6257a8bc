"""JSON over HTTP, whole or as a stream: bounded in bytes, its errors translated; nothing of httpx leaves it.

The total time is bounded by `LLMClient`.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from llm.backends.address import Address, parse_address
from llm.backends.connections import Line, LoopClients
from llm.config import LLMConfig
from llm.errors import (
    BadReply,
    CallCancelled,
    ConfigurationError,
    ConnectionFailed,
    DeadlineExceeded,
    LLMError,
)
from llm.types import Chunk, LLMResponse, StreamEnd
from llm.wire.body import BodyBytes, ReplyBody
from llm.wire.common import decode, encode
from llm.wire.lines import DONE, framing
from llm.wire.redact import redact
from llm.wire.status import Refusal, inner_status

if TYPE_CHECKING:
    import httpx

_ERROR_BYTES = 64 * 1024
_FEW = 64
_LINGER_SECONDS = 1.0
"""How long the end of the body may come after the stream's own end, for the connection to be kept."""


class HttpExchange:
    """Sends requests, reads JSON replies. Safe to use from several tasks and, one by one, several loops.

    Args:
        config: its timeout and byte cap are used, and its key is kept out of messages.
        way_out: what to do when the server cannot be reached, at the end of that message.
    """

    def __init__(
        self, config: LLMConfig, *, way_out: str = "check LLM_API_BASE and that the server runs"
    ) -> None:
        self.config = config
        self._way_out = way_out
        self._clients: LoopClients | None = None
        self._fine: set[str] = set()  # header values that were looked at
        self._closed = False

    async def request_json(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        """Send one request and return the JSON of its reply.

        Args:
            method: "GET" or "POST".
            url: full URL; credentials in it are sent as an Authorization header.
            headers: keys and versions; a key in them is kept out of messages.
            body: sent as JSON unless None.

        Raises:
            LLMError: whatever went wrong, translated (see `llm.errors`); the message holds no key.
        """
        call = self._prepare(method, url, headers or {}, body)
        line = await self._line(call.address)
        reply = await self._fetch(line, call)
        return _judge(reply, call)

    def chunks(
        self, method: str, url: str, fold: Fold, *, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> AsyncGenerator[Chunk, None]:
        """Send one request and give what `fold` makes of its reply, and a `StreamEnd`; see `stream`."""
        return self.stream(method, url, headers=headers, body=body, fold=fold)

    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        fold: Fold | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Send one request and give the JSON values of its reply as they come; the arguments as above.

        Gives `llm.wire.lines.DONE` for `[DONE]`, and nothing after it. Closing the generator closes the
        connection at once. It is one generator on purpose: each one more costs every piece a hop.

        Raises:
            LLMError: whatever went wrong, an error inside the stream included; the message holds no key.
        """
        call = self._prepare(method, url, headers or {}, body)
        line = await self._line(call.address)
        import httpx  # noqa: PLC0415 - the line above has it loaded, in a thread

        answered = False
        reply: _Reply | None = None
        end: Sequence[StreamEnd] = ()
        try:
            async with aclosing(
                await line.open(call.method, call.address.url, call.headers, call.content)
            ) as response:
                answered = True
                if 200 <= response.status_code < 300:
                    pieces = _Pieces(response, call, self.config.max_reply_bytes, fold)
                    async with aclosing(pieces.source) as source:
                        async for data in source:
                            for piece in pieces.of(data):
                                yield piece
                            if pieces.over:
                                await pieces.settle()
                                break
                    for piece in pieces.rest():
                        yield piece
                    end = pieces.end()
                else:
                    reply = await _read(response, self.config.max_reply_bytes)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, BadReply) as error:
            fault = self._translated(error, call, answered=answered)
        else:
            if reply is None:
                for last in end:
                    yield last
                return
            fault = _refusal(reply, call).error()
        raise fault

    async def _fetch(self, line: Line, call: _Call) -> _Reply:
        """Send and read. Errors are raised after the `except`, without a cause: httpx's hold the request."""
        import httpx  # noqa: PLC0415 - a call has it loaded

        answered = False
        try:
            async with aclosing(
                await line.open(call.method, call.address.url, call.headers, call.content)
            ) as response:
                answered = True
                return await _read(response, self.config.max_reply_bytes)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, BadReply) as error:
            fault = self._translated(error, call, answered=answered)
        raise fault

    def _translated(self, error: Exception, call: _Call, *, answered: bool) -> LLMError:
        import httpx  # noqa: PLC0415 - a call has it loaded

        if isinstance(error, BadReply):
            return BadReply(f"{call.address.origin}: {error}")
        if isinstance(error, httpx.HTTPError):
            return _translate(error, call, self._way_out, answered=answered)
        # UnicodeError: a host name that DNS cannot spell
        return ConfigurationError(f"LLM_API_BASE is no usable address: {call.address.origin}")

    def _prepare(self, method: str, url: str, headers: Mapping[str, str], body: Any) -> _Call:
        address = parse_address(url)
        sent = dict(headers)
        if address.username or address.password:
            sent.setdefault("Authorization", address.basic_authorization or "")
        for value in sent.values():
            if value not in self._fine:
                self._check_header(value)
        content = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            content = encode(body)
        return _Call(method, address, sent, content, self.config.api_key)

    def _check_header(self, value: str) -> None:
        """Here and not in h11 or httpx, whose errors would show the value."""
        if not value.isascii() or not value.isprintable() or value.split() != value.split(" "):
            msg = (
                "LLM_API_KEY has a character that no HTTP header can carry (a line break? an accent?); "
                "copy it again"
            )
            raise ConfigurationError(msg)
        if len(self._fine) < _FEW:
            self._fine.add(value)

    async def _line(self, address: Address) -> Line:
        if self._closed:
            msg = "the connection to the model server is closed; get a new client"
            raise CallCancelled(msg)
        if self._clients is None or not self._clients.is_here:
            # Those of another loop are closed by that loop when it ends.
            self._clients = LoopClients(self.config.timeout)
        return await self._clients.line(address)

    async def aclose(self) -> None:
        """Refuse further requests and close the connections. Safe to call twice."""
        self._closed = True
        if self._clients is not None and self._clients.is_here:
            await self._clients.close()


@contextmanager
def reading_from(origin: str) -> Iterator[None]:
    """Name the server in whatever the wire finds wrong with its reply.

    Raises:
        BadReply: the one raised inside, its message led by `origin`.
    """
    try:
        yield
    except BadReply as error:
        msg = f"{origin}: {error}"
        raise BadReply(msg) from error


class Fold(Protocol):
    """Puts an answer together from the values of a stream; each wire has its own."""

    def feed(self, payload: Any, /) -> Sequence[Chunk]:
        """What one value says."""

    def finish(self) -> LLMResponse:
        """The whole answer; BadReply if the stream broke off before its end."""


@dataclass(frozen=True, slots=True, repr=False)
class _Call:
    """One request, ready to be sent; without a repr, because it holds the key."""

    method: str
    address: Address
    headers: Mapping[str, str]
    content: bytes | None
    key: str | None

    @property
    def secrets(self) -> frozenset[str]:
        """What no message may show; found out when one is written."""
        return frozenset({self.key or "", self.address.secret, *_secrets(self.headers)} - {""})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """One reply as it came; `body` is decompressed, and cut short if the status is an error."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def _secrets(headers: Mapping[str, str]) -> set[str]:
    """The values of headers that carry credentials, with and without their scheme."""
    found: set[str] = set()
    for name, value in headers.items():
        if name.lower() in {"authorization", "x-api-key"}:
            found |= {value, value.partition(" ")[2]}
    return found


def _translate(error: httpx.HTTPError, call: _Call, way_out: str, *, answered: bool) -> LLMError:
    import httpx  # noqa: PLC0415 - a call has it loaded

    origin = call.address.origin
    what = redact(str(error), call.secrets) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        return ConnectionFailed(f"no connection to {origin} in time; {way_out}")
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"{origin} did not answer in time")
    if answered:
        return BadReply(f"{origin} broke its reply off: {what}", broken=True)
    # One class of httpx for both; a server that hangs up in silence is known only by the text.
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        return BadReply(f"what answers at {origin} does not speak HTTP as a model server does: {what}")
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        return ConfigurationError(f"a request to {origin} cannot be made; check LLM_API_BASE")
    return ConnectionFailed(f"cannot reach {origin} ({what}); {way_out}")


async def _read(response: httpx.Response, cap: int) -> _Reply:
    headers, status = response.headers, response.status_code
    encoding = headers.get("content-encoding", "")
    if 200 <= status < 300:
        body = ReplyBody(encoding, cap)
        async for chunk in response.aiter_raw():
            body.add(chunk)
        return _Reply(status=status, headers=headers, body=body.finish())
    if 300 <= status < 400:
        return _Reply(status=status, headers=headers, body=b"")
    return _Reply(
        status=status, headers=headers, body=await _read_refusal(response.aiter_raw(), encoding, cap)
    )


async def _read_refusal(chunks: AsyncIterator[bytes], encoding: str, cap: int) -> bytes:
    """As much of an error's body as is whole and small: the status alone says enough."""
    import httpx  # noqa: PLC0415 - a call has it loaded

    body = None
    try:
        body = ReplyBody(encoding, min(cap, _ERROR_BYTES))
        async for chunk in chunks:
            body.add(chunk)
    except (httpx.HTTPError, BadReply):
        pass
    return b"" if body is None else body.so_far()


class _Pieces:
    """What a good reply says, piece by piece, out of its bytes as they come.

    Args:
        response: the reply; only its bytes are still to come.
        call: what was asked.
        cap: most bytes of it.
        fold: what makes pieces of its JSON values; without one, they are the pieces.

    Attributes:
        source: the bytes.
        over: whether nothing counts any more: `[DONE]` or an error has come.
    """

    def __init__(self, response: httpx.Response, call: _Call, cap: int, fold: Fold | None) -> None:
        headers = response.headers
        self._kind = headers.get("content-type", "")
        self._body = BodyBytes(headers.get("content-encoding", ""), cap)
        self._frames = framing(self._kind)
        self._call = call
        self._fold = fold
        self._read: Callable[[Any], Sequence[Any]] = _itself if fold is None else fold.feed
        self._fault: LLMError | None = None
        self.source = cast(
            "AsyncGenerator[bytes, None]", aiter(cast("AsyncIterable[bytes]", response.stream))
        )
        self.over = False

    def of(self, data: bytes) -> Sequence[Any]:
        """The pieces that are whole with these bytes. What goes wrong is raised after those before it.

        Raises:
            BadReply: the bytes are too many, broken, or no JSON.
        """
        try:
            values = self._frames.feed(self._body.take(data))
        except BadReply as error:
            raise self._of_no_use(error) from None
        return self._pieces(values)

    def rest(self) -> Sequence[Any]:
        """What is left at the end of the bytes; raises as `of` does."""
        if self.over:
            return ()
        try:
            self._body.end()
            values = self._frames.finish()
        except BadReply as error:
            raise self._of_no_use(error) from None
        return self._pieces(values)

    async def settle(self) -> None:
        """Read to the end of the bytes, so that the connection can be kept; not after an error."""
        if self._fault is None:
            await _linger(self.source)

    def end(self) -> Sequence[StreamEnd]:
        """The end of the stream, where pieces are folded.

        Raises:
            LLMError: the error that has come; BadReply if the stream broke off before its end.
        """
        if self._fault is not None:
            raise self._fault
        return () if self._fold is None else (StreamEnd(self._fold.finish()),)

    def _pieces(self, values: Sequence[Any]) -> Sequence[Any]:
        pieces: list[Any] = []
        for value in values:
            if type(value) is dict and value.get("error"):
                self._fault, self.over = _reported(value, self._call), True
                break
            pieces += self._read(value)
            if value is DONE:
                self.over = True
                break
        return pieces

    def _of_no_use(self, error: BadReply) -> BadReply:
        return BadReply(f"a stream of no use: {error}{_page_hint(self._kind)}")


def _itself(value: Any) -> tuple[Any]:
    return (value,)


async def _linger(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end of the body, so that the connection can be kept; all that was asked for is here."""
    import httpx  # noqa: PLC0415 - a call has it loaded

    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            async for _ in chunks:
                continue
    except (TimeoutError, httpx.HTTPError):
        return


def _refusal(reply: _Reply, call: _Call) -> Refusal:
    return Refusal(
        server=call.address.origin,
        status=reply.status,
        headers={name.lower(): value for name, value in reply.headers.items()},
        body=reply.body,
        secrets=call.secrets,
    )


def _judge(reply: _Reply, call: _Call) -> Any:
    """The JSON of a good reply; an error status, or an error inside a 200, is raised."""
    if not 200 <= reply.status < 300:
        raise _refusal(reply, call).error()
    try:
        payload = decode(reply.body)
    except BadReply as error:
        hint = _page_hint(reply.headers.get("content-type", ""), reply.body)
        fault = BadReply(f"{call.address.origin} gave a reply of no use: {error}{hint}")
    else:
        if isinstance(payload, dict) and payload.get("error"):
            raise replace(_refusal(reply, call), status=inner_status(payload)).error()
        return payload
    raise fault


def _reported(value: Mapping[str, Any], call: _Call) -> LLMError:
    """The error that a value of a stream reports."""
    status, body = inner_status(value), encode(value)
    return Refusal(server=call.address.origin, status=status, body=body, secrets=call.secrets).error()


def _page_hint(kind: str, body: bytes = b"") -> str:
    """A login page of a hotel network, or a web server that is no model server."""
    is_page = body.lstrip()[:1] == b"<" or "html" in kind
    return "; it is a web page: check LLM_API_BASE, or the network's login" if is_page else ""
