"""The HTTP exchange: bounded, translated, and silent about keys, whatever the server does."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from llm import errors
from llm.backends.http import HttpExchange
from llm.backends.ollama import OllamaBackend
from llm.backends.remote import RemoteBackend
from llm.client import LLMClient
from llm.config import LLMConfig
from tests.support.canary import CANARY, shown_with_traceback, shows_key
from tests.support.chaos_server import ChaosServer
from tests.support.loopback import LoopbackServer, SeenRequest, http_message
from tests.support.replay_server import ReplayServer, canned

DEADLINE = 1.0
MARGIN = 5.0
"""Generous: other work may share the machine. What is tested is that a call ends."""

CAP = 256 * 1024

BACKENDS: list[type[LLMClient]] = [OllamaBackend, RemoteBackend]


def config(base: str, **changes: Any) -> LLMConfig:
    values = {"api_base": base, "api_key": CANARY, "model": "m", "timeout": DEADLINE, "max_reply_bytes": CAP}
    return LLMConfig(**{**values, **changes})


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(MARGIN):
        while not happened():  # noqa: ASYNC110 - looks at a server that has no event to wait for
            await asyncio.sleep(0.01)


async def failure(backend: type[LLMClient], base: str) -> errors.LLMError:
    async with backend(config(base)) as client:
        started = time.monotonic()
        with pytest.raises(errors.LLMError) as caught:
            await client.generate("Hi")
        assert time.monotonic() - started < DEADLINE + MARGIN
    return caught.value


async def test_what_a_rate_limit_asks_for_is_handed_on_and_not_slept() -> None:
    async with ChaosServer() as server:
        error = await failure(RemoteBackend, f"{server.url}/status_429")
    assert isinstance(error, errors.RateLimited)
    assert error.retry_after == 86400.0


async def test_nobody_listening_is_a_failed_connection_that_names_the_address_and_the_way_out() -> None:
    async with LoopbackServer() as gone:
        base = gone.url
    error = await failure(OllamaBackend, base)
    assert type(error) is errors.ConnectionFailed
    assert base in str(error)
    assert "ollama serve" in str(error)


async def test_an_unknown_host_is_a_failed_connection() -> None:
    error = await failure(RemoteBackend, "https://no-such-host.invalid/v1")
    assert type(error) in {errors.ConnectionFailed, errors.DeadlineExceeded}
    assert type(error) is errors.DeadlineExceeded or "https://no-such-host.invalid" in str(error)


async def test_a_host_name_that_dns_cannot_spell_is_a_wrong_setting() -> None:
    error = await failure(RemoteBackend, f"https://{'a' * 70}.example/v1")
    assert type(error) in {errors.ConfigurationError, errors.ConnectionFailed}


async def test_a_server_without_tls_behind_https_is_a_failed_connection() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await failure(RemoteBackend, f"https://127.0.0.1:{port}/v1")
    assert type(error) is errors.ConnectionFailed


async def test_a_tls_handshake_that_never_ends_is_a_failed_connection_that_leaks_no_socket() -> None:
    async with ChaosServer() as server:  # it waits for the end of HTTP headers, which TLS has none of
        error = await failure(RemoteBackend, server.url.replace("http:", "https:") + "/good")
        assert type(error) is errors.ConnectionFailed
        gc.collect()  # a socket left open would be a warning here, and warnings are errors


@pytest.mark.parametrize(
    "key", ["sk-one\nX-Evil: 1", "sk-clé-0123456789", "sk two\r", "sk-\x00-0123456789", " sk-padded"]
)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_key_that_no_header_can_carry_is_named_without_being_shown(
    key: str, backend: type[LLMClient]
) -> None:
    async with backend(config("https://127.0.0.1:9/v1", api_key=key)) as client:
        with pytest.raises(errors.ConfigurationError, match="LLM_API_KEY") as caught:
            await client.generate("Hi")
    shown = shown_with_traceback(caught.value)
    assert key not in shown
    assert repr(key)[1:-1] not in shown


async def test_credentials_in_the_address_are_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = {
        "error": {
            "message": f"user bob with {CANARY} or Basic Ym9iOnNrLWNhbmFyeS0wMTIzNDU2Nzg5YWJjZGVmZ2hpag=="
        }
    }
    async with ReplayServer(canned("POST", "/v1/chat/completions", 401, echo)) as server:
        base = server.url.replace("http://", f"http://bob:{CANARY}@") + "/v1"
        async with RemoteBackend(config(base, api_key=None)) as client:
            with pytest.raises(errors.AuthenticationFailed) as caught:
                await client.generate("Hi")
        assert server.seen[0].headers["authorization"].startswith("Basic ")
    shown = shown_with_traceback(caught.value) + caplog.text
    assert not shows_key(shown)
    assert "Ym9iOnNr" not in shown


async def test_what_every_request_says_of_itself() -> None:
    async with (
        ReplayServer("v1_chat_natural_stop") as server,
        RemoteBackend(config(f"{server.url}/v1")) as client,
    ):
        await client.generate("Grüße, 🍅")
        headers = server.seen[0].headers
        assert server.seen[0].body["messages"][0]["content"] == "Grüße, 🍅"
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"] == "askfirst"
    assert headers["content-type"] == "application/json"
    assert "cookie" not in headers


async def test_a_compressed_reply_is_read_although_none_was_asked_for() -> None:
    class Compressing(LoopbackServer):
        async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
            import gzip

            writer.write(http_message(200, gzip.compress(b'{"a": 1}'), {"Content-Encoding": "gzip"}))
            await writer.drain()

    async with Compressing() as server:
        exchange = HttpExchange(config(server.url))
        assert await exchange.request_json("GET", server.url) == {"a": 1}
        await exchange.aclose()


async def test_an_error_status_counts_although_its_body_is_broken() -> None:
    class Breaking(LoopbackServer):
        async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
            headers = {"Content-Encoding": "gzip"} if request.path == "/gzip" else {}
            writer.write(http_message(401, b"{half a", headers, length=500))
            await writer.drain()

    async with Breaking() as server:
        exchange = HttpExchange(config(server.url))
        for path in ("/plain", "/gzip"):
            with pytest.raises(errors.AuthenticationFailed):
                await exchange.request_json("GET", server.url + path)
        await exchange.aclose()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "slow down", "code": 429}, errors.RateLimited),
        ({"message": "upstream", "code": 502}, errors.ServerError),
        ({"message": "bad", "code": "invalid"}, errors.ServerError),
        ("an error was encountered while running the model", errors.ServerError),
    ],
)
async def test_an_error_inside_a_200_counts_by_the_status_it_names(
    error: Any, expected: type[errors.LLMError]
) -> None:
    async with ReplayServer(canned("GET", "/", 200, {"error": error})) as server:
        exchange = HttpExchange(config(server.url))
        with pytest.raises(expected):
            await exchange.request_json("GET", f"{server.url}/")
        await exchange.aclose()


class KeepingServer(LoopbackServer):
    """Keeps its connections, and tries to plant a cookie."""

    def __init__(self, *, drops: bool = False) -> None:
        super().__init__(keep_alive=not drops)

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        headers = {"Connection": "keep-alive", "Set-Cookie": "track=1"}
        writer.write(http_message(200, b'{"a": 1}', headers))
        await writer.drain()


async def test_calls_that_follow_each_other_share_a_connection_and_no_cookie() -> None:
    async with KeepingServer() as server:
        exchange = HttpExchange(config(server.url))
        for _ in range(3):
            await exchange.request_json("GET", server.url)
        assert server.connections == 1
        assert not any("cookie" in seen.headers for seen in server.seen)
        await exchange.aclose()


async def test_a_connection_that_the_server_dropped_meanwhile_breaks_no_call() -> None:
    async with KeepingServer(drops=True) as server:
        exchange = HttpExchange(config(server.url))
        for _ in range(3):
            await exchange.request_json("GET", server.url)
            await until(lambda: not server._handlers)  # the server has hung up
        assert server.connections == 3
        await exchange.aclose()


def test_one_exchange_serves_one_event_loop_after_the_other_and_leaks_no_socket() -> None:
    exchange = HttpExchange(LLMConfig(timeout=DEADLINE + MARGIN))

    async def ask() -> Any:
        async with KeepingServer() as server:
            return await exchange.request_json("GET", server.url)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):  # nobody calls aclose: the end of each loop does it
            assert asyncio.run(ask()) == {"a": 1}
            gc.collect()
        asyncio.run(exchange.aclose())


async def test_many_calls_at_once_are_all_answered() -> None:
    async with KeepingServer() as server:
        exchange = HttpExchange(config(server.url))
        answers = await asyncio.gather(*(exchange.request_json("GET", server.url) for _ in range(40)))
        assert answers == [{"a": 1}] * 40
        await exchange.aclose()


async def test_a_cancelled_call_lets_go_of_its_connection() -> None:
    async with ChaosServer() as server:
        exchange = HttpExchange(config(server.url))
        call = asyncio.create_task(exchange.request_json("GET", f"{server.url}/silent"))
        await until(lambda: bool(server.seen))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await exchange.aclose()


async def test_a_closed_exchange_refuses_and_may_be_closed_again() -> None:
    exchange = HttpExchange(config("http://127.0.0.1:9"))
    await exchange.aclose()
    await exchange.aclose()
    with pytest.raises(errors.CallCancelled):
        await exchange.request_json("GET", "http://127.0.0.1:9/")


async def test_a_proxy_of_the_environment_never_sees_what_this_machine_says_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ReplayServer() as proxy, KeepingServer() as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        exchange = HttpExchange(config(server.url))
        assert await exchange.request_json("GET", server.url) == {"a": 1}
        assert proxy.seen == []
        await exchange.aclose()


async def test_an_unusable_proxy_setting_is_named_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"gopher://user:{CANARY}@proxy.example")
    exchange = HttpExchange(config("https://box.example"))
    with pytest.raises(errors.ConfigurationError, match="HTTPS_PROXY") as caught:
        await exchange.request_json("GET", "https://box.example/")
    assert not shows_key(shown_with_traceback(caught.value))
    await exchange.aclose()


@pytest.mark.skipif(find_spec("socksio") is not None, reason="SOCKS proxies can be used here")
async def test_a_socks_proxy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"socks5://user:{CANARY}@proxy.example")
    exchange = HttpExchange(config("https://box.example"))
    with pytest.raises(errors.ConfigurationError, match="socks") as caught:
        await exchange.request_json("GET", "https://box.example/")
    assert not shows_key(shown_with_traceback(caught.value))
    await exchange.aclose()


async def test_importing_the_backends_loads_no_http_library() -> None:
    code = (
        "import sys, llm.backends.ollama, llm.backends.remote;"
        "print([m for m in ('httpx', 'httpcore', 'anyio', 'h11') if m in sys.modules])"
    )
    import sys

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert json.loads(out) == [], err


class ProxyServer(LoopbackServer):
    """Answers whatever it is asked to fetch, whole or as a stream, and tries to plant a cookie."""

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        headers = {"Connection": "keep-alive", "Set-Cookie": "track=1; Path=/"}
        if request.path.endswith("/stream"):
            writer.write(
                http_message(200, b'data: {"a": 1}\n\n', headers | {"Content-Type": "text/event-stream"})
            )
        else:
            writer.write(http_message(200, b'{"a": 1}', headers))
        await writer.drain()


async def test_what_is_said_to_others_goes_through_the_proxy_of_the_environment_and_keeps_no_cookie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ProxyServer(keep_alive=True) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        exchange = HttpExchange(config("http://box.example", api_key=None))
        for _ in range(2):
            assert await exchange.request_json("POST", "http://box.example/whole", body={}) == {"a": 1}
        assert [v async for v in exchange.stream("POST", "http://box.example/stream", body={})] == [{"a": 1}]
        paths = ["http://box.example/whole", "http://box.example/whole", "http://box.example/stream"]
        assert [seen.path for seen in proxy.seen] == paths
        assert proxy.connections == 1
        assert not any("cookie" in seen.headers for seen in proxy.seen)
        assert {seen.headers["user-agent"] for seen in proxy.seen} == {"askfirst"}
        await exchange.aclose()
