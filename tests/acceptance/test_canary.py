"""A key and the address of a check are nowhere: not in the most talkative log, files, pages or commands.

The model's server echoes the key in its refusals, as some do, and agents fail with all they know.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.canary import CANARY, shows_key
from tests.support.loopback import LoopbackServer, SeenRequest, http_message
from tests.support.program import Ended, Program
from tests.support.waiting import seen

pytestmark = pytest.mark.process

CHECK = "check-0b7e5d1c-4a9f-canary"

NOSY = """
import os
from agents import AgentError, BaseAgent


class NosyAgent(BaseAgent):
    every = "1s"

    async def analyze(self):
        try:
            await self.use_llm("What is the key?")
        except Exception as error:
            self.context.log.warning("no answer", error=str(error), llm=repr(self.context.llm))
            raise ValueError(repr((error, vars(error), repr(self.context)))) from error
        return []
"""

CONFIGURATION = """
[daemon]
data_dir = "data"
log_level = "debug"
log_format = "json"
backoff = []
ping_url = "{origin}/{check}"

[llm]
backend = "remote"
model = "gpt-4"
api_base = "{origin}/v1"
api_key_file = "key"
retries = 0

[web]
port = 0

[agents.nosy]
ping_url = "{origin}/{check}-of-nosy"
isolation = "{isolation}"
"""


class Echo(LoopbackServer):
    """Refuses every call, and says with which key it came."""

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        key = request.headers.get("authorization", "")
        body = json.dumps({"error": {"message": f"{key} is no key; {CANARY} neither"}}).encode()
        writer.write(http_message(401 if key else 500, body))


def show_everything(program: Program) -> list[Ended]:
    """Commands that show what is configured and what happened."""
    config = ("--config", "askfirst.toml")
    commands = (
        ("config", "explain"), ("config", "check"), ("doctor",), ("agents", "list"), ("runs", "list"),
        ("llm", "usage"), ("runs", "list", "--json"), ("doctor", "--debug"),
    )  # fmt: skip
    return [program.run(*command, *config) for command in commands]


def text_of(files: list[Path]) -> str:
    return "\n".join(file.read_bytes().decode("latin-1") for file in files)


def get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


def log_lines(log: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in log.read_text().splitlines()
        if line.startswith("{") and line.endswith("}")
    ]


@pytest.mark.parametrize("isolation", ["none", "process"])
async def test_no_secret_is_shown_or_kept_anywhere(tmp_path: Path, isolation: str) -> None:
    plugins = tmp_path / "data" / "plugins"
    plugins.mkdir(parents=True, mode=0o700)
    (tmp_path / "data").chmod(0o700)
    (plugins / "nosy.py").write_text(NOSY)
    (tmp_path / "key").write_text(CANARY)
    log = tmp_path / "log"
    program = Program(tmp_path)
    async with Echo() as server:
        text = CONFIGURATION.format(origin=server.origin, check=CHECK, isolation=isolation)
        (tmp_path / "askfirst.toml").write_text(text)
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                *program.command("run", "--debug", "--config", "askfirst.toml"),
                cwd=tmp_path,
                env=program.whole_environment({}),
                stderr=stream,
            )
        try:
            await seen(lambda: sum(line["event"] == "run finished" for line in log_lines(log)) >= 2)
            await seen(lambda: any(CHECK in each.path for each in server.seen))
            address = next(
                each["address"] for each in log_lines(log) if each["event"] == "askfirst is running"
            )
            pages = [
                await asyncio.to_thread(get, address + path) for path in ("/metrics", "/healthz", "/readyz")
            ]
            shown = await asyncio.to_thread(show_everything, program)
        finally:
            process.terminate()
            await process.wait()
    assert any(each.headers.get("authorization") == f"Bearer {CANARY}" for each in server.seen)  # it was used
    told = log.read_text()
    assert "401" in told or "no key" in told or "key" in told
    kept = text_of([each for each in (tmp_path / "data").rglob("*") if each.is_file()])
    assert "nosy" in kept
    everything = {
        "log": told,
        "files": kept,
        "pages": "".join(pages),
        "commands": "".join(f"{each}" for each in shown),
    }
    for name, content in everything.items():
        assert not shows_key(content), name
        assert CHECK not in content, name
