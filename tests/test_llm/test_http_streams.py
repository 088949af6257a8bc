"""Streams over HTTP: cut anywhere, bounded, translated, and let go of at once."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from llm import errors
from llm.backends.http import HttpExchange
from llm.backends.ollama import OllamaBackend
from llm.backends.remote import RemoteBackend
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.types import StreamEnd, TextChunk
from llm.wire.lines import DONE
from tests.support.chaos_server import CANARY, ChaosServer
from tests.support.loopback import LoopbackServer, SeenRequest, http_message
from tests.support.replay_server import ReplayServer, canned

CAP = 64 * 1024
SSE = {"Content-Type": "text/event-stream"}
NDJSON = {"Content-Type": "application/x-ndjson"}
FRUITS = "1. Bananas\n2. Oranges\n3. Grapes"
CHAT = "/v1/chat/completions"


def config(base: str, **changes: Any) -> LLMConfig:
    values = {"api_base": base, "api_key": CANARY, "model": "m", "timeout": 5.0, "max_reply_bytes": CAP}
    return LLMConfig(**{**values, **changes})


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not happened():  # noqa: ASYNC110 - looks at a server that has no event to wait for
            await asyncio.sleep(0.01)


class StreamServer(LoopbackServer):
    """Sends its parts one HTTP chunk each; with `hold` it then waits for ever, and counts who hung up."""

    def __init__(self, *parts: bytes, headers: dict[str, str] | None = None, hold: bool = False) -> None:
        super().__init__(keep_alive=True)
        self._parts, self._headers, self._hold = parts, headers or SSE, hold
        self.hung_up = 0

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in self._headers.items())
        writer.write(f"HTTP/1.1 200 OK\r\n{lines}Transfer-Encoding: chunked\r\n\r\n".encode())
        for part in self._parts:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        if not self._hold:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return
        try:
            while True:
                writer.write(b"3\r\n:\n\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            self.hung_up += 1
            raise


async def values(exchange: HttpExchange, url: str) -> list[Any]:
    async with aclosing(exchange.stream("POST", url, body={})) as stream:
        return [value async for value in stream]


async def test_values_come_however_the_network_cuts_them_and_the_connection_is_kept() -> None:
    data = 'data: {"a":"🍅"}\n\n: ping\n\ndata: {"a":"é"}\n\ndata: [DONE]\n\n'.encode()
    async with StreamServer(*(data[i : i + 1] for i in range(len(data)))) as server:
        exchange = HttpExchange(config(server.url))
        for _ in range(2):
            assert await values(exchange, server.url) == [{"a": "🍅"}, {"a": "é"}, DONE]
        assert server.connections == 1
        await exchange.aclose()


async def test_nothing_after_done_counts_and_a_server_that_does_not_hang_up_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm.backends.http._LINGER_SECONDS", 0.05)
    async with StreamServer(b'data: 1\n\ndata: [DONE]\n\ndata: {"error":"x"}\n\n', hold=True) as server:
        exchange = HttpExchange(config(server.url))
        assert await values(exchange, server.url) == [1, DONE]
        await until(lambda: server.hung_up == 1)
        await exchange.aclose()


async def test_a_compressed_stream_is_read_although_none_was_asked_for() -> None:
    packed = gzip.compress(b'{"a":1}\n{"a":2}\n')
    async with StreamServer(packed[:9], packed[9:], headers=NDJSON | {"Content-Encoding": "gzip"}) as server:
        exchange = HttpExchange(config(server.url))
        assert await values(exchange, server.url) == [{"a": 1}, {"a": 2}]
        await exchange.aclose()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_stream_beyond_the_cap_is_cut_off(encoding: str) -> None:
    data = b'data: {"a":"x"}\n\n' * (CAP // 8)
    part = gzip.compress(data) if encoding == "gzip" else data
    async with StreamServer(part, headers=SSE | {"Content-Encoding": encoding}) as server:
        exchange = HttpExchange(config(server.url))
        with pytest.raises(errors.BadReply, match="LLM_MAX_REPLY_BYTES"):
            await values(exchange, server.url)
        await exchange.aclose()


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (b'data: {"error":{"message":"slow","type":"rate_limit_error"}}\n\n', errors.RateLimited),
        (b'data: {"error":{"message":"slow","code":429}}\n\n', errors.RateLimited),
        (b'data: {"error":{"message":"no","type":"invalid_request_error"}}\n\n', errors.BadRequest),
        (b'event: error\ndata: {"error":{"type":"overloaded_error"}}\n\n', errors.ServerError),
        (b'event: error\ndata: {"message":"no"}\n\n', errors.ServerError),
        (b'data: {"error":"engine died"}\n\n', errors.ServerError),
        (b'data: {"a"\n\n', errors.BadReply),
        (b'data: {"a"', errors.BadReply),
    ],
)
async def test_what_goes_wrong_in_mid_stream_is_a_typed_error_after_what_came_before(
    part: bytes, expected: type[errors.LLMError]
) -> None:
    async with StreamServer(b'data: {"a":1}\n\n', part) as server:
        exchange = HttpExchange(config(server.url))
        stream = exchange.stream("POST", server.url, body={})
        assert await anext(stream) == {"a": 1}
        with pytest.raises(expected) as caught:
            await anext(stream)
        assert type(caught.value) is expected
        assert server.url in str(caught.value)
        await exchange.aclose()


async def test_an_error_in_mid_stream_shows_no_key() -> None:
    said = json.dumps({"error": f"refused: Bearer {CANARY}"}).encode()
    async with StreamServer(b"data: " + said + b"\n\n") as server:
        exchange = HttpExchange(config(server.url))
        with pytest.raises(errors.ServerError) as caught:
            async for _ in exchange.stream(
                "POST", server.url, headers={"Authorization": f"Bearer {CANARY}"}, body={}
            ):
                pass
        assert CANARY[:8] not in str(caught.value)
        await exchange.aclose()


class BreakingServer(LoopbackServer):
    """Promises more than it sends."""

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(http_message(200, b'data: {"a":1}\n\n', SSE, length=500))
        await writer.drain()


async def test_a_connection_that_breaks_in_mid_stream_is_a_bad_reply() -> None:
    async with BreakingServer() as server:
        exchange = HttpExchange(config(server.url))
        with pytest.raises(errors.BadReply, match="broke its reply off"):
            await values(exchange, server.url)
        await exchange.aclose()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, errors.BadRequest), (401, errors.AuthenticationFailed), (500, errors.ServerError)],
)
async def test_an_error_status_of_a_stream_is_what_it_is_without_one(
    status: int, expected: type[errors.LLMError]
) -> None:
    async with ReplayServer(canned("POST", "/", status, {"error": "no"})) as server:
        exchange = HttpExchange(config(server.url))
        with pytest.raises(expected, match="no"):
            await values(exchange, f"{server.url}/")
        await exchange.aclose()


async def test_a_login_page_instead_of_a_stream_says_so() -> None:
    page = canned("POST", "/", 200, "<html>log in</html>", {"Content-Type": "text/html"})
    async with ReplayServer(page) as server:
        exchange = HttpExchange(config(server.url))
        with pytest.raises(errors.BadReply, match="web page"):
            await values(exchange, f"{server.url}/")
        await exchange.aclose()


async def test_closing_a_stream_hangs_up_at_once_and_its_connection_is_not_used_again() -> None:
    async with StreamServer(b'data: {"a":1}\n\n', hold=True) as server:
        exchange = HttpExchange(config(server.url))
        for _ in range(2):
            stream = exchange.stream("POST", server.url, body={})
            assert await anext(stream) == {"a": 1}
            await stream.aclose()
        await until(lambda: server.hung_up == 2)
        assert server.connections == 2
        await exchange.aclose()


async def test_a_stream_cancelled_while_it_waits_hangs_up() -> None:
    async with StreamServer(b'data: {"a":1}\n\n', hold=True) as server:
        exchange = HttpExchange(config(server.url))
        task = asyncio.create_task(values(exchange, server.url))
        await until(lambda: bool(server.seen))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.hung_up == 1)
        await exchange.aclose()


async def test_memory_stays_within_a_few_caps_while_a_stream_goes_on() -> None:
    line = b'data: {"a":"' + b"x" * 1000 + b'"}\n\n'
    async with StreamServer(*[line] * 2000) as server:
        exchange = HttpExchange(config(server.url, max_reply_bytes=16 * 1024 * 1024))
        await values(exchange, server.url)
        tracemalloc.start()
        try:
            async with aclosing(exchange.stream("POST", server.url, body={})) as stream:
                async for _ in stream:
                    pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1024 * 1024
        await exchange.aclose()


# The three wires, end to end.


@pytest.mark.parametrize(
    ("backend", "name", "mount", "path"),
    [
        (OllamaBackend, "chat_stream", "", ""),
        (RemoteBackend, "v1_chat_stream_usage", "", "/v1"),
        (RemoteBackend, "anthropic_messages_stream", "/anthropic", ""),
    ],
)
async def test_a_client_streams_a_recorded_answer(
    backend: type[LLMClient], name: str, mount: str, path: str
) -> None:
    async with (
        ReplayServer(name, mount=mount) as server,
        backend(config(server.url + path)) as client,
        client.stream("Name three fruits.", stop=["\n4"]) as stream,
    ):
        chunks = [chunk async for chunk in stream]
        body = server.seen[0].body
    assert body["stream"] is True
    *pieces, end = chunks
    assert isinstance(end, StreamEnd)
    assert end.response == stream.response
    assert "".join(chunk.text for chunk in pieces if isinstance(chunk, TextChunk)) == end.response.content
    assert FRUITS.startswith(end.response.content)
    assert end.response.prompt_tokens == 13
    assert end.response.first_token is not None


@pytest.mark.parametrize(
    ("backend", "name", "path", "expected", "part"),
    [
        (OllamaBackend, "chat_runner_killed_midstream", "", errors.ServerError, "unexpected EOF"),
        (RemoteBackend, "v1_chat_runner_killed_midstream", "/v1", errors.BadReply, "broke off"),
        (RemoteBackend, "anthropic_runner_killed_midstream", "/anthropic", errors.BadReply, "broke off"),
        (OllamaBackend, "chat_unknown_model_nostream", "", errors.ModelNotFound, "ollama pull"),
        (OllamaBackend, "chat_prompt_over_num_ctx_truncate_false_stream", "", errors.BadRequest, "CONTEXT"),
        (RemoteBackend, "v1_chat_queue_full_503", "/v1", errors.ServerError, "server busy"),
    ],
)
async def test_a_stream_that_fails_is_a_typed_error_and_never_a_short_answer(
    backend: type[LLMClient], name: str, path: str, expected: type[errors.LLMError], part: str
) -> None:
    async with ReplayServer() as server, backend(config(server.url + path)) as client:
        server.play(name)
        with pytest.raises(expected, match=part) as caught:
            await client.stream("Hi").collect()
        assert type(caught.value) is expected


async def test_closing_a_clients_stream_hangs_up() -> None:
    line = b'{"message":{"content":"a"},"done":false}\n'
    async with (
        StreamServer(line, headers=NDJSON, hold=True) as server,
        OllamaBackend(config(server.url)) as client,
    ):
        async with client.stream("Hi") as stream:
            assert await anext(stream) == TextChunk("a")
        await until(lambda: server.hung_up == 1)


async def test_a_parameter_that_the_model_refuses_is_left_out_of_streams_too() -> None:
    said = {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}}
    async with (
        ReplayServer("v1_chat_stream_usage") as server,
        RemoteBackend(config(f"{server.url}/v1")) as client,
    ):
        server.play(canned("POST", CHAT, 400, said))
        for _ in range(2):
            assert (await client.stream("Hi", max_tokens=9).collect()).content == FRUITS
        limits = [set(seen.body) & {"max_tokens", "max_completion_tokens"} for seen in server.seen]
    assert limits == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]


async def test_a_server_that_knows_no_stream_options_is_asked_without() -> None:
    said = {"error": {"message": "Extra inputs are not permitted: stream_options"}}
    async with (
        ReplayServer("v1_chat_stream_usage") as server,
        RemoteBackend(config(f"{server.url}/v1")) as client,
    ):
        server.play(canned("POST", CHAT, 400, said))
        await client.stream("Hi").collect()
        assert ["stream_options" in seen.body for seen in server.seen] == [True, False]


@pytest.mark.parametrize("behaviour", ["silent", "slow_loris", "endless"])
async def test_a_stream_that_never_ends_is_cut(behaviour: str) -> None:
    async with (
        ChaosServer() as server,
        OllamaBackend(config(f"{server.url}/{behaviour}", timeout=0.5)) as client,
    ):
        with pytest.raises(errors.DeadlineExceeded if behaviour != "endless" else errors.BadReply):
            await client.stream("Hi").collect()


def test_a_stream_is_an_async_generator() -> None:
    stream = HttpExchange(config("http://127.0.0.1:9")).stream("POST", "http://127.0.0.1:9/")
    assert isinstance(stream, AsyncGenerator)


async def test_what_came_before_an_error_in_the_same_bytes_is_given_first() -> None:
    for broken, expected in (
        (b'data: {"error":"died"}\n\n', errors.ServerError),
        (b"data: {\n\n", errors.BadReply),
        (b'data: {"error":"died"}', errors.ServerError),
    ):
        async with StreamServer(b'data: {"a":1}\n\n' + broken) as server:
            exchange = HttpExchange(config(server.url))
            stream = exchange.stream("POST", server.url, body={})
            assert await anext(stream) == {"a": 1}
            with pytest.raises(expected):
                await anext(stream)
            await exchange.aclose()
