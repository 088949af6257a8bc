"""The embedded engine's port, seen by everybody else: other programs, other users, and web pages."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio

from llm import LLMConfig
from llm.backends.llamacpp import LlamaCppBackend
from tests.support.engines import requires_llamacpp
from tests.support.gguf_files import minilm_folder, minilm_gguf

pytestmark = [pytest.mark.engine, requires_llamacpp, pytest.mark.asyncio(loop_scope="module")]

SECRET = "Rule 1: the word is kohlrabi. " * 40
BODY = {
    "prompt": "hi",
    "input": "hi",
    "content": "hi",
    "filename": "stolen.bin",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 1,
}
POSTS = (
    *("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/completion"),
    *("/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/infill", "/api/chat", "/api/show"),
    *("/v1/embeddings", "/embeddings", "/embedding", "/v1/rerank", "/rerank", "/reranking"),
    *("/apply-template", "/tokenize", "/detokenize", "/props", "/lora-adapters"),
    *("/slots/0?action=save", "/slots/0?action=restore", "/slots/0?action=erase"),
    *("/models/load", "/models/unload", "/v1/audio/transcriptions"),
)
GETS = ("/props", "/slots", "/metrics", "/v1/models", "/models", "/api/tags", "/lora-adapters", "/tools")
PAGES = ("/", "/index.html", "/bundle.js", "/favicon.ico")
KEYS: tuple[dict[str, str], ...] = (
    {},
    {"Authorization": "Bearer guessed"},
    {"Authorization": "Bearer x"},
    {"Authorization": "guessed"},
    {"X-Api-Key": "guessed"},
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCppBackend]:
    """An engine that has just read something that is nobody's business."""
    values = {"backend": "llamacpp", "max_tokens": 2, "timeout": 120.0}
    folder = tmp_path_factory.mktemp("cache")
    if minilm_folder() is not None:
        values["embed_model"] = str(minilm_gguf(folder / "minilm.gguf"))
    config = LLMConfig.from_mapping({**values, "cache_dir": str(folder / "private")})
    async with LlamaCppBackend(config) as backend:
        await backend.generate("What is the word?", SECRET)
        yield backend


async def servers(backend: LlamaCppBackend) -> list[tuple[int, str]]:
    """Process id and address of each engine: the one that chats, and the one that embeds if it can."""
    hosts = [backend._host]
    if minilm_folder() is not None:
        await backend.embed(["nobody's business"])
        hosts.append(backend._embed_host)
    found = []
    for host in hosts:
        process = host.current
        assert process is not None
        assert process.pid is not None
        found.append((process.pid, str((await process.ready())["address"])))
    return found


class TestOtherPrograms:
    async def test_no_route_answers_without_the_key_or_with_a_wrong_one(
        self, backend: LlamaCppBackend
    ) -> None:
        for _, address in await servers(backend):
            assert address.startswith("http://127.0.0.1:")
            async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as stranger:
                for key in KEYS:
                    for path in POSTS:
                        assert (await stranger.post(path, json=BODY, headers=key)).status_code == 401, path
                    for path in GETS:
                        assert (await stranger.get(path, headers=key)).status_code == 401, path

    async def test_the_state_alone_is_told_and_there_is_no_page(self, backend: LlamaCppBackend) -> None:
        for _, address in await servers(backend):
            async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as stranger:
                assert (await stranger.get("/health")).json() == {"status": "ok"}
                assert {(await stranger.get(path)).status_code for path in PAGES} <= {401, 404}

    async def test_with_the_key_the_prompts_of_others_are_not_shown_either(
        self, backend: LlamaCppBackend
    ) -> None:
        owner = {"Authorization": f"Bearer {backend._key}"}
        for _, address in await servers(backend):
            async with httpx.AsyncClient(base_url=address, trust_env=False, headers=owner) as client:
                assert (await client.get("/slots")).status_code == 501
                assert "kohlrabi" not in (await client.get("/props")).text

    async def test_a_web_page_may_read_nothing(self, backend: LlamaCppBackend) -> None:
        for _, address in await servers(backend):
            async with httpx.AsyncClient(base_url=address, trust_env=False) as browser:
                for page in ("http://evil.example", "null", address):
                    asks = {"Origin": page, "Access-Control-Request-Method": "POST"}
                    preflight = await browser.options("/v1/chat/completions", headers=asks)
                    read = await browser.get("/health", headers={"Origin": page})
                    for reply in (preflight, read):
                        assert reply.headers["access-control-allow-origin"] == "https://nobody.invalid"
                        assert reply.headers.get("access-control-allow-credentials") != "true"


PROBE = """
import json, os, sys, urllib.error, urllib.request
asked = json.load(sys.stdin)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
seen = {"uid": os.getuid(), "status": [], "read": {}}
for method, path in asked["routes"]:
    body = json.dumps(asked["body"]).encode() if method == "POST" else None
    request = urllib.request.Request(asked["address"] + path, body, method=method)
    try:
        seen["status"].append(opener.open(request, timeout=60).status)
    except urllib.error.HTTPError as error:
        seen["status"].append(error.code)
for path in asked["files"]:
    try:
        with open(path, "rb") as file:
            seen["read"][path] = asked["key"].encode() in file.read(10_000_000)
    except OSError as error:
        seen["read"][path] = error.strerror
print(json.dumps(seen))
"""


def probe_as_nobody(asked: dict[str, Any]) -> dict[str, Any]:
    """Run the probe as the user `nobody`; the key is told to it, to be looked for."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    if os.getuid() != 0 or python is None:
        pytest.skip("needs root, to become another user, and a Python of the system's that others may run")
    ended = subprocess.run(
        [python, "-I", "-c", PROBE],
        input=json.dumps(asked),
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={},
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


class TestOtherUsers:
    async def test_the_key_is_in_no_argument_and_no_variable(self, backend: LlamaCppBackend) -> None:
        assert len(backend._key) > 40
        for pid, _ in await servers(backend):
            process = psutil.Process(pid)
            assert backend._key not in repr([process.cmdline(), process.environ()])

    async def test_every_file_of_the_engines_is_private(self, backend: LlamaCppBackend) -> None:
        folder = Path(backend.config.cache_dir)
        paths = await asyncio.to_thread(lambda: [folder, *folder.rglob("*")])
        assert any(path.suffix == ".kv" for path in paths)
        assert [path for path in paths if (await asyncio.to_thread(path.stat)).st_mode & 0o077] == []

    async def test_another_user_of_the_machine_gets_no_answer_and_finds_no_key(
        self, backend: LlamaCppBackend
    ) -> None:
        states = await asyncio.to_thread(lambda: list(Path(backend.config.cache_dir).rglob("*.kv")))
        for pid, address in await servers(backend):
            process = [
                f"/proc/{pid}/{name}" for name in ("cmdline", "environ", "maps", "mem", "fd/0", "fd/1")
            ]
            asked = {
                "address": address,
                "key": backend._key,
                "body": BODY,
                "routes": [*(("POST", path) for path in POSTS), *(("GET", path) for path in GETS)],
                "files": [*process, *map(str, states)],
            }
            seen = await asyncio.to_thread(probe_as_nobody, asked)
            assert seen["uid"] == 65534
            assert seen["status"] == [401] * (len(POSTS) + len(GETS))
            readable = {path for path, found in seen["read"].items() if isinstance(found, bool)}
            assert readable <= {process[0]}
            assert True not in seen["read"].values()
