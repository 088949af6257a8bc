"""JSON over HTTP, whole or as a stream: bounded in bytes, its errors translated; nothing of httpx leaves it.

The total time is bounded by `LLMClient`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from llm.backends.address import Address, parse_address
from llm.backends.connections import LoopClients
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
        client = await self._client(call.address)
        reply = await self._fetch(client, call)
        return _judge(reply, call)

    async def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> AsyncGenerator[Any, None]:
        """Send one request and give the JSON values of its reply as they come; the arguments as above.

        Gives `llm.wire.lines.DONE` for `[DONE]`, and nothing after it. Closing the generator closes the
        connection at once.

        Raises:
            LLMError: whatever went wrong, an error inside the stream included; the message holds no key.
        """
        call = self._prepare(method, url, headers or {}, body)
        client = await self._client(call.address)
        import httpx  # noqa: PLC0415 - the line above has it loaded, in a thread

        answered = False
        try:
            async with client.stream(
                call.method, call.address.url, headers=call.headers, content=call.content
            ) as response:
                answered = True
                if 200 <= response.status_code < 300:
                    async with aclosing(_values(response, call, self.config.max_reply_bytes)) as values:
                        async for value in values:
                            yield value
                    return
                reply = await _read(response, self.config.max_reply_bytes)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, BadReply) as error:
            fault = self._translated(error, call, answered=answered)
        else:
            fault = _refusal(reply, call).error()
        raise fault

    async def _fetch(self, client: httpx.AsyncClient, call: _Call) -> _Reply:
        """Send and read. Errors are raised after the `except`, without a cause: httpx's hold the request."""
        import httpx  # noqa: PLC0415 - a call has it loaded

        answered = False
        try:
            async with client.stream(
                call.method, call.address.url, headers=call.headers, content=call.content
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
        basic = address.basic_authorization
        if basic is not None:
            sent.setdefault("Authorization", basic)
        secrets = {self.config.api_key or "", address.secret, *_secrets(sent)}
        _check_headers(sent)
        content = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            content = encode(body)
        return _Call(method, address, sent, content, frozenset(secrets - {""}))

    async def _client(self, address: Address) -> httpx.AsyncClient:
        if self._closed:
            msg = "the connection to the model server is closed; get a new client"
            raise CallCancelled(msg)
        if self._clients is None or not self._clients.is_here:
            # Those of another loop are closed by that loop when it ends.
            self._clients = LoopClients(self.config.timeout)
        return await self._clients.get(address)

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


async def folded(values: AsyncGenerator[Any, None], fold: Fold, origin: str) -> AsyncGenerator[Chunk, None]:
    """The chunks of a stream of JSON values, and its end; what `fold` finds wrong is led by `origin`.

    Raises:
        LLMError: what `values` and `fold` raise.
    """
    async with aclosing(values):
        async for value in values:
            try:
                chunks = fold.feed(value)
            except BadReply as error:
                msg = f"{origin}: {error}"
                raise BadReply(msg) from error
            for chunk in chunks:
                yield chunk
    with reading_from(origin):
        response = fold.finish()
    yield StreamEnd(response)


@dataclass(frozen=True, slots=True, repr=False)
class _Call:
    """One request, ready to be sent; without a repr, because it holds the key."""

    method: str
    address: Address
    headers: Mapping[str, str]
    content: bytes | None
    secrets: frozenset[str]


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


def _check_headers(headers: Mapping[str, str]) -> None:
    """Here and not in h11 or httpx, whose errors would show the value."""
    if all(v.isascii() and v.isprintable() and v.split() == v.split(" ") for v in headers.values()):
        return
    msg = (
        "LLM_API_KEY has a character that no HTTP header can carry (a line break? an accent?); copy it again"
    )
    raise ConfigurationError(msg)


def _translate(error: httpx.HTTPError, call: _Call, way_out: str, *, answered: bool) -> LLMError:
    import httpx  # noqa: PLC0415 - a call has it loaded

    origin = call.address.origin
    what = redact(str(error), call.secrets) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        return ConnectionFailed(f"no connection to {origin} in time; {way_out}")
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"{origin} did not answer in time")
    if answered:
        return BadReply(f"{origin} broke its reply off: {what}")
    # One class of httpx for both; a server that hangs up in silence is known only by the text.
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        return BadReply(f"what answers at {origin} does not speak HTTP as a model server does: {what}")
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        return ConfigurationError(f"a request to {origin} cannot be made; check LLM_API_BASE")
    return ConnectionFailed(f"cannot reach {origin} ({what}); {way_out}")


async def _read(response: httpx.Response, cap: int) -> _Reply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    status = response.status_code
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


async def _values(response: httpx.Response, call: _Call, cap: int) -> AsyncGenerator[Any, None]:
    """The JSON values of a good reply; an error among them is raised.

    Raises:
        BadReply: too large, broken, or no JSON.
        LLMError: the error that the server reports in the stream.
    """
    headers = response.headers
    kind = headers.get("content-type", "")
    body, frames = BodyBytes(headers.get("content-encoding", ""), cap), framing(kind)
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as chunks:
        try:
            async for chunk in chunks:
                for value in frames.feed(body.take(chunk)):
                    yield value if type(value) is not dict else _sound(value, call)
                    if value is DONE:
                        await _linger(chunks)
                        return
            body.end()
            for value in frames.finish():
                yield value if type(value) is not dict else _sound(value, call)
        except BadReply as error:
            fault = BadReply(f"a stream of no use: {error}{_page_hint(kind)}")
        else:
            return
    raise fault


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
        headers=reply.headers,
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


def _sound(value: dict[str, Any], call: _Call) -> dict[str, Any]:
    """A value of a stream, if it is no error."""
    if not value.get("error"):
        return value
    status = inner_status(value)
    body = encode(value)
    raise Refusal(server=call.address.origin, status=status, body=body, secrets=call.secrets).error()


def _page_hint(kind: str, body: bytes = b"") -> str:
    """A login page of a hotel network, or a web server that is no model server."""
    is_page = body.lstrip()[:1] == b"<" or "html" in kind
    return "; it is a web page: check LLM_API_BASE, or the network's login" if is_page else ""
