"""The endpoints, over real connections on loopback."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from daemon.errors import AddressInUse, DaemonError
from daemon.observability.health import Health, Ping
from daemon.observability.metrics import Metrics
from daemon.web.app import build_app
from daemon.web.ops import Operations
from daemon.web.server import MAX_CONNECTIONS, REQUEST_LIMIT_S, WebServer
from tests.support.prometheus import complaints, tool

PATHS = ("/", "/metrics", "/healthz", "/readyz")


class Part:
    """A resource that can be broken."""

    broken = False

    async def ping(self) -> str:
        if self.broken:
            raise OSError("disk is gone")
        return "answers"


@pytest.fixture
def part() -> Part:
    return Part()


@pytest.fixture
async def operations(part: Part) -> Operations:
    metrics = Metrics()
    metrics.set_version("1.2.3")
    return Operations(metrics=metrics, health=Health([Ping("database", part.ping)]), version="1.2.3")


@pytest.fixture
async def server(operations: Operations) -> AsyncIterator[WebServer]:
    made = WebServer("127.0.0.1", 0)
    made.bind()
    await made.start(build_app(operations, allowed_hosts=["pi.example.net"]))
    yield made
    await made.aclose()


@pytest.fixture
async def client(server: WebServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as made:
        yield made


async def test_the_process_lives(client: httpx.AsyncClient) -> None:
    response = await client.get("/healthz")
    assert response.status_code == 200
    body = response.json()
    assert (body["status"], body["version"]) == ("ok", "1.2.3")
    assert 0 <= body["uptime_seconds"] < 600


async def test_readiness_is_200_or_503_and_says_which_part_fails(
    client: httpx.AsyncClient, part: Part
) -> None:
    ready = await client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["checks"] == {"database": {"ok": True, "detail": "answers", "required": True}}
    part.broken = True
    unready = await client.get("/readyz")
    assert unready.status_code == 503
    assert unready.json()["status"] == "not ready"
    assert unready.json()["checks"]["database"]["detail"] == "disk is gone"
    sick = await client.get("/healthz")
    assert sick.status_code == 503
    assert (sick.json()["status"], sick.json()["failing"]) == ("failing", ["database"])


async def test_a_program_that_stops_is_healthy_and_not_ready(
    client: httpx.AsyncClient, operations: Operations
) -> None:
    operations.stopping = True
    assert (await client.get("/healthz")).status_code == 200
    unready = await client.get("/readyz")
    assert (unready.status_code, unready.json()["status"]) == (503, "stopping")


async def test_metrics_are_served_clean_and_in_the_format_that_is_asked_for(
    client: httpx.AsyncClient,
) -> None:
    plain = await client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "askfirst_build_info{python=" in plain.text
    openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert (await client.get("/metrics", headers=openmetrics)).text.endswith("# EOF\n")
    tool("promtool")
    assert complaints(plain.text) == ""


async def test_the_index_names_the_other_pages(client: httpx.AsyncClient) -> None:
    text = (await client.get("/")).text
    assert all(path in text for path in PATHS)


@pytest.mark.parametrize("path", PATHS)
async def test_head_answers_like_get_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    response = await client.head(path)
    assert response.status_code == 200
    assert response.content == b""


@pytest.mark.parametrize("path", PATHS)
async def test_nothing_but_get_and_head_is_allowed(client: httpx.AsyncClient, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        response = await client.request(method, path)
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", [*PATHS, "/nowhere", "/../etc/passwd"])
async def test_every_answer_carries_the_security_headers(client: httpx.AsyncClient, path: str) -> None:
    for host in ("localhost", "evil.example"):
        headers = (await client.get(path, headers={"Host": host})).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


OURS = [
    "localhost",
    "LOCALHOST.:8484",
    "127.0.0.1:1",
    "127.5.5.5",
    "[::1]",
    "[::1]:8484",
    "pi.example.net:8484",
]
NOT_OURS = [
    "evil.example",
    "evil.example:8484",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "192.168.1.7",
    "0.0.0.0",
    "[fe80::1]",
    "localhost:80:evil",
    "",
    "example.net",
]


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
async def test_a_foreign_host_name_is_refused_on_every_path(client: httpx.AsyncClient, path: str) -> None:
    for host in NOT_OURS:
        response = await client.get(path, headers={"Host": host})
        assert response.status_code == 421, host
        assert "web.allowed_hosts" in response.text
        assert "evil" not in response.text


async def test_loopback_and_allowed_names_are_answered(client: httpx.AsyncClient) -> None:
    for host in OURS:
        assert (await client.get("/healthz", headers={"Host": host})).status_code == 200, host


async def raw(server: WebServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(request)
    await writer.drain()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


async def test_a_request_without_a_host_or_with_two_is_refused(server: WebServer) -> None:
    without = await raw(server, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert b" 421 " in without.splitlines()[0]
    twice = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert b" 400 " in (await raw(server, twice)).splitlines()[0]


async def test_garbage_and_upgrades_do_not_harm(server: WebServer, client: httpx.AsyncClient) -> None:
    assert b" 400 " in (await raw(server, b"\x00\xff not http\r\n\r\n")).splitlines()[0]
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\n"
    upgrade += b"Upgrade: websocket\r\n\r\n"
    assert b" 200 " in (await raw(server, upgrade)).splitlines()[0]
    assert (await client.get("/healthz")).status_code == 200


async def test_a_client_that_says_nothing_or_drips_is_cut_off(server: WebServer) -> None:
    async def drip() -> float:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        while not reader.at_eof():
            writer.write(b"X-A: b\r\n")
            try:
                await asyncio.wait_for(reader.read(1), 0.2)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        writer.close()
        return time.monotonic() - began

    async def silent() -> float:
        began = time.monotonic()
        await raw(server, b"")
        return time.monotonic() - began

    async with asyncio.timeout(REQUEST_LIMIT_S + 20):
        waited = await asyncio.gather(drip(), silent())
    assert min(waited) > REQUEST_LIMIT_S - 1


async def test_a_crowd_of_idle_connections_is_told_to_come_back(server: WebServer) -> None:
    idle = [await asyncio.open_connection(*server.address) for _ in range(MAX_CONNECTIONS)]
    answer = await raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b" 503 " in answer.splitlines()[0]
    for _, writer in idle:
        writer.close()
    async with asyncio.timeout(30):
        while b" 503 " in answer.splitlines()[0]:
            answer = await raw(
                server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
    assert b" 200 " in answer.splitlines()[0]


def test_a_taken_port_is_named_with_the_setting_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressInUse) as caught:
            WebServer("127.0.0.1", port).bind()
    assert f"port {port}" in str(caught.value)
    assert "web.port" in str(caught.value)
    assert "ASKFIRST_WEB__PORT" in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_named_with_the_setting(host: str) -> None:
    with pytest.raises(DaemonError, match=r"web\.host") as caught:
        WebServer(host, 8484).bind()
    assert host in str(caught.value)
    assert not isinstance(caught.value, AddressInUse)


async def test_a_closed_server_frees_its_port_at_once(part: Part) -> None:
    operations = Operations(metrics=Metrics(), health=Health())
    first = WebServer("127.0.0.1", 0)
    await first.start(build_app(operations))
    host, port = first.address
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"{first.url}/healthz")  # leaves a connection that is kept alive
        await first.aclose()
    second = WebServer(host, port)
    second.bind()
    await second.aclose()


async def test_an_ipv6_address_is_written_as_browsers_want_it() -> None:
    server = WebServer("::1", 0)
    try:
        server.bind()
    except DaemonError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert server.url == f"http://[::1]:{server.address[1]}"
    await server.aclose()


async def test_an_idle_server_does_not_wake_up(server: WebServer) -> None:
    def switches() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw

    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        await client.get("/healthz", headers={"Connection": "close"})
    await asyncio.sleep(0.2)
    before = switches()
    await asyncio.sleep(2)
    assert switches() - before <= 8  # uvicorn's own loop wakes 20 times in 2 s


async def test_json_bodies_are_json(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        response = await client.get(path)
        assert response.headers["content-type"] == "application/json"
        assert isinstance(json.loads(response.text), dict)
