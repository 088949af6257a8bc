"""Webhooks, over real connections on loopback: who may, how often, and what is told to whom."""

from __future__ import annotations

import asyncio
import stat
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from daemon.errors import DaemonError
from daemon.observability.health import Health
from daemon.observability.metrics import Metrics
from daemon.triggers.tokens import HookTokens
from daemon.web import hooks as module
from daemon.web.app import build_app
from daemon.web.hooks import MOST_A_MINUTE, MOST_BYTES, Hooks
from daemon.web.ops import Operations
from daemon.web.server import WebServer

AGENT = "/hooks/garden"


class House:
    """What is behind the webhooks: the agents, and whether they can be run."""

    def __init__(self, folder: Path) -> None:
        self.tokens = HookTokens(folder)
        self.taken: list[str] = []
        self.reason = ""
        self.broken = False

    def hooked(self) -> frozenset[str]:
        return frozenset({"garden", "pantry", "new"})

    async def take(self, agent: str) -> str:
        if self.broken:
            raise DaemonError("the disk is full")
        if not self.reason:
            self.taken.append(agent)
        return self.reason


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
async def server(house: House) -> AsyncIterator[WebServer]:
    made = WebServer("127.0.0.1", 0)
    made.bind()
    hooks = Hooks(tokens=house.tokens, hooked=house.hooked, take=house.take)
    await made.start(build_app(Operations(metrics=Metrics(), health=Health()), hooks=hooks))
    yield made
    await made.aclose()


@pytest.fixture
async def client(server: WebServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_request_with_the_token_makes_its_agent_due(house: House, client: httpx.AsyncClient) -> None:
    token = await asyncio.to_thread(house.tokens.make, "garden")
    answer = await client.post(AGENT, headers=bearer(token), json={"anything": 1})
    assert (answer.status_code, answer.json()) == (202, {"agent": "garden", "taken": True})
    assert house.taken == ["garden"]
    assert (await client.post(AGENT, headers={"authorization": f"bearer  {token}"})).status_code == 202


async def test_without_the_right_token_the_answer_is_the_same_for_every_agent_and_none(
    house: House, client: httpx.AsyncClient
) -> None:
    token = await asyncio.to_thread(house.tokens.make, "garden")
    other = await asyncio.to_thread(house.tokens.make, "pantry")
    unhooked = await asyncio.to_thread(house.tokens.make, "unhooked")
    tries = [
        (AGENT, {}),
        (AGENT, {"Authorization": "Bearer"}),
        (AGENT, bearer(other)),
        (AGENT, bearer(token[:-1])),
        (AGENT, bearer(token + "x")),
        (AGENT, {"Authorization": token}),
        (AGENT, {"Authorization": f"Basic {token}"}),
        (f"{AGENT}?token={token}", {}),
        ("/hooks/new", bearer(token)),  # hooked, without a token file
        ("/hooks/new", {"Authorization": "Bearer"}),
        ("/hooks/unhooked", bearer(unhooked)),  # a token file, but no webhook = true
        ("/hooks/nobody", bearer(token)),
        ("/hooks/..", bearer(token)),
        ("/hooks/%2e%2e", bearer(token)),
        ("/hooks/.garden.new", bearer(token)),
    ]
    answers = [await client.post(path, headers=headers) for path, headers in tries]
    shown = {
        (each.status_code, each.text, each.headers["www-authenticate"])
        for (path, _), each in zip(tries, answers, strict=True)
        if path != "/hooks/.."  # the client itself makes that "/"
    }
    assert [status for status, _, _ in shown] == [401]
    assert house.taken == []
    assert "Bearer TOKEN" in answers[0].text


async def test_a_refusal_is_logged_once_until_a_request_is_taken_again(
    house: House, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    token = await asyncio.to_thread(house.tokens.make, "garden")
    for _ in range(3):
        await client.post(AGENT, headers=bearer("wrong"))
        await client.post("/hooks/nobody", headers=bearer("wrong"))
    assert len(caplog.records) == 1
    await client.post(AGENT, headers=bearer(token))
    await client.post(AGENT, headers=bearer("wrong"))
    assert len(caplog.records) == 2
    assert {getattr(record, "agent", None) for record in caplog.records} == {"garden"}
    assert "wrong" not in caplog.text


def test_asking_about_an_unknown_agent_takes_as_long_as_about_a_known_one(house: House) -> None:
    """Measured where the difference would be: the web server in front makes more noise than that."""
    for name in ("garden", *(f"agent-{number}" for number in range(20))):
        house.tokens.make(name)

    def seconds(agent: str) -> float:
        began = time.perf_counter()
        for _ in range(20):
            assert not house.tokens.fits(agent, "wrong")
        return time.perf_counter() - began

    rounds = [(seconds("garden"), seconds("nobody")) for _ in range(15)]
    known, unknown = (statistics.median(each) for each in zip(*rounds, strict=True))
    assert 0.5 < known / unknown < 2


async def test_a_new_token_counts_at_once_and_the_old_one_no_more(
    house: House, client: httpx.AsyncClient
) -> None:
    old = await asyncio.to_thread(house.tokens.make, "garden")
    new = await asyncio.to_thread(house.tokens.make, "garden")
    assert old != new
    assert (await client.post(AGENT, headers=bearer(old))).status_code == 401
    assert (await client.post(AGENT, headers=bearer(new))).status_code == 202
    await asyncio.to_thread(house.tokens.path("garden").unlink)
    assert (await client.post(AGENT, headers=bearer(new))).status_code == 401


async def test_only_post_is_allowed(client: httpx.AsyncClient) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = await client.request(method, AGENT)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST"), method


async def test_a_foreign_host_is_refused_before_anything_is_looked_at(
    house: House, client: httpx.AsyncClient
) -> None:
    token = await asyncio.to_thread(house.tokens.make, "garden")
    answer = await client.post(AGENT, headers={**bearer(token), "Host": "evil.example"})
    assert answer.status_code == 421
    assert house.taken == []


async def test_a_body_may_have_a_certain_length_however_it_is_sent(
    house: House, client: httpx.AsyncClient
) -> None:
    token = await asyncio.to_thread(house.tokens.make, "garden")

    async def parts(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 1024):
            yield b"x" * 1024
        yield b"x" * (size % 1024)

    for content in (b"x" * MOST_BYTES, parts(MOST_BYTES)):
        assert (await client.post(AGENT, headers=bearer(token), content=content)).status_code == 202
    for content in (b"x" * (MOST_BYTES + 1), parts(MOST_BYTES + 1)):
        answer = await client.post(AGENT, headers=bearer(token), content=content)
        assert answer.status_code == 413
        assert "65536 bytes" in answer.json()["error"]
    assert len(house.taken) == 2


async def test_a_body_is_not_read_for_somebody_without_a_token(client: httpx.AsyncClient) -> None:
    assert (await client.post(AGENT, content=b"x" * (MOST_BYTES + 1))).status_code == 401


async def test_a_body_that_does_not_come_is_not_waited_for(
    house: House, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY_LIMIT_S", 0.2)
    token = await asyncio.to_thread(house.tokens.make, "garden")
    head = f"POST {AGENT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    head += "Content-Length: 9\r\n\r\n"
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(head.encode())
    async with asyncio.timeout(30):
        assert b" 408 " in await reader.readline()
        await reader.read()  # and the connection is closed
    writer.close()
    _, gone = await asyncio.open_connection(*server.address)
    gone.write(head.encode())
    gone.close()  # in the middle of a request
    assert house.taken == []


async def test_so_many_requests_a_minute_are_taken_for_each_agent(
    house: House, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await asyncio.to_thread(house.tokens.make, "garden")
    other = await asyncio.to_thread(house.tokens.make, "pantry")
    for _ in range(MOST_A_MINUTE):
        assert (await client.post(AGENT, headers=bearer("wrong"))).status_code == 401  # does not count
        assert (await client.post(AGENT, headers=bearer(token))).status_code == 202
    late = await client.post(AGENT, headers=bearer(token))
    assert late.status_code == 429
    assert 1 <= int(late.headers["retry-after"]) <= 60
    assert (await client.post("/hooks/pantry", headers=bearer(other))).status_code == 202
    monkeypatch.setattr(module, "_MINUTE_S", 0.0)  # the minute is over
    assert (await client.post(AGENT, headers=bearer(token))).status_code == 202


async def test_why_an_agent_cannot_be_run_now_is_said_to_whoever_may_ask(
    house: House, client: httpx.AsyncClient
) -> None:
    token = await asyncio.to_thread(house.tokens.make, "garden")
    house.reason = "it is paused; resume it with: askfirst agents resume garden"
    answer = await client.post(AGENT, headers=bearer(token))
    assert answer.status_code == 503
    assert answer.json() == {"agent": "garden", "taken": False, "error": house.reason}
    house.broken = True
    answer = await client.post(AGENT, headers=bearer(token))
    assert (answer.status_code, answer.json()["error"]) == (503, "the disk is full")


# --- tokens ---


def test_a_token_is_long_random_and_only_its_owners(house: House, tmp_path: Path) -> None:
    tokens = {house.tokens.make("garden") for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token) == 43 and token.isascii() for token in tokens)
    path = house.tokens.path("garden")
    assert path == tmp_path / "hooks" / "garden"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["garden"]
    assert house.tokens.get("garden") in tokens


def test_an_empty_file_a_folder_and_a_half_written_file_are_no_tokens(house: House, tmp_path: Path) -> None:
    assert house.tokens.get("garden") is None
    house.tokens.make("real")
    (tmp_path / "hooks" / "garden").write_text("\n", encoding="utf-8")
    (tmp_path / "hooks" / "folder").mkdir()
    (tmp_path / "hooks" / ".draft.new").write_text("half", encoding="utf-8")
    (tmp_path / "hooks" / "binary").write_bytes(b"\xff\xfe")
    assert house.tokens.get("garden") is None
    for name, token in (("garden", ""), ("folder", ""), (".draft.new", "half"), ("draft", "half")):
        assert not house.tokens.fits(name, token), name
