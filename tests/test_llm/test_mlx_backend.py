"""mlx-lm for real, with a tiny model of random weights made on the spot."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from llm import LLMConfig, LLMMessage, get_llm_client
from llm.backends import mlx_files
from llm.backends.mlx import MLXBackend
from llm.backends.mlx_files import is_local, unavailable_reason
from llm.engines import mlx_worker
from llm.errors import BadReply, BadRequest, ConfigurationError, ConnectionFailed, ModelNotFound, ServerError
from llm.structured import validate
from tests.support.engines import becomes_true, cpu_seconds, is_gone, requires_mlx
from tests.support.tiny_mlx import NO_SYSTEM, make_tiny_model

WORKER = Path(mlx_worker.__file__)
QUESTION = "Which vegetables grow here?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {"enum": ["email", "wait", "note", "notify"]},
        "priority": {"type": "integer", "minimum": 1, "maximum": 5},
        "reason": {"type": "string", "maxLength": 30},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
        "until": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 2359}, {"type": "null"}]},
    },
    "required": ["action", "priority", "reason", "tags"],
    "additionalProperties": False,
}
LONG = "tomato " * 900
"""About 1,800 tokens of the tiny tokenizer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's models and what mlx compiles are kept."""
    return tmp_path_factory.mktemp("mlx")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    """The tiny model."""
    return make_tiny_model(folder / "tiny")


def config(model: Path | str, folder: Path, **changes: Any) -> LLMConfig:
    """A configuration without a cache of answers, patient enough for a busy machine."""
    values = {"backend": "mlx", "model": str(model), "cache_dir": str(folder / "cache"), "timeout": 120.0}
    return LLMConfig(**{**values, "enable_cache": False, "max_tokens": 24, "seed": 1, **changes})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tiny: Path, folder: Path) -> AsyncIterator[MLXBackend]:
    """One engine for the tests that only ask it."""
    async with MLXBackend(config(tiny, folder, context_length=8192)) as backend:
        yield backend


async def pid_of(backend: MLXBackend) -> int:
    """Process id of the running engine, which is started if it does not run."""
    process = await backend._host.running()
    assert process.pid is not None
    return process.pid


async def computes(pid: int, seconds: float = 0.1) -> None:
    """Wait until the engine is at work on a call that was just made."""
    begun = cpu_seconds(pid)
    assert await asyncio.to_thread(becomes_true, lambda: cpu_seconds(pid) - begun >= seconds)


@pytest.mark.engine
@requires_mlx
@pytest.mark.asyncio(loop_scope="module")
class TestAnswering:
    async def test_a_prompt_is_answered_and_counted(self, backend: MLXBackend, tiny: Path) -> None:
        response = await backend.generate(QUESTION, "You answer briefly.")
        assert response.content
        assert response.model == str(tiny)
        assert response.backend == "mlx"
        assert response.prompt_tokens > 10
        assert 0 < response.completion_tokens <= 24
        assert response.latency > 0

    async def test_every_turn_of_a_conversation_reaches_the_model(self, backend: MLXBackend) -> None:
        turns = [LLMMessage("user", "One."), LLMMessage("assistant", "Two."), LLMMessage("user", QUESTION)]
        whole, last = await backend.chat(turns), await backend.chat(turns[-1:])
        assert whole.prompt_tokens > last.prompt_tokens > 0

    async def test_text_of_any_language_goes_in_and_clean_text_comes_out(self, backend: MLXBackend) -> None:
        for seed in range(5):  # random weights like to stop in the middle of a character
            response = await backend.generate(
                "¿Año nuevo? 東京 🍅 Grüße \\ \" '\n\t", seed=seed, temperature=2
            )
            assert response.content.encode("utf-8").decode("utf-8") == response.content
            assert "\0" not in response.content

    async def test_max_tokens_cuts_the_answer_and_says_so(self, backend: MLXBackend) -> None:
        response = await backend.generate(QUESTION, max_tokens=3)
        assert (response.finish_reason, response.completion_tokens) == ("length", 3)

    async def test_an_answer_that_ends_by_itself_says_so(self, backend: MLXBackend) -> None:
        response = await backend.generate(QUESTION, schema={"const": "yes"}, max_tokens=50)
        assert (response.content, response.finish_reason) == ('"yes"', "stop")

    async def test_temperature_zero_gives_the_same_text_twice_whatever_the_seed(
        self, backend: MLXBackend
    ) -> None:
        texts = {(await backend.generate(QUESTION, temperature=0, seed=seed)).content for seed in (1, 2)}
        assert len(texts) == 1

    async def test_a_seed_makes_a_warm_answer_repeatable_and_another_seed_another_one(
        self, backend: MLXBackend
    ) -> None:
        texts = [(await backend.generate(QUESTION, temperature=1, seed=seed)).content for seed in (-5, -5, 2)]
        assert texts[0] == texts[1] != texts[2]

    async def test_without_a_seed_answers_differ_also_after_a_seeded_one(
        self, tiny: Path, folder: Path
    ) -> None:
        async with MLXBackend(config(tiny, folder, seed=None, temperature=1.0)) as unseeded:
            texts = set()
            for _ in range(2):
                await unseeded.generate(QUESTION, seed=7)
                texts.add((await unseeded.generate(QUESTION)).content)
        assert len(texts) == 2

    async def test_a_small_top_p_leaves_only_the_likeliest_token(self, backend: MLXBackend) -> None:
        greedy = await backend.generate(QUESTION, temperature=0)
        narrow = await backend.generate(QUESTION, temperature=2, top_p=1e-6)
        assert greedy.content == narrow.content

    async def test_every_reply_to_a_schema_fits_it_with_random_weights_at_temperature_one(
        self, backend: MLXBackend
    ) -> None:
        replies = await asyncio.gather(
            *(
                backend.generate(QUESTION, schema=SCHEMA, temperature=1, top_p=1, seed=seed, max_tokens=400)
                for seed in range(20)
            )
        )
        assert [reply.finish_reason for reply in replies] == ["stop"] * 20
        assert [validate(SCHEMA, reply.content) for reply in replies] == [reply.json() for reply in replies]
        assert len({reply.content for reply in replies}) > 15

    async def test_a_schema_reply_that_is_cut_says_so(self, backend: MLXBackend) -> None:
        reply = await backend.generate(QUESTION, schema=SCHEMA, max_tokens=4)
        assert reply.finish_reason == "length"
        with pytest.raises(BadReply):
            validate(SCHEMA, reply.content)

    async def test_nested_and_referring_schemas_are_followed(self, backend: MLXBackend) -> None:
        item = {"type": "object", "properties": {"kg": {"enum": [1, 2, 5]}}, "required": ["kg"]}
        nested = {
            "$defs": {"item": {**item, "additionalProperties": False}},
            "type": "array",
            "items": {"$ref": "#/$defs/item"},
            "minItems": 1,
            "maxItems": 3,
            "uniqueItems": True,  # what a grammar cannot say is left to the check of the reply
        }
        reply = await backend.generate(QUESTION, schema=nested, temperature=0.2, max_tokens=400)
        assert 1 <= len(reply.json()) <= 3

    async def test_a_schema_that_leads_nowhere_is_refused(self, backend: MLXBackend) -> None:
        broken = {"type": "object", "properties": {"b": {"$ref": "#/nowhere"}}}
        with pytest.raises(BadRequest, match=r"schema cannot be followed.*nowhere"):
            await backend.generate(QUESTION, schema=broken)

    async def test_a_prompt_beyond_the_context_is_refused_with_the_way_out(self, backend: MLXBackend) -> None:
        with pytest.raises(BadRequest, match=r"and the context 8192; shorten .* LLM_CONTEXT_LENGTH"):
            await backend.generate(LONG * 8)

    async def test_a_reply_larger_than_the_cap_is_refused(self, tiny: Path, folder: Path) -> None:
        async with MLXBackend(config(tiny, folder, max_reply_bytes=1024)) as capped:
            with pytest.raises(BadReply, match="LLM_MAX_REPLY_BYTES"):
                await capped.generate(QUESTION, max_tokens=3000, temperature=0.1)

    async def test_several_calls_at_once_are_all_answered(self, backend: MLXBackend) -> None:
        answers = await asyncio.gather(*(backend.generate(f"{QUESTION} {n}") for n in range(4)))
        assert all(answer.completion_tokens > 0 for answer in answers)

    async def test_cancelling_in_the_prompt_and_in_the_answer_frees_the_engine(
        self, backend: MLXBackend
    ) -> None:
        pid = await pid_of(backend)
        for prompt in (LONG, QUESTION):
            long = asyncio.create_task(backend.generate(prompt, max_tokens=8000, temperature=0.1))
            await computes(pid)
            long.cancel()
            await asyncio.gather(long, return_exceptions=True)
            cut = time.monotonic()
            assert (await backend.generate(QUESTION, max_tokens=2)).completion_tokens == 2
            assert time.monotonic() - cut < 5

    async def test_a_call_that_was_cancelled_before_its_turn_is_not_begun(self, backend: MLXBackend) -> None:
        pid = await pid_of(backend)
        ahead = asyncio.create_task(backend.generate(QUESTION, max_tokens=1000, temperature=0.1))
        behind = asyncio.create_task(backend.generate(LONG, max_tokens=8000))
        await computes(pid)
        behind.cancel()
        ahead.cancel()
        await asyncio.gather(ahead, behind, return_exceptions=True)
        cut = time.monotonic()
        await backend.generate(QUESTION, max_tokens=2)
        assert time.monotonic() - cut < 5

    async def test_the_engine_leaves_the_limit_of_open_files_alone(self, backend: MLXBackend) -> None:
        process = psutil.Process(await pid_of(backend))
        assert process.rlimit(psutil.RLIMIT_NOFILE) == resource.getrlimit(resource.RLIMIT_NOFILE)

    async def test_a_running_engine_is_healthy(self, backend: MLXBackend) -> None:
        assert await backend.health_check() is True

    async def test_what_mlx_compiles_goes_to_a_private_folder(
        self, backend: MLXBackend, folder: Path
    ) -> None:
        await backend.generate(QUESTION)
        assert stat.S_IMODE((folder / "cache" / "mlx").stat().st_mode) == 0o700
        environ = psutil.Process(await pid_of(backend)).environ()
        assert not {"LLM_API_KEY", "HF_TOKEN"} & environ.keys()


@pytest.mark.engine
@requires_mlx
class TestModels:
    async def test_a_model_without_a_chat_template_gets_a_plain_transcript(self, folder: Path) -> None:
        model = make_tiny_model(folder / "untemplated", template=None)
        async with MLXBackend(config(model, folder)) as backend:
            response = await backend.generate(QUESTION, "Be brief.", max_tokens=2)
        assert response.completion_tokens == 2
        assert response.prompt_tokens > len(QUESTION) / 4

    async def test_a_template_without_a_system_turn_gets_it_in_the_first_question(self, folder: Path) -> None:
        model = make_tiny_model(folder / "no_system", template=NO_SYSTEM)
        async with MLXBackend(config(model, folder)) as backend:
            plain = await backend.generate(QUESTION, max_tokens=2)
            told = await backend.generate(QUESTION, "Be very brief.", max_tokens=2)
        assert told.prompt_tokens > plain.prompt_tokens

    async def test_a_model_with_sixteen_bit_weights_answers(self, folder: Path) -> None:
        model = make_tiny_model(folder / "float16", weights="float16")
        async with MLXBackend(config(model, folder)) as backend:
            assert (await backend.generate(QUESTION)).completion_tokens > 0

    async def test_a_folder_whose_weights_are_damaged_is_reported(self, tiny: Path, folder: Path) -> None:
        damaged = folder / "damaged"
        damaged.mkdir()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (damaged / name).symlink_to(tiny / name)
        (damaged / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:1000])
        async with MLXBackend(config(damaged, folder)) as backend:
            with pytest.raises(ModelNotFound, match=r"mlx-lm cannot load .*damaged .*hf download"):
                await backend.generate(QUESTION)

    async def test_a_model_of_the_hub_that_was_downloaded_before_is_used_offline(
        self, tiny: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        repo = tmp_path / "hub" / "models--someone--tiny"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        (repo / "snapshots").mkdir()
        (repo / "snapshots" / commit).symlink_to(tiny)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert unavailable_reason("someone/tiny") is None
        async with MLXBackend(config("someone/tiny", folder)) as backend:
            assert await backend.health_check() is True
            response = await backend.generate(QUESTION, max_tokens=2)
        assert (response.model, response.completion_tokens) == ("someone/tiny", 2)

    async def test_a_model_that_the_hub_cannot_give_is_not_found(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # a hub where nobody answers
        monkeypatch.delenv("HF_HUB_OFFLINE")
        assert unavailable_reason("someone/absent") is None  # it might be downloaded
        async with MLXBackend(config("someone/absent", folder)) as backend:
            assert await backend.health_check() is False
            with pytest.raises(ModelNotFound, match=r"cannot load someone/absent .*`hf download someone/"):
                await backend.generate(QUESTION)

    async def test_a_killed_engine_fails_the_call_under_way_and_the_next_call_gets_a_new_one(
        self, tiny: Path, folder: Path
    ) -> None:
        async with MLXBackend(config(tiny, folder)) as backend:
            killed = await pid_of(backend)
            call = asyncio.create_task(backend.generate("tell a story", max_tokens=3000, temperature=0.1))
            await computes(killed, 0.1)
            psutil.Process(killed).kill()
            with pytest.raises(ServerError, match="engine process was killed by SIGKILL; the next call"):
                await asyncio.wait_for(call, 20)
            assert (await backend.generate(QUESTION, max_tokens=2)).completion_tokens == 2
            assert await pid_of(backend) != killed

    async def test_closing_leaves_no_process(self, tiny: Path, folder: Path) -> None:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        backend = MLXBackend(config(tiny, folder))
        pid = await pid_of(backend)
        call = asyncio.create_task(backend.generate(QUESTION, max_tokens=8000, temperature=0.1))
        await computes(pid)
        await backend.aclose()
        await asyncio.gather(call, return_exceptions=True)
        assert is_gone(pid)
        assert {child.pid for child in psutil.Process().children(recursive=True)} == before

    def test_the_engine_ends_when_its_parent_is_killed(self, tiny: Path, folder: Path) -> None:
        program = [sys.executable, "-c", PARENT, str(tiny), str(folder / "cache")]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            begun = cpu_seconds(pid)
            assert becomes_true(lambda: cpu_seconds(pid) - begun > 0.1)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            assert becomes_true(lambda: is_gone(pid))

    async def test_the_factory_gives_it_and_its_answers_are_cached(self, tiny: Path, folder: Path) -> None:
        async with get_llm_client(config(tiny, folder, enable_cache=True)) as client:
            first = await client.generate(QUESTION)
            second = await client.generate(QUESTION)
        assert (first.cached, second.cached) == (False, True)
        assert first.content == second.content


PARENT = """
import asyncio, sys
from llm import LLMConfig, get_llm_client

async def main():
    client = get_llm_client(LLMConfig(
        backend="mlx", model=sys.argv[1], cache_dir=sys.argv[2], enable_cache=False, timeout=120
    ))
    print((await client._host.running()).pid, flush=True)
    while True:
        await client.generate("a long story", max_tokens=3000, temperature=0.1)

asyncio.run(main())
"""


class TestWithoutAnEngineOrModel:
    async def test_calls_say_how_to_install_it_and_the_health_check_is_false(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "mlx_lm", None)  # what the import system knows as "not there"
        assert "pip install 'askfirst[mlx]'" in (unavailable_reason("someone/tiny") or "")
        async with MLXBackend(config("someone/tiny", tmp_path)) as backend:
            assert await backend.health_check() is False
            with pytest.raises(ConnectionFailed, match=r"not installed; pip install 'askfirst\[mlx\]'"):
                await backend.generate(QUESTION)

    def test_an_engine_that_cannot_be_imported_is_reported_by_the_child(self, tmp_path: Path) -> None:
        settings = {"environ": {}, "scratch": str(tmp_path), "install": "pip install it"}
        ended = subprocess.run(
            [sys.executable, "-I", "-S", str(WORKER)],  # -S: without the installed packages
            input=json.dumps(settings) + "\n",
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = json.loads(ended.stdout)["error"]
        assert said["code"] == "connection"
        assert "pip install it" in said["message"]
        assert ended.returncode == 1

    @requires_mlx
    def test_a_folder_without_a_model_and_a_path_to_nothing_are_named(self, tmp_path: Path) -> None:
        assert "config.json and model*.safetensors" in (unavailable_reason(str(tmp_path)) or "")
        assert "there is no folder" in (unavailable_reason(str(tmp_path / "nothing")) or "")
        assert "there is no folder" in (unavailable_reason("~/nothing") or "")

    @requires_mlx
    def test_offline_a_model_that_is_not_here_is_a_reason_with_the_way_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "true")
        assert not is_local("someone/absent")
        reason = unavailable_reason("someone/absent") or ""
        assert "HF_HUB_OFFLINE" in reason
        assert "`hf download someone/absent`" in reason

    @requires_mlx
    async def test_a_folder_that_others_may_write_to_is_not_used_for_compiled_code(
        self, tiny: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "cache" / "mlx").mkdir(parents=True)
        (tmp_path / "cache" / "mlx").chmod(0o777)
        async with MLXBackend(config(tiny, tmp_path)) as backend:
            with pytest.raises(ConfigurationError, match="LLM_CACHE_DIR"):
                await backend.generate(QUESTION)

    def test_keys_and_proxies_travel_apart_from_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "token-of-the-hub")
        monkeypatch.setenv("https_proxy", "http://me:password@proxy:8080")
        assert mlx_files.private_environment()["HF_TOKEN"] == "token-of-the-hub"
        assert mlx_files.private_environment()["https_proxy"] == "http://me:password@proxy:8080"
