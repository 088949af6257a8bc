"""10,000 replies of each wire that no server should send: an answer, or an error of ours without a key.

Real replies are changed at random, the same way in every run. They come through httpx without a network, to
the backends' own `send` and `send_stream`, where nothing foreign has been made a ServerError yet.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

import httpx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from llm.backends.address import Address
from llm.backends.connections import Line
from llm.backends.http import HttpExchange
from llm.backends.ollama import OllamaBackend
from llm.backends.remote import RemoteBackend
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import LLMError
from llm.types import (
    FinishReason,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    StreamEnd,
    TextChunk,
    ThinkingChunk,
    Tool,
)
from tests.support.canary import CANARY, links, shown, shows_key
from tests.support.hostile import changed, programs
from tests.support.replay_server import body_of, recordings

pytestmark = [pytest.mark.usefixtures("untraced"), pytest.mark.timeout(600)]

EXAMPLES = 10_000
MOST_TOKENS = 2 * 10**9

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

TURN = LLMMessage("user", "What is the weather in Paris?")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PLAIN = LLMRequest(messages=(TURN,), model="m", temperature=0.0, max_tokens=64, top_p=0.9)
REQUESTS = (
    PLAIN,
    replace(PLAIN, schema=SCHEMA),
    replace(PLAIN, think=True),
    replace(PLAIN, tools=(Tool("get_weather", "The weather of a city.", SCHEMA),)),
    replace(PLAIN, stop=("\n",)),
)


SIZES = (1, 17, 300, 5000, 1_000_000)
"""Bytes that the network hands over at a time."""

MOST_PIECES = 200


class Pieces(httpx.AsyncByteStream):
    """A body as the network hands it over."""

    def __init__(self, body: bytes, size: int) -> None:
        self._body, self._size = body, size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = max(self._size, len(self._body) // MOST_PIECES)
        for position in range(0, len(self._body), size):
            yield self._body[position : position + size]


@dataclass
class Transport(httpx.AsyncBaseTransport):
    """Answers every request with the one reply at hand."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int = 64

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.status, headers=self.headers, stream=Pieces(self.body, self.size))


class Direct:
    """A line that leads to the transport and nowhere else."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def open(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        request = httpx.Request(method, url, headers=dict(headers), content=content)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        return


class WithoutNetwork(HttpExchange):
    """The exchange as it is, but for its connections."""

    def __init__(self, config: LLMConfig, transport: Transport) -> None:
        super().__init__(config)
        self._direct = Direct(transport)

    async def _line(self, address: Address) -> Line:
        return self._direct


class Bench:
    """One backend over and over, each time as new, with a reply that the test chooses."""

    def __init__(self, kind: Callable[[LLMConfig], LLMClient], base: str) -> None:
        self._kind = kind
        self._config = LLMConfig(
            backend="remote", model="m", api_base=base, api_key=CANARY, max_reply_bytes=256 * 1024
        )
        self.transport = Transport()
        self._exchange = WithoutNetwork(self._config, self.transport)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def send(self, request: LLMRequest) -> None:
        """Must answer, or fail as it should."""
        self._judged(self._client().send(request))

    def stream(self, request: LLMRequest) -> None:
        """The same in pieces."""
        self._judged(_collected(self._client(), request))

    def _client(self) -> LLMClient:
        made = self._kind(self._config)
        made._exchange = self._exchange  # type: ignore[attr-defined]  # both kinds have one
        return made

    def _judged(self, call: Any) -> None:
        note(f"{self.transport.status} {dict(self.transport.headers)} {self.transport.body[:2000]!r}")
        fault: LLMError | None = None
        try:
            check(self._runner.run(call))
        except LLMError as error:
            fault = error
        assert fault is None or not shows_key(shown(fault))
        assert fault is None or not any(type(link).__module__.startswith("httpx") for link in links(fault))


async def _collected(client: LLMClient, request: LLMRequest) -> LLMResponse:
    """The end of a stream, whose pieces must be texts, and make up its text."""
    texts: list[str] = []
    async with aclosing(client.send_stream(request)) as chunks:
        async for chunk in chunks:
            assert isinstance(chunk, TextChunk | ThinkingChunk | StreamEnd)
            if isinstance(chunk, StreamEnd):
                break
            if isinstance(chunk, TextChunk):
                texts.append(chunk.text)
    assert isinstance(chunk, StreamEnd)
    if request.schema is None:  # a fence round JSON is taken off in the end
        assert "".join(texts) == chunk.response.content
    return chunk.response


def check(response: LLMResponse) -> None:
    """What every answer is, wherever it came from."""
    for text in (response.content, response.thinking, response.model):
        assert type(text) is str
        assert "\x00" not in text
        text.encode("utf-8")
    counts = (response.prompt_tokens, response.completion_tokens, response.cached_tokens)
    for count in (*counts, response.thinking_tokens):
        assert type(count) is int
        assert 0 <= count <= 3 * MOST_TOKENS
    assert response.finish_reason in get_args(FinishReason)
    for call in response.tool_calls:
        assert type(call.id) is str
        assert type(call.name) is str
        json.dumps(dict(call.arguments)).encode("utf-8")


# What is changed: every recorded reply of a wire, and those that no recording shows.

CALLS_NATIVE = [{"function": {"name": "get_weather", "arguments": {"city": "París"}}}]
CALLS = [
    {
        "id": "c1",
        "index": 0,
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "P"}'},
    }
]
OLLAMA_MORE = [
    {"model": "m", "message": {"role": "assistant", "content": "", "tool_calls": CALLS_NATIVE}, "done": True},
    {
        "message": {"content": "no", "thinking": "hm"},
        "done": True,
        "done_reason": "length",
        "prompt_eval_count": 7,
        "eval_count": 9,
    },
]
OPENAI_MORE = [
    {
        "choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "content_filter"}],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    },
    {
        "choices": [
            {"message": {"content": [{"type": "text", "text": "é"}], "reasoning_content": "hm"}, "index": 0}
        ]
    },
    {
        "choices": [
            {"delta": {"tool_calls": CALLS, "content": "", "reasoning": "hm"}, "finish_reason": "stop"}
        ]
    },
]
ANTHROPIC_MORE = [
    {
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "P"}},
            {"type": "text", "text": "é"},
        ],
        "stop_reason": "tool_use",
        "usage": {
            "input_tokens": 3,
            "cache_read_input_tokens": 2,
            "cache_creation_input_tokens": 1,
            "output_tokens": 5,
            "output_tokens_details": {"thinking_tokens": 1},
        },
    }
]
ANTHROPIC_TOOL_EVENTS = [
    {"type": "message_start", "message": {"model": "m", "content": [], "usage": {"input_tokens": 3}}},
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "tool_use", "id": "t", "name": "get_weather", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "input_json_delta", "partial_json": '{"city"'},
    },
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "input_json_delta", "partial_json": ':"P"}'},
    },
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "signature_delta", "signature": "x"}},
    {"type": "ping"},
    {"type": "error", "error": {"type": "overloaded_error", "message": f"Bearer {CANARY}"}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]


def recorded(path: str, *, chunked: bool) -> list[str]:
    """The bodies of every recorded reply of one path: of streams, or of all others."""
    found = [e for e in recordings().values() if e["request"]["path"] == path]
    streams = ("application/x-ndjson", "text/event-stream")
    return [
        body_of(e).decode()
        for e in found
        if e["response"]["headers"].get("Content-Type", "").startswith(streams) == chunked
    ]


def bodies(path: str, more: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One JSON text each."""
    return [[text] for text in recorded(path, chunked=False)] + [[json.dumps(each)] for each in more]


def lines(path: str, more: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The JSON texts of one stream each."""
    found = [text.splitlines() for text in recorded(path, chunked=True)]
    return [[line for line in stream if line] for stream in found] + [[json.dumps(each) for each in more]]


def events(path: str, *more: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The same of server-sent events."""
    found = [text.splitlines() for text in recorded(path, chunked=True)]
    marked = [
        [line.removeprefix("data: ") for line in stream if line.startswith("data: ")] for stream in found
    ]
    return [*marked, *([json.dumps(each) for each in stream] for stream in more)]


def one_body(texts: Sequence[str]) -> bytes:
    return "".join(texts).encode("utf-8", errors="surrogatepass")


def json_lines(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode("utf-8", errors="surrogatepass")


def event_stream(texts: Sequence[str]) -> bytes:
    return "".join(f"data: {text}\n\n" for text in texts).encode("utf-8", errors="surrogatepass")


@dataclass(frozen=True)
class Wire:
    """One format of replies.

    Attributes:
        kind: the backend that reads it.
        base: the address that makes the backend speak it.
        content_type: what the server says it sends.
        seeds: replies as the JSON texts that they are made of.
        frame: puts those together.
        streams: whether it is asked for as a stream.
    """

    kind: Callable[[LLMConfig], LLMClient]
    base: str
    content_type: str
    seeds: Sequence[Sequence[str]]
    frame: Callable[[Sequence[str]], bytes]
    streams: bool


JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
OPENAI, ANTHROPIC = "https://api.test/v1", "https://api.test/anthropic"
NATIVE, CHAT, MESSAGES = "/api/chat", "/v1/chat/completions", "/v1/messages"

WIRES = {
    "ollama-body": Wire(OllamaBackend, OPENAI, JSON, bodies(NATIVE, OLLAMA_MORE), one_body, streams=False),
    "ollama-stream": Wire(
        OllamaBackend, OPENAI, NDJSON, lines(NATIVE, OLLAMA_MORE), json_lines, streams=True
    ),
    "openai-body": Wire(RemoteBackend, OPENAI, JSON, bodies(CHAT, OPENAI_MORE), one_body, streams=False),
    "openai-stream": Wire(RemoteBackend, OPENAI, SSE, events(CHAT, OPENAI_MORE), event_stream, streams=True),
    "anthropic-body": Wire(
        RemoteBackend, ANTHROPIC, JSON, bodies(MESSAGES, ANTHROPIC_MORE), one_body, streams=False
    ),
    "anthropic-stream": Wire(
        RemoteBackend, ANTHROPIC, SSE, events(MESSAGES, ANTHROPIC_TOOL_EVENTS), event_stream, streams=True
    ),
}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that is logged, which must not show the key."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request says nothing of ours
    yield caplog
    assert not shows_key(caplog.text)


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
def test_a_damaged_reply_is_an_answer_or_an_error_and_shows_no_key(
    wire: Wire, logged: pytest.LogCaptureFixture
) -> None:
    bench = Bench(wire.kind, wire.base)
    call = bench.stream if wire.streams else bench.send
    bench.transport.headers = {"Content-Type": wire.content_type}

    @fuzz
    @given(
        seed=st.sampled_from(wire.seeds),
        program=programs,
        size=st.sampled_from(SIZES),
        request=st.sampled_from(REQUESTS),
    )
    def attempt(seed: Sequence[str], program: bytes, size: int, request: LLMRequest) -> None:
        bench.transport.body = changed(seed, program, wire.frame)
        bench.transport.size = size
        call(request)

    with bench:
        attempt()


# Refusals: any status with any headers, and a body that echoes the key.

HEADERS = (
    *({"retry-after": text} for text in ("86400", "-1", "1e999", "nan", "soon", "9" * 400, CANARY)),
    {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Fri, 99 Foo"},
    {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:27:00 GMT"},
    {"retry-after-ms": "1e999", "retry-after": "7", "x-should-retry": "false"},
    {"retry-after-ms": "-0", "content-type": "text/html"},
    {"content-encoding": "gzip"},
    {"content-encoding": "br", "content-type": NDJSON},
    {"location": f"//user:{CANARY}@host/"},
    {"location": f"https://{CANARY}.test/", "content-type": SSE},
    {},
)
REFUSALS = (
    [json.dumps({"error": {"message": f"refused: Bearer {CANARY}", "type": "billing_error", "code": 429}})],
    [json.dumps({"error": f'{{"error":{{"code":400,"message":"{CANARY}"}}}}'})],
    [json.dumps({"detail": [{"loc": ["body"], "msg": CANARY}]})],
    [f"<html>{CANARY}</html>"],
    *([body_of(e).decode()] for e in recordings().values() if e["response"]["status"] >= 400),
)


def test_a_damaged_refusal_is_an_error_and_shows_no_key(logged: pytest.LogCaptureFixture) -> None:
    with Bench(OllamaBackend, OPENAI) as native, Bench(RemoteBackend, ANTHROPIC) as remote:
        calls = (
            (native, native.send),
            (native, native.stream),
            (remote, remote.send),
            (remote, remote.stream),
        )

        @fuzz
        @given(
            call=st.sampled_from(calls),
            status=st.integers(200, 599),
            headers=st.sampled_from(HEADERS),
            seed=st.sampled_from(REFUSALS),
            program=programs,
        )
        def attempt(
            call: tuple[Bench, Callable[[LLMRequest], None]],
            status: int,
            headers: dict[str, str],
            seed: Sequence[str],
            program: bytes,
        ) -> None:
            bench, ask = call
            bench.transport.status, bench.transport.headers = status, headers
            bench.transport.body = changed(seed, program, one_body)
            ask(PLAIN)

        attempt()
